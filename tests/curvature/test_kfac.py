"""KFAC and EKFAC against the published formulas, written in NumPy for nets whose layers are known."""

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from kronecker import LOSSES, MODELS, dense, made, odd, pooled, put, targets
from systems import FULL

import linop_gn as lg
from linop_gn.curvature.kfac.sums import _moment
from linop_gn.operators.places import entries

from .cases import Streamed

IN_CI_ON_JAX = (
    "test_ekfac_is_at_least_as_near_as_kfac",
    "test_scales_and_shifts_are_exact",
    "test_dampings_of_blocks",
    "test_what_is_printed",
)

FRAMEWORKS = ["torch", "jax"]
COMPILED = {("expand", "normed"), ("expand", "cut"), ("reduce", "recurrent"), ("expand", "tied")}


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


def params(rng, d=3, h=4, C=3):
    return {
        "W1": rng.standard_normal((h, d)),
        "b1": rng.standard_normal(h),
        "W2": rng.standard_normal((h, C)),
        "b2": rng.standard_normal(C),
    }


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
    T = x.shape[1]
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
        layers = (
            made
            if layers is None
            else [tuple(a + b for a, b in zip(one, two, strict=True)) for one, two in zip(layers, made, strict=True)]
        )
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


# what holds exactly


def masked(K, dense):
    """What a matrix has within the blocks of K."""
    owner = np.full(len(dense), -1)
    for number, place in enumerate(K.factors.places):
        for view in place.views:
            owner[entries(K.domain, view)] = number
    assert (owner >= 0).all()
    return np.where(owner[:, None] == owner[None, :], dense, 0.0)


def far(K, want):
    """The distance of K's matrix to another in the Frobenius norm, relative."""
    return np.linalg.norm(K.backend.to_numpy(K.to_dense()) - want) / np.linalg.norm(want)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_of_one_example_the_blocks_are_those_of_the_operator(ops, loss):
    rng = np.random.default_rng(1)
    p = put(ops, sorted_params(params(rng)))
    x, y = rng.standard_normal((1, 1, 3)), targets(rng, loss, (1, 3))
    f = lg.Objective(pooled, LOSSES[loss]("mean"), (put(ops, x), put(ops, y)))
    for kind in (lg.KFAC, lg.EKFAC) if FULL or ops.name == "torch" else (lg.EKFAC,):
        for fisher, of in (
            ("type-2", lg.GGN(f, p)),
            ("mc", lg.Fisher(f, p, samples=3, seed=5)),
            ("empirical", lg.EmpiricalFisher(f, p)),
        ):
            K = kind(f, p, fisher=fisher, samples=3 if fisher == "mc" else 1, seed=5)
            assert (K.shape, K.symmetric, K.psd) == (of.shape, True, True)
            if fisher != "mc" or loss == "squares":  # the blocks of several draws are no products of two factors
                assert far(K, masked(K, dense(of))) < 1e-12, (kind, fisher)


def linear(p, x):
    return (x @ p["W1"].T) @ p["W2"]


def mean_of_linear(p, x):
    return lg.namespace(x).mean(linear(p, x), axis=1)


@pytest.mark.parametrize(
    ("net", "sharing", "weighted"),
    [
        (linear, "expand", False),
        (linear, "expand", True),
        (mean_of_linear, "reduce", False),
        (mean_of_linear, "reduce", True),
    ],
)
def test_of_deep_linear_nets_with_squared_error_the_blocks_are_those_of_the_operator(ops, net, sharing, weighted):
    rng = np.random.default_rng(2)
    p = {name: part for name, part in sorted_params(params(rng)).items() if name.startswith("W")}
    x = rng.standard_normal((5, 4, 3))
    y = rng.standard_normal((5, 4, 3) if net is linear else (5, 3))
    data = (x, y, np.array([1.0, 0.0, 2.0, 0.5, 3.0]))[: 3 if weighted else 2]
    f = lg.Objective(net, lg.losses.SquaredError(), tuple(put(ops, part) for part in data))
    K = lg.KFAC(f, put(ops, p), sharing=sharing)
    assert far(K, masked(K, dense(lg.GGN(f, put(ops, p))))) < 1e-12


