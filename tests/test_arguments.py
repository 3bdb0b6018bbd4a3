"""Numbers at the door, whatever they are made of."""

import numpy as np
import pytest
from systems import operator

import linop_gn as lg
from linop_gn import Status
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


@pytest.mark.parametrize("radius", [[1.0], np.ones(2), (1.0, 2.0), None])
@pytest.mark.parametrize("method", [lg.GLTR, lg.Steihaug])
def test_a_radius_is_one_number(method, radius):
    with pytest.raises(TypeError, match="radius must be one number"):
        method(radius=radius)


def test_what_a_krylov_space_is_asked():
    K = lg.krylov(lg.Diagonal(np.array([1.0, 2.0, 4.0]), psd=True), np.ones(3), np.int64(2))
    for ask in (lambda **of: K.solve(0.0, **of), lambda **of: K.trust_region(1.0, **of)):
        for name in ("rtol", "atol"):
            for value in (-1.0, np.nan):
                with pytest.raises(ValueError, match=f"{name} must be a finite number"):
                    ask(**{name: value})
    assert int(K.extend(np.int32(1)).steps) == 3


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


def test_a_tolerance_for_each_column_or_for_all():
    A, b = lg.Diagonal(np.array([1.0, 2.0, 4.0]), psd=True), np.ones((3, 2))
    loose = lg.solve(A, b, lg.CG(rtol=np.array([0.9, 1e-9])))
    assert int(loose.steps[0]) < int(loose.steps[1])
    with pytest.raises(ValueError, match="one for each column"):
        lg.solve(A, b, lg.CG(rtol=np.full(3, 1e-3)))
    with pytest.raises(ValueError, match="rtol must be a finite number"):
        lg.CG(rtol=np.array([1e-3, -1.0]))


def test_no_columns_are_nothing_to_solve(backend):
    A = operator(backend, np.eye(7))
    with pytest.raises(ValueError, match="no columns"):
        lg.solve(A, array(backend, np.ones((7, 0))))


def test_a_block_out_of_range_is_told_from_the_others(backend):
    """Its answer is zero, with the residual of zero; what it kept on the way is zero where it was out of range too."""
    values = (np.array([1e-26, 1e-20]), np.array([1.0, 2.0]))
    A = lg.BlockDiagonal(tuple(lg.Diagonal(array(backend, part, "float32"), psd=True) for part in values))
    b = array(backend, np.array([1e15, 0.0, 1.0, 1.0]), "float32")
    for method in (lg.CG(steps=2, keep="every"), lg.MINRES(steps=2)):
        if backend.name == "jax" and type(method) is lg.MINRES:
            continue  # compiled for one of them
        solution = lg.solve(A, b, lg.Blockwise(method))
        assert solution.status == [Status.NONFINITE, Status.COMPLETED]
        np.testing.assert_allclose(backend.to_numpy(solution.x), [0.0, 0.0, 1.0, 0.5], rtol=1e-5)
        residual, model = (np.asarray(x, float) for x in (solution.residual, solution.model))
        assert residual[0] == pytest.approx(1e15, rel=1e-5)
        assert (model[0], residual[1] < 1e-6) == (0.0, True)
        if solution.iterates is not None:
            assert all(np.isfinite(backend.to_numpy(x)).all() for x in solution.iterates.x)


def test_a_method_looks_at_the_solver_it_is_given(numpy_backend):
    t = np.linspace(0.0, 1.0, 5)
    objective = lg.Objective.from_residuals(
        lambda p: {"r": p["a"] * t - 1.0}["r"], jacobian=lambda p: {"a": t[:, None]}
    )
    start = {"a": np.ones(1)}
    for solver in (lg.Blockwise(lg.Eigh()), lg.Blockwise(lg.LSMR()), lg.Blockwise(lg.GLTR())):
        with pytest.raises(TypeError, match="side by side"):
            lg.minimize(objective, start, lg.LevenbergMarquardt(solver=solver))
    with pytest.raises(ValueError, match="needs an operator with blocks"):
        lg.minimize(objective, start, lg.LevenbergMarquardt(solver=lg.Blockwise(lg.CG())))
    wrong = lg.CG(preconditioner=lg.Diagonal(np.ones(3), psd=True))
    with pytest.raises(ValueError, match="does not fit"):
        lg.minimize(objective, start, lg.LevenbergMarquardt(solver=wrong))
    for solver in (lg.CG, lg.MultiShiftCG(dampings=[1.0]), lg.LSMR()):
        with pytest.raises(TypeError, match="one for square systems"):
            lg.GramSolve(solver=solver)


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
    with pytest.raises(TypeError, match="the class LevenbergMarquardt itself: call it first"):
        lg.minimize(objective, np.ones(3), lg.LevenbergMarquardt)


