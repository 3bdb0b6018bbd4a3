"""Losses from callables, reductions, and what a loss holds as data."""

import importlib
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linop_gn.curvature.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    FromFunction,
    Loss,
    Poisson,
    SquaredError,
    as_loss,
)
from linop_gn.curvature.losses.recognised import computed
from linop_gn.eager.array_api import ArrayApiBackend
from linop_gn.records import data_fields, static_fields

NUMPY = ArrayApiBackend("numpy", np, (np.ndarray,))


def rows(z, y):
    return np.sum(abs(z - y) ** 3, axis=-1)


def test_a_callable_with_one_loss_for_each_example():
    rng = np.random.default_rng(0)
    z, y, w = rng.standard_normal((3, 2, 4)), rng.standard_normal((3, 2, 4)), rng.random((3, 2))
    want = np.sum(abs(z - y) ** 3, axis=-1)
    loss = FromFunction(rows)
    assert float(loss.total(np, z, y, None)) == pytest.approx(want.sum(), rel=1e-14)
    assert float(loss.total(np, z, y, w)) == pytest.approx((w * want).sum(), rel=1e-14)
    assert float(loss.total(np, z, y, w[:, 0])) == pytest.approx((w[:, :1] * want).sum(), rel=1e-14)
    assert float(loss.total(np, z, y, w > 0.5)) == pytest.approx(want[w > 0.5].sum(), rel=1e-14)
    assert [float(loss.weight_sum(np, z, y, a)) for a in (None, w[:, 0] > 0.5)] == [6, 2 * np.sum(w[:, 0] > 0.5)]
    assert float(FromFunction(lambda z, y: (z - y) ** 2).weight_sum(np, z, y, None)) == 24
    assert loss.total(np, z, y, w).shape == ()


def test_a_callable_may_fail_where_nothing_counts():
    loss, z, w = FromFunction(lambda z, y: np.log(z)), np.array([1.0, np.e, -1.0]), np.array([1, 1, 0])
    with np.errstate(invalid="ignore"):
        assert float(loss.total(np, z, None, w)) == pytest.approx(1.0)


def test_a_callable_in_wider_numbers_keeps_the_dtype_of_the_outputs():
    z, y, w = np.ones((3, 2), "float32"), np.zeros((3, 2)), np.ones(3)
    loss = FromFunction(rows)
    assert loss.total(np, z, y, w).dtype == loss.weight_sum(np, z, y, w).dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    reduction=st.sampled_from(["mean", "sum"]),
    inner=st.sampled_from([(), (3,), (2, 3)]),
)
def test_a_reduced_callable_combines_over_uneven_batches(sizes, reduction, inner):
    reduce = np.mean if reduction == "mean" else np.sum
    loss = FromFunction(lambda z, y: np.asarray(reduce((z - y) ** 2)), reduction=reduction, per_example=False)
    rng = np.random.default_rng(sum(sizes))
    batches = [(rng.standard_normal((n, *inner)), rng.standard_normal((n, *inner)), None) for n in sizes]
    total = sum(float(loss.total(np, *batch)) for batch in batches)
    if reduction == "mean":
        total /= sum(float(loss.weight_sum(np, *batch)) for batch in batches)
    z, y = (np.concatenate([batch[i] for batch in batches]) for i in range(2))
    assert total == pytest.approx(reduce((z - y) ** 2), rel=1e-12)


def test_the_losses_of_torch_are_callables():
    torch = pytest.importorskip("torch")
    xp, F = importlib.import_module("array_api_compat.torch"), torch.nn.functional
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 1, 0])
    closed = CrossEntropy().total(xp, z, y, None)
    for loss in (
        FromFunction(torch.nn.CrossEntropyLoss(), per_example=False, reduction="mean"),
        FromFunction(torch.nn.CrossEntropyLoss(reduction="sum"), per_example=False, reduction="sum"),
        FromFunction(torch.nn.CrossEntropyLoss(reduction="none")),
    ):
        value = loss.total(xp, z, y, None)
        torch.testing.assert_close(value, closed)
        (g,) = torch.autograd.grad(value, z)
        torch.testing.assert_close(g, CrossEntropy().gradient(xp, z.detach(), y, None))
        assert float(loss.weight_sum(xp, z, y, None)) == 5
    with pytest.raises(ValueError, match=r"<lambda> returned shape \(\).*per_example=False"):
        as_loss(lambda z, y: F.cross_entropy(z, y)).total(xp, z, y, None)


