"""Sums of large products, by factors side by side or in blocks of rows, where nobody else wants these products."""

from itertools import product

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
def test_values(given, monkeypatch):
    """Of factors side by side, which are small enough, and by blocks of rows."""
    functions = (
        lambda x, W, dx, dW: x @ dW + dx @ W,
        lambda x, W, dx, dW: x @ jnp.reshape(dW, (5, 3)).T + dx @ jnp.reshape(W, (5, 3)).T,
        lambda x, W, dx, dW: jnp.einsum("ij,kj->ik", x, dW.T) + jnp.einsum("ji,jk->ik", dx.T, W),
        lambda x, W, dx, dW: jnp.reshape(jnp.reshape(x, (2, 3, 3)) @ dW + jnp.reshape(dx, (2, 3, 3)) @ W, (6, 5)),
    )
    for function, small in product(functions, (0, 1 << 20)):
        monkeypatch.setattr(sums, "_SMALL", small)
        made = program(function, *given)
        made._derived.pop("blocks", None)  # it may be known from the other case
        assert made.in_blocks() is made.in_blocks() is not made
        got, atol = made.in_blocks()(given[:2], given[2:])[0], 9 * float(jnp.finfo(given[0].dtype).eps)
        np.testing.assert_allclose(got, function(*given), rtol=0, atol=atol)
        assert ("scan" in str(made.in_blocks().closed)) == bool(small)


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


def test_products_turned(given, monkeypatch):
    """x^T y as (y^T x)^T, where x is large and y has few columns: in J^T u of a layer; of several axes of rows too."""
    h, _, W, _ = given
    for shape in ((6, 3), (2, 3, 3)):
        x, u = jnp.reshape(h, shape), jnp.ones((*shape[:-1], 4))
        made = LinearProgram.trace(lambda r, v: [r[0] @ v[0].T], [x], [W[:4]]).transpose()
        made._derived.pop("blocks", None)
        want = jnp.einsum("ai,aj->ij", jnp.reshape(u, (6, 4)), h)
        atol = 9 * float(jnp.finfo(u.dtype).eps)
        np.testing.assert_allclose(made.in_blocks()([x], [u])[0], want, rtol=0, atol=atol)
        assert "optimization_barrier" in str(made.in_blocks().closed)
        with monkeypatch.context() as patch:
            patch.setattr(sums, "_FEW", 2)
            made._derived.pop("blocks")
            assert made.in_blocks() is made


@pytest.mark.skipif(jax.device_count() > 1, reason="several devices may share the rows")
def test_products_turned_as_they_lie_in_memory(given):
    """Of heads, and of a model that is mapped over examples, whose u is used as it is, and not its transpose."""
    x, *_ = given
    rng, eps = np.random.default_rng(1), float(jnp.finfo(x.dtype).eps)
    layers = {
        "heads": ((3, 2, 2), lambda x, W: jnp.tensordot(x, W, 1)),
        "mapped": ((4, 3), lambda x, W: jax.vmap(lambda x: W @ x)(x)),
        "mapped twice": ((4, 3), lambda x, W: jax.vmap(jax.vmap(lambda x: W @ x))(jnp.reshape(x, (2, 3, 3)))),
    }
    for name, (shape, layer) in layers.items():
        W = jnp.asarray(rng.standard_normal(shape))
        for function, residual, at in ((layer, x, W), (lambda W, x, layer=layer: layer(x, W), W, x)):
            program = LinearProgram.trace(lambda r, v, function=function: [function(*r, *v)], [residual], [at])
            u = jnp.asarray(rng.standard_normal(program.outputs[0].shape))
            back = program.transpose()
            back._derived.pop("blocks", None)
            want = jax.linear_transpose(lambda v, f=function, r=residual: f(r, v), at)(u)[0]
            np.testing.assert_allclose(back.in_blocks()([residual], [u])[0], want, rtol=0, atol=99 * eps)
            assert ("optimization_barrier" in str(back.in_blocks().closed)) == (at is W or name != "heads")
