"""Numbers at the door, whatever they are made of."""

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
