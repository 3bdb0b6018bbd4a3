"""Numbers at the door, whatever they are made of."""

import dataclasses
import inspect

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.arguments import known, require_number, whole
from linop_gn.testing.strategies import array


def scalar(backend, value, dtype="float64"):
    """One number as the backend's array without axes."""
    return array(backend, np.asarray(value), dtype)


@pytest.mark.parametrize("value", [-1.0, 0.0, np.nan])
@pytest.mark.parametrize("method", [lg.GLTR, lg.Steihaug])
def test_a_radius_is_looked_at_in_every_framework(backend, method, value):
    for radius in (scalar(backend, value), scalar(backend, value, "float32")):
        with pytest.raises(ValueError, match="radius must be a number > 0"):
            method(radius=radius)
    assert method(radius=scalar(backend, np.inf)).radius == np.inf


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_tolerances_are_looked_at_in_every_framework(backend, value):
    for build in (lg.CG, lg.MINRES, lg.GLTR, lg.Steihaug, lg.LevenbergMarquardt):
        with pytest.raises(ValueError, match="rtol must be a finite number >= 0"):
            build(rtol=scalar(backend, value))
    with pytest.raises(ValueError, match="damping must be a finite number >= 0"):
        lg.LSMR(damping=scalar(backend, value))


@pytest.mark.parametrize("columns", [(), (2,)])
def test_options_may_be_arrays_of_the_backend(backend, columns):
    A = lg.Dense(array(backend, np.diag([1.0, 2.0, 3.0])), psd=True)
    b = array(backend, np.ones((3, *columns)))
    tolerance = np.full(columns, 1e-9)
    for method, options in (
        (lg.CG, {"rtol": tolerance}),
        (lg.MINRES, {"atol": tolerance}),
        (lg.Steihaug, {"radius": 0.5, "rtol": tolerance}),
        (lg.LSMR, {"damping": 0.5, "atol": tolerance, "btol": tolerance}),
        (lg.LSQR, {"damping": 0.5, "conlim": tolerance}),
        (lg.GLTR, {"radius": 0.5, "rtol": 1e-9}),
        *([] if columns else [(lg.MultiShiftCG, {"rtol": 1e-9})]),
    ):
        given = {name: scalar(backend, value) for name, value in options.items()}
        found, expected = (lg.solve(A, b, method(**chosen)) for chosen in (given, options))
        assert found.status == expected.status
        np.testing.assert_array_equal(backend.to_numpy(found.x), backend.to_numpy(expected.x))


@pytest.mark.parametrize("name", ["atol", "btol", "conlim"])
def test_a_tolerance_of_another_shape_is_refused(backend, name):
    A, b = lg.Dense(array(backend, np.eye(3))), array(backend, np.ones((3, 2)))
    with pytest.raises(ValueError, match=f"{name} has shape .3,."):
        lg.solve(A, b, lg.LSMR(**{name: scalar(backend, np.full(3, 1e-9))}))


@pytest.mark.parametrize("radius", [[1.0], np.ones(2), (1.0, 2.0), None])
@pytest.mark.parametrize("method", [lg.GLTR, lg.Steihaug])
def test_a_radius_is_one_number(method, radius):
    with pytest.raises(TypeError, match="radius must be one number"):
        method(radius=radius)


def test_whole_numbers_of_any_width():
    for value in (3, np.int64(3), np.int8(3), np.array(3)):
        assert type(whole("CG", "steps", value)) is int
        assert type(lg.CG(steps=value).steps) is int
    for value in (2.0, "2", None, True, -1, np.float64(2)):
        with pytest.raises(ValueError, match="steps must be a whole number >= 0"):
            whole("CG", "steps", value)


def test_what_is_known_of_a_number(jax):
    assert known("CG", "rtol", None) is None
    assert known("CG", "rtol", np.float32(0.5)) == 0.5
    for value in ("1", [1.0], {}, np.array("x"), np.array(1j)):
        with pytest.raises(TypeError, match="rtol must be a number"):
            known("CG", "rtol", value)

    import jax as framework

    def traced(value):
        require_number("CG", "rtol", value)
        return value

    assert float(framework.jit(traced)(-1.0)) == -1.0


