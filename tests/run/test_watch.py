"""Watchers: what they show, keep and stop."""

import io
import re
import sys
import time
import types
from contextlib import nullcontext

import numpy as np
import pytest
from rich.console import Console

import linop_gn as lg

A = lg.Diagonal(np.linspace(1.0, 2.0, 6))
B = np.ones(6)


def console():
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def test_the_progress_bar_shows_method_steps_and_newest_row():
    screen = console()
    bar = lg.ProgressBar("inner", console=screen)
    solution = lg.solve(A, B, lg.CG(steps=4), watch=[bar])
    text = screen.file.getvalue()
    assert "inner" in text
    assert "4/4" in text
    assert f"residual {solution.history['residual'][-1]:.3g}" in text
    assert lg.ProgressBar(console=screen).description is None


def test_the_progress_bar_is_named_after_the_method_and_shows_the_worst_column():
    screen = console()
    b = np.stack([B, 1e6 * B], axis=1)
    solution = lg.solve(A, b, lg.CG(steps=2), watch=[lg.ProgressBar(console=screen)])
    text = screen.file.getvalue()
    assert "CG" in text
    assert f"residual {solution.history['residual'][-1, 1]:.3g}" in text


def test_a_narrow_bar_shows_value_damping_and_ratio():
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    bowl = lg.Objective.from_residuals(lambda p: p - B, jacobian=lambda p: np.eye(len(B)))
    run = lg.minimize(bowl, np.zeros_like(B), max_steps=2, watch=[lg.ProgressBar("", console=screen)])
    assert re.search(rf"value {run.value:.3g}  damping {run.damping:.3g}  ratio 1", screen.file.getvalue())


def test_a_notebook_without_ipywidgets_shows_text_that_is_written_over(monkeypatch, recwarn):
    shown = []

    def display(data, *, raw, display_id):
        shown.append(data)
        return types.SimpleNamespace(update=lambda data, *, raw: shown.append(data))

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    bar = lg.ProgressBar("inner", console=Console(force_jupyter=True, file=io.StringIO()))
    lg.solve(A, B, lg.CG(steps=4), watch=[bar])
    assert "inner" in shown[0]["text/plain"]
    assert "4/4" in shown[-1]["text/plain"]
    assert "residual" in shown[-1]["text/plain"]
    assert not recwarn.list
    assert not bar._text
    quiet = len(shown)
    lg.solve(A, B, lg.CG(steps=4), watch=[lg.ProgressBar(disable=True, console=bar.console)])
    assert len(shown) == quiet


def test_a_progress_bar_can_be_used_again_and_is_closed_after_an_error():
    screen = console()
    bar = lg.ProgressBar(console=screen)

    def fail(look):
        if look.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lg.solve(A, B, lg.CG(steps=4), watch=[bar, fail])
    assert not bar._open
    assert screen._live_stack == [] if hasattr(screen, "_live_stack") else screen._live is None
    assert lg.solve(A, B, lg.CG(steps=4), watch=[bar]).succeeded
    assert "4/4" in screen.file.getvalue()


def test_a_disabled_progress_bar_writes_nothing():
    screen = console()
    lg.solve(A, B, watch=[lg.ProgressBar(console=screen, disable=True)])
    assert screen.file.getvalue() == ""


def test_a_progress_bar_works_in_the_callers_own_loop():
    screen = console()
    bar = lg.ProgressBar(console=screen)
    for look in lg.steps(A, B, lg.CG(steps=3)):
        bar(look)
    bar.end(look)
    bar.end(look)  # a second time does nothing
    assert "3/3" in screen.file.getvalue()


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_recorder_keeps_rows_times_and_measurements(every):
    record = lg.Recorder(measure=lambda look: look.step**2)
    started = time.perf_counter()
    solution = lg.solve(A, B, lg.CG(rtol=1e-9), watch=[record], every=every)
    for name, column in solution.history.items():
        np.testing.assert_array_equal(record.history[name], column)
    assert record.measured == [step**2 for step in record.steps]
    assert record.seconds == sorted(record.seconds)
    assert record.seconds[0] >= 0
    assert record.seconds[-1] <= time.perf_counter() - started


def test_a_recorder_starts_afresh_with_each_run():
    record = lg.Recorder()
    lg.solve(A, B, lg.CG(steps=5), watch=[record])
    lg.solve(A, 2.0 * B, lg.CG(steps=2), watch=[record])
    assert record.steps == [0, 1, 2]
    assert len(record.seconds) == len(record.history["residual"]) == 3
    assert record.history["residual"][0] == pytest.approx(2.0 * np.sqrt(6))


def test_a_recorder_of_columns():
    record = lg.Recorder()
    solution = lg.solve(A, np.stack([B, 0 * B], axis=1), lg.CG(rtol=1e-9), watch=[record])
    np.testing.assert_array_equal(record.history["residual"], solution.history["residual"])
    assert record.history["residual"].shape == (int(solution.steps.max()) + 1, 2)


def test_stop_when_takes_any_condition_on_the_look():
    small = lg.stop_when(lambda look: look.rows["residual"][-1] < 1.0)
    solution = lg.solve(A, B, lg.CG(rtol=1e-12), watch=[small])
    rows = solution.history["residual"]
    assert solution.status is lg.Status.STOPPED
    assert rows[-1] < 1.0 <= rows[-2]


@pytest.mark.parametrize("one", [True, False])
def test_bars_of_runs_within_runs_leave_the_output_as_it_was(one):
    console = Console(force_terminal=True, file=io.StringIO())
    outer = lg.ProgressBar(console=console)
    inner = outer if one else lg.ProgressBar(console=console)
    A, before = lg.Diagonal(np.arange(1.0, 5.0)), (sys.stdout, sys.stderr)
    try:
        for fails in (False, True):

            def within(look, fails=fails):
                lg.solve(A, np.ones(4), watch=[inner])
                if fails and look.step == 2:
                    raise RuntimeError("broken off")

            with pytest.raises(RuntimeError) if fails else nullcontext():
                lg.solve(A, np.ones(4), watch=[outer, within])
            assert (sys.stdout, sys.stderr) == before
    finally:
        sys.stdout, sys.stderr = before
