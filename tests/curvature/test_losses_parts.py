"""Losses of many outputs in parts: the same numbers, and no more memory than what is returned."""

import importlib
import tracemalloc

import array_api_compat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.curvature.losses import BinaryCrossEntropy, CrossEntropy, Elementwise, parts
from linop_gn.curvature.losses.scores import DrawnScores, masses_of, slopes_of
from linop_gn.testing.losses import draw, everything

from ..support.peaks import allocations, compiled_product

LIBRARIES = ["numpy", "torch", "array_api_strict"]


@pytest.fixture
def small(monkeypatch):
    """Everything is many, and parts are of a few entries."""
    monkeypatch.setattr(parts, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 9)


def arrays(library, *made):
    module = pytest.importorskip(library)
    return [None if x is None else np.asarray(x) if library == "numpy" else module.asarray(x) for x in made]


def in_parts(loss, z):
    made = parts.in_parts(lg.backend_of(np.zeros(1)), loss, z)  # array_api_strict is no backend, but eager as NumPy is
    assert made is not loss
    return made


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 7), few=st.integers(1, 40), data=st.data())
def test_parts_put_together_are_the_whole(seed, rows, few, data):
    shape = (rows, 3, 4) if data.draw(st.booleans()) else (rows, 4)
    z, y, w = draw("softmax", seed, shape, 2.0, "float64")
    form = data.draw(st.sampled_from(["all", "first axis", "one for all", "none"]))
    w = {"all": w, "first axis": w.reshape(rows, -1)[:, 0], "one for all": w[:1], "none": None}[form]
    loss = CrossEntropy(
        ignore_index=data.draw(st.sampled_from([None, 2])),
        label_smoothing=data.draw(st.sampled_from([None, 0.25])),
        weight=data.draw(st.sampled_from([None, np.array([0.5, 1.0, 0.0, 2.0])])),
    )
    if loss.ignore_index is None and data.draw(st.booleans()):
        y = np.eye(4)[y]
    v = np.random.default_rng(seed).standard_normal(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MANY", 1)
        patch.setattr(parts, "FEW", few)
        assert_parts_are_the_whole(loss, np, z, y, w, v)


def assert_parts_are_the_whole(loss, xp, z, y, w, v):
    made = in_parts(loss, z)
    root = made.hessian(xp, z, y, w).root(xp)
    r = loss.gradient(xp, z, y, w)
    got = {
        "total": made.total(xp, z, y, w),
        "gradient": made.gradient(xp, z, y, w),
        "hessian_product": made.hessian(xp, z, y, w).product(xp, v),
        "root": root.product(xp, v),
        "root transposed": root.transposed(xp, v),
        "weight_sum": made.weight_sum(xp, z, y, w),
        "solve": root.solve(xp, r),
    }
    want = everything(loss, xp, z, y, w, v) | {"solve": loss.hessian(xp, z, y, w).root(xp).solve(xp, r)}
    for key, H in {"in parts": made.hessian(xp, z, y, w), "whole": loss.hessian(xp, z, y, w)}.items():
        got[key], want[key] = H.consuming(xp, xp.asarray(v, copy=True)), want["hessian_product"]
    for key, x in want.items():
        assert (got[key].shape, got[key].dtype) == (x.shape, x.dtype), key
        np.testing.assert_allclose(np.asarray(got[key]), np.asarray(x), rtol=1e-13, atol=1e-15, err_msg=key)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("loss", [CrossEntropy(ignore_index=2), BinaryCrossEntropy()], ids=lambda loss: loss.name)
def test_libraries(library, loss, small):
    z, y, w = draw("softmax", 0, (5, 3, 4), 2.0, "float64")
    if not isinstance(loss, CrossEntropy):
        y = np.eye(4)[y]
    z, y, w, v = arrays(library, z, y, w, np.cos(z))
    assert_parts_are_the_whole(loss, array_api_compat.array_namespace(z), z, y, w, v)


def test_operators_are_the_same_in_parts(small):
    torch = pytest.importorskip("torch")
    cotangents, calculus = (importlib.import_module(f"linop_gn_torch.{name}") for name in ("cotangents", "calculus"))
    assert calculus.forgotten is cotangents.forgotten
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5)).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(5, (7,))

    def everything_at() -> list[np.ndarray]:
        fit = lg.Objective(net, CrossEntropy(), (x, y))
        kinds = (lg.GGN, lg.Hessian, lg.BlockGGN, lg.Gram, lg.Fisher, lg.EmpiricalFisher)
        return [fit.value(net), *(kind(fit, net).to_dense() for kind in kinds)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cotangents, "MANY", 1)
        got = everything_at()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MANY", 1 << 22)
        want = everything_at()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@given(seed=st.integers(0, 2**31 - 1), place=st.tuples(st.integers(0, 9), st.integers(0, 2**30)), data=st.data())
