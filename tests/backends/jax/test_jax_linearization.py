"""Products of a linearisation against Jacobians and Hessians by other means, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.experimental.ode import odeint
from linop_gn_jax import backend
from linop_gn_jax.linear import LinearProgram
from systems import FULL

import linop_gn as lg
from linop_gn.protocols import GradientLinearization, Linearization

calculus = backend.calculus
X = np.random.default_rng(0).standard_normal((6, 3))


@pytest.fixture(autouse=True)
def double():
    with calculus.high_precision():
        yield


@jax.custom_vjp
def sine(x):
    return jnp.sin(x)


sine.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda cosine, u: (u * cosine,))


@jax.custom_vjp
def dense(x, w):
    return jnp.tanh(x @ w)


def _dense_forward(x, w):
    y = jnp.tanh(x @ w)
    return y, (x, w, y)


def _dense_backward(kept, u):
    x, w, y = kept
    u = u * (1 - y**2)
    return u @ w.T, x.T @ u


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def turned(x):
    """A sine whose backward rule has one of its own."""
    return jnp.sin(x)


@jax.custom_vjp
def cosine_times(x, u):
    return jnp.cos(x) * u


turned.defvjp(lambda x: (jnp.sin(x), x), lambda x, u: (cosine_times(x, u),))
cosine_times.defvjp(
    lambda x, u: (jnp.cos(x) * u, (x, u)), lambda kept, g: (-jnp.sin(kept[0]) * kept[1] * g, jnp.cos(kept[0]) * g)
)


@jax.custom_jvp
def smooth(x):
    return jnp.logaddexp(x, 0.0)


smooth.defjvp(lambda x, v: (smooth(x[0]), jax.nn.sigmoid(x[0]) * v[0]))


def recurrent(p):
    def body(h, _):
        return jnp.tanh(h @ p[0] + X), jnp.sum(h)

    h, sums = lax.scan(body, jnp.zeros((6, 3)), None, length=3)
    return h @ p[1] + jnp.sum(sums)


def scanned_custom(p):
    return lax.scan(lambda h, _: (dense(h, p[0]), None), jnp.asarray(X), None, length=2)[0] @ p[1]


def scanned_nested(p):
    def row(x):
        return lax.scan(lambda h, _: (turned(h @ p[0]), None), x, None, length=2)[0]

    return jax.vmap(row)(jnp.asarray(X)) @ p[1]


def attention(p):
    q, k, v = X @ p[0], X @ p[1], X @ p[2]
    return jax.nn.softmax(q @ k.T) @ v


MODELS = {
    "tanh": (lambda p: jnp.tanh(X @ p[0]) @ p[1], [(3, 4), (4, 2)]),
    "relu": (lambda p: jax.nn.relu(X @ p[0]) @ p[1], [(3, 4), (4, 2)]),
    "argmax": (lambda p: (X @ p[0])[jnp.arange(6), jnp.argmax(X @ p[0], 1)][:, None] * p[1], [(3, 4), (2,)]),
    "stop_gradient": (lambda p: lax.stop_gradient(X @ p[0]) @ p[1], [(3, 4), (4, 2)]),
    "unused": (lambda p: jnp.tanh(X @ p[0]), [(3, 4), (4, 2)]),
    "constant": (lambda p: jnp.asarray(X), [(3, 4)]),
    "numpy constant": (lambda p: X, [(3, 4)]),
    "identity": (lambda p: p[1], [(2,), (3,)]),
    "custom vjp": (lambda p: sine(X @ p[0]) @ p[1], [(3, 4), (4, 2)]),
    "custom vjp twice": (lambda p: dense(dense(X, p[0]), p[1]) + jnp.tanh(p[2]), [(3, 4), (4, 2), (2,)]),
    "custom vjp in scan": (scanned_custom, [(3, 3), (3, 2)]),
    "custom vjp in checkpoint": (jax.checkpoint(lambda p: sine(X @ p[0]) @ p[1]), [(3, 4), (4, 2)]),
    "custom vjp in custom vjp, in scan and vmap": (scanned_nested, [(3, 3), (3, 2)]),
    "custom jvp": (lambda p: smooth(X @ p[0]) @ p[1], [(3, 4), (4, 2)]),
    "checkpoint": (jax.checkpoint(lambda p: jnp.tanh(jnp.tanh(X @ p[0]) @ p[1])), [(3, 4), (4, 2)]),
    "scan": (recurrent, [(3, 3), (3, 2)]),
    "checkpoint of scan": (jax.checkpoint(recurrent), [(3, 3), (3, 2)]),
    "cond": (lambda p: lax.cond(jnp.sum(p[0]) > 0, lambda p: jnp.sin(p[0]), lambda p: p[1] ** 2, p), [(3,), (3,)]),
    "inner jit": (lambda p: jax.jit(lambda w: jnp.tanh(X @ w))(p[0]) @ p[1], [(3, 4), (4, 2)]),
    "inner vmap": (lambda p: jax.vmap(lambda x: jnp.tanh(x @ p[0]))(X) @ p[1], [(3, 4), (4, 2)]),
    "dropout": (lambda p: p[0] * jax.random.bernoulli(jax.random.key(0), 0.5, (5,)), [(5,)]),
    "rfft": (lambda p: jnp.abs(jnp.fft.rfft(p[0])), [(8,)]),
    "layer norm": (lambda p: jax.nn.standardize(X @ p[0]) * p[1], [(3, 4), (4,)]),
    "attention": (attention, [(3, 3), (3, 3), (3, 2)]),
    "tied": (lambda p: jnp.tanh(X @ p[0]) @ p[0].T, [(3, 4)]),
}
zoo = pytest.mark.parametrize("name", MODELS)


def draw(name, seed=1):
    function, shapes = MODELS[name]
    rng = np.random.default_rng(seed)
    return function, [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def normal_like(leaves, seed=2):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(leaf.shape)) for leaf in leaves]


def quick(function):
    """``jax.jit`` that compiles in half the time to slower code: every program here runs once."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def flat(leaves):
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * max(1.0, np.max(np.abs(want), initial=0.0)))


