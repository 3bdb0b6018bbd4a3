"""What comes after a model's last product, row by row: found, and done in parts with the loss."""

from contextlib import contextmanager

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from linop_gn_jax import calculus
from linop_gn_jax import parts as loops
from linop_gn_jax.ends import end_of
from linop_gn_jax.linear import inner_jaxprs

import linop_gn as lg
from linop_gn.curvature.losses import parts

from ...support.peaks import compiled_product

pytestmark = pytest.mark.skipif(jax.device_count() > 1, reason="of several devices the rows may be shared")

B, T, D, V = 2, 5, 3, 6
MASK = np.arange(4 * V) != 2


def positions(z):
    return jnp.asarray(np.linspace(0.5, 2.0, z.shape[-2]))[:, None]


def mapped(function, z):
    for _ in z.shape[:-1]:
        function = jax.vmap(function)
    return function(z)


def turned(function, z):
    """Of classes along the first axis."""
    return jnp.moveaxis(function(jnp.moveaxis(z, -1, 0)), 0, -1)


def square(p, n):
    return jnp.resize(p["b"], (n, n))


ENDS = {
    "cap": lambda p, z: 3 * jnp.tanh(z / 3),
    "temperature": lambda p, z: z / p["T"],
    "scale": lambda p, z: jnp.exp(-p["T"]) * z,
    "bias": lambda p, z: z + p["b"][: z.shape[-1]],
    "bend": lambda p, z: z * jax.nn.sigmoid(p["T"] * z),
    "forbidden": lambda p, z: jnp.where(MASK[: z.shape[-1]], z, -30.0),
    "forbidden by row": lambda p, z: jnp.where(z[..., :1] < 2, z, 0.5 * z),
    "positions": lambda p, z: z * positions(z),
    "clipped": lambda p, z: jnp.clip(z, -1.5, 1.5),
    "log-softmax": lambda p, z: jax.nn.log_softmax(z),
    "centred": lambda p, z: z - z.mean(-1, keepdims=True),
    "fewer classes": lambda p, z: z[..., 1:],
    "every other": lambda p, z: z[..., ::2],
    "but the last": lambda p, z: z[..., :-1, :],
    "rows": lambda p, z: z.reshape(-1, z.shape[-1]),
    "one more": lambda p, z: jnp.concatenate([z, z[..., :1] ** 2], -1),
    "squared": lambda p, z: z**2 - jnp.sqrt(1 + z**2),
    "mapped": lambda p, z: mapped(lambda z: jnp.tanh(square(p, z.size) @ z / p["T"]), z),
    "mapped, then log-softmax": lambda p, z: mapped(lambda z: jax.nn.log_softmax(square(p, z.size) @ z), z),
    "turned": lambda p, z: turned(lambda z: jnp.where(z > 1, 0.5 * z, jnp.tanh(p["T"] * z)), z),
    "turned bias": lambda p, z: turned(lambda z: jnp.tanh(z + jnp.expand_dims(p["b"][: len(z)], range(1, z.ndim))), z),
    "turned log-softmax": lambda p, z: turned(lambda z: jax.nn.log_softmax(z, 0), z),
    "turned and not": lambda p, z: jnp.sin(z) * turned(jnp.tanh, 2 * z),
}


def composed(names):
    def model(p, x):
        z = jnp.tanh(x @ p["A"]) @ p["W"]
        for name in names:
            z = ENDS[name](p, z)
        return z

    return model


def drawn(seed, extra=(B, T)):
    rng = np.random.default_rng(seed)
    shapes = {"A": (D, D), "W": (D, V), "b": (4 * V,)}
    params = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    return rng, params | {"T": jnp.asarray(rng.uniform(0.5, 2))}, jnp.asarray(rng.standard_normal((*extra, D)))


@pytest.fixture(autouse=True)
def double(single):
    with jax.enable_x64(True):
        yield


