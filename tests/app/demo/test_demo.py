"""The demo, run as a user runs it but for fewer steps, and the parts of it that could quietly lie."""

import json
import re
import socket
from importlib.util import find_spec

import numpy as np
import pytest
from rich.console import Console

import linop_gn as lg
from linop_gn.app.cli import main
from linop_gn.app.demo import problem as problems
from linop_gn.app.demo import processes
from linop_gn.app.demo.fits import FITS, fit
from linop_gn.app.demo.participants import find, precision
from linop_gn.app.demo.race import Entry, first_order, levenberg_marquardt, passes_of, plans
from linop_gn.app.demo.report import findings, won
from linop_gn.app.demo.runs import Plan, Run, orders
from linop_gn.app.demo.study import Outcome, pieces, study

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

NAMES = ["numpy", *(name for name, needs in {"torch": "torch", "jax": "optax"}.items() if find_spec(needs))]


@pytest.fixture(scope="module")
def problem():
    return problems.load(quick=True)


@pytest.fixture
def participant(request):
    found, _ = find([request.param])
    with precision(found[request.param]):
        yield found[request.param]


def ignore(sentence):
    pass


def test_quick_demo_prints_tables_and_writes_a_report_that_needs_no_other_file(tmp_path, capsys):
    names = [name for name in NAMES if name != "jax"]  # whose programs take long to compile, and whose part is below
    backends = [part for name in names for part in ("--backend", name)]
    assert main(["demo", "--quick", "--out", str(tmp_path / "out"), *backends]) == 0
    printed = capsys.readouterr().out
    for words in ("Validation", "Training", "LM-GN-CG", "Fits in which", "Done in", "done"):
        assert words in printed
    assert ("Agreement between backends" in printed) == (len(names) > 1)
    assert (tmp_path / "out" / "training.png").read_bytes().startswith(b"\x89PNG")
    html = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?://", html)
    assert set(re.findall(r'(?:src|srcset|href)="(\w+:\w+/\w+)', html)) == {"data:image/png"}
    assert all(name in html for name in names)
    assert "FAILED" not in html
    assert f"{2 if names == ['numpy'] else 5} of" in html
    for words in ["operators passed every check", *["Training loss reached on torch"] * (len(names) > 1)]:
        assert words in html


def test_a_missing_library_is_said_with_the_command_that_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    assert main(["demo", "--quick"]) == 2
    assert "pip install 'linop-gn[studies]'" in capsys.readouterr().out


def test_an_unknown_backend_is_said(capsys):
    assert main(["demo", "--quick", "--backend", "nonsense"]) == 2
    assert "no participant called nonsense" in capsys.readouterr().out


@pytest.mark.parametrize("participant", NAMES, indirect=True)
def test_weights_come_back_from_the_backend_as_they_went_in(participant, problem):
    back = participant.weights(participant.params(problem.start))
    assert {name: set(layer) for name, layer in back.items()} == {n: set(v) for n, v in problem.start.items()}
    for name, layer in problem.start.items():
        for leaf, value in layer.items():
            np.testing.assert_array_equal(back[name][leaf], value)


@pytest.mark.parametrize("participant", NAMES, indirect=True)
def test_all_participants_start_with_the_loss_that_numpy_computes(participant, problem):
    a, (x, y) = problem.train[0], problem.train
    for i, layer in enumerate(problem.start.values()):
        a = (np.tanh(a) if i else a) @ layer["weight"] + layer["bias"]
    shifted = a - a.max(axis=1, keepdims=True)
    expected = np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y])
    objective = participant.objective((x, y), problem.start)
    assert float(objective.value(participant.params(problem.start))) == pytest.approx(expected, rel=1e-13)
    for optimizer in participant.optimizers:
        run = participant.train(Plan(optimizer, 0.1, None, 1), problem.start, problem.train)
        assert run.losses[0] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("participant", [name for name in NAMES if name != "numpy"], indirect=True)
