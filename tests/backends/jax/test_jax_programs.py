"""What linearisations cost and where they can go: counted in operations, not in seconds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, tree_util
from linop_gn_jax import backend
from linop_gn_jax.linear import LinearProgram, inner_jaxprs

calculus = backend.calculus
SIZES = (16, 24, 24, 5)
LAYERS = len(SIZES) - 1


def network(x, p):
    for layer in range(LAYERS):
        x = x @ p[2 * layer] + p[2 * layer + 1]
        if layer < LAYERS - 1:
            x = jnp.tanh(x)
    return x


def linearize(x, p):
    return calculus.linearize(lambda p: network(x, p), p, lambda z: z)


def curvature(x, p):
    return calculus.linearize_gradient(lambda p: jnp.mean(network(x, p) ** 2), p)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    shapes = [shape for a, b in itertools.pairwise(SIZES) for shape in ((a, b), (b,))]
    params = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    return jnp.asarray(rng.standard_normal((32, SIZES[0])), jnp.float32), params


def primitives(closed):
    """Names of all primitives of a jaxpr, inner ones included."""
    names = []
    todo = [closed.jaxpr]
    while todo:
        jaxpr = todo.pop()
        for eqn in jaxpr.eqns:
            names.append(eqn.primitive.name)
            todo += inner_jaxprs(eqn.params)
    return names


def products(function, *arguments):
    return primitives(jax.make_jaxpr(function)(*arguments)).count("dot_general")


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_a_product_holds_no_forward_pass(problem):
    x, params = problem
    linear = linearize(x, params)
    forward = jax.make_jaxpr(lambda L, v: L.jvp(v))(linear, params)
    backward = jax.make_jaxpr(lambda L, u: L.vjp(u))(linear, linear.outputs)
    for closed in (forward, backward):
        assert "tanh" not in primitives(closed)
        assert primitives(closed).count("dot_general") == 2 * LAYERS - 1


def test_gradient_and_linearisation_cost_one_gradient(problem):
    x, params = problem

    def gradient(x, p):
        return jax.grad(lambda p: jnp.sum(network(x, p) ** 2))(p)

    assert products(linearize, x, params) == products(gradient, x, params)
    assert flops(linearize, x, params) <= 1.02 * flops(gradient, x, params)


def test_a_hessian_product_costs_no_more_than_its_floor(problem):
    x, params = problem
    linear = curvature(x, params)
    assert "tanh" not in primitives(jax.make_jaxpr(lambda L, v: L.hvp(v))(linear, params))
    gradient = flops(lambda x, p: jax.grad(lambda p: jnp.sum(network(x, p) ** 2))(p), x, params)
    assert flops(lambda L, v: L.hvp(v), linear, params) <= 2.05 * gradient


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "in a scan"])
def test_a_block_costs_only_what_lies_above_it(problem, nested):
    x, params = problem
    linear = linearize(x, params)
    for layer in range(LAYERS):
        only = (2 * layer, 2 * layer + 1)
        block = [params[i] for i in only]

        def forward(L, v, only=only):
            return L.jvp(v, only)

        def backward(L, u, only=only):
            return L.vjp(u, only)

        def repeated(L, v, forward=forward):
            return lax.scan(lambda c, _: (c + forward(L, v), None), jnp.zeros_like(L.outputs), None, length=3)[0]

        # One product in the layer, one for each layer above, and nothing from the layers below.
        assert products(repeated if nested else forward, linear, block) == LAYERS - layer
        assert products(backward, linear, linear.outputs) == LAYERS - layer
        rows = 2 * x.shape[0]
        above = rows * sum(a * b for a, b in zip(SIZES[layer:], SIZES[layer + 1 :], strict=False))
        assert flops(forward, linear, block) <= 1.1 * above
        assert flops(backward, linear, linear.outputs) <= 1.1 * above


def test_a_linearisation_crosses_jit_without_a_new_trace(problem):
    x, params = problem
    traces = []

    @jax.jit
    def apply(linear, v):
        traces.append(1)
        return linear.vjp(linear.jvp(v))

    for scale in (1.0, 2.0, 3.0):
        there = backend.call(linearize, scale * x, [scale * p for p in params])
        here = linearize(scale * x, [scale * p for p in params])
        for a, b in zip(apply(there, params), apply(here, params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3 * float(jnp.max(jnp.abs(b))))
    assert len(traces) == 1


def test_linearisations_are_stacked_by_scan(problem):
    x, params = problem
    batches = x.reshape(4, 8, -1)
    v = [jnp.ones_like(p) for p in params]

    def gradient(batch, p):
        linear = linearize(batch, p)
        return linear.gradient, linear.without_gradient()

    def product(linear, v):
        return linear.vjp(linear.jvp(v)), linear.outputs

    total, stacked = backend.scan_over(gradient, batches, params)
    summed, outputs = backend.scan_over(product, stacked, v)
    alone = backend.sum_over(lambda linear, v: linear.vjp(linear.jvp(v)), stacked, v)
    whole = linearize(x, params)
    for got, want in ((total, whole.gradient), (summed, whole.vjp(whole.jvp(v))), (alone, whole.vjp(whole.jvp(v)))):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(b))))
    np.testing.assert_allclose(outputs.reshape(32, -1), whole.outputs, rtol=1e-5, atol=1e-4)
    # The weights are kept once, not once for each batch.
    assert sum(leaf.nbytes for leaf in tree_util.tree_leaves(stacked)) == sum(
        leaf.nbytes for leaf in tree_util.tree_leaves(whole.without_gradient())
    )


def test_gradients_linearised_in_a_scan_keep_what_varies(problem):
    x, params = problem
    batches = x.reshape(4, 8, -1)
    v = [jnp.ones_like(p) for p in params]
    _, stacked = backend.scan_over(_curved, batches, params)
    whole = curvature(x, params).hvp(v)
    for a, b in zip(jax.jit(lambda s, v: backend.sum_over(_hvp, s, v))(stacked, v), whole, strict=True):
        np.testing.assert_allclose(a / 4, b, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(b))))


def _curved(batch, p):
    linear = curvature(batch, p)
    return linear.gradient, linear


def _hvp(linear, v):
    return linear.hvp(v)


def test_a_linearisation_is_carried_by_a_loop_that_makes_new_ones(problem):
    x, params = problem

    @jax.jit
    def descend(p):
        def body(_, carry):
            p, linear = carry
            p = [a - 1e-3 * g for a, g in zip(p, linear.gradient, strict=True)]
            return p, linearize(x, p)

        return lax.fori_loop(0, 3, body, (p, linearize(x, p)))[1]

    by_hand = params
    for _ in range(3):
        by_hand = [a - 1e-3 * g for a, g in zip(by_hand, linearize(x, by_hand).gradient, strict=True)]
    np.testing.assert_allclose(descend(params).outputs, linearize(x, by_hand).outputs, rtol=2e-4, atol=2e-4)


def test_a_linearisation_is_chosen_by_cond(problem):
    x, params = problem

    def pick(flag, p):
        old, new = linearize(x, p), linearize(x, [2 * q for q in p])
        return lax.cond(flag, lambda: new, lambda: old).outputs

    np.testing.assert_allclose(jax.jit(pick)(True, params), network(x, [2 * p for p in params]), rtol=1e-4, atol=1e-4)


def test_vmap_over_points(problem):
    x, params = problem
    stacked = tree_util.tree_map(lambda p: jnp.stack([p, 2 * p]), params)
    got = jax.vmap(lambda p: linearize(x, p).jvp(params))(stacked)
    for i, scale in enumerate((1.0, 2.0)):
        want = jax.jvp(lambda p: network(x, p), ([scale * p for p in params],), (params,))[1]
        np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-3)


def test_derivatives_go_through_a_product(problem):
    x, params = problem
    (tangents,) = jax.jit(lambda p: jax.jvp(lambda p: linearize(x, p).jvp(params), (p,), (params,)))(params)[1:]
    _, want = jax.jvp(lambda p: jax.jvp(lambda p: network(x, p), (p,), (params,))[1], (params,), (params,))
    np.testing.assert_allclose(tangents, want, rtol=1e-3, atol=1e-3)


def test_programs_are_the_same_only_if_they_compute_the_same():
    def program(function):
        return LinearProgram.trace(lambda r, v: [function(r[0], v[0])], [jnp.ones(3)], [jnp.ones(3)])

    table = jnp.arange(3.0)
    same = program(lambda r, v: r * v * 2.0)
    assert program(lambda a, b: a * b * 2.0) is same
    different = [
        program(lambda r, v: r * v * 3.0),
        program(lambda r, v: v * 2.0 * r),
        program(lambda r, v: r * v * -0.0),
        program(lambda r, v: r * v * 0.0),
        program(lambda r, v: lax.scan(lambda c, _: (c * r, None), v, None, length=2)[0]),
        program(lambda r, v: lax.scan(lambda c, _: (c * r, None), v, None, length=3)[0]),
        program(lambda r, v: jax.jit(lambda w: w * table)(v)),
        program(lambda r, v: jax.jit(lambda w: w * (table + 1))(v)),
    ]
    assert len({id(p) for p in (same, *different)}) == 1 + len(different)