@contextmanager
def all_many():
    """Everything is many, and parts are of one row or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MANY", 1)
        patch.setattr(parts, "_PARTS", 4)
        patch.setattr(loops, "_CACHED", 2 * V)
        patch.setattr(calculus, "LARGE", 1)
        yield


def total(z, y, w, e, c):
    """Smoothed cross-entropy with weights of examples and of classes, as it is defined."""
    log_p = z - jax.nn.logsumexp(z, -1, keepdims=True)
    mass = (1 - e) * jax.nn.one_hot(y, z.shape[-1]) + e / z.shape[-1]
    return -(w[..., None] * c * mass * log_p).sum()


def check(model, params, x, rng, weighted=True, smoothing=0.1, ignored=True, classes=False, tolerance=1e-12):
    shape = jax.eval_shape(model, params, x).shape
    y = rng.integers(0, shape[-1], shape[:-1])
    w = rng.uniform(0.5, 2, shape[:-1]) * (rng.random(shape[:-1]) < 0.8) if weighted else np.ones(shape[:-1])
    c = rng.uniform(0.5, 2, shape[-1]) if classes else np.ones(shape[-1])
    given = np.where(rng.random(y.shape) < 0.3, -1, y) if ignored else y
    loss = lg.losses.CrossEntropy(
        reduction="sum",
        ignore_index=-1 if ignored else None,
        label_smoothing=smoothing,
        weight=jnp.asarray(c) if classes else None,
    )
    data = (x, jnp.asarray(given), jnp.asarray(w)) if weighted else (x, jnp.asarray(given))
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    def value(flat):
        return total(model(unflatten(flat), x), y, w * (given >= 0), smoothing, c)

    want, v = np.asarray(jax.hessian(value)(flat)), rng.standard_normal(flat.size)
    with all_many():
        made = lg.Objective(model, loss, data)
        H = lg.Hessian(made, params).prepare()
        got = jax.flatten_util.ravel_pytree(H @ unflatten(jnp.asarray(v)))[0]
        gradient = jax.flatten_util.ravel_pytree(made.gradient(params))[0]
    slope = np.asarray(jax.grad(value)(flat))
    size = abs(want) @ abs(v) + np.linalg.norm(slope) + 1
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=tolerance * size.max())
    np.testing.assert_array_less(abs(got - want @ v), tolerance * size.max())
    return H


def found(model, params, x):
    leaves, structure = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda *p: model(structure.unflatten(p), x))(*leaves)
    return end_of(closed, max(1, len(closed.out_avals[0].shape) - 1))


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])  # to shrink compiles for minutes
@given(st.data())
def test_products_through_any_end(jax, data):
    names = data.draw(st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=4))
    rng, params, x = drawn(data.draw(st.integers(0, 2**16)), data.draw(st.sampled_from([(B, T), (B * T,), (1, T)])))
    options = {name: data.draw(st.booleans()) for name in ("weighted", "ignored", "classes")}
    check(composed(names), params, x, rng, smoothing=data.draw(st.sampled_from([0.0, 0.1])), **options)


@pytest.mark.parametrize("name", ENDS)
def test_each_end(jax, name):
    """It is found, and in parts: of rows the loop is one of the product's program."""
    rng, params, x = drawn(0)
    assert found(composed([name]), params, x) is not None
    H = check(composed([name]), params, x, rng)
    assert "scan" in str(jax.make_jaxpr(lambda H, v: H @ v)(H, params))


@pytest.mark.parametrize("loss", [lg.losses.CrossEntropy(), lg.losses.BinaryCrossEntropy()])
def test_products_elsewhere_are_the_same_program(jax, loss):
    rng, params, x = drawn(6)
    labels = isinstance(loss, lg.losses.CrossEntropy)
    y = jnp.asarray(rng.integers(0, 2, (B, T) if labels else (B, T, V)), int if labels else float)
    with all_many():
        fit = lg.Objective(composed(["temperature", "cap", "bias"]), loss, (x, y))
        for kind in (lg.Hessian, lg.GGN):
            one, other = (jax.tree.structure(kind(fit, jax.tree.map(s, params)).prepare()) for s in (jnp.sin, jnp.cos))
            assert one == other