def test_draws_in_parts_are_those_of_the_whole(seed, place, data):
    shape = data.draw(st.sampled_from([(5, 3, 4), (6, 4)]))
    z, y, w = draw("softmax", seed, shape, 2.0, "float64")
    inner = CrossEntropy(weight=data.draw(st.sampled_from([None, np.array([0.5, 1.0, 0.0, 2.0])])))
    inner = data.draw(st.sampled_from([inner, BinaryCrossEntropy()]))
    y = y if isinstance(inner, CrossEntropy) else np.eye(4)[y]
    loss = DrawnScores(inner, seed, 3).of_batch(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MANY", 1)
        patch.setattr(parts, "FEW", data.draw(st.integers(1, 30)))
        made = in_parts(loss, z).hessian(np, z, y, w)
        got = made.product(np, np.cos(z)), masses_of(np, made), *slopes_of(np, made), made.columns(np, z).column(1)
    made = loss.hessian(np, z, y, w)
    want = made.product(np, np.cos(z)), masses_of(np, made), *slopes_of(np, made), made.columns(np, z).column(1)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


def test_a_loss_that_may_look_at_several_examples_is_taken_whole(small):
    z = np.zeros((3, 4))

    class Own(lg.losses.Loss):
        pass

    class Scaled(CrossEntropy):
        def curvature(self, xp, z, y):
            return 2.0 * (xp.exp(z) > 0)

    class Weighing(Elementwise):
        width: np.ndarray | None = None

    def taken(loss):
        return parts.in_parts(lg.backend_of(z), loss, z)

    own, weighing = lg.record(Own)(), lg.record(Weighing)(width=np.ones((3, 4)))
    assert taken(own) is own
    assert taken(weighing) is weighing
    made = taken(lg.record(Scaled)()).hessian(np, z, np.zeros(3, int), None)
    np.testing.assert_array_equal(made.product(np, z + 1), 2 * (z + 1))


def test_memory_of_the_loss_in_numpy(monkeypatch):
    monkeypatch.setattr(parts, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    rng = np.random.default_rng(0)
    z, v = rng.standard_normal((2, 64, 4096)).astype("float32")
    y, loss = rng.integers(0, 4096, 64), CrossEntropy(ignore_index=3)
    made = in_parts(loss, z)

    def copies(function):
        tracemalloc.start()
        held = function()
        kept, peak = (x / z.nbytes for x in tracemalloc.get_traced_memory())
        tracemalloc.stop()
        return held, kept, peak

    assert copies(lambda: made.total(np, z, y, None))[2] < 0.2
    assert copies(lambda: made.gradient(np, z, y, None))[2] < 1.2
    H, kept, peak = copies(lambda: made.hessian(np, z, y, None))
    assert kept < 0.02  # nothing of the size of the logits beside themselves
    assert peak < 0.2
    assert copies(lambda: H.product(np, v))[2] < 1.2
    assert copies(lambda: H.root(np).transposed(np, v))[2] < 1.2


def test_memory_of_a_gauss_newton_product_in_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    cotangents = importlib.import_module("linop_gn_torch.cotangents")
    monkeypatch.setattr(parts, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    monkeypatch.setattr(cotangents, "MANY", 1)
    x, y, W = torch.randn(64, 4), torch.randint(4096, (64,)), torch.randn(4, 4096)
    size = 4 * 64 * 4096

    def made():
        return lg.GGN(lg.Objective(lambda p, x: torch.tanh(x @ p["A"]) @ p["W"], CrossEntropy(), (x, y)), params)

    params = {"A": torch.randn(4, 4), "W": W}
    peak, kept, G = allocations(lambda: made().prepare())
    assert peak < 3.3 * size
    assert kept < 1.3 * size  # the outputs, and W's gradient
    again, _, _ = allocations(lambda: G @ params)
    assert kept + again < 2.6 * size  # the outputs, J v, which becomes H J v, and parameters of a sixteenth each


@pytest.mark.parametrize("kind", [lg.Fisher, lg.EmpiricalFisher, lg.GGN], ids=lambda kind: kind.__name__)
def test_memory_of_what_keeps_an_array_like_the_outputs(kind, monkeypatch):
    """Drawn slopes, those at the targets, a diagonal: the outputs beside it, and J v, which becomes H J v."""
    torch = pytest.importorskip("torch")
    cotangents = importlib.import_module("linop_gn_torch.cotangents")
    monkeypatch.setattr(parts, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    monkeypatch.setattr(cotangents, "MANY", 1)
    loss, size = BinaryCrossEntropy() if kind is lg.GGN else CrossEntropy(), 4 * 64 * 4096
    x, y = torch.randn(64, 4), torch.randint(2, (64, 4096) if kind is lg.GGN else (64,))
    params = {"A": torch.randn(4, 4), "W": torch.randn(4, 4096)}
    fit = lg.Objective(lambda p, x: torch.tanh(x @ p["A"]) @ p["W"], loss, (x, y))
    peak, kept, A = allocations(lambda: kind(fit, params).prepare())
    assert peak < 3.6 * size  # it was nine
    assert kept < 2.3 * size
    assert kept + allocations(lambda: A @ params)[0] < 3.6 * size


def test_a_compiled_program_loops_over_parts(jax, monkeypatch):
    monkeypatch.setattr(parts, "MANY", 1)
    ops, xp = lg.load("jax"), lg.namespace(jax.numpy.ones(1))
    z, y, w = draw("softmax", 0, (6, 3, 4), 2.0, "float64")
    loss = CrossEntropy(ignore_index=2, label_smoothing=0.25)
    for weights in (None, w.reshape(6, -1)[:, 0]):
        z, y, v, given = (None if x is None else jax.numpy.asarray(x) for x in (z, y, np.cos(z), weights))
        H, want = parts.in_parts(ops, loss, z).hessian(xp, z, y, given), loss.hessian(xp, z, y, given)
        assert H.without_outputs().outputs is None
        H = H.without_outputs().with_outputs(z)
        np.testing.assert_allclose(H.product(xp, v), want.product(xp, v), rtol=1e-12, atol=1e-15)
        got, whole = (A.root(xp).transposed(xp, v) for A in (H, want))
        np.testing.assert_allclose(got, whole, rtol=1e-12, atol=1e-15)


def test_memory_of_a_gauss_newton_product_in_jax(jax):
    """The logits, and one copy beside them: J v, which becomes H J v. It was five."""
    if jax.device_count() > 1:
        pytest.skip("of several devices the rows may be shared, and are not cut")
    kept, taken, size = compiled_product(lg.GGN)
    assert kept < 1.3 * size
    assert kept + taken < 2.7 * size