def test_the_mean_over_draws_is_that_of_type_2():
    pytest.importorskip("torch")
    ops = lg.load("torch")
    p, batches = case(4, "softmax", False, True, (6,))
    f = lg.Objective(pooled, lg.losses.CrossEntropy(), tuple(put(ops, part) for part in batches[0][:2]))
    at = put(ops, sorted_params(p))
    want = dense(lg.KFAC(f, at))
    few, many = (far(lg.KFAC(f, at, fisher="mc", samples=s, seed=1), want) for s in (20, 500))
    assert many < 0.08
    assert 2 < few / many < 15  # 5 in the mean


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_ekfac_is_at_least_as_near_as_kfac(ops, name, sharing):
    if ops.name == "jax" and not FULL and (sharing, name) not in COMPILED:
        pytest.skip("compiled long: in tests_full")
    for loss, fisher in (("softmax", "type-2"), ("squares", "empirical")):
        f, p = made(ops, name, loss=loss)
        G = lg.GGN(f, p) if fisher == "type-2" else lg.EmpiricalFisher(f, p)
        K, E = (kind(f, p, fisher=fisher, sharing=sharing) for kind in (lg.KFAC, lg.EKFAC))
        want = masked(K, dense(G))
        assert far(E, want) <= far(K, want) * (1 + 1e-12)
        assert far(E, want) < 0.9
        np.testing.assert_allclose(float(E.trace()), np.trace(want), rtol=1e-10)
        if ops.name == "jax":
            return


def test_scales_and_shifts_are_exact(ops):
    f, p = made(ops, "normed")
    K = lg.KFAC(f, p)
    G = masked(K, dense(lg.GGN(f, p)))
    for name in ("scale", "shift"):
        where = K.domain.slices[name]
        np.testing.assert_allclose(dense(K)[where, where], G[where, where], rtol=0, atol=1e-12 * abs(G).max())


def test_a_leaf_that_enters_anything_else_has_an_estimated_diagonal_and_is_told(ops):
    rng = np.random.default_rng(0)
    p = put(ops, {"W1": rng.standard_normal((4, 3)), "W2": rng.standard_normal((4, 3))})
    x, y = rng.standard_normal((30, 4, 3)), targets(rng, "softmax", (30, 3))
    f = lg.Objective(odd, lg.losses.CrossEntropy(), (put(ops, x), put(ops, y)))
    K = lg.KFAC(f, p)
    want = np.diag(dense(lg.GGN(f, p)))
    report = K.report()
    assert report.count("not known to be linear") == 2
    assert report.count("diagonal") == 2
    found = dense(K)
    assert abs(found - np.diag(np.diag(found))).max() == 0
    assert np.corrcoef(np.diag(found), want)[0, 1] > 0.9
    np.testing.assert_allclose(np.trace(found), want.sum(), rtol=0.35)


def test_parts_that_overlap_are_a_diagonal_and_biases_of_such_weights_stay(ops):
    def net(p, x):
        h = lg.namespace(x).mean(x, axis=1)
        return h @ p["W"] + (h[:, :2] @ p["W"][:2, :]) + (h @ (p["V"] * p["V"]) + h @ p["V"] + p["b"])

    rng = np.random.default_rng(0)
    p = put(ops, {"W": rng.standard_normal((3, 3)), "V": rng.standard_normal((3, 3)), "b": rng.standard_normal(3)})
    x, y = rng.standard_normal((6, 4, 3)), targets(rng, "softmax", (6, 3))
    f = lg.Objective(net, lg.losses.CrossEntropy(), (put(ops, x), put(ops, y)))
    K = lg.KFAC(f, p)
    report = K.report()
    assert "overlap" in report
    assert "not known to be linear" in report
    b = K.domain.slices["b"]
    np.testing.assert_allclose(dense(K)[b, b], dense(lg.GGN(f, p))[b, b], atol=1e-12)


def shared_bias(p, x):
    h = lg.namespace(x).tanh(x[:, 0, :] @ p["W1"] + p["b"])
    return h @ p["W2"] + p["b"]


def bias_and_scale(p, x):
    return (x[:, 0, :] @ p["W1"] + p["b"]) * p["b"]


