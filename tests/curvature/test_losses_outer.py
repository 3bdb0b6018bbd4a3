"""Hessians by the loss's own derivatives where outputs are many: the same products, in less memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.curvature.losses import BinaryCrossEntropy, CrossEntropy, parts
from linop_gn.curvature.losses.outer import OuterLoss

from ..support.peaks import allocations, compiled_product
from .cases import Case, Streamed, cases
from .test_hessian import check


@pytest.fixture
def small(monkeypatch):
    """Everything is many, and parts are of a few entries."""
    monkeypatch.setattr(parts, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 9)


@given(cases(), st.sampled_from([list, Streamed]), st.sampled_from(["float64", "float32"]))
def test_products_in_torch_by_parts(torch, case, hold, dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MANY", 1)
        check(case, lg.load("torch"), hold, dtype)


@pytest.mark.parametrize(
    "case",
    [
        Case("mlp", "softmax", "mean", 0, "weights", sizes=(2, 2, 1), ignore=True),
        Case("decay", "poisson", "mean", 0, "mask"),
    ],
    ids=lambda case: case.loss,
)
def test_products_in_jax(torch, jax, case, small):
    check(case, lg.load("jax"))


def test_it_takes_what_says_that_it_is_the_second_derivative(small):
    z = np.zeros((3, 4))

    def known(loss):
        return OuterLoss(loss, None, None, lg.backend_of(z)).known(z)

    class Positive(CrossEntropy):
        def curvature(self, xp, z, y, known=()):
            return abs(z)

    class Another(CrossEntropy):
        def value(self, xp, z, y):
            return 2 * super().value(xp, z, y)

    class Warmer(CrossEntropy):
        def _read(self, xp, outputs, targets, weights):
            z, y, w = super()._read(xp, outputs, targets, weights)
            return z / 2, y, w

    class Named(CrossEntropy):
        name = "likelihood"

    class Checked(CrossEntropy):
        second_derivative = True

        def _check_targets(self, *given):
            raise NotImplementedError

    losses = (
        CrossEntropy(label_smoothing=0.1),
        BinaryCrossEntropy(),
        lg.losses.SquaredError(),
        lg.losses.Poisson(),
        lg.record(Named)(),
        lg.record(Checked)(),
    )
    assert all(map(known, losses))
    others = (
        lg.record(Positive)(),
        lg.record(Another)(),
        lg.record(Warmer)(),
        lg.losses.Huber(),
        lg.losses.as_loss(lambda z, y: z - y),
    )
    assert not any(map(known, others))


def model(xp):
    return lambda p, x: xp.tanh(x @ p["A"]) @ p["W"]


def draws(asarray):
    """Inputs, parameters, a direction like these, and probabilities."""
    rng = np.random.default_rng(0)
    x, A, W, a, w = (asarray(rng.standard_normal(shape)) for shape in ((5, 3), (3, 4), (4, 6), (3, 4), (4, 6)))
    return x, {"A": A, "W": W}, {"A": a, "W": w}, asarray(rng.dirichlet(np.ones(6), 5))


def both_ways(slopes):
    """The same whether the loss's own derivatives are taken or the framework's."""
    found = []
    for known in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OuterLoss, "known", lambda self, z, known=known: known)
            found.append(slopes())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


def test_derivatives_of_solutions_in_torch(torch):
    x, params, v, y = draws(torch.asarray)

    def slopes():
        given = [y.clone().requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)]
        fit = lg.Objective(model(torch), CrossEntropy(label_smoothing=given[1]), (x, given[0]))
        got = lg.solve(lg.Damped(lg.Hessian(fit, params), 9.0), v, lg.CG(rtol=1e-12, max_steps=50)).x
        return torch.autograd.grad(sum((got[name] * v[name]).sum() for name in v), given)

    both_ways(slopes)


def test_derivatives_of_products_in_jax(jax):
    x, params, v, y = draws(jax.numpy.asarray)

    def product(y, e, params):
        fit = lg.Objective(model(jax.numpy), CrossEntropy(label_smoothing=e), (x, y))
        return lg.tree.dot(v, lg.Hessian(fit, params) @ v)

    both_ways(lambda: jax.tree.leaves(jax.grad(product, (0, 1, 2))(y, 0.2, params)))


def test_derivatives_in_some_of_the_data_in_jax(jax):
    """Of weights, beside targets that are integers and have none."""
    x, params, v, _ = draws(jax.numpy.asarray)
    labels = jax.numpy.asarray([0, 5, 2, 2, 1])

    def product(weights):
        fit = lg.Objective(model(jax.numpy), CrossEntropy(), (x, labels, weights))
        return lg.tree.dot(v, lg.Hessian(fit, params) @ v)

    weights = jax.numpy.asarray([1.0, 0.5, 2.0, 0.0, 3.0])
    both_ways(lambda: [jax.grad(product)(weights)])


def test_memory_in_torch(torch, monkeypatch):
    """What is kept is the logits and their gradient; a product takes the two summands of J v, and then H J v."""
    monkeypatch.setattr(parts, "MANY", 1)
    monkeypatch.setattr(parts, "FEW", 1 << 12)
    x, y = torch.randn(64, 4), torch.randint(4096, (64,))
    params, size = {"A": torch.randn(4, 4), "W": torch.randn(4, 4096)}, 4 * 64 * 4096
    fit = lg.Objective(model(torch), CrossEntropy(), (x, y))
    peak, kept, H = allocations(lambda: lg.Hessian(fit, params).prepare())
    assert peak < 2.6 * size
    assert kept < 2.3 * size
    more, _, _ = allocations(lambda: H @ params)
    assert kept + more < 4.6 * size  # it was ten; parameters are a sixteenth each


def test_memory_in_jax(jax):
    """The logits, their gradient, and J v, which becomes H J v. It was twelve."""
    if jax.device_count() > 1:
        pytest.skip("of several devices the rows may be shared, and are not cut")
    kept, taken, size = compiled_product(lg.Hessian)
    assert kept < 2.3 * size
    assert kept + taken < 4 * size


class Bent(CrossEntropy):
    """As somebody may have written it: what is known goes to the curvature, and the slope takes three arguments."""

    by_rows = second_derivative = True
    slope_of_known = False

    def value(self, xp, z, y):
        return xp.log1p(xp.sum(z * z, axis=-1))

    def slope(self, xp, z, y):
        return 2 * z / (1 + xp.sum(z * z, axis=-1, keepdims=True))

    def known(self, xp, outputs, targets, weights):
        return (1 + xp.sum(outputs * outputs, axis=-1, keepdims=True),)

    def curvature(self, xp, z, y, known=()):
        (size,) = known or self.known(xp, z, None, None)
        unit = xp.eye(z.shape[-1], dtype=z.dtype)
        return 2 * unit / size[..., None] - 4 * z[..., :, None] * z[..., None, :] / (size * size)[..., None]

    total = lg.losses.Loss.total


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_slope_need_not_take_what_is_known(name, request, small):
    request.getfixturevalue(name)
    ops = lg.load(name)
    z, y = (
        ops.asarray(np.linspace(-1, 1, 12).reshape(3, 4), "float64", None),
        ops.asarray(np.zeros(3, int), "int64", None),
    )
    outer, xp = OuterLoss(Bent(reduction="sum"), y, None, ops), ops.namespace()
    assert outer.known(z)
    numbers = outer.numbers(z)
    assert len(numbers) == 1
    expected = 2 * ops.to_numpy(z) / (1 + (ops.to_numpy(z) ** 2).sum(-1, keepdims=True))
    np.testing.assert_allclose(ops.to_numpy(outer.slope(z, numbers)), expected, rtol=1e-12)
    for _, H, slope in parts.each_part(outer.loss, outer.hessian(z), xp, z, y, None) if name == "torch" else ():
        assert slope.shape == H.product(xp, slope).shape