def _cotangent(outputs):
    return 2 * outputs + 1


def _everything(name):
    """All products at a point, and the dense Jacobian that they are to agree with."""
    function = MODELS[name][0]

    def products(params, v, u):
        linear = calculus.linearize(function, params, _cotangent)
        assert isinstance(linear, Linearization)
        lean = linear.without_gradient()
        assert lean.gradient is None
        return {
            "outputs": linear.outputs,
            "gradient": linear.gradient,
            "jvp": lean.jvp(v),
            "vjp": linear.vjp(u),
            "block jvps": [linear.jvp([v[i]], (i,)) for i in range(len(v))],
            "block vjps": [linear.vjp(u, (i,))[0] for i in range(len(v))],
            "rows": calculus.jacobian_rows(function, params, [0, linear.outputs.size - 1]),
        }

    def oracle(params):
        return function(params), jax.jacrev(function)(params)

    return products, oracle


def _check_products(products, oracle, name):
    function, params = draw(name)
    v, (u,) = normal_like(params), normal_like([function(params)], 3)
    got, (outputs, blocks) = products(params, v, u), oracle(params)
    J = [np.asarray(block).reshape(-1, leaf.size) for block, leaf in zip(blocks, params, strict=True)]
    whole = np.concatenate(J, 1)
    close(got["outputs"], outputs)
    close(flat(got["gradient"]), whole.T @ np.ravel(_cotangent(outputs)))
    close(np.ravel(got["jvp"]), whole @ flat(v))
    close(flat(got["vjp"]), whole.T @ np.ravel(u))
    for row, true in zip(got["rows"], whole[[0, -1]], strict=True):
        close(flat(row), true)
    for block, tangent, forward, backward in zip(J, v, got["block jvps"], got["block vjps"], strict=True):
        close(np.ravel(forward), block @ np.ravel(tangent))
        close(np.ravel(backward), block.T @ np.ravel(u))


@zoo
def test_products_agree_with_the_dense_jacobian(name):
    products, oracle = _everything(name)
    _check_products(quick(products), quick(oracle), name)


@pytest.mark.parametrize("name", ["tanh", "unused", "custom vjp"])
def test_eager_products_agree_with_the_dense_jacobian(name):
    products, oracle = _everything(name)
    _check_products(products, quick(oracle), name)


@zoo
def test_hessian_products_agree_with_the_dense_hessian(name):
    function, params = draw(name)

    def objective(p):
        return jnp.sum(jnp.sin(function(p)))

    @quick
    def both(params, v):
        linear = calculus.linearize_gradient(objective, params)
        assert isinstance(linear, GradientLinearization)
        by_reverse = jax.jacrev(jax.grad(objective))(params)  # where ours is forward over reverse
        return (linear.value, linear.gradient, linear.hvp(v)), (*jax.value_and_grad(objective)(params), by_reverse)

    v = normal_like(params)
    (value, gradient, product), (true_value, true_gradient, H) = both(params, v)
    close(value, true_value)
    close(flat(gradient), flat(true_gradient))
    blocks = [[np.asarray(H[i][j]).reshape(a.size, b.size) for j, b in enumerate(params)] for i, a in enumerate(params)]
    dense = np.block(blocks)
    np.testing.assert_allclose(flat(product), dense @ flat(v), rtol=1e-11, atol=1e-11 * max(1, np.abs(dense).max()))


@zoo
def test_linearisations_at_two_points_have_the_same_structure(name):
    if name == "numpy constant" and jax.__version_info__ < (0, 9):
        pytest.skip("JAX makes another array of it at each trace")
    function, params = draw(name)
    made = [jax.eval_shape(lambda p: calculus.linearize(function, p, _cotangent), params) for _ in range(2)]
    assert jax.tree_util.tree_structure(made[0]) == jax.tree_util.tree_structure(made[1])


T = np.linspace(0.0, 1.0, 6)


