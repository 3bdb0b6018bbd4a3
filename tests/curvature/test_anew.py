"""Objectives where memory is short: products that linearise anew, batches cut into microbatches."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.strategies import array

from ..support.peaks import compiled_peak, peak

IN_CI_ON_JAX = ()

RNG = np.random.default_rng(0)
X, Y, W = RNG.standard_normal((13, 3)), RNG.integers(0, 4, 13), RNG.random(13)
PARAMS = {"a": RNG.standard_normal((3, 5)) / 2, "b": RNG.standard_normal((5, 4)) / 2}
V, COLUMNS = RNG.standard_normal(35), RNG.standard_normal((35, 2))


def put(name, x):
    return array(lg.load(name), x, "int64" if x.dtype.kind == "i" else "float64")


def net(params, x):
    """Two layers; of a mapping its entry, a number beside it left alone."""
    x = 2.0 / x["half"] * x["x"] if isinstance(x, dict) else x
    xp = lg.namespace(params)
    return xp.tanh(x @ params["a"]) @ params["b"]


def jacobian(params, x):
    """That of ``net`` for NumPy, where nothing differentiates."""
    x = 2.0 / x["half"] * x["x"] if isinstance(x, dict) else x
    h = np.tanh(x @ params["a"])
    slope = (1 - h**2)[:, :, None] * params["b"]
    return {"a": np.einsum("ni,njk->nkij", x, slope), "b": np.einsum("nj,kl->nkjl", h, np.eye(4))}


def made(name, loss, tree, weighted, batches=1, **options):
    x, y = X, Y if isinstance(loss, lg.losses.CrossEntropy) else np.eye(4)[Y]
    parts = []
    for rows in np.array_split(np.arange(13), batches):
        inputs = {"x": put(name, x[rows]), "half": 1.0} if tree else put(name, x[rows])
        parts.append((inputs, put(name, y[rows]), *([put(name, W[rows])] if weighted else [])))
    options |= {"jacobian": jacobian} if name == "numpy" else {}
    return lg.Objective(net, loss, parts[0] if batches == 1 else parts, **options)


def same(name, found, expected, size=1.0):
    found, expected = (np.asarray(lg.load(name).to_numpy(x), float) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(size, abs(expected).max()))


LOSSES = [
    lg.losses.CrossEntropy(),
    lg.losses.CrossEntropy(reduction="sum", ignore_index=2),
    lg.losses.SquaredError(),
]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@given(data=st.data())
def test_any_cut_is_the_whole(request, name, data):
    """Value, gradient, outputs and products, uneven last parts, masks, weights and trees of inputs among them."""
    if name != "numpy":
        request.getfixturevalue(name)
    draw = data.draw
    about = draw(st.sampled_from(LOSSES)), draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([1, 2]))
    l2 = draw(st.sampled_from([None, 0.3]))
    low = {"memory": draw(st.sampled_from(["kept", "low"])), "microbatch": draw(st.sampled_from([None, 1, 4, 40]))}
    whole, cut = made(name, *about, l2=l2), made(name, *about, l2=l2, **low)
    params = {key: put(name, value) for key, value in PARAMS.items()}
    v, columns = put(name, V), put(name, COLUMNS)
    same(name, cut.value(params), whole.value(params))
    for key, leaf in cut.gradient(params).items():
        same(name, leaf, whole.gradient(params)[key])
    if about[3] == 1:
        same(name, cut.outputs(params), whole.outputs(params))
    kinds = [lg.GGN, lg.BlockGGN, functools.partial(lg.BlockGGN, blocks="leaf"), lg.EmpiricalFisher]
    kinds += [] if name == "numpy" else [lg.Hessian, lg.KFAC]
    kind = draw(st.sampled_from(kinds))
    A, B = kind(cut, params), kind(whole, params)
    u = draw(st.sampled_from([v, columns]))
    same(name, A @ u, B @ u)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_takes_linearisations_apart(request, name):
    """Gram operators, low ranks, diagonal blocks, exact squares, fits: all go through products made anew."""
    if name != "numpy":
        request.getfixturevalue(name)
    about = lg.losses.CrossEntropy(), False, True
    whole, cut = made(name, *about), made(name, *about, memory="low", microbatch=4)
    params = {key: put(name, value) for key, value in PARAMS.items()}
    same(name, lg.Gram(cut, params).to_dense(), lg.Gram(whole, params).to_dense())
    ranks = lg.EmpiricalFisher(cut, params).low_rank(), lg.EmpiricalFisher(whole, params)
    same(name, *(F @ put(name, V) for F in ranks))
    blocks = (lg.BlockGGN(o, params, blocks="leaf").diagonal_blocks() for o in (cut, whole))
    for ours, theirs in zip(*(b.values() for b in blocks), strict=True):
        same(name, ours.to_dense(), theirs.to_dense())
    damped = (lg.Damped(lg.GGN(o, params), 0.1) for o in (cut, whole))
    recipe = lg.preconditioners.EmpiricalFisher(probes=None)
    same(name, *(recipe(A).values for A in damped))
    steps = [lg.solve(lg.Damped(lg.GGN(o, params), 0.1), put(name, V), lg.GramSolve(rtol=1e-12)) for o in (cut, whole)]
    same(name, *(step.x for step in steps), size=100)
    fits = [lg.minimize(o, params, lg.LevenbergMarquardt(), max_steps=3) for o in (cut, whole)]
    assert float(fits[0].value) == pytest.approx(float(fits[1].value), rel=1e-12)
    F = [lg.Fisher(cut, params) @ put(name, V) for _ in range(2)]
    same(name, *F)


def test_streams_are_cut_as_well(torch):
    class Loader:
        def __iter__(self):
            return iter([(put("torch", X[:9]), put("torch", Y[:9])), (put("torch", X[9:]), put("torch", Y[9:]))])

    params = {key: put("torch", value) for key, value in PARAMS.items()}
    sizes = []

    def seen(params, x):
        sizes.append(len(x))
        return net(params, x)

    cut = lg.Objective(seen, lg.losses.CrossEntropy(), Loader(), microbatch=4)
    whole = lg.Objective(net, lg.losses.CrossEntropy(), Loader())
    for ask in (lambda o: o.value(params), lambda o: lg.GGN(o, params) @ put("torch", V)):
        same("torch", ask(cut), ask(whole))
    assert set(sizes) == {4, 1}
    same("torch", *(lg.Fisher(cut, params, seed=3) @ put("torch", V) for _ in range(2)))


LAYERS, WIDTH = 6, 16


def deep(params, x):
    xp = lg.namespace(params)
    for layer in params:
        x = xp.tanh(x @ layer)
    return x


def deep_problem(name, examples):
    """An objective's constructor, of options, and parameters."""
    layers = [put(name, RNG.standard_normal((WIDTH, WIDTH)) / 4) for _ in range(LAYERS)]
    data = put(name, RNG.standard_normal((examples, WIDTH))), put(name, RNG.standard_normal((examples, WIDTH)))
    return functools.partial(lg.Objective, deep, lg.losses.SquaredError(), data), layers


