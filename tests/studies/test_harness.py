"""The harness of the studies: what is kept, what is made again, what is told, and a method of one's own."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from linop_gn_studies import Entry, Form, Picture, Results, Run, Study, Task, data, judged, report, training
from linop_gn_studies.data import Data
from linop_gn_studies.models import mlp, scaled_normal
from linop_gn_studies.store import Store

import linop_gn as lg
from linop_gn.app import study as app
from linop_gn.app.cli import main

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
