"""Identity and damping."""

import numpy as np
import pytest
from hypothesis import given

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.strategies import array, dampings, matrices


@given(M=matrices(3, 3), damping=dampings())
def test_damping_adds_to_the_diagonal(M, damping):
    scale = max(np.abs(M).max(), damping)
    for A in (lg.Damped(lg.Dense(M), damping), lg.Dense(M) + damping * lg.Identity(lg.Space.flat(3, M))):
        np.testing.assert_allclose(dense(A), M + damping * np.eye(3), rtol=0, atol=1e-15 * scale)
        np.testing.assert_allclose(dense(A.T), M.T + damping * np.eye(3), rtol=0, atol=1e-15 * scale)


def test_the_damping_may_be_an_array_without_axes(backend):
    A = lg.Damped(lg.Diagonal(array(backend, [1.0, 2.0])), array(backend, 0.5))
    assert A.psd
    np.testing.assert_array_equal(backend.to_numpy(A @ array(backend, [1.0, 1.0])), [1.5, 2.5])


def test_the_identity_copies(backend):
    I = lg.Identity(lg.Space.flat(2, array(backend, np.zeros(1))))
    assert I.psd
    v = array(backend, [1.0, 2.0])
    backend.scale(3.0, I @ v)
    np.testing.assert_array_equal(backend.to_numpy(v), [1.0, 2.0])
    np.testing.assert_array_equal(backend.to_numpy(I.to_dense()), np.eye(2))


@pytest.mark.parametrize("damping", [-1e-9, np.nan, np.inf, -1.0])
def test_bad_dampings_are_refused(damping):
    with pytest.raises(ValueError, match="damping must be a finite number >= 0, got"):
        lg.Damped(lg.Diagonal(np.ones(2)), damping)
    with pytest.raises(TypeError, match="damping must be one number, got '1e-3'"):
        lg.Damped(lg.Diagonal(np.ones(2)), "1e-3")


def test_a_norm_whose_trace_overflows(backend):
    A = lg.Damped(lg.Diagonal(array(backend, np.full(40, 3e37), "float32")), 1.0)
    assert float(lg.frobenius_norm(A).value) == pytest.approx(3e37 * 40**0.5, rel=1e-6)


def test_the_norm_has_a_derivative_without_damping(jax):
    d = lg.Diagonal(jax.numpy.array([1.0, 2.0, 2.0]))
    slope = jax.grad(lambda damping: lg.Damped(d, damping).known_frobenius_norm())(0.0)
    assert float(slope) == pytest.approx(5 / 3)  # tr A / ||A||


def test_only_square_operators_are_damped():
    with pytest.raises(ValueError, match="only a square operator can be damped, got Dense"):
        lg.Damped(lg.Dense(np.ones((2, 3))), 1.0)
    with pytest.raises(TypeError, match="Damped needs a linear operator, got ndarray"):
        lg.Damped(np.eye(2), 1.0)


def test_a_damping_is_one_number_where_only_its_shape_is_known(jax):
    v = array(lg.load("jax"), np.ones(2))
    A = lg.Diagonal(v)
    with pytest.raises(TypeError, match="damping must be one number"):
        jax.jit(lambda damping: lg.Damped(A, damping) @ v)(v)
    line = lg.Objective.from_residuals(lambda p: p - 3.0)
    with pytest.raises(TypeError, match="damping must be one number"):
        lg.minimize(line, v, lg.LevenbergMarquardt(damping=v))