@pytest.mark.parametrize("method", [lg.CG, lg.LSMR, lg.Cholesky, "cg", np.ones(3), lg.LevenbergMarquardt()], ids=repr)
def test_what_is_no_solver_is_refused_with_advice(method):
    A = lg.Diagonal(np.ones(3), psd=True)
    with pytest.raises(TypeError, match=r"solve needs a solver such as lg.CG\(\) as its third argument"):
        lg.solve(A, np.ones(3), method)
    if isinstance(method, type):
        with pytest.raises(TypeError, match=rf"the class {method.__name__} itself: call it first"):
            lg.cost(A, method)


def test_what_is_no_method_is_refused_with_advice():
    objective = lg.Objective.from_residuals(lambda p: p - 1.0, jacobian=lambda p: np.eye(3))
    with pytest.raises(TypeError, match=r"write lg.LevenbergMarquardt\(solver=lg.CG\(...\)\)"):
        lg.minimize(objective, np.ones(3), lg.CG())
    with pytest.raises(TypeError, match="the function LevenbergMarquardt itself: call it first"):
        lg.minimize(objective, np.ones(3), lg.LevenbergMarquardt)


@pytest.mark.parametrize("damping", [[0.1], None, "a", {"a": 1.0}, np.ones(3)], ids=repr)
def test_a_damping_is_one_number(damping):
    with pytest.raises(TypeError, match="damping must be one number"):
        lg.Damped(lg.Diagonal(np.ones(3), psd=True), damping)


MASKED = np.ma.masked_array(np.array([1.0, 1e6, 3.0]), mask=[0, 1, 0])
MATRIX = np.eye(3).view(np.matrix)
KINDS = [pytest.param(MASKED, r"x.compressed\(\)", id="masked"), pytest.param(MATRIX, "np.asarray", id="matrix")]
SHIFTED = lg.Objective.from_residuals(lambda p: p - 1.0, jacobian=lambda p: np.eye(3))
DOORS = {
    "Dense": lambda x: lg.Dense(x),
    "Diagonal": lambda x: lg.Diagonal(x),
    "LowRank": lambda x: lg.LowRank(np.eye(3), x),
    "A @ x": lambda x: lg.Diagonal(np.ones(3)) @ x,
    "right-hand side": lambda x: lg.solve(lg.Diagonal(np.ones(3)), x, lg.CG()),
    "x0": lambda x: lg.solve(lg.Diagonal(np.ones(3)), np.ones(3), lg.CG(), x0=x),
    "krylov": lambda x: lg.krylov(lg.Diagonal(np.ones(3)), x, k=2),
    "parameters": lambda x: lg.GGN(SHIFTED, {"w": x}),
    "start": lambda x: lg.minimize(SHIFTED, x),
    "inputs": lambda x: _mean((x, np.ones(3))),
    "targets": lambda x: _mean((np.eye(3), x)),
    "weights": lambda x: _mean((np.eye(3), np.ones(3), x)),
    "residuals": lambda x: lg.Objective.from_residuals(lambda p: p - x, jacobian=lambda p: np.eye(3)).value(np.ones(3)),
    "jacobian": lambda x: lg.Objective.from_residuals(lambda p: p, jacobian=lambda p: x).gradient(np.ones(3)),
    "x0 of a fit": lambda x: lg.least_squares(lambda p: p - 1.0, x),
    "bounds": lambda x: lg.least_squares(lambda p: p - 1.0, np.ones(3), bounds=(-x, np.inf)),
    "x_scale": lambda x: lg.least_squares(lambda p: p - 1.0, np.ones(3), x_scale=x),
    "ydata": lambda x: lg.curve_fit(lambda t, a: a * t, np.ones(3), x),
    "sigma": lambda x: lg.curve_fit(lambda t, a: a * t, np.ones(3), np.ones(3), sigma=x),
    "dampings": lambda x: lg.MultiShiftCG(x),
    "tolerance": lambda x: lg.CG(rtol=x),
}


