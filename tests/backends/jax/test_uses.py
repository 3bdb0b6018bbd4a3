"""Uses of parameters against gradients: these are sums over the uses, placed by their views, of g a^T."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from linop_gn_jax import backend
from linop_gn_jax.linear import inner_jaxprs

EACH_IN_CI_ON_JAX = ("test_gradients_are_sums_over_uses",)

calculus = backend.calculus
N, T, D, H, K, V = 3, 4, 6, 2, 3, 7
rng = np.random.default_rng(0)
X = rng.standard_normal((N, D))
X3 = rng.standard_normal((N, T, D))
TOKENS = rng.integers(0, V, (N, T))


@pytest.fixture(autouse=True)
def double():
    with calculus.high_precision():
        yield


def placed(gradients, view, entries):
    """Adds entries to those of a leaf that the view is of."""
    index = view.offset + sum(
        (np.arange(n).reshape(-1, *[1] * (len(view.shape) - a - 1)) * s)
        for a, (n, s) in enumerate(zip(view.shape, view.strides, strict=True))
    )
    index = np.broadcast_to(index, view.shape)
    assert index.size == len(np.unique(index))
    np.add.at(gradients[view.leaf], index.ravel(), np.asarray(entries, np.float64).ravel())


def gradients_of(uses, inputs, cotangents, shapes):
    """Of all leaves, from the uses alone."""
    found = [np.zeros(int(np.prod(shape))) for shape in shapes]
    for use, given, g in zip(uses, inputs, cotangents, strict=True):
        groups, outputs = use.weight.shape[0], int(np.prod(use.weight.shape[1 : 1 + use.outputs]))
        assert g.shape == (groups, *use.rows, outputs)
        g = np.asarray(g, np.float64).reshape(groups, -1, outputs)
        if use.kind == "lookup":
            assert given.shape == use.rows
            i, (_, *_, size) = np.ravel(given), use.weight.shape
            assert not np.any(g[0, i < 0])
            placed(found, use.weight, g[0].T @ (i[:, None] == np.arange(size)))
        elif use.kind == "linear":
            size = int(np.prod(use.weight.shape[1 + use.outputs :]))
            assert given.shape == (groups, *use.rows, size)
            placed(found, use.weight, np.einsum("gro,gri->goi", g, np.reshape(given, (groups, -1, size))))
        else:
            assert given is None if use.kind == "shift" else given.shape == (1, *use.rows, outputs)
            placed(found, use.weight, (g * (1 if given is None else np.reshape(given, g.shape))).sum(1))
        if use.bias is not None:
            assert use.bias.shape == use.weight.shape[: 1 + use.outputs]
            placed(found, use.bias, g.sum(1))
    return [g.reshape(shape) for g, shape in zip(found, shapes, strict=True)]


def told(uses):
    return " ".join(use.kind + "+b" * (use.bias is not None) for use in uses)


MODELS = {}


def model(*shapes, uses, rows=None, otherwise=(), name=None):
    def keep(function):
        MODELS[name or function.__name__] = function, shapes, uses, rows, otherwise
        return function

    return keep


@model((D, 4), (4,), (4, 2), uses="linear+b linear", rows=(N,))
def dense(w, b, v):
    return jnp.tanh(X @ w + b) @ v


@model((4, D), (4,), uses="linear+b", rows=(N,))
def turned(w, b):
    return (w @ X.T).T + b


@model((D, 4), (4,), uses="linear+b", rows=(N, T))
def positions(w, b):
    return X3 @ w + b


@model((D, H, K), (H, K), (H, K, D), (D,), uses="linear+b linear+b", rows=(N, T))
def heads(w, b, v, c):
    return jnp.einsum("nthk,hkd->ntd", jnp.einsum("ntd,dhk->nthk", X3, w) + b, v) + c


def tensor(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@model((H, K, D), (H, 1, K), uses="linear+b")
def heads_first(w, b):
    return jnp.einsum("ntd,hkd->nhtk", X3, w) + b


@model((D, 4, 2), (2, 4), (4,), uses="linear+b shift")
def groups(w, b, c):
    return jnp.einsum("ndg,dog->gno", X[:, :, None] * np.arange(1, 3), w) + b[:, None] + c


@model((D, 3 * D), (3 * D,), uses="linear+b linear linear+b")
def sliced(w, b):
    q, k, v = X @ w[:, :D] + b[:D], X @ w[:, D : 2 * D], X @ w[:, 2 * D :] + b[2 * D :]
    return jnp.sin(q) * k + v


@model((3 * D, D), (3 * D,), (D, D), uses="linear+b linear", rows=(N, T))
def attention(w, b, v):
    q, k, v_ = (s.reshape(N, T, H, K) for s in jnp.split(X3 @ w.T + b, 3, axis=-1))
    a = jax.nn.softmax(jnp.einsum("nthk,nshk->nhts", q, k))
    return jnp.einsum("nhts,nshk->nthk", a, v_).reshape(N, T, D) @ v


@model((V, D), (T, D), (D,), uses="lookup shift linear")
def tied(w, p, s):
    h = jnp.take(w, TOKENS, axis=0) + p
    return jnp.tanh(h) @ w.T


@model((V, D), (D, V), (V, 2, 2), uses="lookup lookup lookup")
def looked_up(w, v, u):
    out = jnp.take(v, np.where(TOKENS == 2, 99, TOKENS).astype(np.uint8), axis=1, fill_value=0).transpose(1, 2, 0)
    return w[TOKENS - V] + out + u.at[TOKENS + 2].get(mode="clip").sum((-1, -2))[..., None]


@model((V, D), uses="lookup")
def looked_up_each(w):
    return jax.vmap(lambda i: w[i])(TOKENS[:, 0])


@model((D,), (D,), (), (T, 1), uses="scale shift scale scale", rows=(N,))
def norm(w, b, s, t):
    x = (X3 - X3.mean(-1, keepdims=True)) * lax.rsqrt(jnp.var(X3, -1, keepdims=True) + 1e-3)
    return (x * (1 + w) + b) * s * t


@model((4, D), (4,), (4,), (4,), uses="linear scale scale scale", rows=(N,))
def scaled(w, b, s, t):
    z = X @ (0.3 * w / 2).T - b
    z = (z - z.mean(0)) * (lax.rsqrt(z.var(0) + 1e-3)[None] * s)  # as batch normalisation is written
    return jnp.tanh(z) - (t * np.arange(4.0) - 1) * 2


@model((D, D), (D,), uses="scale scale", otherwise=(0,))
def normalised(w, s):
    return X @ (w * lax.rsqrt(jnp.sum(w**2, 0)) * s)


@model((D, D), (D,), uses="scale scale scale", otherwise=(0,))
def not_only_scaled(w, b):
    return X * (w / w.sum())[0] + b / 2 * (1 + b) * X


CONVOLUTIONS = {
    "1d": ((N, 5, 2), (3, 2, 4), ("NWC", "WIO", "NWC"), {"padding": "SAME"}),
    "2d": (
        (N, 2, 6, 5),
        (4, 2, 3, 2),
        ("NCHW", "OIHW", "NCHW"),
        {"window_strides": (2, 1), "padding": [(1, 0), (0, 2)]},
    ),
    "dilated": ((N, 6, 6, 2), (2, 2, 2, 4), ("NHWC", "HWIO", "NHWC"), {"rhs_dilation": (2, 3), "padding": "VALID"}),
    "grouped": ((N, 4, 4, 4), (2, 2, 2, 6), ("NHWC", "HWIO", "NHWC"), {"feature_group_count": 2, "padding": "SAME"}),
    "depthwise": ((4, 4, 4, N), (2, 2, 1, 4), ("HWCN", "HWIO", "CHWN"), {"feature_group_count": 4, "padding": "SAME"}),
    "3d": ((N, 3, 3, 3, 2), (2, 2, 2, 2, 3), ("NDHWC", "DHWIO", "NDHWC"), {"padding": "VALID"}),
}


def convolution(x, numbers, options, w, b):
    strides = options.get("window_strides", (1,) * (len(w.shape) - 2))
    options = {"window_strides": strides, **options}
    z = lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)
    return z + b.reshape([-1 if letter == "C" else 1 for letter in numbers[2]])


for name, (x_shape, w_shape, numbers, options) in CONVOLUTIONS.items():
    filters = w_shape[numbers[1].index("O")]
    model(w_shape, (filters,), uses="linear+b", name=f"convolution {name}")(
        functools.partial(convolution, tensor(*x_shape), numbers, options)
    )


@model((3, 3, 2, 4), (4,), uses="linear+b")
def transposed(w, b):
    return lax.conv_transpose(tensor(N, 3, 4, 2), w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b


@model((D, D), (D, D), (D,), uses=" ".join(["linear+b linear"] * T), rows=(N,))
def recurrent(w, v, b):
    def step(h, x):
        h = jnp.tanh(x @ w + h @ v + b)
        return h, h

    return lax.scan(step, jnp.zeros((N, D)), X3.swapaxes(0, 1))[1]


@model((T, D, D), (T, D), uses=" ".join(["linear+b"] * T))
def layers(w, b):
    return lax.scan(lambda h, p: (jnp.tanh(h @ p[0] + p[1]), None), X, (w, b), reverse=True)[0]


@model((T, D, D), uses=" ".join(["linear"] * T))
def counted(w):
    return lax.fori_loop(0, T, lambda i, h: jnp.tanh(h @ w[i]), X)


@model((D, D), uses="", otherwise=(0,))
def long(w):
    return lax.scan(lambda h, _: (jnp.tanh(h @ w), None), X, None, length=300)[0]


@model((4, D), (4,), (4,), uses="linear+b scale", rows=(N,))
def mapped(w, b, s):
    return jax.vmap(lambda x: s * jax.nn.relu(w @ x + b))(X)


@model((2, 4, D), (2, 4), uses="linear+b")
def ensemble(w, b):
    return jax.vmap(lambda w, b: jax.vmap(lambda x: w @ x + b)(X))(w, b)


@model((D, 4), (4,), (4, 4), uses="linear+b linear")
def inside(w, b, v):
    @jax.jit
    def first(x, w):
        return jax.nn.gelu(x @ w + b)

    return jax.checkpoint(lambda h: jax.nn.silu(h @ v))(first(X, w))


@jax.custom_vjp
def ruled(x, w):
    return x @ w


ruled.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, u: (u @ kept[1].T, 2 * kept[0].T @ u))


@model((D, D), (D, D), (D, D), uses="linear linear linear", otherwise=(0, 1))
def others(w, v, u):
    turned = lax.cond(w[0, 0] > 0, jnp.sin, jnp.cos, w)
    return ruled(X @ w + turned[:N], v) + lax.stop_gradient(u)[0] @ u + X @ u


@model((D, D), (D, D), (D,), uses="shift", otherwise=(0, 1))
def products(w, v, b):
    return X @ (w @ v) + b


@model((2, D), (D,), uses="linear shift linear")
def twice(w, b):
    z = X @ w.T
    return jnp.sin(z) + z + b[:2] + jnp.stack([X, X], 1) @ b


def traced(model, p, u):
    """Uses and leaves otherwise used, and all that the uses give, from one program."""
    static, every = [], tuple(range(len(p)))

    @jax.jit
    def both(p, u):
        found = calculus.uses(model, p)
        static[:] = found.uses, found.otherwise
        outputs, pullback = jax.vjp(model, p)
        return found.outputs, outputs, found.inputs, found.pull(u, every), pullback(u)[0]

    return *both(p, u), *static


def check(model, p, u, tolerance=1e-10):
    """What is told gives the gradients; what it is."""
    got, outputs, inputs, (cotangents, leaves), right, uses, otherwise = traced(model, p, u)
    rebuilt = gradients_of(uses, inputs, cotangents, [q.shape for q in p])
    np.testing.assert_allclose(got, outputs, rtol=1e-2 * tolerance, atol=1e-2 * tolerance)
    for index, (told_, whole, gradient) in enumerate(zip(rebuilt, leaves, right, strict=True)):
        np.testing.assert_allclose(whole, gradient, rtol=tolerance, atol=tolerance)
        if index not in otherwise:
            np.testing.assert_allclose(told_, gradient, rtol=tolerance, atol=tolerance)
    return uses, otherwise


def drawn(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_sums_over_uses(name):
    function, shapes, kinds, rows, otherwise = MODELS[name]
    p = [drawn(*shape, seed=i) for i, shape in enumerate(shapes)]
    u = drawn(*jax.eval_shape(function, *p).shape)
    uses, left = check(lambda p: function(*p), p, u)
    assert (told(uses), left) == (kinds, otherwise)
    if rows is not None:
        assert all(use.rows[: len(rows)] == rows for use in uses)


def test_half_precision():
    def mixed(p):
        w, b = (q.astype(jnp.bfloat16) for q in p)
        h = lax.dot_general(X.astype(jnp.bfloat16), w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return h + b

    p = [drawn(D, 4).astype(jnp.float32), drawn(4).astype(jnp.float32)]
    uses, otherwise = check(mixed, p, drawn(N, 4).astype(jnp.float32), tolerance=1e-1)
    assert (told(uses), otherwise) == ("linear+b", ())


def test_weights_are_in_order():
    """(groups, *outputs, *inputs), whatever the order in the parameter."""
    uses = []
    jax.eval_shape(
        lambda *p: uses.extend(calculus.uses(lambda p: heads(*p), p).uses),
        *(drawn(*shape) for shape in MODELS["heads"][1]),
    )
    assert [use.weight.shape for use in uses] == [(1, H, K, D), (1, D, H, K)]
    assert [use.weight.strides for use in uses] == [(0, K, 1, H * K), (0, 1, K * D, D)]
    assert [use.outputs for use in uses] == [2, 1]


def test_pulling_costs_no_gradient_of_weights():
    def counts(*weights):
        found = calculus.uses(lambda p: functools.reduce(lambda h, w: jnp.tanh(h) @ w, p, jnp.asarray(X)), weights)

        def products(*leaves):
            jaxpr = jax.make_jaxpr(lambda u: found.pull(u, leaves))(found.outputs).jaxpr
            return [eqn.primitive.name for part in within(jaxpr) for eqn in part.eqns].count("dot_general")

        assert (products(), products(2), products(0, 1, 2)) == (2, 3, 5)

    jax.eval_shape(counts, *[drawn(D, D)] * 3)


def within(jaxpr):
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in inner_jaxprs(eqn.params):
            yield from within(inner)


def test_columns_are_pulled_in_a_loop():
    p = [drawn(*shape, seed=i) for i, shape in enumerate(MODELS["dense"][1])]
    columns = drawn(5, N, 2)

    @jax.jit
    def squares(p, columns):
        found = calculus.uses(lambda p: dense(*p), p)

        def step(total, u):
            cotangents, (gradient,) = found.pull(u, (1,))
            return [t + jnp.sum(g**2) for t, g in zip(total, cotangents, strict=True)], gradient

        return lax.scan(step, [jnp.zeros(())] * len(found.uses), columns)

    totals, gradients = squares(p, columns)
    found = calculus.uses(lambda p: dense(*p), p)  # now, and not as part of a program
    each = [found.pull(u, (1,)) for u in columns]
    for k, total in enumerate(totals):
        np.testing.assert_allclose(total, sum(np.sum(np.square(g[k])) for g, _ in each))
    np.testing.assert_allclose(gradients, [gradient for _, (gradient,) in each])


def test_nothing_is_used():
    found = calculus.uses(lambda p: jnp.asarray(X), [drawn(2)])
    assert (found.uses, found.inputs, found.otherwise) == ((), [], ())
    cotangents, (gradient,) = found.pull(X, (0,))
    assert cotangents == []
    assert not np.any(gradient)
    assert calculus.uses(lambda p: 1 + p[0].T, [drawn(2)]).otherwise == (0,)  # which are the outputs themselves


def test_modules_of_linen():
    nn = pytest.importorskip("flax.linen")
    stages = [nn.Conv(4, (3,)), nn.BatchNorm(use_running_average=True), nn.gelu, nn.MultiHeadDotProductAttention(2)]
    module = nn.Sequential([*stages, nn.LayerNorm(), nn.RNN(nn.GRUCell(2))])
    with jax.enable_x64(False):
        x = jnp.asarray(X3)
        variables = module.init(jax.random.key(0), x)
        params, tree = jax.tree.flatten(variables["params"])
        rest = {"batch_stats": variables["batch_stats"]}

        def model(p):
            return module.apply({"params": jax.tree.unflatten(tree, p), **rest}, x)

        uses, otherwise = check(model, params, drawn(N, T, 2), tolerance=1e-3)
    assert (Counter(told(uses).split()), otherwise) == (
        {"linear+b": 5 + 4 * T, "linear": 2 * T, "scale": 2, "shift": 2},
        (),
    )


def test_modules_of_equinox():
    eqx = pytest.importorskip("equinox")
    network = eqx.nn.MLP(D, 2, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(network, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(params)

    def model(p):
        return jax.vmap(eqx.combine(jax.tree.unflatten(tree, p), static))(X)

    uses, otherwise = check(model, leaves, drawn(N, 2), tolerance=1e-4)
    assert (told(uses), otherwise, {use.rows for use in uses}) == ("linear+b linear+b", (), {(N,)})