@pytest.mark.parametrize("kind", [lg.GGN, lg.Hessian])
def test_a_product_takes_the_activations_of_one_microbatch(torch, kind):
    """Whatever the number of examples; what is kept grows with it."""
    activations, vector = 64 * WIDTH * LAYERS * 8, WIDTH * WIDTH * LAYERS * 8
    taken, made = [], []
    for examples in (256, 1024):
        fit, layers = deep_problem("torch", examples)
        A = kind(fit(memory="low", microbatch=64), layers).prepare()
        v = A.domain.random(0)
        taken.append(peak("torch", lambda A=A, v=v: A.apply(v)))
        made.append(peak("torch", lambda f=fit, p=layers: kind(f(memory="low", microbatch=64), p).prepare()))
        assert peak("torch", lambda f=fit, p=layers: kind(f(), p).prepare()) > examples / 64 * activations
    assert max(taken) <= 1.02 * min(taken)
    assert max(made) <= 1.02 * min(made) + 2 * vector
    assert taken[0] <= (2.5 if kind is lg.GGN else 6) * activations + 5 * vector


def test_a_supplied_jacobian_is_made_for_a_microbatch():
    """For NumPy."""
    x = RNG.standard_normal((4096, 200))
    fit = functools.partial(
        lg.Objective, lambda w, x: x @ w, lg.losses.SquaredError(), (x, x[:, 0]), jacobian=lambda w, x: x
    )
    low, kept = (
        peak("numpy", lambda o=options: lg.GGN(fit(**o), np.ones(200)) @ np.ones(200))
        for options in ({"memory": "low", "microbatch": 256}, {})
    )
    assert low < 1.2 * x[:256].nbytes
    assert kept > x.nbytes


