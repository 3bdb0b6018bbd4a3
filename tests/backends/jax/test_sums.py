"""Sums of large products, in blocks of rows: the same numbers, and only where nobody else wants the products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linop_gn_jax import sums
from linop_gn_jax.linear import LinearProgram


def program(function, *arguments):
    return LinearProgram.trace(lambda r, v: [function(*r, *v)], list(arguments[:2]), list(arguments[2:]))


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setattr(sums, "LARGE", 1)
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in ((6, 3), (3, 5), (6, 3), (3, 5))]


@pytest.mark.skipif(jax.device_count() > 1, reason="several devices may share the rows")
def test_values(given):
    for function in (
        lambda x, W, dx, dW: x @ dW + dx @ W,
        lambda x, W, dx, dW: jnp.einsum("ij,kj->ik", x, dW.T) + jnp.einsum("ji,jk->ik", dx.T, W),
        lambda x, W, dx, dW: jnp.reshape(jnp.reshape(x, (2, 3, 3)) @ dW + jnp.reshape(dx, (2, 3, 3)) @ W, (6, 5)),
    ):
        made = program(function, *given)
        assert made.in_blocks() is made.in_blocks() is not made
        np.testing.assert_allclose(made.in_blocks()(given[:2], given[2:])[0], function(*given), rtol=1e-12)


def test_what_is_left_alone(given, monkeypatch):
    x, W, dx, dW = given

    def shared(x, W, dx, dW):
        one = x @ dW
        return (one + dx @ W) * 2.0 + one

    for function in (shared, lambda x, W, dx, dW: x @ dW + dx @ (0 * W) @ jnp.eye(5) - dx @ W):
        made = program(function, *given)
        np.testing.assert_allclose(made.in_blocks()(given[:2], given[2:])[0], function(*given), rtol=1e-12)
    assert program(shared, *given).in_blocks() is program(shared, *given)
    odd = program(lambda x, W, dx, dW: x @ dW + dx @ W, x[:1], W, dx[:1], dW)
    assert odd.in_blocks() is odd
    monkeypatch.setattr(sums, "LARGE", 1 << 22)
    small = program(lambda x, W, dx, dW: 2.0 * (x @ dW + dx @ W), *given)
    assert small.in_blocks() is small