def test_rows_of_data_alone(jax):
    rng, params, x = drawn(5, (7,))
    params = {"T": params["T"], "b": params["b"][:D]}

    def model(p, x):
        return jnp.tanh(p["T"] * x) + p["b"]

    assert found(model, params, x) is not None
    check(model, params, x, rng)
    with all_many():
        fit = lg.Objective(model, lg.losses.SquaredError(), (x, 0 * x))
        got = lg.Hessian(fit, params) @ params
    want = lg.Hessian(fit, params) @ params
    np.testing.assert_allclose(got["T"], want["T"], rtol=1e-10)


def test_losses_of_each_output(jax):
    """Of which the last axis counts rows, too, and weights may have it or not."""
    rng, params, x = drawn(1)
    model = composed(["temperature", "cap", "bias"])
    y = jnp.asarray(rng.integers(0, 2, (B, T, V)), float)
    for w in (rng.uniform(0, 2, (B, T, V)), rng.uniform(0, 2, (B, 1)), rng.uniform(0, 2, (B,))):
        weights = jnp.asarray(w)
        flat, unflatten = jax.flatten_util.ravel_pytree(params)

        def value(flat, w=w, unflatten=unflatten):
            z = model(unflatten(flat), x)
            return (w.reshape(*w.shape, *(1,) * (3 - w.ndim)) * (jnp.logaddexp(0, z) - y * z)).sum()

        want, v = np.asarray(jax.hessian(value)(flat)), rng.standard_normal(flat.size)
        with all_many():
            fit = lg.Objective(model, lg.losses.BinaryCrossEntropy(reduction="sum"), (x, y, weights))
            got = jax.flatten_util.ravel_pytree(lg.Hessian(fit, params) @ unflatten(jnp.asarray(v)))[0]
        np.testing.assert_allclose(got, want @ v, rtol=0, atol=1e-12 * (abs(want) @ abs(v)).max())


def test_what_has_no_end(jax):
    """Of a sum of two products, the sum is held; effects are not done twice; no rows, no end."""
    rng, params, x = drawn(2, (7,))

    def two(p, x):
        return x @ p["W"] + jnp.tanh(x) @ p["W"]

    def loud(p, x):
        z = x @ p["W"] / p["T"]
        jax.debug.print("{}", z[0, 0])
        return z

    for model in (two, loud, lambda p, x: x @ p["W"], lambda p, x: jnp.sort(x @ p["W"]), lambda p, x: jnp.ones((2, 3))):
        assert found(model, params, x) is None
    check(two, params, x, rng)