def decaying(p):
    """y' = -p0 y + p1 sin t by a solver whose backward rule calls it again."""
    equation = lambda y, t, p: -p[0] * y + p[1] * jnp.sin(t)  # noqa: E731
    return odeint(equation, jnp.ones(1), jnp.asarray(T), p, rtol=1e-10, atol=1e-10)[:, 0]


def decaying_exactly(p):
    a, b = p
    return jnp.exp(-a * T) * (1 + b / (1 + a * a)) + b * (a * jnp.sin(T) - jnp.cos(T)) / (1 + a * a)


def test_a_differential_equation_is_fitted():
    p, data = jnp.array([0.5, 0.2]), decaying_exactly(jnp.array([1.0, 0.7]))
    J, v = jax.jacfwd(decaying_exactly)(p), jnp.array([0.3, -1.0])
    lin, again = (calculus.linearize(lambda leaves: decaying(leaves[0]), [q], _cotangent) for q in (p, 2 * p))
    assert jax.tree_util.tree_structure(lin) == jax.tree_util.tree_structure(again)  # one program for all points
    np.testing.assert_allclose(lin.jvp([v]), J @ v, atol=1e-7)
    np.testing.assert_allclose(lin.vjp(J @ v)[0], J.T @ (J @ v), atol=1e-7)
    if FULL:
        fit = lg.Objective.from_residuals(lambda p: decaying(p) - data)
        np.testing.assert_allclose(lg.minimize(fit, p).params, [1.0, 0.7], atol=1e-6)
        H = jax.hessian(lambda p: 0.5 * jnp.sum((decaying_exactly(p) - data) ** 2))(p)
        np.testing.assert_allclose(lg.Hessian(fit, p) @ v, H @ v, atol=1e-6)


def test_a_backward_rule_that_cannot_be_transposed_says_what_to_do():
    @jax.custom_vjp
    def looping(x):
        return jnp.sin(x)

    def backward(cosine, u):
        return (lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, s[1] * cosine), (0, u))[1],)

    looping.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), backward)
    lin = calculus.linearize(lambda p: looping(p[0]), [jnp.ones(3)], _cotangent)
    np.testing.assert_allclose(lin.vjp(jnp.ones(3))[0], np.cos(1.0) * np.ones(3))
    with pytest.raises(NotImplementedError, match=r"backward rule JAX cannot transpose.*lax\.scan.*jvp=, vjp="):
        lin.jvp([jnp.ones(3)])


@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_products_are_adjoint_and_linear(seed, a):
    _, params = draw("attention", seed)
    linear = backend.call(_linearize_attention, params)
    v, w = normal_like(params, seed + 1), normal_like(params, seed + 2)
    (u,) = normal_like([linear.outputs], seed + 3)
    forward, backward = np.vdot(u, linear.jvp(v)), np.vdot(flat(linear.vjp(u)), flat(v))
    assert abs(forward - backward) <= 1e-12 * np.linalg.norm(u) * np.linalg.norm(linear.jvp(v)) + 1e-12
    together = linear.jvp([a * x + y for x, y in zip(v, w, strict=True)])
    np.testing.assert_allclose(together, a * linear.jvp(v) + linear.jvp(w), rtol=1e-9, atol=1e-9)


def _linearize_attention(params):
    return calculus.linearize(attention, params, _cotangent)


def test_mixed_precision_keeps_the_dtype_of_each_leaf():
    params = [jnp.ones(5, "float32"), jnp.full(5, 2.0, "float64")]
    linear = calculus.linearize(lambda p: (p[0] * p[1]).astype("float32"), params, _cotangent)
    assert [leaf.dtype.name for leaf in linear.vjp(jnp.ones(5))] == ["float32", "float64"]
    assert linear.jvp([np.ones(5), np.ones(5)]).dtype == np.float32


@pytest.mark.parametrize("kind", [lg.GGN, lg.Hessian])
def test_a_number_that_the_model_does_not_use(kind):
    """Its zero is an array in the user's program, too, of trees with few leaves and many."""
    x, y = jnp.asarray(X), jnp.zeros((6, 2))
    for more in (0, 6):
        params = {"W": jnp.ones((3, 2)), "t": jnp.asarray(2.0), **{f"u{i}": jnp.ones(3) for i in range(more)}}
        fit = lg.Objective(lambda p, x: jnp.tanh(x @ p["W"]), lg.losses.SquaredError(), (x, y))

        def product(params, fit=fit):
            made = kind(fit, params) @ params
            return made, lg.tree.dot(params, made)

        made, curved = jax.jit(product)(params)
        assert made["t"] == 0
        np.testing.assert_allclose(curved, (made["W"] * params["W"]).sum())


def test_a_mesh_that_places_nothing_makes_no_other_program():
    """Parameters that were put nowhere lie on the examples' mesh after a step, and a loop carries one program."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x, w = jax.device_put(jnp.ones((4, 2)), place), jnp.ones((2, 3))

    def program(w):
        def product(r, v):
            return [jax.jvp(jax.grad(lambda p: (jnp.tanh(r[0] @ p) ** 2).sum()), r[1:], v)[1]]

        return LinearProgram.trace(product, [x, w], [w])

    assert program(jax.device_put(w, place)) is program(w)