def matrix_and_entries(p, x):
    return x[:, :, 0][:, :3] @ p["W1"] + lg.namespace(x).sum(x[:, :3, :] * p["W1"], axis=1)


def half_used(p, x):
    return x[:, 0, :] @ p["W1"][:, :3]


def flattened(p, x):
    """Positions that depend on each other, as rows of the outputs."""
    xp = lg.namespace(x)
    h = x @ p["W1"]
    h = xp.tanh(h + xp.mean(h, axis=1, keepdims=True))
    return xp.reshape(h @ p["W2"], (-1, 3))


@pytest.mark.parametrize(
    ("net", "shapes", "blocks"),
    [
        (shared_bias, {"W1": (3, 3), "W2": (3, 3), "b": (3,)}, {"W1", "W2", "b"}),
        (bias_and_scale, {"W1": (3, 3), "b": (3,)}, {"W1", "b"}),
        (matrix_and_entries, {"W1": (3, 3)}, {"W1"}),
    ],
)
def test_each_entry_is_in_one_block(ops, net, shapes, blocks):
    rng = np.random.default_rng(3)
    p = put(ops, {name: rng.standard_normal(shape) for name, shape in shapes.items()})
    x, y = rng.standard_normal((6, 4, 3)), targets(rng, "softmax", (6, 3))
    f = lg.Objective(net, lg.losses.CrossEntropy(), (put(ops, x), put(ops, y)))
    K = lg.KFAC(f, p)
    assert {place.name for place in K.factors.places} == blocks
    assert {block.name for block in K.partition} == blocks
    M = dense(K)
    assert M.shape == K.shape
    np.testing.assert_allclose(dense(K.inverse(0.1)), np.linalg.inv(M + 0.1 * np.eye(len(M))), atol=1e-9)
    if net is shared_bias:
        where, G = K.domain.slices["b"], dense(lg.GGN(f, p))
        np.testing.assert_allclose(M[where, where], G[where, where], atol=1e-12)


def test_entries_that_nothing_depends_on_are_damped_too(ops):
    rng = np.random.default_rng(3)
    p = put(ops, {"W1": rng.standard_normal((3, 5)), "idle": rng.standard_normal(4)})
    x, y = rng.standard_normal((9, 4, 3)), targets(rng, "softmax", (9, 3))
    f = lg.Objective(half_used, lg.losses.CrossEntropy(), (put(ops, x), put(ops, y)))
    K = lg.KFAC(f, p)
    M, n = dense(K), K.shape[0]
    assert "10 entries" in K.report()
    assert K.partition is None  # the weight is some columns of a leaf
    np.testing.assert_allclose(dense(K.inverse(0.2)), np.linalg.inv(M + 0.2 * np.eye(n)), atol=1e-9)
    np.testing.assert_allclose(float(K.logdet(0.2)), np.linalg.slogdet(M + 0.2 * np.eye(n))[1], rtol=1e-9)
    mean = 0.1 * np.trace(M) / n
    np.testing.assert_allclose(dense(K.inverse(0.1, relative="all")), np.linalg.inv(M + mean * np.eye(n)), atol=1e-8)
    np.testing.assert_allclose(float(K.inverse(0.2).trace()), np.trace(dense(K.inverse(0.2))), rtol=1e-10)
    A = lg.Damped(lg.GGN(f, p), 0.1)
    found = lg.solve(A, put(ops, rng.standard_normal(n)), lg.CG(preconditioner=lg.preconditioners.KFAC()))
    assert found.succeeded


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_inverse_without_damping_is_the_pseudo_inverse(ops, dtype):
    rng = np.random.default_rng(0)
    p = put(ops, {"W1": rng.standard_normal((8, 3))}, dtype)
    x, y = rng.standard_normal((2, 8)), rng.standard_normal((2, 3))
    f = lg.Objective(lambda p, x: x @ p["W1"], lg.losses.SquaredError(), (put(ops, x, dtype), put(ops, y, dtype)))
    for kind in (lg.KFAC, lg.EKFAC):
        K = kind(f, p)
        want = np.linalg.pinv(dense(K).astype(float), rcond=1e-5, hermitian=True)
        with pytest.warns(RuntimeWarning, match=r"eigenvalues of zero, W1 \(18 of 24\)"):
            found = dense(K.inverse())
        np.testing.assert_allclose(found, want, atol=(1e-9 if dtype == "float64" else 1e-3) * abs(want).max())
        assert np.isneginf(float(K.logdet()))


