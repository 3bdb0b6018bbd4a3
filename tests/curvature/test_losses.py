"""The losses with closed forms against loops in float64, in NumPy."""

import itertools
import math

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.curvature.losses import CrossEntropy, Huber, SquaredError, door
from linop_gn.testing.losses import LOSSES, draw, everything, expected

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])
shapes = st.sampled_from([(1, 2), (3, 4), (2, 3, 5), (2, 1, 2, 3), (7, 3)])
all_losses = pytest.mark.parametrize("name", LOSSES)


def weigh(kind, w, rng):
    """Weights as a user gives them, and the same for each example."""
    if kind == "none":
        return None, np.ones_like(w)
    if kind == "mask":
        return w > 0.5, (w > 0.5).astype(float)
    if kind == "from the left":
        rows = rng.choice([0.0, 0.5, 2.0], size=w.shape[:1])
        return rows, np.broadcast_to(rows.reshape(-1, *(1,) * (w.ndim - 1)), w.shape)
    return w, w


def assert_near(got, want, size, tolerance):
    """Entry by entry within ``tolerance * size``; what underflows in float32 may be zero."""
    error = np.abs(np.asarray(got, dtype=float) - want)
    assert got.shape == want.shape
    assert np.all(error <= tolerance * size + 1e-36), f"{np.max(error / (size + 1e-300)):.1e}"


@all_losses
@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    shape=shapes,
    exponent=st.integers(-6, 6),
    dtype=dtypes,
    kind=st.sampled_from(["none", "full", "mask", "from the left"]),
)
def test_closed_forms_equal_loops(name, seed, shape, exponent, dtype, kind):
    loss, rng = LOSSES[name], np.random.default_rng(seed + 1)
    # What reaches e^z is rounded in z: an error of |z| eps, relative to the result, for |z| up to 100 (in float64 745).
    tolerance = TOLERANCE[dtype] * (2 if dtype == "float32" else 1)
    z, y, w = draw(name, seed, shape, 10.0**exponent, dtype)
    w, full = weigh(kind, w, rng)
    v = rng.standard_normal(shape).astype(dtype)
    for array in (z, y, v) if w is None else (z, y, v, w):
        array.flags.writeable = False
    want = expected(name, z, y, full)
    got = everything(loss, np, z, y, w, v)

    for key, x in got.items():
        assert isinstance(x, np.ndarray), key
        assert x.dtype == np.dtype(dtype), key
        assert x.shape == (() if key in ("total", "weight_sum") else shape), key
    assert_near(got["total"], np.asarray(want.total), want.total_size, tolerance)
    assert_near(got["gradient"], want.gradient, want.gradient_size, tolerance)
    assert math.isclose(float(got["weight_sum"]), float(np.sum(full)), rel_tol=1e-6)

    m = want.blocks.shape[-1]
    columns = v.astype(float).reshape(-1, m)
    product = np.einsum("eij,ej->ei", want.blocks, columns)
    size = np.abs(product)
    if m > 1:  # the terms p_j |v_j - v_k|, for the likeliest class k: constants in v are not seen
        top = z.reshape(-1, m).argmax(-1)
        spread = np.abs(columns - columns[np.arange(len(columns)), top][:, None])
        size = np.broadcast_to((np.einsum("eii->ei", want.blocks) * spread).max(-1, keepdims=True), product.shape)
    assert_near(got["hessian_product"].reshape(-1, m), product, size, 4 * tolerance)


