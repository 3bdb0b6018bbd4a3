"""KFAC and EKFAC against the published formulas, written in NumPy for nets whose layers are known."""

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import linop_gn as lg

from .cases import Streamed

LOSSES = {
    "squares": lambda reduction: lg.losses.SquaredError(reduction=reduction),
    "softmax": lambda reduction: lg.losses.CrossEntropy(reduction=reduction),
    "binary": lambda reduction: lg.losses.BinaryCrossEntropy(reduction=reduction),
}
FRAMEWORKS = ["torch", "jax"]


@pytest.fixture(params=FRAMEWORKS)
def ops(request):
    pytest.importorskip(request.param)
    if request.param == "jax":
        request.getfixturevalue("jax")
    return lg.load(request.param)


def model(p, x):
    """Two layers on each position (N, T, d); ``pool`` takes the mean over positions before the second."""
    xp = lg.namespace(p["W1"])
    h = xp.tanh(x @ p["W1"].T + p["b1"])
    return h @ p["W2"] + p["b2"]


def pooled(p, x):
    """One prediction for each example."""
    xp = lg.namespace(p["W1"])
    return xp.mean(xp.tanh(x @ p["W1"].T + p["b1"]), axis=1) @ p["W2"] + p["b2"]


def params(rng, d=3, h=4, C=3):
    return {
        "W1": rng.standard_normal((h, d)),
        "b1": rng.standard_normal(h),
        "W2": rng.standard_normal((h, C)),
        "b2": rng.standard_normal(C),
    }


def targets(rng, loss, shape):
    if loss == "squares":
        return rng.standard_normal(shape)
    return rng.integers(0, shape[-1], shape[:-1]) if loss == "softmax" else rng.integers(0, 2, shape)


def put(ops, x, dtype="float64"):
    if isinstance(x, dict):
        return {name: put(ops, value, dtype) for name, value in x.items()}
    if x.dtype.kind == "i":
        return ops.asarray(x, "int64" if ops.name == "torch" else "int32")
    return ops.asarray(x, dtype)