def test_a_callable_is_traced_by_jax():
    jax = pytest.importorskip("jax")
    loss = FromFunction(lambda z, y: jax.numpy.sum(jax.numpy.logaddexp(0.0, z) - y * z, axis=-1))
    z, y, w = jax.numpy.ones((3, 2)), jax.numpy.zeros((3, 2)), jax.numpy.asarray([1.0, 0.0, 2.0])
    value, g = jax.jit(jax.value_and_grad(lambda z: loss.total(jax.numpy, z, y, w)))(z)
    assert float(value) == pytest.approx(6 * np.log1p(np.e), rel=1e-6)
    np.testing.assert_allclose(g, np.outer([1, 0, 2], [1, 1]) / (1 + np.exp(-1)), rtol=1e-6)
    assert float(jax.jit(lambda z: loss.weight_sum(jax.numpy, z, y, w))(z)) == 3


@pytest.mark.parametrize(
    ("fn", "settings", "error", "match"),
    [
        (
            lambda z, y: np.asarray(np.sum(z)),
            {},
            ValueError,
            r"returned shape \(\).*\(4,\) or \(4, 3\).*reduction='none'",
        ),
        (lambda z, y: np.sum(z, axis=0), {}, ValueError, r"returned shape \(3,\) for outputs of shape \(4, 3\)"),
        (lambda z, y: 1.0, {}, TypeError, "returned float, not an array"),
        (lambda z, y: [z], {"per_example": False}, TypeError, "returned list"),
        (lambda z, y: z[:, 0], {"per_example": False}, ValueError, r"returned shape \(4,\).*asks for one number"),
    ],
)
def test_a_result_of_another_form_is_named(fn, settings, error, match):
    for method in ("total", "weight_sum"):
        loss = FromFunction(fn, **settings)
        if method == "weight_sum" and not loss.per_example:
            continue
        with pytest.raises(error, match=match):
            getattr(loss, method)(np, np.ones((4, 3)), None, None)


def test_weights_cannot_weigh_what_is_already_summed():
    loss = FromFunction(lambda z, y: np.asarray(np.mean(z)), per_example=False)
    z, w = np.ones((4, 3)), np.ones(4)
    for attempt in (
        lambda: loss.total(np, z, None, w),
        lambda: loss.weight_sum(np, z, None, w),
        lambda: loss.check(NUMPY, (4, 3), None, w),
    ):
        with pytest.raises(ValueError, match="weights cannot be applied"):
            attempt()


def test_callables_say_that_they_have_no_closed_forms():
    loss, z = FromFunction(rows), np.ones((2, 2))
    assert loss.autodiff
    assert not loss.convex
    assert FromFunction(rows, convex=True).convex
    assert not any(known().autodiff for known in (SquaredError, CrossEntropy, BinaryCrossEntropy, Poisson))
    with pytest.raises(NotImplementedError, match="calculus"):
        loss.gradient(np, z, z, None)
    with pytest.raises(NotImplementedError, match="calculus"):
        loss.hessian_product(np, z, z, None, z)


def test_as_loss():
    loss = Poisson()
    assert as_loss(loss) is loss
    assert as_loss(rows).fn is rows
    for wrong in ("cross_entropy", None, 3):
        with pytest.raises(TypeError, match="SquaredError, CrossEntropy, BinaryCrossEntropy, Poisson, FromFunction"):
            as_loss(wrong)
    with pytest.raises(TypeError, match=r"write CrossEntropy\(\)"):
        as_loss(CrossEntropy)
    with pytest.raises(TypeError, match="callable"):
        FromFunction(3)


