"""Every method of ours, and a stranger's from the docs, keeps what every method promises."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from systems import FULL, OF_A_BACKEND, in_full, load

import linop_gn as lg

conformance = pytest.importorskip("linop_gn.testing.conformance")
PAGE = Path(__file__).parents[2] / "docs" / "writing_a_method.md"
BLOCK = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL).group(1)
scope = {"__name__": "page"}
exec(compile(BLOCK.partition("\n\nA = ")[0], PAGE.name, "exec"), scope)
HeavyBall, HeavyBallState = scope["HeavyBall"], scope["HeavyBallState"]


EAGER = ["numpy", "torch", "poison", pytest.param("array_api_strict", marks=pytest.mark.strict)]
OURS = {
    "CG": lg.LevenbergMarquardt(),
    "damped model": lg.LevenbergMarquardt(model="damped", rule=lg.Marquardt(), damping=1e-3),
    "preconditioned": lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-3, preconditioner=lg.preconditioners.Jacobi())),
    "MINRES": lg.LevenbergMarquardt(solver=lg.MINRES(rtol=1e-6)),
    "Cholesky": lg.LevenbergMarquardt(solver=lg.Cholesky()),
    "QR": lg.methods.LeastSquares(),
    "QR, loosely": lg.methods.LeastSquares(ftol=1e-4),  # its gain ratios are no rounding
    "blocks": lg.LevenbergMarquardt(curvature=lg.BlockGGN, solver=lg.Blockwise(lg.CG(rtol=1e-3))),
}


IN_TURN = {method: ("torch", "poison", "array_api_strict")[i % 3] for i, method in enumerate(OURS)}


@pytest.mark.parametrize("backend", EAGER)
@pytest.mark.parametrize("method", OURS)
def test_ours(method, backend):
    if not FULL and method != "CG" and backend not in ("numpy", IN_TURN[method]):
        pytest.skip("on NumPy and one backend more, in turn: in tests_full")
    whole = FULL or backend == "numpy" or method == "CG"
    conformance.check_method(OURS[method], load(backend), only=None if whole else OF_A_BACKEND).raise_if_failed()


@pytest.mark.parametrize("curvature", [lg.Hessian, lambda point: lg.GGN(point) + 0.1 * lg.Identity(point.space)])
def test_curvatures(curvature):
    only = None if FULL else OF_A_BACKEND
    conformance.check_method(lg.LevenbergMarquardt(curvature=curvature), load("torch"), only=only).raise_if_failed()


@pytest.mark.parametrize("backend", EAGER)
def test_a_stranger(backend):
    conformance.check_method(HeavyBall(), load(backend)).raise_if_failed()


class FromAutograd(conformance.MethodConformance):
    derivatives = "autograd"


def test_bridged():
    pytest.importorskip("autograd")
    for method in (OURS["CG"], OURS["QR"]):
        conformance.check_method(method, load("numpy"), kit=FromAutograd).raise_if_failed()


@pytest.mark.parametrize(
    "method",
    [pytest.param(OURS["CG"], marks=in_full), pytest.param(OURS["QR, loosely"], marks=in_full), HeavyBall()],
    ids=["Levenberg-Marquardt", "QR", "stranger"],
)
def test_compiled(method):
    only = None if FULL or isinstance(method, HeavyBall) else (*OF_A_BACKEND, "compiled_once", "inside_a_program")
    conformance.check_method(method, load("jax"), only=only).raise_if_failed()


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

    @lg.record
    class Poor(lg.Method):
        columns = ("value", "rate")

        def init(self, ops, problem):
            from typing import NamedTuple

            class State(NamedTuple):
                x: object

            return State(problem.start)

        def step(self, ops, problem, state):
            raise AssertionError

    with pytest.raises(
        TypeError,
        match=r"Poor\.init must return .* x, value, status, steps, rate, got .* without value, status, steps, rate",
    ):
        lg.minimize(fit, np.ones(2), Poor())
    with pytest.raises(TypeError, match=r"needs an lg\.Method.*got a CG\. It solves .*solver=lg\.CG"):
        lg.minimize(fit, np.ones(2), lg.CG())
    with pytest.raises(TypeError, match=r"needs an lg\.Method.*got 'LM'\. A method of your own derives"):
        lg.minimize(fit, np.ones(2), "LM")

    class NoRecord(HeavyBall):
        pass

    with pytest.raises(TypeError, match=r"NoRecord must be a record.*write @lg\.record above it"):
        lg.minimize(fit, np.ones(2), NoRecord())


def malformed(member, change):
    """Heavy ball with what ``member`` returns changed by a function of it."""

    def instead(self, *given):
        return change(getattr(HeavyBall, member)(self, *given))

    return lg.record(type("Wrong", (HeavyBall,), {member: instead, "__module__": __name__}))()


class OddRow(NamedTuple):
    value: Any


@pytest.mark.parametrize(
    ("member", "change", "match"),
    [
        ("init", lambda s: None, r"Wrong\.init must return a NamedTuple with x, value, status, steps.*, got None"),
        ("init", lambda s: tuple(s), r"Wrong\.init must return a NamedTuple with .* without x, value, status, steps"),
        ("init", lambda s: s._replace(status=0.0), r"Wrong\.init .* status is a code of lg\.Status, got 0\.0"),
        ("init", lambda s: s._replace(value=None), r"Wrong\.observe .* scalars, got None in value"),
        ("init", lambda s: s._replace(value=s.x), r"Wrong\.observe .* scalars, got .*float64 of shape \(2,\) in value"),
        ("step", lambda s: s._asdict(), r"Wrong\.step must return a HeavyBallState, as init does, got {"),
        (
            "step",
            lambda s: s._replace(x=s.x[:1]),
            r"Wrong\.step .* whose x is like that of init, .*\(2,\), got .*\(1,\)",
        ),
        ("step", lambda s: s._replace(status=None), r"Wrong\.step must return a state whose status is .*, got None"),
        ("step", lambda s: s._replace(status=1.0), r"Wrong\.step .* status is a code of lg\.Status, got 1\.0"),
        ("observe", lambda row: {"value": 1.0}, r"Wrong\.observe must return a NamedTuple of scalars, got {"),
        ("observe", lambda row: OddRow("low"), r"Wrong\.observe .* scalars, got 'low' in value"),
        ("answer", lambda x: None, r"Wrong\.answer must return an array of shape \(2,\) and dtype float64, got None"),
        ("answer", lambda x: x[:1], r"Wrong\.answer must return an array of shape \(2,\) .*, got .*\(1,\)"),
    ],
)
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_what_is_malformed_is_named(name, member, change, match):
    fit, start = line(name)
    with pytest.raises(TypeError, match=match):
        lg.minimize(fit, start, malformed(member, change))


def line(name):
    """||p - 3||^2 / 2, and a start."""
    ops = load(name)
    eye = ops.asarray(np.eye(2), "float64")
    supplied = (lambda p: eye) if ops.calculus is None else None
    return lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=supplied), ops.asarray(np.zeros(2), "float64")


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_member_of_the_enumeration_is_a_code(name):
    fit, start = line(name)
    for status, steps in ((lg.Status.RUNNING, 3), (lg.Status.CONVERGED, 0)):
        method = malformed("init", lambda s, status=status: s._replace(status=status, steps=0))
        found = lg.minimize(fit, start, method, max_steps=3)
        expected = lg.Status.MAX_STEPS if steps else status
        assert (found.status, int(found.steps)) == (expected, steps)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_value_that_is_no_number_is_no_success(name):
    fit, start = line(name)
    for member, status in (("init", lg.Status.NONFINITE_INPUT), ("step", lg.Status.NONFINITE)):
        boast = malformed(member, lambda s: s._replace(value=s.value * np.nan, status=s.status * 0 + 1))
        assert lg.minimize(fit, start, boast).status is status


class NewtonState(NamedTuple):
    x: Any
    value: Any
    status: Any
    steps: Any


@lg.record
class GaussNewton(lg.Method):
    """In the framework's own arithmetic, by a solve inside the step."""

    solver: Any = lg.CG(rtol=1e-8)

    def init(self, ops, problem):
        point = problem.at(problem.start)
        return NewtonState(point.x, point.value, lg.Status.RUNNING, 0)

    def step(self, ops, problem, s):
        here = problem.at(s.x)
        point = problem.at(s.x + lg.solve(lg.GGN(here), -here.gradient, self.solver).x)
        done = (point.gradient @ point.gradient) <= 1e-16
        return NewtonState(point.x, point.value, ops.where(done, lg.Status.CONVERGED, s.status), s.steps)