@all_losses
@settings(max_examples=25, deadline=None)
@given(seed=seeds, exponent=st.integers(-3, 1), dtype=dtypes)
def test_the_root_times_its_transpose_is_the_hessian(name, seed, exponent, dtype):
    loss = LOSSES[name]
    z, y, w = draw(name, seed, (2, 2, 3), 10.0**exponent, dtype)
    identity = np.eye(z.size, dtype=dtype).reshape(z.size, *z.shape)
    root = loss.hessian(np, z, y, w).root(np)
    S = np.stack([root.product(np, e).ravel() for e in identity], axis=1).astype(float)
    T = np.stack([root.transposed(np, e).ravel() for e in identity], axis=1).astype(float)
    H = expected(name, z, y, w).dense()
    norm, tolerance = np.abs(H).max(), 4 * TOLERANCE[dtype]
    np.testing.assert_allclose(S, T.T, atol=tolerance * np.sqrt(norm), rtol=0)
    np.testing.assert_allclose(S @ S.T, H, atol=tolerance * norm, rtol=0)


@all_losses
@settings(max_examples=25, deadline=None)
@given(seed=seeds, dtype=dtypes)
def test_the_hessian_is_symmetric_and_positive_semidefinite(name, seed, dtype):
    loss = LOSSES[name]
    assert loss.convex
    z, y, w = draw(name, seed, (3, 4), 3.0, dtype)
    identity = np.eye(z.size, dtype=dtype).reshape(z.size, *z.shape)
    H = np.stack([loss.hessian_product(np, z, y, w, e).ravel() for e in identity], axis=1).astype(float)
    norm = np.abs(H).max()
    np.testing.assert_allclose(H, H.T, atol=TOLERANCE[dtype] * norm, rtol=0)
    assert np.linalg.eigvalsh((H + H.T) / 2).min() >= -TOLERANCE[dtype] * norm


@all_losses
@settings(max_examples=25, deadline=None)
@given(seed=seeds, cuts=st.lists(st.integers(1, 8), max_size=3))
def test_the_mean_over_uneven_batches_is_the_mean_over_their_union(name, seed, cuts):
    loss = LOSSES[name]
    z, y, w = draw(name, seed, (9, 3), 1.0, "float64")
    w[0] = 1.0
    edges = sorted({0, 9, *cuts})
    batches = [(z[a:b], y[a:b], w[a:b]) for a, b in itertools.pairwise(edges)]
    divisor = sum(loss.weight_sum(np, *batch) for batch in batches)
    want, weight = expected(name, z, y, w), np.sum(w)
    value = sum(loss.total(np, *batch) for batch in batches) / divisor
    gradient = np.concatenate([loss.gradient(np, *batch) for batch in batches]) / divisor
    np.testing.assert_allclose(value, want.total / weight, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, want.gradient / weight, rtol=1e-12, atol=1e-12)


@all_losses
def test_examples_without_weight_may_hold_anything(name):
    loss = LOSSES[name]
    z, y, w = draw(name, 11, (6, 4), 1.0, "float64")
    w[:3], w[3:] = 1.0, 0.0
    v = np.random.default_rng(0).standard_normal(z.shape)
    wanted = everything(loss, np, z, y, w, v)
    z[3], z[4], z[5] = np.nan, np.inf, 1e300
    v[3:] = np.nan
    y[3:] = np.nan if y.dtype.kind == "f" else -7
    got = everything(loss, np, z, y, w, v)
    for key, want in wanted.items():
        assert np.array_equal(got[key], want), key
        if want.shape:
            assert not got[key][3:].any(), key


@all_losses
def test_wider_targets_and_weights_do_not_widen_the_outputs(name):
    z, y, w = draw(name, 2, (4, 3), 1.0, "float32")
    y = y.astype("float64") if y.dtype.kind == "f" else y
    for key, x in everything(LOSSES[name], np, z, y, w.astype("float64"), np.ones_like(z)).items():
        assert x.dtype == np.float32, key


@pytest.mark.parametrize("number", [np.float64(0.25), np.float32(0.25), np.asarray(0.25)])
def test_numbers_in_a_loss_do_not_widen_the_outputs(number):
    z, y, _ = draw("softmax", 2, (4, 3), 1.0, "float32")
    plain = everything(CrossEntropy(label_smoothing=0.25), np, z, y, None, z)
    for key, x in everything(CrossEntropy(label_smoothing=number), np, z, y, None, z).items():
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, plain[key], rtol=1e-6, err_msg=key)
    for key, x in everything(SquaredError(scale=number), np, z, z * 0, None, z).items():
        assert x.dtype == np.float32, key


