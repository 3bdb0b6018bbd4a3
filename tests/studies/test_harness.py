"""The harness of the studies: what is kept, what is made again, what is told, and a method of one's own."""

import gzip
import json
import struct
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from linop_gn_studies import Entry, Form, Picture, Results, Run, Study, Task, data, judged, pictures, report, training
from linop_gn_studies.data import Data
from linop_gn_studies.models import mlp, scaled_normal
from linop_gn_studies.plan import joined
from linop_gn_studies.store import Store
from rich.console import Console

import linop_gn as lg
from linop_gn.app import study as app
from linop_gn.app.cli import main
from linop_gn.app.files import UnusableFileError

svg = report.svg
made = []
"""The names of the runs that were made, one after the other."""


def descend(rate, steps, name, tell):
    """||x - 1||^2 by gradient descent, on NumPy."""
    made.append(name)
    bowl = lg.Objective.from_residuals(lambda p: p - 1.0, jacobian=lambda p: np.eye(2))
    method = lg.FirstOrder(lg.optimisers.SGD(), rate)
    values = lg.minimize(bowl, np.zeros(2), method, max_steps=steps).history["value"]
    tell(f"{steps} steps")
    curves = {"step": list(range(steps + 1)), "loss": [float(v) for v in values]}
    return {"curves": curves, "figures": {"loss": float(values[-1])}, "of": name}


def tiny(steps=4, fails=None):
    """A study of one case, and of each entry one run."""

    def plan(form, more=()):
        rates = {"slow": 0.1, "fast": 0.5, **{entry.name: entry.method().rate for entry in more}}
        return [
            Run("bowl", name, 0, work(name, rate), {"rate": rate, "steps": steps}, 2.0) for name, rate in rates.items()
        ]

    def work(name, rate):
        if name == fails:
            return interrupted
        return lambda tell: descend(rate, steps, name, tell)

    def claims(results):
        slow, fast = (results.mean("bowl", name, "loss") for name in ("slow", "fast"))
        known = not np.isnan(slow) and not np.isnan(fast)
        return [
            judged("fast is <faster>", "1 | 0", f"{fast:.2e} against {slow:.2e}", fast < slow if known else None),
            judged("slow is faster", "yes", "no", fast > slow if known else None, "it is not"),
        ]

    pictures = [Picture("Loss", "bowl", "loss", ("step",))]
    return Study("tiny", "A bowl", "Nobody (2026)", "Descent.", plan, claims, lambda results: pictures)


def interrupted(tell):
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def studies(monkeypatch):
    """The studies that are installed: a tiny one, which a test may put another in the place of."""
    made.clear()
    installed = {"tiny": tiny()}

    def found(group):
        assert group == app.GROUP
        return [SimpleNamespace(name=name, load=lambda name=name: installed[name]) for name in installed]

    monkeypatch.setattr(app, "entry_points", found)
    return installed


@pytest.fixture
def study(tmp_path, capsys, monkeypatch):
    """The command on a folder of its own: status and what it printed, in one line. Nothing is drawn."""
    monkeypatch.setattr(report, "svg", lambda results, picture: "")

    def run(*arguments):
        status = main(["study", *arguments, "--quick", "--backend", "numpy", "--out", str(tmp_path / "out")])
        told = capsys.readouterr()
        return status, " ".join((told.out + told.err).split())

    return run