@pytest.mark.parametrize("damping", [[0.1], None, "a", {"a": 1.0}, np.ones(3)], ids=repr)
def test_a_damping_is_one_number(damping):
    with pytest.raises(TypeError, match="damping must be one number"):
        lg.Damped(lg.Diagonal(np.ones(3), psd=True), damping)


def test_watchers_are_looked_at():
    A, b, seen = lg.Diagonal(np.ones(3), psd=True), np.ones(3), []
    lg.solve(A, b, watch=seen.append)  # one alone will do
    assert seen
    for watch in ([lg.ProgressBar], ["bar"], 3):
        with pytest.raises(TypeError, match="watch= takes watchers"):
            lg.solve(A, b, watch=watch)
    for every in (0, -1, 1.5, "a"):
        with pytest.raises(ValueError, match="every must be a whole number >= 1"):
            lg.solve(A, b, watch=seen.append, every=every)
        with pytest.raises(ValueError, match="every must be a whole number >= 1"):
            next(lg.steps(A, b, every=every))


@pytest.mark.parametrize("method", [lg.CG(), lg.MINRES(), lg.LSMR(), lg.GLTR(), lg.Cholesky(), lg.Lanczos(2)], ids=repr)
def test_of_an_input_that_is_not_finite_no_residual_is_known(numpy_backend, method):
    solution = lg.solve(lg.Diagonal(np.array([1.0, 2.0]), psd=True), np.array([1.0, np.nan]), method)
    assert solution.status is Status.NONFINITE_INPUT
    assert np.isnan(solution.residual)
    assert not solution.residual < 1.0


def test_a_semi_definite_matrix_is_singular_and_not_indefinite(backend):
    matrix = array(backend, np.ones((2, 2)))
    for known_to_be, status in ((True, Status.SINGULAR), (False, None)):
        A = lg.Dense(matrix, psd=known_to_be, symmetric=True)
        found = lg.solve(A, array(backend, np.ones(2)), lg.Cholesky()).status
        assert found in (status,) if status else found in (Status.SINGULAR, Status.NEGATIVE_CURVATURE)


def test_an_interval_holds_the_spectrum():
    K = lg.krylov(lg.Diagonal(np.array([1.0, 1.0, 2.0])), np.ones(3), k=1)
    for interval, says in (((5.0, 3.0), "two finite"), ((np.nan, 3.0), "two finite"), ((1.9, 3.0), "does not hold")):
        with pytest.raises(ValueError, match=says):
            K.quadratic_form(lambda x: 1 / x, interval)
    assert K.quadratic_form(lambda x: 1 / x, (1.0, 2.0)).lower <= 2.5


def test_success_is_told_inside_a_compiled_program(jax):
    import jax as framework
    import jax.numpy as jnp

    def solved(d):
        solution = lg.solve(lg.Diagonal(d), jnp.ones(3))
        with pytest.raises(TypeError, match="`succeeded` tells"):
            solution.status  # noqa: B018
        return solution.succeeded, solution.code

    program = framework.jit(solved)
    good, bad = program(jnp.array([1.0, 2.0, 3.0])), program(jnp.array([-1.0, 2.0, 3.0]))
    assert (bool(good[0]), Status(int(good[1]))) == (True, Status.CONVERGED)
    assert (bool(bad[0]), Status(int(bad[1]))) == (False, Status.NEGATIVE_CURVATURE)