def _mean(data):
    line = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), data, jacobian=lambda p, x: x)
    return line.gradient(np.ones(3))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("kind", "advice"), KINDS)
def test_arrays_with_an_arithmetic_of_their_own_are_refused(door, kind, advice):
    with pytest.raises(TypeError, match=advice):
        DOORS[door](kind)


def _records():
    """Classes of records with numbers among their defaults, and the names of these."""
    made = {"k": 3, "steps": 3, "dampings": [1.0], "radius": 1.0, "optimiser": lg.optimisers.Adam()}
    made |= {"descent": lg.descents.Solve()}
    rooms = lg, lg.losses, lg.descents, lg.controls, lg.searches, lg.optimisers, lg.preconditioners, lg.methods
    for kind in {x for room in rooms for x in vars(room).values() if isinstance(x, type)}:
        if issubclass(kind, (lg.Solver, lg.losses.Loss, lg.methods.Method)) or kind.__module__.startswith(
            ("linop_gn.preconditioners", "linop_gn.methods")
        ):
            if inspect.isabstract(kind) or not dataclasses.is_dataclass(kind):
                continue
            fields = [f for f in dataclasses.fields(kind) if f.init]
            needed = {f.name: made.get(f.name, 1.0) for f in fields if f.default is dataclasses.MISSING}
            for f in fields:
                if isinstance(f.default, (int, float)) and not isinstance(f.default, bool):
                    yield kind, needed, f.name


NONE_IS_A_VALUE = {"conlim", "probes", "level"}
RESULTS = {"LeastSquaresResult", "MinimizeProblem", "Stretch", "State"}


def test_none_is_no_number_at_construction():
    seen = 0
    for kind, needed, name in _records():
        if name in NONE_IS_A_VALUE or kind.__name__ in RESULTS:
            continue
        with pytest.raises((TypeError, ValueError), match="must"):
            kind(**{**needed, name: None})
        seen += 1
    assert seen > 60


def test_a_class_is_no_number_though_its_arrays_have_shape_and_dtype():
    for made in (lambda: lg.TrustRegion(lg.Hessian), lambda: lg.CG(rtol=lg.GGN), lambda: lg.Newton(np.ndarray)):
        with pytest.raises(TypeError, match="must be a number, got <class"):
            made()


def test_infinity_says_what_to_write_instead():
    for build in (lg.CG, lg.MINRES, lg.GramSolve, lg.LevenbergMarquardt):
        with pytest.raises(ValueError, match="for no such test write 0"):
            build(rtol=np.inf)
    with pytest.raises(ValueError, match="For no limit write None or 0"):
        lg.LSMR(conlim=np.inf)
    for build in (lg.CG, lg.LSQR, lg.GLTR):
        with pytest.raises(ValueError, match="write one that will not be reached, such as"):
            build(max_steps=np.inf)
    with pytest.raises(ValueError, match="write one that will not be reached"):
        lg.minimize(SHIFTED, np.ones(3), max_steps=np.inf)
    with pytest.raises(ValueError, match="write one that will not be reached"):
        lg.Cholesky(max_size=np.inf)
    assert lg.solve(lg.Diagonal(np.arange(1.0, 4.0)), np.ones(3), lg.CG(max_steps=10**6)).succeeded


def test_an_iterator_that_ends_inside_a_model_is_told():
    data = iter([np.ones(2)] * 3)
    with pytest.raises(
        RuntimeError, match="fun raised StopIteration: an iterator that it draws from has ended"
    ) as told:
        lg.least_squares(lambda p: (p - next(data)) ** 2, np.zeros(2), jac=lambda p: np.diag(2 * (p - 1)))
    assert told.value.state is not None