def hessians(loss, z):
    """H_L (..., C, C) of each position, unweighted."""
    if loss == "squares":
        return np.broadcast_to(np.eye(z.shape[-1]), (*z.shape, z.shape[-1]))
    if loss == "binary":
        s = 1 / (1 + np.exp(-z))
        return (s * (1 - s))[..., None] * np.eye(z.shape[-1])
    q = np.exp(z - z.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    return q[..., None] * np.eye(z.shape[-1]) - q[..., None] * q[..., None, :]


def reference(p, x, y, w, loss, sharing, pool):
    """Unnormalised sums of a batch: (L1, R1 sum, R1 count), (L2, ...), and the weight; w (N,) of examples."""
    N, T, _ = x.shape
    z1 = x @ p["W1"].T + p["b1"]
    h = np.tanh(z1)
    one = lambda a: np.concatenate([a, np.ones((*a.shape[:-1], 1))], axis=-1)  # noqa: E731
    layers = []
    if pool:
        m = h.mean(1)
        z2 = m @ p["W2"] + p["b2"]
        H = hessians(loss, z2) * w[:, None, None]
        J = np.einsum("hc,nth->ntch", p["W2"], 1 - h**2) / T  # dz2 / dz1_t
        L2, a2, c2 = H.sum(0), one(m), w
        R2 = np.einsum("n,ni,nj->ij", c2, a2, a2)
        if sharing == "expand":
            L1 = np.einsum("ntch,ncd,ntdk->hk", J, H, J)
            R1, c1 = np.einsum("n,nti,ntj->ij", w, one(x), one(x)), T * w.sum()
        else:
            G = J.sum(1)
            L1 = np.einsum("nch,ncd,ndk->hk", G, H, G)
            mean = one(x).mean(1)
            R1, c1 = np.einsum("n,ni,nj->ij", w, mean, mean), w.sum()
        layers = [(L1, R1, c1), (L2, R2, w.sum())]
        count = w.sum() * (z2.shape[-1] if loss == "binary" else 1)
    else:
        z2 = h @ p["W2"] + p["b2"]
        H = hessians(loss, z2) * w[:, None, None, None]
        J = np.einsum("hc,nth->ntch", p["W2"], 1 - h**2)
        layers = [
            (np.einsum("ntch,ntcd,ntdk->hk", J, H, J), np.einsum("n,nti,ntj->ij", w, one(x), one(x)), T * w.sum()),
            (H.sum((0, 1)), np.einsum("n,nti,ntj->ij", w, one(h), one(h)), T * w.sum()),
        ]
        count = {"squares": w.sum(), "softmax": T * w.sum(), "binary": T * z2.shape[-1] * w.sum()}[loss]
    return layers, count


def kron(p, layers):
    """The matrix in the order W1, W2, b1, b2 of the frameworks' trees: here sorted by name, as JAX sorts keys."""
    names = ["W1", "W2", "b1", "b2"]
    starts = dict(zip(names, np.cumsum([0, *(p[n].size for n in names)]), strict=False))
    n = sum(p[name].size for name in names)
    made = np.zeros((n, n))
    for (L, R), weight, bias in zip(layers, ("W1", "W2"), ("b1", "b2"), strict=True):
        O, I = L.shape[0], R.shape[0]
        where = np.empty((O, I), int)
        entries = starts[weight] + np.arange(p[weight].size).reshape(p[weight].shape)
        where[:, :-1] = entries if weight == "W1" else entries.T
        where[:, -1] = starts[bias] + np.arange(O)
        made[np.ix_(where.ravel(), where.ravel())] = np.kron(L, R)
    return made


def sorted_params(p):
    return {name: p[name] for name in sorted(p)}


def case(seed, loss, weighted, pool, sizes):
    rng = np.random.default_rng(seed)
    p = params(rng)
    batches = []
    for n in sizes:
        x = rng.standard_normal((n, 2, 3))
        y = targets(rng, loss, (n, 3) if pool else (n, 2, 3))
        w = rng.integers(0, 3, n).astype(float) if weighted else np.ones(n)
        w[0] = 1.0
        batches.append((x, y, w))
    return p, batches


def wanted(p, batches, loss, reduction, sharing, pool):
    layers, weight = None, 0.0
    for x, y, w in batches:
        made, count = reference(p, x, y, w, loss, sharing, pool)
        weight += count
        layers = made if layers is None else [
            tuple(a + b for a, b in zip(one, two, strict=True)) for one, two in zip(layers, made, strict=True)
        ]
    scale = 1 / weight if reduction == "mean" else 1.0
    return kron(p, [(scale * L, R / count) for L, R, count in layers])


def check(ops, seed, loss, reduction, weighted, sharing, pool, sizes, hold, dtype="float64"):
    p, batches = case(seed, loss, weighted, pool, sizes)
    data = [tuple(put(ops, part, dtype) for part in (b if weighted else b[:2])) for b in batches]
    data = data[0] if len(data) == 1 and hold is list else hold(data)
    f = lg.Objective(pooled if pool else model, LOSSES[loss](reduction), data)
    K = lg.KFAC(f, put(ops, sorted_params(p), dtype), sharing=sharing)
    want = wanted(p, batches, loss, reduction, sharing, pool)
    found = ops.to_numpy(K.to_dense())
    np.testing.assert_allclose(found, want, rtol=0, atol=(1e-10 if dtype == "float64" else 2e-5) * abs(want).max())


CASES = st.tuples(
    st.integers(0, 2**20),
    st.sampled_from(list(LOSSES)),
    st.sampled_from(["mean", "sum"]),
    st.booleans(),
    st.sampled_from(["expand", "reduce"]),
    st.booleans(),
    st.sampled_from([(1,), (4,), (2, 3), (3, 3)]),
    st.sampled_from([list, Streamed]),
)


@settings(max_examples=60)
@drawn(CASES)
def test_factors_are_those_of_the_formulas_in_torch(given):
    pytest.importorskip("torch")
    check(lg.load("torch"), *(given if given[5] else (*given[:4], "expand", *given[5:])))


@pytest.mark.parametrize(
    ("loss", "reduction", "weighted", "sharing", "pool", "sizes", "hold"),
    [
        ("softmax", "mean", True, "expand", False, (2, 3), list),
        ("squares", "sum", True, "reduce", True, (3, 3), list),
        ("binary", "mean", False, "expand", True, (3,), Streamed),
    ],
)
def test_factors_are_those_of_the_formulas_in_jax(jax, loss, reduction, weighted, sharing, pool, sizes, hold):
    check(lg.load("jax"), 3, loss, reduction, weighted, sharing, pool, sizes, hold)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_factors_of_numpy_arrays_are_computed_where_the_model_is_differentiated(dtype):
    pytest.importorskip("torch")
    p, batches = case(0, "softmax", True, True, (3, 2))
    data = [tuple(part.astype(dtype) if part.dtype.kind == "f" else part for part in b) for b in batches]
    f = lg.Objective(pooled, lg.losses.CrossEntropy(), data, derivatives="torch")
    at = {name: part.astype(dtype) for name, part in sorted_params(p).items()}
    want = wanted(p, batches, "softmax", "mean", "expand", True)
    K = lg.KFAC(f, at)
    np.testing.assert_allclose(K.to_dense(), want, rtol=0, atol=1e-5 * abs(want).max())
    assert isinstance(lg.EKFAC(f, at).inverse(0.1).to_dense(), np.ndarray)