def compares_floats(jaxpr):
    """JAX's own derivative of a largest entry divides by how many equal it: none, where XLA makes entries twice."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name == "eq" and jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating)
        for inner in inner_jaxprs(eqn.params):
            yield from compares_floats(inner)


def test_derivatives_of_products(jax):
    """In parameters, inputs, weights and smoothing: those of products that JAX differentiates."""
    rng, params, x = drawn(3)
    model = composed(["temperature", "cap", "bias", "but the last"])
    y, v = jnp.asarray(rng.integers(0, V, (B, T - 1))), jax.tree.map(jnp.cos, params)

    def product(params, x, w, e):
        loss = lg.losses.CrossEntropy(label_smoothing=e)
        return lg.tree.dot(v, lg.Hessian(lg.Objective(model, loss, (x, y, w)), params) @ v)

    at = params, x, jnp.asarray(rng.uniform(0.5, 2, (B, T - 1))), jnp.asarray(0.2)
    want = jax.grad(product, (0, 1, 2, 3))(*at)
    with all_many():
        got = jax.grad(product, (0, 1, 2, 3))(*at)
        assert "scan" in str(jax.make_jaxpr(product)(*at))
        assert not any(compares_floats(jax.make_jaxpr(jax.grad(product))(*at).jaxpr))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-11)


ENTRYWISE = sorted(set(ENDS) - {"log-softmax", "centred", "mapped, then log-softmax", "turned log-softmax"})


@settings(max_examples=4, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.sampled_from(ENTRYWISE), min_size=1, max_size=3), st.integers(0, 2**16))
def test_gauss_newton_products(jax, names, seed):
    """J^T J, all of it and by blocks, against a dense Jacobian; slopes of the end are worked out for each product."""
    rng, params, x = drawn(seed)
    model, (flat, unflatten) = composed(names), jax.flatten_util.ravel_pytree(params)
    J, v = np.asarray(jax.jacobian(lambda f: model(unflatten(f), x).ravel())(flat)), rng.standard_normal(flat.size)
    with all_many():
        fit = lg.Objective(model, lg.losses.SquaredError(scale=1.0, reduction="sum"), (x, 0 * model(params, x)))
        G, B = lg.GGN(fit, params), lg.BlockGGN(fit, params)
        got, blocks = (np.asarray(jax.flatten_util.ravel_pytree(A @ unflatten(jnp.asarray(v)))[0]) for A in (G, B))
    want, size, start = 2 * J.T @ (J @ v), (abs(J.T) @ (abs(J) @ abs(v))).max() + 1, 0
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * size)
    for leaf in jax.tree.leaves(params):
        here = slice(start, start := start + leaf.size)
        np.testing.assert_allclose(blocks[here], 2 * J[:, here].T @ (J[:, here] @ v[here]), rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_logits_of_a_trained_classifier(jax, dtype):
    """What is sure to 1 - 1e-6 has a Hessian of that size, with the digits of the dtype."""
    rng, _, x = drawn(4, (8,))
    W = jnp.asarray(rng.standard_normal((D, V)), dtype).astype("float64") * 8
    at = {"W": W, "T": jnp.asarray(1.0)}

    def model(p, x):
        return 30 * jnp.tanh(x @ p["W"] / p["T"] / 30)

    x = x.astype(dtype).astype("float64")
    z, v = model(at, x), jax.tree.map(lambda p: jnp.cos(p).astype(dtype).astype("float64"), at)
    y = jnp.argmax(z, -1)
    want = jax.jvp(jax.grad(lambda p: total(model(p, x), y, np.ones(8), 0.0, 1.0)), (at,), (v,))[1]
    narrow = jax.tree.map(lambda p: p.astype(dtype), (at, x, v))
    with all_many():
        loss = lg.losses.CrossEntropy(reduction="sum")
        got = lg.Hessian(lg.Objective(model, loss, (narrow[1], y)), narrow[0]) @ narrow[2]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = float(jnp.abs(other).max())
        assert float(jnp.abs(one.astype("float64") - other).max()) < {"float32": 1e-4, "bfloat16": 0.3}[dtype] * size


COUNTED = {
    "nothing": lambda p, z: z,
    "bias": lambda p, z: z + p["b"],
    "cap": lambda p, z: 30 * jnp.tanh(z / 30),
    "number": lambda p, z: z / 2.5,
    "temperature": lambda p, z: z / p["T"],
    "both": lambda p, z: 30 * jnp.tanh(z / p["T"] / 30),
    "mask": lambda p, z: jnp.where(np.arange(z.shape[-1]) != 2, z, -1e9),
    "mask and cap": lambda p, z: jnp.where(np.arange(z.shape[-1]) != 2, 30 * jnp.tanh(z / 30), -1e9),
    "classes": lambda p, z: (30 * jnp.tanh(z / 30))[..., :-100],
    "tokens": lambda p, z: (30 * jnp.tanh(z / 30))[:, :-1].reshape(-1, z.shape[-1]),
    "log-softmax": lambda p, z: jax.nn.log_softmax(z),
    "turned": lambda p, z: turned(lambda z: 30 * jnp.tanh(z / 30), z),
    "narrow": lambda p, z: 30 * jnp.tanh(z.astype("bfloat16") / 30),
}


@pytest.mark.parametrize("name", COUNTED)
def test_copies_of_the_logits(jax, name):
    """The logits, their slope, and the vector, once more where numbers of all rows are parameters. It was to 14."""
    kept, taken, size = compiled_product(lg.Hessian, COUNTED[name])
    assert kept < 2.3 * size
    shared = name in ("bias", "temperature", "both")
    assert kept + taken < (4.8 if shared else 3.8) * size


@pytest.mark.parametrize("name", COUNTED)
def test_copies_in_gauss_newton_products(jax, name):
    """The logits, what the end is made of, the vector, and its product with a slope. They were to 7."""
    kept, taken, size = compiled_product(lg.GGN, COUNTED[name])
    assert kept < 2.3 * size
    assert kept + taken < (5.4 if name in ("both", "temperature") else 4.5) * size
