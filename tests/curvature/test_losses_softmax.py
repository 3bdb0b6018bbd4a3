"""Cross-entropy where it usually goes wrong: ignored positions, sure classifiers, extreme and forbidden logits."""

import importlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from linop_gn.curvature.losses import CrossEntropy
from linop_gn.testing.losses import draw, everything, expected

seeds = st.integers(0, 2**32 - 1)


def language(seed, dtype="float64"):
    """Logits (2, 5, 4), tokens and weights (2, 5), and a direction."""
    z, y, w = draw("softmax", seed, (2, 5, 4), 2.0, dtype)
    return z, y, w, np.random.default_rng(seed).standard_normal(z.shape).astype(dtype)


def assert_same(got, want, **tolerances):
    for key, x in want.items():
        np.testing.assert_allclose(got[key], x, err_msg=key, **tolerances)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, ignored=st.sampled_from([-100, -1, 2, 4, 10**6]), smoothing=st.sampled_from([0.0, 0.2]))
def test_ignored_positions_are_as_if_they_were_not_there(seed, ignored, smoothing):
    z, y, w, v = language(seed)
    out = np.random.default_rng(seed + 1).random(y.shape) < 0.4
    y = np.where(out, ignored, np.where(y == ignored, 0, y))
    v[out] = z[out] = np.nan
    got = everything(CrossEntropy(ignore_index=ignored, label_smoothing=smoothing), np, z, y, w, v)
    keep = ~out
    want = everything(CrossEntropy(label_smoothing=smoothing), np, z[keep], y[keep], w[keep], v[keep])
    for key, x in want.items():
        whole = got[key] if x.shape == () else got[key][keep]
        np.testing.assert_allclose(whole, x, rtol=1e-14, atol=1e-15, err_msg=key)
        assert x.shape == () or not got[key][out].any(), key


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_class_indices_of_any_integer_dtype(dtype):
    z, y, w, v = language(0)
    ignored = 255 if dtype == "uint8" else -100
    loss, small = CrossEntropy(ignore_index=ignored), y.astype(dtype)
    small[0, 0] = y[0, 0] = ignored
    want = everything(loss, np, z, y, w, v)
    assert_same(everything(loss, np, z, small, w, v), want, rtol=0)
    torch = pytest.importorskip("torch")
    arrays = [torch.asarray(x) for x in (z, small, w, v)]
    got = everything(loss, importlib.import_module("array_api_compat.torch"), *arrays)
    assert_same(got, want, rtol=1e-12, atol=1e-14)


def test_a_batch_in_which_nothing_counts_adds_nothing():
    z, y, _, v = language(0)
    for key, x in everything(CrossEntropy(ignore_index=-100), np, z, np.full_like(y, -100), None, v).items():
        assert not np.any(x), key


@settings(max_examples=30, deadline=None)
@given(seed=seeds, smoothing=st.floats(0, 1), weighted=st.booleans())
def test_indices_one_hot_rows_and_smoothed_rows_are_the_same_distributions(seed, smoothing, weighted):
    z, y, w, v = language(seed)
    w = w if weighted else None
    one_hot = np.eye(4)[y]
    want = everything(CrossEntropy(label_smoothing=smoothing), np, z, y, w, v)
    assert_same(everything(CrossEntropy(label_smoothing=smoothing), np, z, one_hot, w, v), want, rtol=1e-12, atol=1e-14)
    smoothed = (1 - smoothing) * one_hot + smoothing / 4
    assert_same(everything(CrossEntropy(), np, z, smoothed, w, v), want, rtol=1e-12, atol=1e-14)


def test_one_example_without_leading_axes():
    z, v = np.array([1.0, -1.0, 0.5]), np.array([0.3, 0.2, -1.0])
    got = everything(CrossEntropy(), np, z, np.asarray(1), None, v)
    want = everything(CrossEntropy(), np, z[None], np.array([1]), None, v[None])
    for key, x in want.items():
        assert np.array_equal(got[key], x if x.shape == () else x[0]), key