def test_residuals_alone_are_least_squares():
    r = np.array([3.0, -4.0])
    got = everything(SquaredError(reduction="sum"), np, r, None, None, r)
    assert got["total"] == 12.5
    assert got["weight_sum"] == 2.0
    for key in ("gradient", "hessian_product", "root"):
        assert np.array_equal(got[key], r), key


def test_float32_keeps_the_small_numbers_of_sure_binary_answers():
    z = np.array([5, 10, 20, 40, -5, -10, -20, -40], "float32")
    y = (z > 0).astype("float32")
    got, want = everything(LOSSES["binary"], np, z, y, None, z), expected("binary", z, y, np.ones(8))
    np.testing.assert_allclose(got["total"], want.total, rtol=1e-5)
    np.testing.assert_allclose(got["gradient"], want.gradient, rtol=1e-5)
    np.testing.assert_allclose(got["hessian_product"], want.dense() @ z.astype(float), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "r", "value"),
    [(SquaredError(), 300.0, 45000.0), (SquaredError(scale=1e-3), 6000.0, 36000.0), (Huber(width=300.0), 30.0, 450.0)],
)
def test_squares_that_overflow_where_the_loss_does_not(loss, r, value):
    found = loss.total(np, np.array([r], np.float16), np.zeros(1, np.float16), None)
    np.testing.assert_allclose(found, value, rtol=2e-3)


@all_losses
@settings(max_examples=80, deadline=None)
@given(
    seed=seeds,
    shape=shapes,
    dtype=dtypes,
    kind=st.sampled_from(["none", "full", "mask", "from the left"]),
    spoilt=st.sampled_from(["nothing", "targets", "weights", "all weights"]),
    junk=st.sampled_from([math.nan, math.inf, -1.0, 2.5, 100.0]),
)
def test_a_program_is_told_that_data_fit_exactly_if_the_check_passes(name, seed, shape, dtype, kind, spoilt, junk):
    """:meth:`Loss.fits`, which compiled programs ask, beside :meth:`Loss.check`, which reads on the host."""
    loss, rng = LOSSES[name], np.random.default_rng(seed)
    _, y, w = draw(name, seed, shape, 1.0, dtype)
    w, _ = weigh(kind, w, rng)
    if spoilt == "targets":
        y = y.copy()
        y.flat[rng.integers(y.size)] = junk if y.dtype.kind == "f" else int(np.nan_to_num(junk, posinf=7))
    elif w is not None and w.dtype.kind == "f" and spoilt != "nothing":
        w = w.copy()
        w.flat[rng.integers(w.size) if spoilt == "weights" else slice(None)] = junk if spoilt == "weights" else 0.0
    for empty_ok in (False, True):
        try:
            loss.check(lg.load("numpy"), shape, y, w, empty_ok=empty_ok)
            passes = True
        except ValueError:
            passes = False
        xp = array_api_compat.numpy
        assert bool(loss.fits(xp, shape, y, w, empty_ok=empty_ok)) == passes


def test_only_the_check_tells_where_a_loss_has_a_door_of_its_own():
    @lg.record
    class OfEven(SquaredError):  # noqa: N818
        def refuse_targets(self, targets, counted):
            door.refuse("OfEven", (targets % 2 != 0) & counted, targets, "targets must be even")

    y = np.zeros((3, 2))
    assert SquaredError().fits(np, (3, 2), y, None)
    assert OfEven().fits(np, (3, 2), y, None) is False
    assert not SquaredError(scale=2.0).has_arrays
    assert SquaredError(scale=np.asarray(2.0)).has_arrays