def test_a_second_run_makes_nothing_and_other_settings_are_run_anew(study, studies, tmp_path):
    assert study("tiny")[0] == 0
    assert made == ["slow", "fast"]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out/tiny/quick-numpy").iterdir()}
    assert sorted(kept) == ["bowl--fast--0.json", "bowl--slow--0.json"]

    status, told = study("tiny")
    assert status == 0
    assert "0 runs made, 2 were there" in told
    assert made == ["slow", "fast"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/tiny/quick-numpy").iterdir()} == kept

    studies["tiny"] = tiny(steps=5)
    assert "2 runs made, 0 were there" in study("tiny")[1]
    assert len(made) == 4


def test_the_quick_form_runs_on_one_thread(study, studies):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    seen = []

    def threads(tell=None):
        seen.append({pool["num_threads"] for pool in threadpoolctl.threadpool_info()})
        return {"curves": {"step": [0]}, "figures": {}}

    studies["tiny"] = replace(tiny(), plan=lambda form, more=(): [Run("bowl", "slow", 0, threads, {}, 1.0)])
    with threadpoolctl.threadpool_limits(2):
        assert study("tiny")[0] == 0
        threads()
    assert seen == [{1}, {2}]


def test_what_is_kept_tells_how_it_was_made(study, tmp_path):
    study("tiny", "--only", "*fast*")
    assert made == ["fast"]
    found = json.loads((tmp_path / "out/tiny/quick-numpy/bowl--fast--0.json").read_bytes())
    assert (found["case"], found["entry"], found["seed"], found["form"]) == ("bowl", "fast", 0, "quick")
    assert found["versions"]["numpy"] == np.__version__
    assert found["backend"] == "numpy"
    assert json.loads(found["key"]) == {"rate": 0.5, "steps": 4}
    assert found["curves"]["loss"] == pytest.approx([4.0**-k for k in range(5)])
    assert {"date", "device", "machine", "took"} <= found.keys()


def test_an_interrupted_run_keeps_what_was_finished(study, studies):
    studies["tiny"] = tiny(fails="fast")
    status, told = study("tiny")
    assert (status, made) == (130, ["slow"])
    assert "interrupted" in told

    studies["tiny"] = tiny()
    assert "1 runs made, 1 were there" in study("tiny")[1]
    assert made == ["slow", "fast"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"case": "bowl"}'])
def test_a_file_that_is_no_result_is_named_with_what_to_do(study, tmp_path, content):
    study("tiny")
    path = tmp_path / "out/tiny/quick-numpy/bowl--fast--0.json"
    path.write_text(content)
    status, told = study("tiny")
    assert status == 2
    assert str(path) in told.replace(" ", "")
    assert "move it away, and run the study again" in told
    path.unlink()
    assert "1 runs made, 1 were there" in study("tiny")[1]


def test_list_names_the_studies_and_an_unknown_one_is_answered_with_them(study):
    status, told = study("list")
    assert status == 0
    assert "tiny A bowl Nobody (2026)" in told
    status, told = study("huge")
    assert status == 2
    assert "there is no study called 'huge'; there are: tiny" in told


def test_a_dry_run_tells_what_is_missing_and_makes_nothing(study, tmp_path):
    assert (
        "2 of 2 runs, about 0 minutes bowl--slow--0 about 2 s bowl--fast--0 about 2 s" in study("tiny", "--dry-run")[1]
    )
    study("tiny", "--only", "*slow*")
    assert "1 of 2 runs" in study("tiny", "--dry-run")[1]
    assert made == ["slow"]


def test_the_page_needs_no_other_file_and_has_the_verdicts(study, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "svg", svg)
    told = study("tiny")[1]
    page = (tmp_path / "out/tiny-quick-numpy.html").read_text()
    assert "fast is &lt;faster&gt;" in page
    assert ">held</b>" in page
    assert ">not held</b>" in page
    assert "it is not" in page
    assert "numpy on" in page
    assert page.count("<svg") == 1
    assert not {"<script", "<link", "<img"} & {page[i : i + 7] for i in range(len(page))}
    assert "fast is <faster>" in told
    assert "not held" in told


def test_a_report_makes_no_runs(study, tmp_path):
    status, told = study("tiny", "--report")
    assert (status, (tmp_path / "out").exists()) == (1, False)
    assert "tiny: no results in" in told
    study("tiny", "--only", "*slow*")
    made.clear()
    assert study("tiny", "--report")[0] == 0
    assert made == []
    assert (tmp_path / "out/tiny-quick-numpy.html").read_text().count(">not run</b>") == 2


def test_all_takes_every_study(study, studies, tmp_path):
    studies["tinier"] = replace(tiny(), name="tinier")
    study("all")
    assert made == ["slow", "fast"] * 2
    assert (tmp_path / "out/all-quick-numpy.html").read_text().count("<h2>") == 2


def test_markdown_goes_between_the_marks_of_a_page(study, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{app.BEGIN}\nold\n{app.END}\nafter\n")
    study("tiny", "--update", str(page))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "2 claims: 1 held, 1 not held." in text
    assert r"| fast is <faster> | 1 \| 0 | 3.91e-03 against 4.30e-01 | **held** |" in text
    assert "| slow is faster | yes | no | **not held**: it is not |" in text
    page.write_text("no marks")
    status, told = study("tiny", "--update", str(page))
    assert status == 2
    assert "put <!-- studies: begin -->" in told


MINE = """
import linop_gn as lg
from linop_gn_studies import Entry

entry = Entry("mine", lambda: lg.FirstOrder(lg.optimisers.SGD(), 0.9))
"""


def test_a_method_of_ones_own_joins_a_study(study, tmp_path, monkeypatch):
    assert len(MINE.splitlines()) <= 10
    (tmp_path / "my_own_method.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert study("tiny", "--method", "my_own_method:entry")[0] == 0
    assert made == ["slow", "fast", "mine"]
    assert "mine" in (tmp_path / "out/tiny-quick-numpy.html").read_text()
    for given, told in {
        "my_own_method": "write MODULE:NAME",
        "nowhere:entry": "nowhere",
        "json:entry": "entry",
    }.items():
        status, words = study("tiny", "--method", given)
        assert status == 2
        assert told in words


def test_a_folder_of_data_that_is_not_there_is_named(study):
    status, told = study("tiny", "--data", "nowhere")
    assert status == 2
    assert "--data nowhere: there is no such folder" in told


def test_what_is_not_installed_is_told_with_how_to_get_it(study, studies, monkeypatch):
    def plan(form, more=()):
        return data.digits()

    studies["tiny"] = replace(tiny(), plan=plan)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    status, told = study("tiny")
    assert status == 1
    assert (
        "this study's data come with sklearn, which is not installed. Get it by: pip install 'linop-gn[studies]'"
        in told
    )


def test_results_are_kept_apart_by_form_and_backend(tmp_path):
    runs = tiny().plan(Form())
    one, other = (Store(tmp_path, "tiny", Form("quick", backend)) for backend in ("jax", "numpy"))
    other.keep(runs[0], {"curves": {}, "figures": {"loss": 1.0}}, 0.5)
    assert other.has(runs[0])
    assert not one.has(runs[0])
    assert len(other.results()) == 1


def test_a_rate_that_was_chosen_on_jax_is_taken_on_another_backend(tmp_path):
    sweep = Run("bowl", "SGD rate=1", 0, dict)
    last = Run("bowl", "SGD", 0, dict, after=[sweep])
    stores = {name: Store(tmp_path, "tiny", Form("cpu", name)) for name in ("jax", "numpy")}
    assert stores["numpy"].before(last) is None
    assert len(stores["numpy"].before(sweep)) == 0
    stores["jax"].keep(sweep, {"figures": {"train_loss": 1.0}}, 1.0)
    assert [r["entry"] for r in stores["numpy"].before(last)] == ["SGD rate=1"]
    stores["numpy"].keep(sweep, {"figures": {"train_loss": 2.0}}, 1.0)  # its own, once it is made
    assert stores["numpy"].before(last).figure("bowl", "SGD rate=1", "train_loss") == [2.0]


def test_runs_on_another_backend_stand_beside(tmp_path):
    def kept(backend, loss):
        run = Run("bowl", "SGD | fast", 0, dict, settings={"steps": 2})
        found = {"figures": {"train_loss": loss, "step": 2, "seconds": 0.1}}
        Store(tmp_path, "tiny", Form("cpu", backend)).keep(run, found, 1.0)
        return Store(tmp_path, "tiny", Form("cpu", backend)).results()

    ours, theirs = kept("jax", 0.5), kept("numpy", 0.25)
    told = report.markdown([(tiny(), ours)], {"tiny": {"numpy": theirs, "torch": Results([])}})
    assert "| bowl: SGD \\| fast | 0.5 | 0.25 | 50 | 50 |" in told
    assert "on torch" not in told


def test_a_run_that_diverged_counts_as_infinite():
    rows = [{"case": "a", "entry": "SGD", "seed": s, "figures": {"loss": v}} for s, v in enumerate((1.0, None))]
    results = Results([*rows, {"case": "a", "entry": "SGD 2", "of": "SGD", "seed": 0, "figures": {"loss": 9.0}}])
    assert results.mean("a", "SGD 2", "loss") == 9.0
    assert results.best("a", "SGD", "loss") == "SGD 2"
    assert np.isnan(results.mean("b", "SGD", "loss"))


def test_reports_of_nothing_are_whole(monkeypatch):
    monkeypatch.setattr(report, "svg", lambda results, picture: "")
    assert "not run" in report.html([(tiny(), Results([]))])
    assert "2 claims: 2 not run." in report.markdown([(tiny(), Results([]))])


def regression(rows=30, **parts):
    """A network with two inputs on a line with a bend."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 2))
    y = np.tanh(x @ np.ones((2, 1)))
    data = Data((x[:24], y[:24]), (x[24:], y[24:]), "drawn")
    settings = {"batch": 10, "accuracy": False, **parts}
    return Task(mlp("tanh"), lg.losses.SquaredError(), scaled_normal((2, 3, 1), 0), data, **settings)


def told_nothing(words):
    pass


def trained(task, method, **parts):
    pytest.importorskip("torch")
    given = {"seed": 0, "steps": 6, "every": 3, "tell": told_nothing, **parts}
    return training.train(task, method, "torch", **given)


def test_training_measures_all_data_every_so_many_steps():
    found = trained(regression(), lg.FirstOrder(lg.optimisers.SGD(), 0.1), before=True)
    curves = found["curves"]
    assert curves["step"] == [0, 3, 6]
    assert curves["epoch"] == [0, 1, 2]
    assert curves["train_loss"][-1] < curves["train_loss"][0]
    assert curves["seconds"] == sorted(curves["seconds"])
    assert len(found["figures"]["batch_losses"]) == 6
    assert found["data"] == {"source": "drawn", "train": 24, "held out": 6}
    again = trained(regression(), lg.FirstOrder(lg.optimisers.SGD(), 0.1), before=True)
    assert again["curves"]["train_loss"] == curves["train_loss"]


def test_the_prior_is_trained_with_and_not_measured():
    one, other = (trained(regression(l2=l2), lg.FirstOrder(lg.optimisers.SGD(), 0.1)) for l2 in (None, 5.0))
    assert one["curves"]["train_loss"][0] == other["curves"]["train_loss"][0]
    assert one["curves"]["train_loss"][1] != other["curves"]["train_loss"][1]


def test_curvature_is_of_each_part_of_all_data_in_turn():
    seen = []

    def watched(point):
        seen.append(np.sort(point.objective.batches[0].inputs.numpy(), axis=0))
        return lg.GGN(point)

    method = lg.SecondOrder(curvature=watched, stopping=None)
    task = regression(batch=None, chunks=4, errors=lambda z, y: {"worst": np.abs(z - y).max()})
    found = trained(task, method, steps=5, every=1)
    assert {len(part) for part in seen} == {6}
    run = seen[-5:]
    assert np.array_equal(run[0], run[4])
    assert np.array_equal(np.sort(np.concatenate(run[:4]), axis=0), np.sort(task.data.train[0], axis=0))
    assert found["curves"]["epoch"] == [0, 1, 2, 3, 4, 5]
    assert found["figures"]["train_worst"] < found["curves"]["train_worst"][0]
    assert "held_out_worst" in found["figures"]


def test_an_entry_is_run_at_each_value_that_is_swept():
    entry = Entry("SGD", lambda rate, momentum: (rate, momentum), {"momentum": 0.9}, {"rate": (0.1, 0.01)})
    assert list(entry.made()) == [
        ("SGD rate=0.1", {"momentum": 0.9, "rate": 0.1}, (0.1, 0.9)),
        ("SGD rate=0.01", {"momentum": 0.9, "rate": 0.01}, (0.01, 0.9)),
    ]


def test_a_run_that_fails_is_told_and_the_others_go_on(study, studies, tmp_path):
    def plan(form, more=()):
        runs = tiny().plan(form)
        broken = replace(runs[0], entry="[/broken]", work=lambda tell: 1 / 0)
        behind = replace(runs[0], entry="behind", work=lambda tell, results: {}, after=[broken])
        return [broken, behind, *runs]

    studies["tiny"] = replace(tiny(), plan=plan)
    status, told = study("tiny")
    assert (status, made) == (1, ["slow", "fast"])
    assert "bowl--broken--0 failed in" in told
    assert "ZeroDivisionError: division by zero" in told
    assert "it comes after bowl--broken--0" in told
    assert "2 runs made, 0 were there, 2 failed" in told
    assert not list((tmp_path / "out/tiny/quick-numpy").glob("*b*e*hind*"))


def test_what_was_not_finite_is_kept_as_none(tmp_path):
    run, store = tiny().plan(Form())[0], Store(tmp_path, "tiny", Form("quick", "numpy"))
    store.keep(run, {"figures": {"loss": np.float32("nan"), "each": np.array([1.0, np.inf])}}, 0.5)
    assert store.results().all[0]["figures"] == {"loss": None, "each": [1.0, None]}
    assert store.results().mean("bowl", "slow", "loss") == np.inf


def test_a_run_that_broke_off_has_no_last_loss():
    row = {"case": "a", "seed": 0, "figures": {"train_loss": 0.1, "held_out_accuracy": 0.9, "step": 3}}
    row["curves"] = {"step": [0, 3], "train_loss": [1.0, 0.1], "held_out_accuracy": [0.1, 0.9]}
    rows = [{**row, "entry": f"SGD rate={i}", "of": "SGD", "status": s} for i, s in enumerate(("NONFINITE", "RUNNING"))]
    rows[1] = {**rows[1], "figures": {"train_loss": 0.2, "held_out_accuracy": 0.8, "step": 3}}
    results = Results(rows)
    assert results.mean("a", "SGD rate=0", "train_loss") == np.inf
    assert results.mean("a", "SGD rate=0", "step") == 3
    assert results.best("a", "SGD", "train_loss") == "SGD rate=1"
    assert results.best("a", "SGD", "held_out_accuracy", largest=True) == "SGD rate=1"
    assert results.of("a", "SGD rate=0")[0]["curves"]["train_loss"] == [1.0, None]
    assert rows[0]["curves"]["train_loss"] == [1.0, 0.1]


def test_the_edge_of_a_grid_is_told():
    rows = [{"case": "a", "entry": f"SGD rate={r}", "of": "SGD", "seed": 0} for r in (0.1, 1, 10)]
    results = Results([*rows, {"case": "a", "entry": "SGD", "of": "SGD", "seed": 0}])
    assert results.edge("a", "SGD", "SGD rate=10") == "SGD rate=10 is at the edge of what was tried"
    assert results.edge("a", "SGD", "SGD rate=1") == results.edge("a", "SGD", "SGD") == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "fast"], "--only fast: no run has such a name. A pattern is of whole names"),
        (["--backend", "abacus"], "no backend called 'abacus' is installed; there are:"),
        (["--data", "."], "--data .: it has no data that a study knows"),
        (["--update", "nowhere.md"], "nowhere.md"),
        (["--method", "mine:number"], "an Entry of linop_gn_studies is wanted, number is int"),
        (["--method", "mine:broken"], "--method mine:broken: ZeroDivisionError"),
        (["--method", "mine:other"], "other makes int, an lg.Method is wanted"),
        (["--method", "mine:twice", "--method", "mine:again"], "two runs would be kept as bowl--mine--0.json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_run(tmp_path, capsys, monkeypatch, arguments, told):
    (tmp_path / "mine.py").write_text(
        f"{MINE}\nnumber, broken, other = 1, Entry('broken', lambda: 1 / 0), Entry('other', lambda: 1)\n"
        "twice, again = (Entry(name, entry.method) for name in ('mine', 'Mine'))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    given = ["study", "tiny", "--quick", *([] if "--backend" in arguments else ["--backend", "numpy"])]
    assert main([*given, *arguments]) == 2
    printed = capsys.readouterr()
    assert told in " ".join(printed.err.split())
    assert made == []


def test_a_name_that_is_taken_is_refused():
    own, same = Entry("SGD", lambda: None), Entry("SGD", lambda: None)
    with pytest.raises(UnusableFileError, match="there is an entry called 'SGD' already"):
        joined([own], [same])
    with pytest.raises(ValueError, match="sweep is one name with its values"):
        Entry("SGD", lambda a, b: None, sweep={"a": (1,), "b": (2,)})
    for sweep in ({"a": ()}, {"a": 0.1}, {"a": "ab"}, {"a": ("b",)}, {"a": (None, True)}, {"a": (0.1, 0.1)}):
        with pytest.raises(ValueError, match="numbers that differ"):
            Entry("SGD", lambda a: None, sweep=sweep)
    with pytest.raises(TypeError, match="method is a function that makes one"):
        Entry("SGD", lg.SGN())
    for most in ({"steps": 0}, {"seeds": 0}, {"steps": -3}, {"seeds": 1.5}):
        with pytest.raises(ValueError, match="is a whole number, 1 or more"):
            Entry("SGD", lambda: None, **most)
    swept = Entry("SGD", lambda a: None, sweep={"a": (1e-20, 1e20, 0.10000001, 0.10000002)})
    assert len({Run("case", name, 0, dict).name for name, _, _ in swept.made()}) == 4
    swept = Entry("SGD", lambda a: None, sweep={"a": np.array([0.10000001, 0.10000002, 1.0])})
    assert [name for name, _, _ in swept.made()] == ["SGD a=0.10000001", "SGD a=0.10000002", "SGD a=1"]
    assert len({Run("case", name, 0, dict).name for name in ("µ", "λ", "größe")}) == 3


def test_a_study_that_cannot_be_loaded_is_named(study, studies, monkeypatch):
    def load():
        raise SyntaxError("bad")

    broken = SimpleNamespace(name="mine", value="mine:study", load=load)
    monkeypatch.setattr(app, "entry_points", lambda group: [broken])
    told = "the study mine cannot be loaded from mine:study: SyntaxError: bad"
    assert study("mine") == (2, f"linop-gn study: {told}")
    monkeypatch.setenv("COLUMNS", "200")
    status, listed = study("list")
    assert status == 0
    assert told in listed


def test_results_of_other_settings_are_left_out_of_the_page(study, studies):
    study("tiny")
    studies["tiny"] = tiny(steps=5)
    told = study("tiny", "--only", "*fast*")[1]
    assert "1 stored results are of other settings or data, and are left out" in told
    assert "not run" in told
    assert "left out" not in study("tiny")[1]


def test_mixed_data_and_seeds_are_told():
    def result(entry, seed, source):
        told = {"source": source, "train": 9}
        made = {"case": "a", "entry": entry, "seed": seed, "curves": {"loss": [1.0]}, "figures": {}, "data": told}
        return {**made, "versions": {}, "form": "cpu", "backend": "numpy", "device": "", "machine": "", "date": ""}

    found = [result("SGD", 0, "one"), result("SGD", 1, "one"), result("GN", 0, "other")]
    assert report.origins(Results(found))[-1] == (
        "a: 1 seed of GN; 2 seeds of SGD; not all on the same data, so that they do not compare: one (9 to train on); "
        "other (9 to train on)."
    )
    assert report.origins(Results(found[:2]))[-1] == "a: 2 seeds."


def test_names_that_look_like_markup_are_printed(capsys):
    odd = replace(tiny(), claims=lambda results: [judged("[/red]", "[b]", "[/x]", True, "[/why]")])
    Console(width=200).print(report.table(odd, Results([])))
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("[/red]", "[b]", "[/x]", "[/why]"))


def test_curves_end_where_a_seed_is_not_finite(monkeypatch):
    pytest.importorskip("matplotlib")
    drawn, lines = [], []
    monkeypatch.setattr(pictures, "_draw", lambda axes, runs, name, look, whole: drawn.append(whole))
    runs = [{"case": "a", "entry": "e", "seed": 0, "figures": {}, "curves": {"step": [0, 1], "loss": [4.0, None]}}]
    svg(Results(runs), Picture("t", "a", "loss", ("step",)))
    assert drawn == [True]
    monkeypatch.undo()
    for whole in (True, False):
        bare = SimpleNamespace(
            plot=lambda x, y, **look: lines.append((list(x), list(y))), fill_between=lambda *a, **k: None
        )
        pictures._draw(bare, [([0, 1, 2], [4.0, None, 2.0]), ([0, 1, 2], [2.0, 1.0, None])], "e", {"color": ""}, whole)
    assert lines == [([0], [3.0]), ([0, 1, 2], [3.0, 1.0, 2.0])]


def idx_file(path, shape, content):
    path.write_bytes(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(content))


def test_files_of_images_are_whole_and_of_one_shape(tmp_path):
    def refused(*words):
        with pytest.raises(UnusableFileError) as raised:
            data.mnist(tmp_path)
        assert all(word in str(raised.value) for word in words), raised.value

    idx_file(tmp_path / "train-images-idx3-ubyte", (3, 28, 28), 3 * 784 * [1])
    refused("images and labels are needed")
    idx_file(tmp_path / "train-labels-idx1-ubyte", (3,), [1, 2, 3])
    refused("none to be held out")
    idx_file(tmp_path / "t10k-images.idx3-ubyte", (3, 28, 28), 3 * 784 * [1])
    labels = tmp_path / "t10k-labels.idx1-ubyte"
    for shape, content in (((3,), [1, 2, 12]), ((2,), [1, 2])):
        idx_file(labels, shape, content)
        refused("28 x 28", "labels 0..9")
    idx_file(labels, (3,), [1, 2])
    refused("no whole IDX file")
    for raw in (b"", b"\x1f\x8bxx", gzip.compress(bytes(300))[:-9], b"\0\0\x05\1\0\0\0\1"):
        labels.write_bytes(raw)
        refused("no whole IDX file")
    idx_file(labels, (3,), [1, 2, 3])
    assert data.mnist(tmp_path).source == "MNIST, 3 and 3 images"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "a,median_house_value\n1\n", "\xff"])
def test_a_table_without_its_columns_is_named(tmp_path, text):
    path = tmp_path / "california_housing.csv"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(UnusableFileError, match=r"california_housing\.csv is no table"):
        data.california(tmp_path)
    path.write_text("a,median_house_value\n" + "1,2\n" * 30 + "1,\n")
    with pytest.raises(UnusableFileError, match="missing or infinite"):
        data.california(tmp_path)
    path.write_text("a,median_house_value\n" + "1,2\n" * 30)
    made = data.california(tmp_path)
    assert made.source.startswith("California housing (30 x 1), 0 missing")
    assert np.isfinite(made.train[0]).all()
