"""What a linearisation refuses, and what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linop_gn_jax import backend

calculus = backend.calculus


def linearize(function, *params):
    return calculus.linearize(function, list(params), lambda outputs: outputs)


def test_parameters_without_a_derivative():
    with pytest.raises(TypeError, match=r"parameter leaf 1 has dtype int32.*close over them"):
        linearize(lambda p: p[0] * p[1], jnp.ones(2), jnp.arange(2))
    with pytest.raises(TypeError, match="complex64"):
        linearize(lambda p: jnp.real(p[0]), jnp.ones(2, jnp.complex64))


def test_models_that_return_something_else():
    with pytest.raises(TypeError, match="the model returned a tuple; it must return one array"):
        linearize(lambda p: (p[0], p[0]), jnp.ones(2))
    with pytest.raises(TypeError, match="dtype int32"):
        linearize(lambda p: jnp.argmax(p[0]), jnp.ones(2))


@pytest.mark.parametrize("use", [calculus.gradient, calculus.linearize_gradient])
def test_an_objective_that_is_no_scalar(use):
    with pytest.raises(TypeError, match=r"array of shape \(2,\).*mean or sum"):
        use(lambda p: p[0] ** 2, [jnp.ones(2)])


def test_tangents_and_cotangents_of_the_wrong_shape():
    linear = linearize(lambda p: p[0] * p[1], jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"tangents have shapes \[\(2,\)\]; expected \[\(2,\), \(2,\)\]"):
        linear.jvp([jnp.ones(2)])
    with pytest.raises(ValueError, match=r"cotangents have shapes \[\(3,\)\]; expected \[\(2,\)\]"):
        linear.vjp(jnp.ones(3))
    with pytest.raises(ValueError, match=r"tangents have shapes \[\(2,\), \(2,\)\]; expected \[\(2,\)\]"):
        linear.jvp([jnp.ones(2), jnp.ones(2)], (1,))


def test_gradient_of_a_scalar():
    value, gradient = calculus.gradient(lambda p: jnp.sum(p[0] ** 2), [jnp.arange(3.0)])
    assert float(value) == 5.0
    np.testing.assert_array_equal(gradient[0], [0, 2, 4])
    assert float(calculus.evaluate(lambda p: jnp.sum(p[0]), [jnp.arange(3.0)])) == 3.0


def test_high_precision_ends_with_its_context():
    with calculus.high_precision():
        assert jnp.asarray(1.0, "float64").dtype == np.float64
    assert jnp.asarray(1.0).dtype == np.float32
    assert not jax.config.jax_enable_x64