@pytest.mark.parametrize("gap", [5.0, 10.0, 20.0, 40.0])
@pytest.mark.parametrize("targets", ["index", "one-hot"])
def test_float32_keeps_the_small_numbers_of_a_sure_classifier(gap, targets):
    # 1 - p falls to 4e-18 here; computed as p - 1 or p v - p <p, v> in float32 it would be rounding from 1e-7 on.
    rng = np.random.default_rng(0)
    z = rng.standard_normal((20, 6)).astype("float32")
    y = z.argmax(-1)
    z[np.arange(20), y] += np.float32(gap)
    v = rng.standard_normal(z.shape).astype("float32")
    given_targets = y if targets == "index" else np.eye(6, dtype="float32")[y]
    got = everything(CrossEntropy(), np, z, given_targets, None, v)
    want = expected("softmax", z, y, np.ones(20))
    S = np.stack([_factor(z[i].astype(float)) @ v[i] for i in range(20)])
    T = np.stack([_factor(z[i].astype(float)).T @ v[i] for i in range(20)])
    Hv = np.einsum("eij,ej->ei", want.blocks, v.astype(float))
    assert abs(got["total"] - want.total) <= 1e-5 * want.total
    for key, rows in {
        "gradient": want.gradient,
        "hessian_product": Hv,
        "root": S,
        "root transposed": T,
    }.items():
        error = np.linalg.norm(got[key] - rows, axis=-1) / np.linalg.norm(rows, axis=-1)
        assert error.max() < 1e-5, key


