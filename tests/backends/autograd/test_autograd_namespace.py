"""Derivatives of the names that autograd lacks of the array-API standard, against the complex step."""

import numpy as np
import pytest

autograd = pytest.importorskip("autograd")

import linop_gn as lg  # noqa: E402
from linop_gn.testing import complex_step_jacobian, finite_difference_jacobian  # noqa: E402

X = np.random.default_rng(0).standard_normal(12)
INDEX = np.array([[0, 2], [1, 1], [2, 0]])

FUNCTIONS = {
    "concat": lambda xp, x: xp.concat([x[2:5], 2 * x], axis=0) ** 2,
    "concat flat": lambda xp, x: xp.concat([xp.reshape(x, (3, 4)), xp.reshape(x[:4], (2, 2))], axis=None) ** 2,
    "permute_dims": lambda xp, x: xp.permute_dims(xp.reshape(x, (2, 3, 2)), (2, 0, 1)) ** 2,
    "matrix_transpose": lambda xp, x: xp.matrix_transpose(xp.reshape(x, (3, 4))) @ xp.reshape(x, (3, 4)),
    "vecdot": lambda xp, x: xp.vecdot(xp.reshape(x, (3, 4)), xp.reshape(x, (3, 4)) ** 2),
    "take": lambda xp, x: xp.take(xp.reshape(x, (4, 3)), np.array([0, 0, 2]), axis=1) ** 2,
    "take_along_axis": lambda xp, x: xp.take_along_axis(xp.reshape(x, (3, 4)), INDEX, axis=-1) ** 3,
    "take_along_axis, first": lambda xp, x: xp.take_along_axis(xp.reshape(x, (3, 4)), INDEX.T[:, :1], axis=0) ** 3,
    "pow": lambda xp, x: xp.pow(2.0 + xp.sin(x), 1.5),
    "atan of asinh": lambda xp, x: xp.atan(xp.asinh(x)) * xp.acos(0.5 * xp.tanh(x)),
    "clip": lambda xp, x: xp.clip(x, min=-0.5, max=0.8) ** 2,
    "flip": lambda xp, x: xp.flip(xp.reshape(x, (3, 4)), axis=1) * xp.reshape(x, (3, 4)),
    "unstack": lambda xp, x: xp.unstack(xp.reshape(x, (3, 4)), axis=1)[2] ** 2,
    "cumulative_sum": lambda xp, x: xp.cumulative_sum(x) ** 2,
    "stack": lambda xp, x: xp.stack([x, x * x], axis=1),
    "expand_dims": lambda xp, x: xp.expand_dims(x, axis=0) * xp.expand_dims(x, axis=1),
    "broadcast_to": lambda xp, x: xp.broadcast_to(x, (2, 12)) ** 2,
    "logaddexp": lambda xp, x: xp.logaddexp(x, xp.zeros_like(x)),
    "where": lambda xp, x: xp.where(xp.asarray([True, False] * 6), x**2, x),
}


@pytest.fixture(scope="module")
def backend():
    return lg.load("autograd")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(backend, name):
    function = FUNCTIONS[name]

    def of(leaves):
        return function(lg.namespace(leaves[0]), leaves[0])

    if name in (
        "logaddexp",
        "vecdot",
        "pow",
        "clip",
        "flip",
        "unstack",
        "cumulative_sum",
    ):  # not analytic, or another name, in NumPy
        J = finite_difference_jacobian(lambda x: function(backend.namespace(), x), X)
        tolerance = 1e-8
    else:
        J, tolerance = complex_step_jacobian(lambda x: function(np, x), X), 1e-12
    at = backend.calculus.linearize(of, [X], lambda z: np.ones_like(z))
    v = np.random.default_rng(1).standard_normal(12)
    u = np.random.default_rng(2).standard_normal(len(J))
    np.testing.assert_allclose(at.jvp([v]).reshape(-1), J @ v, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(at.vjp(u.reshape(at.outputs.shape))[0], J.T @ u, rtol=tolerance, atol=tolerance)

    def total(leaves):
        return backend.namespace().sum(of(leaves) ** 2)

    curve = backend.calculus.linearize_gradient(total, [X])
    H = finite_difference_jacobian(lambda x: backend.calculus.gradient(total, [x])[1][0], X)
    np.testing.assert_allclose(curve.hvp([v])[0], H @ v, rtol=1e-6, atol=1e-6 * abs(H).max())


def test_inputs_lead_to_the_functions_that_record(backend):
    inputs = np.ones((2, 12))
    at = backend.calculus.linearize(lambda leaves: lg.namespace(inputs).sum(inputs @ leaves[0]), [X], np.ones_like)
    np.testing.assert_array_equal(at.gradient[0], 2.0)
    assert lg.namespace(inputs) is np


def test_plain_arrays_belong_to_numpy_beside_it(backend):
    assert lg.backend_of({"w": X}) is lg.load("numpy")
    assert lg.backend_of([np.float64(1.0)]) is lg.load("numpy")


def test_a_function_without_a_derivative_is_named(backend):
    with pytest.raises(NotImplementedError, match="nextafter"):
        backend.calculus.gradient(lambda leaves: autograd.numpy.sum(autograd.numpy.nextafter(leaves[0], 1.0)), [X])


def test_functions_that_do_not_return_one_array_are_refused(backend):
    with pytest.raises(TypeError, match="one array"):
        backend.calculus.gradient(lambda leaves: {"loss": leaves[0]}, [X])
    with pytest.raises(ValueError, match="scalar function"):
        backend.calculus.gradient(lambda leaves: leaves[0] ** 2, [X])
