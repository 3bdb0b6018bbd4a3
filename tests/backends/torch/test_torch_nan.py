"""Second derivatives that torch itself gets as NaN: replaced, or told by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import linop_gn as lg

F64 = torch.float64


def second(function, x, dtype=F64):
    """Value and second derivative of a function of one number."""
    objective = lg.Objective.from_function(lambda p: function(p).sum())
    at = torch.tensor([x], dtype=dtype)
    return [float(v) for v in (objective.value(at), lg.Hessian(objective, at).to_dense())]


def sinc(x):
    y = math.pi * x
    if abs(y) < 1e-3:
        return 1 - y * y / 6, -(math.pi**2) / 3 * (1 - 3 * y * y / 10)
    slope = (math.cos(y) - math.sin(y) / y) / y
    return math.sin(y) / y, math.pi**2 * (-math.sin(y) / y - 2 * slope / y)


def softplus(x):
    s = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    return max(x, 0) + math.log1p(math.exp(-abs(x))), s / (1 + math.exp(min(x, 700.0)))


def mish(x):
    value, bent = softplus(x)
    s, t = 1 / (1 + math.exp(-x)), math.tanh(value)
    d = 1 - t * t
    return x * t, 2 * d * s + x * d * (bent - 2 * t * s * s)


CASES = {
    "sinc": (torch.sinc, sinc, (0.0, 1e-30, 1e-4, 0.3, -0.32, 1.5, 40.25)),
    "Tensor.sinc": (lambda x: x.sinc(), sinc, (0.0, -0.7)),
    "special.sinc": (torch.special.sinc, sinc, (0.0, 0.7)),
    "logaddexp": (lambda x: torch.logaddexp(0 * x, x), softplus, (0.0, 1.0, -30.0, 89.0, -89.0, 800.0, -800.0)),
    "Tensor.logaddexp": (lambda x: x.logaddexp(torch.zeros_like(x)), softplus, (0.0, 100.0, -100.0)),
    "logaddexp2": (lambda x: torch.logaddexp2(0 * x, x / math.log(2)) * math.log(2), softplus, (0.0, 3.0, -1e3, 1e3)),
    "mish": (nn.functional.mish, mish, (0.0, -30.0, 15.0, 400.0, 1e4)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_second_derivatives_are_right_where_torchs_are_nan(name, dtype):
    function, truth, points = CASES[name]
    eps = torch.finfo(dtype).eps
    for x in points:
        np.testing.assert_allclose(second(function, x, dtype), truth(x), rtol=1e3 * eps, atol=1e3 * eps)


def test_infinite_arguments_stay_what_they_are():
    inf = math.inf
    a, b = torch.tensor([-inf, inf, 1.0, -inf, inf]), torch.tensor([-inf, inf, -inf, 2.0, -inf])
    model = lg.Objective.from_function(lambda p: torch.logaddexp(a + p, b).nan_to_num(posinf=7.0, neginf=5.0).sum())
    assert float(model.value(torch.zeros(1))) == 5 + 7 + 1 + 2 + 7


def test_distances_have_products():
    centres = torch.arange(6.0, dtype=F64).reshape(3, 2)
    x = torch.tensor([[0.3, 0.2], [5.0, 1.0]], dtype=F64)
    for p in (1.0, 2.0, 3.0, math.inf):

        def distances(x, p=p):
            return torch.cdist(x, centres, p).reshape(-1)

        J = lg.Jacobian(lg.Objective.from_residuals(distances), x).to_dense()
        plain = torch.autograd.functional.jacobian(distances, x)
        np.testing.assert_allclose(J.numpy(), plain.reshape(6, 4).numpy(), rtol=1e-12, atol=1e-15)


def spread(p):
    """The deviations of rows, of which the first is constant: torch's J v by double backward is NaN."""
    t = torch.linspace(-1, 1, 5, dtype=F64)
    return torch.stack([0 * t + 1 + 0 * p[0], t * p[1], t + p[0]]).std(1) + p[0]


def test_a_product_of_nan_is_taken_by_forward_mode_and_told_once():
    objective, p = lg.Objective.from_residuals(spread), torch.tensor([2.0, 0.5], dtype=F64)
    with pytest.warns(RuntimeWarning, match=r"J v .* of Div .* forward mode") as told:
        G = lg.GGN(objective, p).to_dense()
    assert len([w for w in told if "linop_gn" in str(w.message)]) == 1
    deviation = np.std(np.linspace(-1, 1, 5), ddof=1)
    np.testing.assert_allclose(G, [[3, deviation], [deviation, deviation**2]], rtol=1e-12)


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 0

    @staticmethod
    def backward(ctx, u):
        return u + 0


def test_where_there_is_no_forward_mode_the_operation_is_named_and_no_fit_succeeds():
    objective = lg.Objective.from_residuals(lambda p: NoForward.apply(spread(p)))
    p = torch.tensor([2.0, 0.5], dtype=F64)
    with pytest.warns(RuntimeWarning, match=r"J v has NaN .* of Div has.* Write Div in the model"):
        fit = lg.minimize(objective, p)
    assert not fit.succeeded


def test_a_hessian_of_nan_is_told():
    objective = lg.Objective.from_function(lambda p: nn.functional.normalize(p, dim=0).sum() + (p**2).sum())
    with pytest.warns(RuntimeWarning, match=r"H v has NaN at this point, because torch's second derivative of"):
        lg.Hessian(objective, torch.zeros(3, dtype=F64)).to_dense()


def test_nothing_is_told_of_a_direction_of_nan(recwarn):
    G = lg.GGN(lg.Objective.from_residuals(lambda p: p**2), torch.ones(2, dtype=F64))
    assert torch.isnan(G @ torch.tensor([math.nan, 1.0], dtype=F64)).any()
    assert not [w for w in recwarn if "linop_gn" in str(w.message)]


def test_the_operation_of_a_first_derivative_is_named():
    """Where the gradient itself is NaN it is not a second derivative that is to blame."""

    def model(p):
        return torch.hypot(p, p) * p - 0.3

    at, v = torch.tensor([0.0, 1.0, -2.0]), torch.ones(3)
    G = lg.GGN(lg.Objective.from_residuals(model), at)
    H = lg.Hessian(lg.Objective.from_function(lambda p: (model(p) ** 2).sum()), at)
    for A, what in ((G, "J v"), (H, "H v")):
        with pytest.warns(
            RuntimeWarning, match=f"{what} has NaN at this point, because torch's first derivative of Hyp"
        ):
            made = A @ v
        assert made.isnan().tolist() == [True, False, False]