def test_outputs_that_are_flattened_over_positions_keep_what_positions_share():
    pytest.importorskip("torch")
    ops = lg.load("torch")
    rng = np.random.default_rng(5)
    p = put(ops, {"W1": rng.standard_normal((3, 4)), "W2": rng.standard_normal((4, 3))})
    x, y = rng.standard_normal((40, 4, 3)), targets(rng, "softmax", (160, 3))
    f = lg.Objective(flattened, lg.losses.CrossEntropy(), (put(ops, x), put(ops, y)))
    G, E = dense(lg.BlockGGN(f, p, blocks="leaf")), lg.EKFAC(f, p)
    np.testing.assert_allclose(float(E.trace()), np.trace(G), rtol=0.1)  # columns with random signs


def test_batches_may_be_sequences_of_other_lengths(ops):
    rng = np.random.default_rng(5)
    net, shapes = MODELS["recurrent"]
    p = put(ops, {key: rng.standard_normal(shape) for key, shape in sorted(shapes.items())})
    data = [
        (put(ops, rng.standard_normal((5, length, 3))), put(ops, targets(rng, "softmax", (5, 3)))) for length in (2, 3)
    ]
    K = lg.KFAC(lg.Objective(net, lg.losses.CrossEntropy(), data), p)
    parts = [lg.KFAC(lg.Objective(net, lg.losses.CrossEntropy(), batch), p).trace() for batch in data]
    assert min(map(float, parts)) < float(K.trace()) < max(map(float, parts))
    streamed = lg.KFAC(lg.Objective(net, lg.losses.CrossEntropy(), Streamed(data)), p)
    np.testing.assert_allclose(dense(streamed), dense(K), atol=1e-12)


def test_leaves_without_entries_and_models_without_parameters():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(5, 0), torch.nn.Linear(0, 3)).double()
    data = torch.randn(6, 5).double(), torch.randint(3, (6,))
    f = lg.Objective(net, lg.losses.CrossEntropy(), data)
    np.testing.assert_allclose(dense(lg.KFAC(f, net)), dense(lg.GGN(f, net)), atol=1e-14)
    p = {"idle": torch.ones(2).double()}
    K = lg.KFAC(lg.Objective(lambda p, x: x[:, :3], lg.losses.CrossEntropy(), data), p)
    assert (float(K.trace()), float(K.inverse(0.5).trace())) == (0.0, 4.0)