def test_no_loop_keeps_what_is_made_anew(jax):
    """XLA would compute what depends on the parameters alone before the loop of a solve, and keep it."""
    fit, layers = deep_problem("jax", 1024)
    A = lg.Damped(lg.GGN(fit(memory="low"), layers), 0.1).prepare()
    b = A.domain.random(0)
    product = compiled_peak(lambda A, b: A.apply(b), A, b)
    solve = compiled_peak(lambda A, b: lg.solve(A, b, lg.CG(max_steps=10)).x, A, b)
    assert solve <= product + 1024 * WIDTH * LAYERS * 8 / 2
    A = lg.Damped(lg.GGN(fit(memory="low", microbatch=128), layers), 0.1).prepare()
    activations = 128 * WIDTH * LAYERS * 8
    assert compiled_peak(lambda A, b: A.apply(b), A, b) <= 3 * activations + 6 * b.nbytes


def test_forward_mode_where_it_is_right(torch):
    """On normalisation layers and attention; a Function without it goes by double backward, at once and for ever."""
    from torch import nn

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].cos()

    class Wrong(Sine):
        @staticmethod
        def jvp(ctx, v):
            return 0.5 * v

    torch.manual_seed(0)
    layers = {
        "norms": [nn.LayerNorm(8), nn.BatchNorm1d(8).eval(), nn.GroupNorm(2, 8)],
        "none": [type("Layer", (nn.Module,), {"forward": lambda self, x: Sine.apply(x)})()],
        "wrong": [type("Layer", (nn.Module,), {"forward": lambda self, x: Wrong.apply(x)})()],
    }
    for case, middle in layers.items():
        model = nn.Sequential(nn.Linear(3, 8), *middle, nn.Linear(8, 4)).double()
        params, data = dict(model.named_parameters()), (put("torch", X), put("torch", Y))
        kept, low = (lg.Objective(model, lg.losses.CrossEntropy(), data, memory=m) for m in ("kept", "low"))
        v = lg.GGN(kept, params).domain.random(1)
        for kind in (lg.GGN, lg.Hessian):
            same("torch", kind(low, params) @ v, kind(kept, params) @ v)
        A = lg.GGN(low, params)
        A @ v
        (piece,) = A.prepare().pieces
        way = type(piece.term.once(A.point.where).linearization).__name__
        assert way == ("TorchOnePass" if case == "norms" else "TorchLinearization")


def test_examples_that_depend_on_each_other(torch):
    from torch import nn

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    cut = lg.Objective(model, lg.losses.CrossEntropy(), (put("torch", X), put("torch", Y)), microbatch=4)
    with pytest.raises(ValueError, match=r"BatchNorm1d in training mode.*model\.eval\(\)"):
        cut.value(model)
    model.eval()
    assert np.isfinite(float(cut.value(model)))


def test_a_weight_that_is_one_for_all_examples_is_not_cut():
    fit = functools.partial(lg.Objective, net, lg.losses.SquaredError(reduction="sum"), jacobian=jacobian)
    data = X, np.eye(4)[Y], np.array([2.0])
    same("numpy", fit(data, microbatch=4).value(PARAMS), fit(data).value(PARAMS))


def test_errors_say_what_to_do():
    data, params = (X, np.eye(4)[Y]), PARAMS
    fit = functools.partial(lg.Objective, net, lg.losses.SquaredError(), jacobian=jacobian)
    with pytest.raises(ValueError, match=r"memory must be 'kept' .* or 'low'"):
        fit(data, memory="little")
    with pytest.raises(ValueError, match="microbatch must be a whole number >= 1"):
        fit(data, microbatch=0)
    with pytest.raises(ValueError, match=r"microbatch=4 cuts a batch along the first axis.*'inputs.positions': 5"):
        fit(({"x": X, "positions": np.zeros(5)}, data[1]), microbatch=4).value(params)
    with pytest.raises(ValueError, match="residuals are a function of the parameters alone"):
        lg.Objective.from_residuals(lambda p: p, microbatch=4)
    with pytest.raises(ValueError, match=r"one batch only.*leave out microbatch="):
        lg.Jacobian(fit(data, microbatch=4), params)
    assert repr(fit(data, memory="low", microbatch=4)).endswith("1 batch, memory='low', microbatch=4)")