class SizeRow(NamedTuple):
    size: Any


@lg.record
class Nesterov(lg.Method):
    """A state with a tree in it, a row of its own; it does not end."""

    rate: Any = 0.2
    columns = ("size",)

    def init(self, ops, problem):
        point = problem.at(problem.start)
        return HeavyBallState(point.x, {"y": ops.copy(point.x), "t": (1.0,)}, None, ops.item(point.value), 0.0, 0, 0)

    def step(self, ops, problem, s):
        y, (t,) = s.velocity["y"], s.velocity["t"]
        x = ops.axpy(-self.rate, problem.at(y).gradient, ops.copy(y))
        longer = 0.5 * (1 + ops.sqrt(1 + 4 * t * t))
        b = (t - 1) / longer
        y = ops.axpby(-b, s.x, 1 + b, ops.copy(x))
        return s._replace(x=x, velocity={"y": y, "t": (longer,)}, value=ops.item(problem.at(x).value))

    def observe(self, s):
        return SizeRow(s.value)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@pytest.mark.parametrize(("method", "status"), [(GaussNewton(), "CONVERGED"), (Nesterov(), "MAX_STEPS")])
def test_odd_ones(name, method, status):
    fit, start = line(name)
    for watch in ([], [lambda look: None]):
        found = lg.minimize(fit, start, method, max_steps=60, watch=watch)
        assert found.status is lg.Status[status]
        np.testing.assert_allclose(np.asarray(found.params), [3.0, 3.0], atol=1e-3)
        assert all(len(column) == int(found.steps) + 1 for column in found.history.values())
