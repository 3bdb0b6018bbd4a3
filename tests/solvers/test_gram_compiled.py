"""A Gram step as part of compiled programs: what it writes down, and what its history says."""

import re

import numpy as np
import pytest
from systems import host

import linop_gn as lg
from linop_gn.testing.strategies import array

WIDTH, EXAMPLES, CLASSES = 256, 16, 3  # so many that the rows of W are not kept in a branch that nobody takes


@pytest.fixture(scope="module")
def ops(jax):
    return lg.load("jax")


def net(params, x):
    """Two wide layers and a narrow one."""
    import jax.numpy as jnp

    return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]


def mixed(params, x):
    """The same with the mean of the examples taken off."""
    z = net(params, x)
    return z - z.mean(0)


def data(ops):
    draw = np.random.default_rng(0).standard_normal
    params = {"a": draw((WIDTH, WIDTH)), "b": draw((WIDTH, WIDTH)), "c": draw((WIDTH, CLASSES))}
    params = {name: array(ops, value / 16.0, "float32") for name, value in params.items()}
    return params, array(ops, draw((EXAMPLES, WIDTH)), "float32"), ops.namespace().arange(EXAMPLES) % CLASSES


def system(model, params, x, y):
    """The damped operator, and the gradient."""
    fit = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))
    return lg.Damped(lg.GGN(fit, params), 1e-2), fit.gradient(params)


def test_the_first_step_is_apart_from_the_loop_and_no_conditional_copies_vectors(jax, ops):
    given = data(ops)
    program = jax.jit(lambda *given: lg.solve(*system(net, *given), lg.GramSolve()).x).lower(*given).compile()
    text = program.as_text()
    entry = text[text.index("\nENTRY") :]
    assert not re.findall(r" conditional\(", text)
    outer = re.findall(rf"= f32\[{WIDTH},{WIDTH}\]\S* dot\(", entry)
    assert len(outer) == 6, outer  # the gradient, W^T y and the product that verifies, each of two layers
    n = sum(leaf.size for leaf in given[0].values())
    assert program.memory_analysis().temp_size_in_bytes < 5.5 * 4 * n


@pytest.mark.parametrize("other", [0.0, 1e-3])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("model", [net, mixed])
def test_history_and_residual_are_those_of_the_operator(jax, ops, model, size, other):
    """For right-hand sides that are the gradient, and are not; whose squares are in range, and are not."""
    params, x, y = data(ops)

    def solved(params, x, y):
        A, gradient = system(model, params, x, y)
        b = jax.tree.map(lambda g: g + other, gradient)
        made = lg.solve(A, jax.tree.map(lambda g: size * g, b), lg.GramSolve(rtol=1e-4))
        return made, b, A @ jax.tree.map(lambda g: g / size, made.x)

    found, b, Ax = jax.jit(solved)(params, x, y)
    b, Ax = (np.concatenate([host(ops, tree[name]).ravel() for name in "abc"]).astype("float64") for tree in (b, Ax))
    norm, left = np.linalg.norm(b), np.linalg.norm(b - Ax)
    assert found.status is lg.Status.CONVERGED
    rows = np.asarray(found.history["residual"], "float64") / size
    assert len(rows) == int(found.steps) + 1
    np.testing.assert_allclose(rows[0], norm, rtol=1e-5)
    assert abs(rows[-1] - left) <= 1e-5 * norm
    assert left <= 1.1e-4 * norm


def test_what_is_solved_at_once_stays_so(jax, ops):
    """A step is taken before the loop, and changes nothing of what has ended."""
    params, x, y = data(ops)

    def solved(params, x, y):
        A, gradient = system(net, params, x, y)
        return lg.solve(A, jax.tree.map(lambda g: 0.0 * g, gradient), lg.GramSolve())

    found = jax.jit(solved)(params, x, y)
    assert (found.status, int(found.steps), len(found.history["residual"])) == (lg.Status.CONVERGED, 0, 1)
    assert all(not host(ops, leaf).any() for leaf in found.x.values())
