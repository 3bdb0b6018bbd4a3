"""Whole solves of Gauss-Newton systems: what their loop holds, how often they compile, and that they are right."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linop_gn_jax.linear import inner_jaxprs

import linop_gn as lg

SIZES = (16, 24, 24, 5)
LAYERS = len(SIZES) - 1
backend = lg.load("jax")


def network(p, x):
    for layer in range(LAYERS):
        x = x @ p[2 * layer] + p[2 * layer + 1]
        if layer < LAYERS - 1:
            x = jnp.tanh(x)
    return x


def draw(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    shapes = [shape for a, b in itertools.pairwise(SIZES) for shape in ((a, b), (b,))]
    params = [jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), dtype) for shape in shapes]
    x = jnp.asarray(rng.standard_normal((32, SIZES[0])), dtype)
    return params, x, jnp.asarray(rng.integers(0, SIZES[-1], 32))


def gauss_newton_step(params, x, y, damping, rtol, steps=None):
    objective = lg.Objective(network, lg.losses.CrossEntropy(), (x, y))
    G = lg.GGN(objective, params)
    method = lg.CG(rtol=rtol, max_steps=30) if steps is None else lg.CG(steps=steps)
    return lg.solve(lg.Damped(G, damping), objective.gradient(params), method)


def inner(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for part in inner_jaxprs(eqn.params):
            yield from inner(part)


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_the_loop_holds_one_linearised_product_and_no_forward_pass():
    params, x, y = draw(0)
    whole = jax.make_jaxpr(lambda *args: gauss_newton_step(*args).x)(params, x, y, 1e-2, 1e-3).jaxpr
    loop = next(eqn for eqn in inner(whole) if eqn.primitive.name == "while")  # the outer
    body = [eqn.primitive.name for eqn in inner(loop.params["body_jaxpr"].jaxpr)]
    product = 2 * (2 * LAYERS - 1)  # J v and J^T u: two products of matrices a layer, less the one with the data
    assert body.count("dot_general") == product
    assert "tanh" not in body


def test_ten_steps_with_other_data_compile_once():
    def counts():
        now = backend.compilations()
        return {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name, 0)}

    gauss_newton_step(*draw(0), 1.0, 0.5)
    before = backend.compilations()
    for seed in range(1, 11):
        gauss_newton_step(*draw(seed), 10.0**-seed, 10.0 ** -(seed / 3))
    assert counts() == {}


def test_a_compiled_step_agrees_with_the_dense_system_and_with_numpy():
    with jax.enable_x64(True):
        params, x, y = draw(3, "float64")
        objective = lg.Objective(network, lg.losses.CrossEntropy(), (x, y))
        A = lg.Damped(lg.GGN(objective, params), 1e-1)
        g = A.domain.pack(objective.gradient(params))
        matrix = np.asarray(A.to_dense())
        compiled = lg.solve(A, g, lg.CG(rtol=1e-10, max_steps=500))
        eager = lg.solve(lg.Dense(matrix, psd=True), np.array(g), lg.CG(rtol=1e-10, max_steps=500))
        np.testing.assert_allclose(matrix @ np.asarray(compiled.x), g, rtol=0, atol=1e-9)
        np.testing.assert_allclose(compiled.x, eager.x, rtol=1e-7, atol=1e-9)
        assert compiled.status is lg.Status.CONVERGED


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_inside_jit_vmap_and_jvp():
    params, x, y = draw(5)
    alone = gauss_newton_step(params, x, y, 1e-1, 1e-3, steps=5)

    def flat(damping):
        return backend.pack(jax.tree.leaves(gauss_newton_step(params, x, y, damping, 1e-3, steps=5).x), "float32")

    want = np.asarray(backend.pack(jax.tree.leaves(alone.x), "float32"))
    several = jax.jit(jax.vmap(flat))(jnp.array([1e-1, 1.0]))
    np.testing.assert_allclose(several[0], want, rtol=1e-4, atol=1e-5)
    h = 1e-2

    def solution(damping):  # whose derivative is that of the system, so it has to solve it
        return backend.pack(jax.tree.leaves(gauss_newton_step(params, x, y, damping, 1e-5).x), "float32")

    tangent = jax.jit(lambda d: jax.jvp(solution, (d,), (jnp.float32(1.0),))[1])(jnp.float32(0.1))
    above, below = jax.jit(jax.vmap(solution))(jnp.array([0.1 + h, 0.1 - h]))
    difference = (above - below) / (2 * h)
    np.testing.assert_allclose(tangent, difference, rtol=0.1, atol=0.02 * float(jnp.max(jnp.abs(difference))))


@pytest.mark.parametrize("radius", [0.5, np.float64(0.5)])
def test_a_radius_in_double_precision_beside_vectors_in_single(radius):
    """In a program of the user's own, where a Python number has the widest type."""
    A, b = jnp.diag(jnp.asarray([1.0, 2.0, 3.0], "float32")), jnp.ones(3, "float32")
    x = jax.jit(lambda A: lg.solve(lg.Dense(A, symmetric=True), b, lg.Steihaug(radius=radius)).x)(A)
    assert x.dtype == "float32"
    assert float(jnp.linalg.norm(x)) == pytest.approx(0.5, rel=1e-5)