@pytest.mark.parametrize("batch", [None, 28])
def test_sgd_with_momentum_is_what_it_says(participant, problem, batch):
    """Two passes by hand, with gradients from the objective, against the framework's optimiser."""
    rate, passes, (x, y) = 0.05, 2, problem.train
    weights, velocity = problem.start, None
    drawn = orders(len(y), batch, passes).reshape(-1, batch) if batch else [slice(None)] * passes
    for chosen in drawn:
        objective = participant.objective((x[chosen], y[chosen]), weights)
        gradient = participant.weights(objective.gradient(participant.params(weights)))
        old = velocity or {name: dict.fromkeys(layer, 0.0) for name, layer in weights.items()}
        velocity = {n: {k: 0.9 * old[n][k] + g for k, g in layer.items()} for n, layer in gradient.items()}
        weights = {n: {k: w - rate * velocity[n][k] for k, w in layer.items()} for n, layer in weights.items()}
    run = participant.train(Plan("SGD", rate, batch, passes), problem.start, problem.train)
    reached = participant.weights(run.params)
    assert run.steps == len(drawn)
    for name, layer in weights.items():
        for leaf, value in layer.items():
            np.testing.assert_allclose(reached[name][leaf], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("participant", ["torch"] if "torch" in NAMES else [], indirect=True)
def test_tuning_keeps_the_run_with_the_lowest_loss_and_shows_all(participant, problem):
    entry = first_order(participant, "Adam", problem, 5, True, ignore)
    assert len(entry.tried) == len(list(plans("Adam", problem, 5, True)))
    assert entry.best.final == min(run.final for run in entry.tried)


def test_a_diverged_run_is_cut_short_and_never_the_best():
    run = Run("SGD", "", [1.0, 0.5, float("nan")], [0, 1, 2], [0, 1, 2], 2, None)
    assert run.final == float("inf")


@pytest.mark.parametrize("participant", NAMES, indirect=True)
def test_levenberg_marquardt_decreases_the_loss_and_stays_within_the_budget(participant, problem):
    entry = levenberg_marquardt(participant, problem, 60, ignore)
    losses = np.asarray(entry.best.losses)
    assert np.all(np.diff(losses) <= 0)
    assert losses[-1] < 0.5 * losses[0]
    assert entry.best.passes[-2] < 60
    assert entry.best.passes[-1] == passes_of(entry.best.steps, entry.best.products)
    assert len(entry.best.seconds) == len(losses) == entry.best.steps + 1


@pytest.mark.parametrize("participant", ["numpy"], indirect=True)
def test_each_piece_of_work_is_told(participant, problem):
    told = []
    study(participant, problem, 20, True, told.append)
    assert {sentence.partition(":")[0] for sentence in told} == {
        "validating the GGN operator",
        "validating the block GGN operator",
        "products for comparison",
        "Levenberg-Marquardt",
    }


@pytest.mark.parametrize("participant", ["torch" if "torch" in NAMES else "numpy"], indirect=True)
def test_the_bar_ends_with_the_pieces_that_are_told(participant, problem):
    told = []
    study(participant, problem, 3, True, told.append)
    assert len({sentence.partition(":")[0] for sentence in told}) == pieces(participant, problem, 3, True)


@pytest.mark.parametrize(
    ("ours", "when"), [([1, 0.9, 0.1], "from 2 passes on"), ([1, 0.9, 0.4], "ends with the higher")]
)
def test_the_findings_say_who_reached_what_and_from_when_on(ours, when):
    """No method is praised that did not win, and no better loss passes for a better classifier."""
    lm = Entry(Run("LM-GN-CG", "", ours, [0, 1, 2], [], 2, None), 1.0, 0.91)
    sgd = Entry(Run("SGD", "", [1, 0.5, 0.2], [0, 1, 2], [], 2, None), 1.0, 0.94)
    validated, trained = findings({"torch": Outcome([], {"GGN": lg.validate(lg.Dense(np.eye(2)))}, {}, [lm, sgd])})
    assert validated.startswith("1 of 1 operators passed every check.")
    assert f"LM-GN-CG {ours[-1]:g}, SGD 0.2" in trained
    assert when in trained
    assert "91.0 %, 94.0 %, 3.0 points apart" in trained


def test_the_reports_numbers_are_those_of_the_run(tmp_path, capsys):
    """The table's final loss is the curve's end, to the digits shown."""
    from rich.console import Console

    from linop_gn.app.demo import report, run

    _, outcomes, _ = run(["numpy"], True, Console(file=open(tmp_path / "log", "w"), width=200))  # noqa: SIM115
    table = report.training(outcomes, 60)
    shown = {column.header: "".join(column.cells) for column in table.columns}
    best = outcomes["numpy"].entries[0].best
    assert float(shown["final loss"]) == pytest.approx(best.losses[-1], rel=0.01)
    assert json.loads(shown["products"]) == best.products


@pytest.mark.parametrize("name", FITS)
def test_gauss_newton_wins_the_fits_and_their_jacobians_are_right(name):
    problem = FITS[name]()
    report = lg.validate(
        lg.Jacobian(lg.Objective.from_residuals(problem.residuals, jacobian=problem.jacobian), problem.start)
    )
    assert report.passed
    ours, adam = fit(problem, 200)
    assert ours.final < 1e-3 * adam.final
    assert "Gauss-Newton comes to" in won(name, [ours, adam])
    assert [len(run.losses) for run in (ours, adam)] == [len(run.seconds) for run in (ours, adam)]


def test_processes_of_a_framework_without_groups_are_told_so(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo", "--quick", "--backend", "numpy"]) == 2
    assert "2 processes were started, and numpy cannot work together" in capsys.readouterr().out


def test_devices_of_a_framework_that_spreads_nothing_are_told_so(capsys):
    assert main(["demo", "--quick", "--backend", "numpy", "--devices", "2"]) == 2
    assert "numpy cannot spread arrays over devices" in capsys.readouterr().out
    assert main(["demo", "--quick", "--devices", "0"]) == 2
    assert "1 or more, got 0" in capsys.readouterr().out


@pytest.mark.skipif("torch" not in NAMES, reason="torch has the process groups")
def test_under_torchrun_a_run_over_all_processes_is_that_of_one(monkeypatch, capsys):
    """Of one process here; ``support/process_checks.py`` has three."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    assert processes.started() == 1
    assert processes.command(True, ["torch"], Console(width=120)) == 0
    printed = capsys.readouterr().out
    for words in ("1 processes", "one process", "280", "one all-reduce of 644 numbers"):
        assert words in printed