@pytest.mark.parametrize(
    "make", [SquaredError, CrossEntropy, BinaryCrossEntropy, Poisson, lambda **k: FromFunction(rows, **k), Loss]
)
def test_reductions(make):
    assert make().reduction == "mean"
    assert make(reduction="sum").reduction == "sum"
    for wrong in ("none", "Mean", None):
        with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum'"):
            make(reduction=wrong)


def test_numbers_are_data_and_the_rest_is_program():
    assert data_fields(CrossEntropy) == ("label_smoothing", "weight")
    assert data_fields(SquaredError) == ("scale",)
    assert data_fields(FromFunction) == data_fields(Poisson) == data_fields(BinaryCrossEntropy) == ()
    assert set(static_fields(FromFunction)) == {"reduction", "fn", "per_example", "convex"}
    assert SquaredError(0.25).scale == 0.25
    assert CrossEntropy(-1).ignore_index == -1


def _entropies(z, y):
    z = z - z.max(-1, keepdims=True)
    return np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y[:, None], -1)[:, 0]


WHOLE, HALVES, CLASSES = (np.linspace(-1.0, 2.0, 12).reshape(4, 3) ** 3, np.eye(4, 3), np.array([0, 2, 1, 1]))


@pytest.mark.parametrize(
    ("fn", "targets", "known"),
    [
        (_entropies, CLASSES, "CrossEntropy()"),
        (lambda z, y: _entropies(z, y).mean(), CLASSES, "CrossEntropy()"),
        (lambda z, y: _entropies(z, y).sum(), CLASSES, "CrossEntropy(reduction='sum')"),
        (lambda z, y: 2 * _entropies(z, y), CLASSES, ""),
        (lambda z, y: -np.log(np.exp(-_entropies(z, y)) + 1e-9), CLASSES, ""),
        (lambda z, y: np.logaddexp(0, z) - y * z, HALVES, "BinaryCrossEntropy()"),
        (lambda z, y: np.exp(z) - y * z, HALVES, "Poisson()"),
        (lambda z, y: ((z - y) ** 2).sum(-1) / 2, WHOLE, "SquaredError()"),
        (lambda z, y: ((z - y) ** 2).sum(-1), WHOLE, "SquaredError(scale=1.0)"),
        (lambda z, y: (z - y) ** 2, WHOLE, "SquaredError(scale=1 / 3)"),
        (lambda z, y: ((z - y) ** 2).mean() / 2, WHOLE, "SquaredError(scale=1 / 6)"),
        (lambda z, y: ((z - y) ** 2).sum() / 2, WHOLE, "SquaredError(reduction='sum')"),
        (lambda z, y: np.where(abs(z - y) < 1, (z - y) ** 2 / 2, abs(z - y) - 0.5), WHOLE, "Huber()"),
        (lambda z, y: np.where(abs(z - y) < 99, (z - y) ** 2 / 2, 99 * abs(z - y) - 4900.5), WHOLE, ""),
        (lambda z, y: abs(z - y), WHOLE, ""),
        (lambda z, y: {}["nothing"], WHOLE, ""),
    ],
)
def test_what_a_function_computes_is_told(fn, targets, known):
    assert computed(NUMPY, fn, (4, 3), targets, "mean")[0] == known
    assert computed(NUMPY, fn, (4, 3), None, "mean") == ("", False)


def test_a_function_with_the_values_of_a_known_loss_is_told_once():
    loss = as_loss(_entropies)
    with pytest.warns(UserWarning, match=r"_entropies has.* lg\.losses\.CrossEntropy\(\)\. Give that"):
        loss.check(NUMPY, (4, 3), CLASSES, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.check(NUMPY, (4, 3), CLASSES, None)
        FromFunction(_entropies, convex=True).check(NUMPY, (4, 3), CLASSES, None)
        as_loss(rows).check(NUMPY, (4, 3), WHOLE, None)
    averaged = as_loss(lambda z, y: _entropies(z, y).mean())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"losses\.CrossEntropy\(\)\. Give that.*per_example=False"):
            averaged.check(NUMPY, (4, 3), CLASSES, None)
