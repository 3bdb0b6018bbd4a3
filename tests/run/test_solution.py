"""What a run gives back, and how it reads."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import linop_gn as lg
from linop_gn import History, Status

A = lg.Diagonal(np.array([1.0, 2.0, 4.0]))


def test_a_solution_says_what_happened_in_words():
    solution = lg.solve(A, np.ones(3), lg.CG(steps=2))
    text = repr(solution)
    assert text.startswith("CG: completed after 2 steps, 2 products; residual ")
    assert text.endswith(Status.COMPLETED.sentence)
    assert solution.succeeded
    assert solution.status is Status.COMPLETED
    stuck = lg.solve(-1.0 * A, np.ones(3))
    assert repr(stuck).startswith("CG: negative_curvature after 0 steps, 1 products")
    assert "Add damping" in repr(stuck)
    assert not stuck.succeeded


def test_a_solution_of_columns_counts_them_by_status():
    b = np.stack([np.ones(3), np.full(3, np.nan), np.zeros(3)], axis=1)
    solution = lg.solve(A, b)
    assert solution.status == [Status.CONVERGED, Status.NONFINITE_INPUT, Status.CONVERGED]
    lines = repr(solution).splitlines()
    assert lines[0].startswith("CG: 2 converged, 1 nonfinite_input; at most 3 steps, 4 products; residual [")
    assert lines[1:] == [Status.CONVERGED.sentence, Status.NONFINITE_INPUT.sentence]


def test_the_history_has_a_row_for_each_step_from_0():
    solution = lg.solve(A, np.ones(3), lg.CG(steps=2))
    assert list(solution.history) == ["residual", "model"]
    assert [len(column) for column in solution.history.values()] == [3, 3]
    assert solution.history["residual"][0] == pytest.approx(np.sqrt(3))
    assert solution.history["residual"][-1] == float(solution.residual)
    assert solution.history["model"][0] == 0.0
    assert solution.history["model"][-1] == float(solution.model)
    assert repr(solution.history).startswith("History of 3 rows: residual 1.73205 .. ")


def test_histories_read_well_empty_and_with_columns():
    assert repr(History()) == "History of 0 rows: "
    assert repr(History(a=np.array([[1.0, 2.0], [0.5, 0.25]]))) == "History of 2 rows: a [1, 2] .. [0.5, 0.25]"


def test_a_solution_belongs_to_the_format_it_was_asked_in():
    tree = {"w": np.ones(2), "b": np.ones(1)}
    solution = lg.solve(lg.Diagonal(tree), tree)
    assert {name: leaf.shape for name, leaf in solution.x.items()} == {"w": (2,), "b": (1,)}
    assert lg.solve(A, np.ones((3, 2))).x.shape == (3, 2)


def test_success_is_told_inside_a_compiled_program(jax):
    import jax as framework
    import jax.numpy as jnp

    def solved(d):
        solution = lg.solve(lg.Diagonal(d), jnp.ones(3))
        with pytest.raises(TypeError, match="`succeeded` tells"):
            solution.status  # noqa: B018
        assert repr(solution) == "CG in a program that is being traced"
        return solution.succeeded, solution.code

    program = framework.jit(solved)
    good, bad = program(jnp.array([1.0, 2.0, 3.0])), program(jnp.array([-1.0, 2.0, 3.0]))
    assert (bool(good[0]), Status(int(good[1]))) == (True, Status.CONVERGED)
    assert (bool(bad[0]), Status(int(bad[1]))) == (False, Status.NEGATIVE_CURVATURE)


def test_a_plot_of_runs_shows_what_was_observed():
    pytest.importorskip("matplotlib")
    t = np.arange(5.0)
    fit = lg.least_squares(lambda p: p[0] * np.exp(-p[1] * t) - 2.0 * np.exp(-0.5 * t), [9.0, 9.0])
    objective = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    run = lg.minimize(objective, np.zeros(2), lg.LevenbergMarquardt())
    axes = fit.plot().axes
    assert [panel.get_title() for panel in axes] == ["value", "gradient norm", "damping or radius", "gain ratio"]
    lines = axes[2].get_lines()
    np.testing.assert_array_equal(lines[0].get_xdata(), np.arange(fit.steps + 1))
    np.testing.assert_array_equal(lines[0].get_ydata(), fit.history["damping"])
    refused = 1 + np.flatnonzero(np.diff(fit.history["refused"]))
    assert len(refused)
    np.testing.assert_array_equal(lines[1].get_xdata(), refused)
    assert axes[2].get_yscale() == "log"
    together = lg.plot_runs({"fit": fit, "run": run}).axes[0]
    assert [text.get_text() for text in together.get_legend().get_texts()] == ["fit", "run"]
    for runs, names in (([fit, run], ["least_squares 1", "LevenbergMarquardt 2"]), ((run,), []), (run, [])):
        legend = lg.plot_runs(runs).axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == names if names else legend is None
    for made in fit, run:
        assert "refused" in repr(made)
        assert len({line.index(line.split()[-1]) for line in repr(made).splitlines()[1:] if line[:3] == "  v"}) == 1


def test_a_plot_without_matplotlib_is_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'linop-gn\[plots\]'"):
        lg.plot_runs({})


@pytest.mark.parametrize(
    "method", [lg.FirstOrder(lg.optimisers.Adam(), 0.1), lg.EGN(damping=1e-2), lg.Newton(1e-3, curvature=lg.GGN)]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_value_that_rose_far_above_its_start_is_told(method, sign):
    t = np.linspace(0, 1, 6)
    fit = lg.Objective.from_residuals(
        lambda p: p[0] * np.exp(p[1] * t) - t,
        jacobian=lambda p: sign * np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1),
    )
    run = lg.minimize(fit, np.ones(2), method, max_steps=30)
    told = "The value rose from 4.85679 to .*, in 30 of 30 steps: the gradient's sign may be wrong"
    assert bool(re.search(told, repr(run))) == (sign < 0)
    assert (run.value > run.history["value"][0]) == (sign < 0)


def test_solutions_draw_their_residuals_and_histories_are_tables():
    pytest.importorskip("matplotlib")
    columns = lg.solve(A, np.stack([np.ones(3), np.arange(1.0, 4.0)], axis=1), lg.CG(rtol=1e-10))
    (axes,) = columns.plot().axes
    assert (axes.get_title(), len(axes.get_lines())) == ("residual", 2)
    pytest.importorskip("pandas")
    table = columns.history.to_pandas()
    np.testing.assert_array_equal(table["residual", 1], columns.history["residual"][:, 1])
    begun = lg.least_squares(lambda p: p**2 - 2.0, [1.0], max_steps=2)
    went_on = lg.least_squares(lambda p: p**2 - 2.0, None, state=begun.state)
    table = went_on.history.to_pandas()
    assert (table.index.name, table.index[0], len(table)) == ("step", 2, went_on.steps - 1)
    assert History().to_pandas().empty
    assert History(value=np.zeros(0), ritz=np.zeros((0, 2))).to_pandas().shape == (
        0,
        3,
    )  # of an estimate without samples


def test_without_pandas_there_is_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'linop-gn\[notebook\]'"):
        History().to_pandas()


def test_notebooks_show_the_text_and_how_the_run_went(jax):
    run = lg.minimize(
        lg.Objective.from_residuals(lambda p: p**2 - 2.0, jacobian=lambda p: np.diag(2 * p)),
        np.ones(2),
        lg.GaussNewton(),
    )
    for made, pictures in ((lg.solve(A, np.ones((3, 12))), 1), (run, 2), (lg.solve(A, np.zeros(3)), 0)):
        shown = made._repr_html_()
        assert ElementTree.fromstring(shown).find("pre").text == repr(made)
        assert shown.count("<svg") == pictures
        assert "http" not in shown
    import jax as framework

    framework.eval_shape(lambda d: lg.solve(lg.Diagonal(d), d)._repr_html_() and d, framework.numpy.ones(3))