def _factor(z):
    """diag(q) - p q^T, with its large diagonal entry as a sum of small terms."""
    p = np.exp(z - logsumexp(z))
    S = np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))
    for i in range(len(p)):
        S[i, i] = np.sqrt(p[i]) * np.delete(p, i).sum()
    return S


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_stay_finite(dtype):
    z = np.array([[1e4, -1e4, 0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [0, 1e4, 1e4]], dtype=dtype)
    y = np.array([1, 0, 2, 0])
    got = everything(CrossEntropy(), np, z, y, None, np.ones_like(z) + z)
    assert all(np.isfinite(x).all() for x in got.values())
    np.testing.assert_allclose(got["total"], 2e4 + np.log(3) * 2 + 1e4 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(got["gradient"][0], [1, -1, 0], atol=1e-7)
    torch = pytest.importorskip("torch")
    xp = importlib.import_module("array_api_compat.torch")
    leaf = torch.asarray(z).requires_grad_()
    (g,) = torch.autograd.grad(CrossEntropy().total(xp, leaf, torch.asarray(y), None), leaf, create_graph=True)
    (Hv,) = torch.autograd.grad(g, leaf, torch.asarray(np.ones_like(z) + z))
    np.testing.assert_allclose(g.detach(), got["gradient"], atol=1e-6)
    np.testing.assert_allclose(Hv, got["hessian_product"], rtol=1e-5, atol=1e-2)


WIDE = [(np.array([1]), 0.25), (np.array([2]), 0.0), (np.array([[0.5, 0.25, 0.25]]), 0.0)]


@pytest.mark.parametrize(("y", "smoothing"), [*WIDE, (np.array([0]), 1.0), (np.array([[0.5, 0.5, 0.0]]), 0.25)])
@pytest.mark.parametrize("weight", [None, np.array([0.5, 0.25, 0.0])])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_logits_further_apart_than_the_largest_number(y, smoothing, weight, dtype):
    half = float(np.finfo(dtype).max) / 2  # gaps between logits are 1, 2 and 3 of these
    z, gaps = np.array([[1.0, 0.0, -2.0]]) * half, np.array([0.0, 1.0, 3.0])
    targets = y[0] if y.ndim == 2 else np.eye(3)[y[0]]
    c = ((1 - smoothing) * targets + smoothing / 3) * (1 if weight is None else weight)
    loss = CrossEntropy(label_smoothing=smoothing, weight=weight, reduction="sum")
    got = everything(loss, np, z.astype(dtype), y, None, np.ones((1, 3), dtype))
    np.testing.assert_allclose(got["total"], np.asarray(c @ gaps * np.float64(half), dtype), rtol=2e-3)
    np.testing.assert_allclose(got["gradient"][0], [c[1:].sum(), *-c[1:]], atol=1e-3)
    torch = pytest.importorskip("torch")
    xp = importlib.import_module("array_api_compat.torch")
    leaf = torch.asarray(z.astype(dtype)).requires_grad_()
    value = loss.total(xp, leaf, torch.asarray(y), None)
    np.testing.assert_allclose(value.detach(), got["total"], rtol=2e-3)
    (g,) = torch.autograd.grad(value, leaf, create_graph=True)
    np.testing.assert_allclose(g.detach(), got["gradient"], atol=1e-3)
    assert not torch.autograd.grad(g.sum(), leaf)[0].any()


@pytest.mark.parametrize("form", ["index", "probabilities"])
def test_forbidden_classes_are_as_if_they_were_not_there(form):
    z, y, v = np.array([[0.3, -np.inf, 1.0]]), np.array([2]), np.array([[1.0, 5.0, -1.0]])
    few, less, v_few = z[:, ::2], np.array([1]), v[:, ::2]
    if form == "probabilities":
        y, less = np.array([[0.25, 0.0, 0.75]]), np.array([[0.25, 0.75]])
    got, want = everything(CrossEntropy(), np, z, y, None, v), everything(CrossEntropy(), np, few, less, None, v_few)
    for key, x in want.items():
        np.testing.assert_allclose(got[key] if x.shape == () else got[key][:, ::2], x, rtol=1e-14, err_msg=key)
    torch = pytest.importorskip("torch")
    xp = importlib.import_module("array_api_compat.torch")
    leaf = torch.asarray(z).requires_grad_()
    (g,) = torch.autograd.grad(CrossEntropy().total(xp, leaf, torch.asarray(y), None), leaf)
    np.testing.assert_allclose(g, got["gradient"], atol=1e-15)


def test_a_vocabulary_of_32000_needs_a_few_arrays_of_logits():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4, 16, 32000)).astype("float32")
    y, v = rng.integers(0, 32000, (4, 16)), z[::-1].copy()
    loss = CrossEntropy(ignore_index=-100)
    tracemalloc.start()
    value, Hv, g = loss.total(np, z, y, None), loss.hessian_product(np, z, y, None, v), loss.gradient(np, z, y, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * z.nbytes
    z, v = z.astype(float), v.astype(float)
    log_sum = logsumexp(z, axis=-1, keepdims=True)
    p, picked = np.exp(z - log_sum), np.take_along_axis(z, y[..., None], axis=-1)
    np.testing.assert_allclose(value, (log_sum - picked).sum(), rtol=1e-6)
    np.testing.assert_allclose(Hv, p * v - p * (p * v).sum(-1, keepdims=True), atol=1e-5 * abs(p * v).max())
    np.put_along_axis(p, y[..., None], np.take_along_axis(p, y[..., None], -1) - 1, -1)
    np.testing.assert_allclose(g, p, atol=1e-6)


def test_in_a_program_a_softmax_and_the_index_of_its_largest_are_one_softmax(jax):
    """Once for the gradient, once for the Hessian, of the outputs of models that are linearised twice."""
    from linop_gn.curvature.losses.softmax import centred, softmax

    xp = jax.numpy

    def both(w, x):
        p = softmax(xp, xp.sin(x) @ w)[0]
        return p, centred(xp, *softmax(xp, xp.sin(x) @ w), x)

    program = jax.jit(both).lower(xp.ones((3, 3)), xp.ones((4, 3))).compile().as_text()
    assert program.count(" exponential(") == 1


def test_logits_that_a_compiler_makes_again_with_other_roundings(jax):
    """XLA makes x W + b d in each fusion that reads it, in some by fused multiply-adds, and none equals the largest."""
    jnp, rng = jax.numpy, np.random.default_rng(0)
    x, w, b, d, v = (rng.standard_normal(shape) for shape in ((37, 3), (3, 6), 6, 6, (3, 6)))
    y, loss = rng.integers(0, 6, 37), CrossEntropy(reduction="sum")

    def total(w, b, d):
        return loss.total(jnp, x @ w + b * d, jnp.asarray(y), None)

    products = jax.jit(lambda w, v, b, d: jax.jvp(lambda w: jax.value_and_grad(total)(w, b, d), (w,), (v,)))
    (value, slope), (_, bent) = products(w, v, b, d)
    z, h = x @ w + b * d, np.eye(6)[y]
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    tangent = p * (x @ v - (p * (x @ v)).sum(-1, keepdims=True))
    np.testing.assert_allclose(value, -np.log(p[h == 1]).sum(), rtol=1e-12)
    np.testing.assert_allclose(slope, x.T @ (p - h), rtol=0, atol=1e-12)
    np.testing.assert_allclose(bent, x.T @ tangent, rtol=0, atol=1e-12)
