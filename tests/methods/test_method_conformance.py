"""Every method of ours, and a stranger's from the docs, keeps what every method promises."""

import re
from pathlib import Path

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import poison_backend

conformance = pytest.importorskip("linop_gn.testing.conformance")
PAGE = Path(__file__).parents[2] / "docs" / "writing_a_method.md"
BLOCK = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL).group(1)
scope = {"__name__": "page"}
exec(compile(BLOCK.partition("\n\nA = ")[0], PAGE.name, "exec"), scope)
HeavyBall = scope["HeavyBall"]


def load(name):
    if name == "poison":
        return poison_backend
    pytest.importorskip(name)
    if name == "array_api_strict":
        from linop_gn.testing.strict import strict_backend

        return strict_backend
    return lg.load(name)


EAGER = ["numpy", "torch", "poison", pytest.param("array_api_strict", marks=pytest.mark.strict)]
OURS = {
    "CG": lg.LevenbergMarquardt(),
    "damped model": lg.LevenbergMarquardt(model="damped", rule=lg.Marquardt(), damping=1e-3),
    "preconditioned": lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-3, preconditioner=lg.preconditioners.Jacobi())),
    "MINRES": lg.LevenbergMarquardt(solver=lg.MINRES(rtol=1e-6)),
    "Cholesky": lg.LevenbergMarquardt(solver=lg.Cholesky()),
    "blocks": lg.LevenbergMarquardt(curvature=lg.BlockGGN, solver=lg.Blockwise(lg.CG(rtol=1e-3))),
}


@pytest.mark.parametrize("backend", EAGER)
@pytest.mark.parametrize("method", OURS)
def test_levenberg_marquardt(method, backend):
    conformance.check_method(OURS[method], load(backend)).raise_if_failed()


@pytest.mark.parametrize("curvature", [lg.Hessian, lambda point: lg.GGN(point) + 0.1 * lg.Identity(point.space)])
def test_curvatures(curvature):
    conformance.check_method(lg.LevenbergMarquardt(curvature=curvature), load("torch")).raise_if_failed()


@pytest.mark.parametrize("backend", EAGER)
def test_a_stranger(backend):
    conformance.check_method(HeavyBall(), load(backend)).raise_if_failed()


class FromAutograd(conformance.MethodConformance):
    derivatives = "autograd"


def test_bridged():
    pytest.importorskip("autograd")
    conformance.check_method(OURS["CG"], load("numpy"), kit=FromAutograd).raise_if_failed()


@pytest.mark.parametrize("method", [OURS["CG"], HeavyBall()], ids=["Levenberg-Marquardt", "stranger"])
def test_compiled(method):
    conformance.check_method(method, load("jax")).raise_if_failed()


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "poison"])
def test_heavy_ball_by_hand(name):
    ops, A = load(name), np.vander(np.linspace(0, 1, 8), 3)
    M = ops.asarray(A, "float64")
    fit = lg.Objective.from_residuals(lambda p: M @ p - 1.0, jacobian=(lambda p: M) if ops.calculus is None else None)
    x, v, values = np.zeros(3), np.zeros(3), [4.0]
    for _ in range(5):
        v = 0.5 * v - 0.1 * A.T @ (A @ x - 1.0)
        x = x + v
        values.append(0.5 * np.sum((A @ x - 1.0) ** 2))
    run = lg.minimize(fit, ops.asarray(np.zeros(3), "float64"), HeavyBall(), max_steps=5)
    np.testing.assert_allclose(run.history["value"], values, rtol=1e-12)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_point_is_where_it_was_made_whatever_is_written_over_x(name):
    ops, A = load(name), np.vander(np.linspace(0, 1, 8), 3)
    M = ops.asarray(A, "float64")
    fit = lg.Objective.from_residuals(lambda p: M @ p - 1.0, jacobian=(lambda p: M) if ops.calculus is None else None)
    at = fit.at(ops.asarray(np.zeros(3), "float64"))
    problem = lg.methods.MinimizeProblem(at.objective, at.x, at.space)
    x = ops.copy(problem.start)
    first = problem.at(x)
    x = ops.axpy(1.0, ops.asarray(np.ones(3), "float64"), x)
    second = problem.at(x)
    x = ops.axpy(1.0, ops.asarray(np.ones(3), "float64"), x)
    expected = [0.5 * np.sum((A @ np.full(3, k) - 1.0) ** 2) for k in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose([float(p.value) for p in (first, second, problem.at(x))], expected, rtol=1e-13)


def test_a_point_asked_inside_a_branch_may_be_asked_outside():
    jax = pytest.importorskip("jax")
    ops = load("jax")
    at = lg.Objective.from_residuals(lambda p: p - 3.0).at(ops.asarray(np.zeros(2), "float64"))

    @jax.jit
    def both(x, wanted):
        point = lg.methods.MinimizeProblem(at.objective, x, at.space).at(x)
        (inside,) = ops.branch(wanted, lambda x: (point.value,), lambda x: (0.0,), x)
        return inside, point.value, point.gradient, lg.GGN(point).prepare().matvec(x)

    made = both(ops.asarray(np.ones(2), "float64"), True)
    assert [np.asarray(x).tolist() for x in made] == [4.0, 4.0, [-2.0, -2.0], [1.0, 1.0]]


def test_what_a_method_lacks_is_named_at_the_door():
    fit = lg.Objective.from_residuals(lambda p: p, jacobian=lambda p: np.eye(2))

    class Half(lg.Method):
        def init(self, ops, problem): ...

    with pytest.raises(TypeError, match="step"):
        Half()

    class Poor(lg.Method):
        columns = ("value", "rate")

        def init(self, ops, problem):
            from typing import NamedTuple

            class State(NamedTuple):
                x: object

            return State(problem.start)

        def step(self, ops, problem, state):
            raise AssertionError

    with pytest.raises(TypeError, match=r"Poor\.init must return .* x, value, status, steps, rate, got State.* without value, status, steps, rate"):
        lg.minimize(fit, np.ones(2), Poor())
    with pytest.raises(TypeError, match=r"needs an lg\.Method"):
        lg.minimize(fit, np.ones(2), lg.CG())