def test_factors_of_ones_own_are_looked_at():
    for left, right, message in (
        (np.array([[1.0, 2.0], [0.0, 1.0]]), np.eye(2), "not symmetric"),
        (np.eye(2), -np.eye(3), "negative"),
        (np.ones((2, 3)), np.eye(2), "shape"),
        (np.array([np.nan, 1.0]), np.eye(2), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            lg.KroneckerBlocks.of(left, right)


def test_what_a_matrix_is_asked(ops):
    f, p = made(ops, "recurrent")
    for kind in (lg.KFAC, lg.EKFAC):
        K = kind(f, p)
        M, n = dense(K), K.shape[0]
        np.testing.assert_allclose(M, M.T, atol=1e-14)
        np.testing.assert_allclose(float(K.trace()), np.trace(M), rtol=1e-10)
        np.testing.assert_allclose(float(K.frobenius_norm()), np.linalg.norm(M), rtol=1e-10)
        np.testing.assert_allclose(ops.to_numpy(K.diagonal()), np.diag(M), atol=1e-12)
        np.testing.assert_allclose(float(K.logdet(0.3)), np.linalg.slogdet(M + 0.3 * np.eye(n))[1], rtol=1e-10)
        asked = lg.frobenius_norm(K)
        assert (float(asked.value), int(asked.products), asked.exact) == (float(K.frobenius_norm()), 0, True)
        damped = lg.frobenius_norm(lg.Damped(K, 0.3))
        np.testing.assert_allclose(float(damped.value), np.linalg.norm(M + 0.3 * np.eye(n)), rtol=1e-10)
        asked = lg.logdet(lg.Damped(K, 0.3))
        assert (float(asked.value), int(asked.products), asked.status.name) == (float(K.logdet(0.3)), 0, "COMPLETED")
        np.testing.assert_allclose(dense(K.inverse(0.3)), np.linalg.inv(M + 0.3 * np.eye(n)), atol=1e-10)
        v = put(ops, np.random.default_rng(0).standard_normal((n, 2)))
        np.testing.assert_allclose(ops.to_numpy(K @ v), M @ ops.to_numpy(v), atol=1e-12)
        assert isinstance(K @ p, dict)


def test_dampings_of_blocks(ops):
    f, p = made(ops, "two layers")
    K = lg.KFAC(f, p)
    M, names = dense(K), [place.name for place in K.factors.places]
    sizes = {place.name: [i for view in place.views for i in entries(K.domain, view)] for place in K.factors.places}
    by_block = np.zeros(len(M))
    for i, name in enumerate(names):
        by_block[sizes[name]] = i + 1.0
    found = dense(K.inverse({name: i + 1.0 for i, name in enumerate(names)}))
    np.testing.assert_allclose(found, np.linalg.inv(M + np.diag(by_block)), atol=1e-10)
    for name in names:
        by_block[sizes[name]] = 0.1 * np.mean(np.diag(M)[sizes[name]])
    np.testing.assert_allclose(dense(K.inverse(0.1, relative="block")), np.linalg.inv(M + np.diag(by_block)), atol=1e-9)
    mean = 0.1 * np.mean(np.diag(M)) * np.eye(len(M))
    np.testing.assert_allclose(dense(K.inverse(0.1, relative="all")), np.linalg.inv(M + mean), atol=1e-9)
    assert np.isneginf(float(lg.KFAC(f, p).logdet()))


def test_a_door_that_asks_for_blocks_is_given_them():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    net.register_parameter("idle", torch.nn.Parameter(torch.ones(2).double()))
    f = lg.Objective(net, lg.losses.CrossEntropy(), (torch.randn(9, 3).double(), torch.randint(3, (9,))))
    K = lg.KFAC(f, net)
    M, n = dense(K), K.shape[0]
    assert [block.name for block in K.partition] == ["idle", "0", "2"]
    for block in K.partition:
        inside = np.concatenate([np.arange(*r) for r in block.ranges])
        assert not np.delete(M[inside], inside, axis=1).any()
        density = lg.spectral_density(K, block=block.name, steps=len(inside))
        assert density.mean(lambda x: x)[0] == pytest.approx(np.trace(M[np.ix_(inside, inside)]) / len(inside), rel=0.6)
        assert density.range[1] == pytest.approx(np.linalg.eigvalsh(M[np.ix_(inside, inside)])[-1])
    b = torch.randn(n).double()
    A, want = lg.Damped(K, 0.1), np.linalg.solve(M + 0.1 * np.eye(n), b.numpy())
    for solver in (lg.Blockwise(lg.CG(rtol=1e-12)), lg.Cholesky()):
        np.testing.assert_allclose(lg.solve(A, b, solver).x.numpy(), want, atol=1e-10)
    jacobi = lg.preconditioners.BlockJacobi()
    assert jacobi.cost(A)[0] == n
    np.testing.assert_allclose(dense(jacobi(A)), np.linalg.inv(M + 0.1 * np.eye(n)), atol=1e-10)
    G = lg.Damped(lg.BlockGGN(f, net), 0.1)
    by_blocks = lg.solve(G, b, lg.Blockwise(lg.CG(rtol=1e-10, preconditioner=lg.preconditioners.KFAC())))
    assert by_blocks.succeeded
    parts = lg.KroneckerBlocks((), (), lg.Space.of({"w": np.zeros(3)}))
    assert [(block.name, block.ranges) for block in parts.partition] == [("w", ((0, 3),))]


def test_the_heuristic_damps_the_factors(ops):
    f, p = made(ops, "two layers")
    K, delta = lg.KFAC(f, p), 0.05
    want = np.zeros(K.shape)
    for block, place in zip(K.factors.blocks, K.factors.places, strict=True):
        L, R = ops.to_numpy(block.left)[0], ops.to_numpy(block.right)[0]
        pi = np.sqrt((np.trace(R) / len(R)) / (np.trace(L) / len(L)))
        both = np.kron(
            np.linalg.inv(L + np.sqrt(delta) / pi * np.eye(len(L))),
            np.linalg.inv(R + np.sqrt(delta) * pi * np.eye(len(R))),
        )
        each = lg.KroneckerBlocks((block,), (place,), K.domain)  # where its matrices lie
        eye = ops.identity(K.shape[0], K.domain.zeros())
        read = ops.to_numpy(place.read(K.domain, eye)).reshape(K.shape[0], -1)
        want += read @ both @ read.T
        assert each.psd
    np.testing.assert_allclose(dense(K.inverse(delta, rule="heuristic")), want, atol=1e-9)
    with pytest.raises(ValueError, match="no products"):
        lg.EKFAC(f, p).inverse(delta, rule="heuristic")


def test_an_l2_is_added_as_it_is_to_the_operator(ops):
    f, p = made(ops, "two layers", l2=0.2)
    bare, _ = made(ops, "two layers")
    K = lg.KFAC(f, p)
    np.testing.assert_allclose(dense(K), dense(lg.KFAC(bare, p)) + 0.2 * np.eye(K.shape[0]), atol=1e-12)
    np.testing.assert_allclose(dense(K.inverse(0.1)), np.linalg.inv(dense(K) + 0.1 * np.eye(K.shape[0])), atol=1e-9)
    np.testing.assert_allclose(float(K.trace()), np.trace(dense(K)), rtol=1e-10)
    np.testing.assert_allclose(float(K.frobenius_norm()), np.linalg.norm(dense(K)), rtol=1e-10)
    with pytest.raises(ValueError, match=">= 0"):
        K.inverse(-0.1)
    each, _ = made(ops, "two layers", l2=put(ops, {name: np.full(tuple(x.shape), 1e200) for name, x in p.items()}))
    want = 1e200 * K.shape[0] ** 0.5
    np.testing.assert_allclose(float(lg.frobenius_norm(lg.KFAC(each, p)).value), want, rtol=1e-10)


def test_an_l2_is_added_to_entries_in_no_block():
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(3, 2).double()
    net.register_parameter("idle", torch.nn.Parameter(torch.ones(2).double()))
    f = lg.Objective(net, lg.losses.SquaredError(), (torch.randn(5, 3).double(), torch.zeros(5, 2).double()), l2=0.2)
    K = lg.KFAC(f, net)
    want = np.linalg.inv(dense(K) + 0.3 * np.diag((K.diagonal() != 0.2).double()))
    np.testing.assert_allclose(dense(K.inverse({place.name: 0.3 for place in K.factors.places})), want, atol=1e-12)


@pytest.mark.parametrize("norm", ["BatchNorm2d", "InstanceNorm2d"])
def test_a_batch_norm_that_is_training_is_told(norm, recwarn):
    torch = pytest.importorskip("torch")
    layers = (
        torch.nn.Conv2d(1, 2, 3),
        getattr(torch.nn, norm)(2, affine=True),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
    )
    net = torch.nn.Sequential(*layers).double()
    data = torch.randn(5, 1, 4, 4).double(), torch.randint(2, (5,))
    f = lg.Objective(net, lg.losses.CrossEntropy(), data)
    for kind in (lg.KFAC, lg.EKFAC):
        told = "by a batch norm in training mode" in kind(f, net).report()
        assert told == (norm == "BatchNorm2d") == any(w.category is RuntimeWarning for w in recwarn.list)
    net.eval()
    assert "batch norm" not in lg.KFAC(lg.Objective(net, f.loss, data), net).report()


def test_what_is_printed(ops):
    f, p = made(ops, "two layers")
    K = lg.EKFAC(f, p, sharing="reduce")
    known = f"EKFAC({K.shape[0]} x {K.shape[0]}, psd, {ops.name} float64; fisher='type-2', sharing='reduce'"
    assert repr(K) == known + ")"
    M = K.inverse({place.name: 0.1 * 10**i for i, place in enumerate(K.factors.places)})
    assert repr(K) == known + "; 2 blocks)"
    assert repr(M).endswith("; 2 blocks, inverse at damping 0.1 to 1)")
    K = lg.KFAC(lg.Objective(odd, f.loss, (f.batches[0].inputs, f.batches[0].targets)), p)
    assert repr(K.factors).endswith("; 2 blocks, 2 estimated)")


@pytest.mark.parametrize("rows", [3, 520])
@pytest.mark.parametrize("one", [True, False])
def test_moments_of_wide_layers_are_those_of_narrow_ones(numpy_backend, rows, one):
    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((2, rows, 1, 260)), rng.uniform(1, 2, rows)
    full = np.concatenate([a, np.ones((2, rows, 1, 1))], axis=-1)[:, :, 0, : 260 + one]
    for weights in (None, w):
        made, count = _moment(numpy_backend.namespace(), a, weights, True, one)
        want = np.einsum("r,gri,grj->gij", np.ones(rows) if weights is None else w, full, full)
        np.testing.assert_allclose(made, want, atol=1e-11)
        assert made.shape == want.shape
        np.testing.assert_allclose(count, rows if weights is None else w.sum())
        diagonal, _ = _moment(numpy_backend.namespace(), a, weights, False, one)
        np.testing.assert_allclose(diagonal, np.einsum("gii->gi", want), atol=1e-11)


def test_sides_that_are_large_are_diagonals(ops):
    f, p = made(ops, "two layers")
    K, D = lg.KFAC(f, p), lg.KFAC(f, p, dense=4)
    assert "diagonal" in D.report()
    for whole, part in zip(K.factors.blocks, D.factors.blocks, strict=True):
        for a, b in ((whole.left, part.left), (whole.right, part.right)):
            a, b = ops.to_numpy(a), ops.to_numpy(b)
            np.testing.assert_allclose(b, np.einsum("gii->gi", a) if a.shape[1] > 4 else a, atol=1e-14)


def test_what_is_refused():
    torch = pytest.importorskip("torch")
    f, p = made(lg.load("torch"), "two layers")
    for options, message in (
        ({"fisher": "true"}, "type-2"),
        ({"sharing": "both"}, "expand"),
        ({"dense": 0}, "dense"),
        ({"fisher": "mc", "samples": 0}, "samples"),
        ({"samples": 3}, "fisher='mc'"),
    ):
        with pytest.raises(ValueError, match=message):
            lg.KFAC(f, p, **options)
    own = lg.Objective(pooled, lambda z, y: ((z - y) ** 2).sum(-1), (torch.ones(2, 4, 3).double(), torch.ones(2, 3)))
    with pytest.raises(ValueError, match="root"):
        lg.KFAC(own, p)
    numpy = lg.Objective(
        lambda w, x: x @ w, lg.losses.SquaredError(), (np.ones((2, 3)), np.ones(2)), jacobian=lambda w, x: x
    )
    with pytest.raises((lg.MissingDerivativeError, NotImplementedError), match="BlockGGN"):
        lg.KFAC(numpy, np.ones(3)).prepare()
    with pytest.raises(ValueError, match=">= 0"):
        lg.KFAC(f, p).inverse(-1.0)
    with pytest.raises(ValueError, match="names"):
        lg.KFAC(f, p).inverse({"x": 1.0})
    with pytest.raises(ValueError, match="relative"):
        lg.KFAC(f, p).inverse(1.0, relative="layer")


def test_one_program_serves_all_points(jax):
    ops = lg.load("jax")
    f, p = made(ops, "two layers")

    @jax.jit
    def direction(p, x, y, damping):
        at = f.with_data((x, y))
        return lg.KFAC(at, p).inverse(damping) @ at.gradient(p)

    found = direction(p, f.batches[0].inputs, f.batches[0].targets, 0.1)
    want = lg.KFAC(f, p).inverse(0.1) @ f.gradient(p)
    for name in found:
        np.testing.assert_allclose(found[name], want[name], atol=1e-10)
    again = {name: 0.5 * part for name, part in p.items()}
    direction(again, f.batches[0].inputs, f.batches[0].targets, 0.2)
    assert direction._cache_size() == 1
