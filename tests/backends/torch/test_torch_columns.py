"""Columns that go through one backward pass, and graphs for which that cannot be."""

import numpy as np
import pytest
import torch
from linop_gn_torch import backend

import linop_gn as lg


class Square(torch.autograd.Function):
    """x^2, whose backward looks at numbers: it has no batched form."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        assert float(u.detach().abs().max()) >= 0
        return 2 * x * u


def made(square, dtype=torch.float64):
    torch.manual_seed(0)
    W, x, t = torch.randn(4, 3, dtype=dtype), torch.randn(5, 3, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    objective = lg.Objective(lambda W, x: square(x @ W.T) + torch.sin(x @ W.T), lg.losses.SquaredError(), (x, t))
    return objective, W


@pytest.fixture
def passes(monkeypatch):
    """How often autograd went backward."""
    count, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: count.append(1) or grad(*args, **kwargs))
    return count


@pytest.mark.parametrize("operator", [lg.GGN, lg.Hessian, lg.Jacobian, lg.Gram])
def test_all_columns_in_one_pass(operator, passes):
    objective, W = made(torch.square)
    A = operator(objective, W).prepare()
    one_by_one = torch.stack([A.matvec(e) for e in torch.eye(A.shape[1], dtype=torch.float64)], dim=1)
    before = len(passes)
    columns = A.matmat(torch.eye(A.shape[1], dtype=torch.float64))
    assert len(passes) - before <= 2
    torch.testing.assert_close(columns, one_by_one, rtol=0, atol=1e-13)


def test_rows_of_the_root_are_few_passes(passes):
    objective, W = made(torch.square)
    root = lg.Gram(objective, W).root
    before = len(passes)
    rows = root.rows()
    assert len(passes) - before == 1
    torch.testing.assert_close(rows @ rows.T, lg.Gram(objective, W).to_dense(), rtol=0, atol=1e-13)


def test_what_has_no_batched_form_is_multiplied_column_by_column():
    (plain, W), (custom, _) = made(torch.square), made(Square.apply)
    for operator in (lg.GGN, lg.Hessian):
        want, got = operator(plain, W).to_dense(), operator(custom, W).to_dense()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_the_operation_of_nan_is_named_for_columns_too():
    class Kinked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.abs()

        @staticmethod
        def backward(ctx, u):
            return u * torch.full_like(u, float("nan"))

    objective, W = made(lambda x: Kinked.apply(x))
    with pytest.warns(RuntimeWarning, match="J v has NaN at this point"):
        assert lg.GGN(objective, W).prepare().matmat(torch.eye(12, dtype=torch.float64)).isnan().any()


def test_memory_bounds_the_columns_of_a_pass():
    objective, W = made(torch.square)
    assert lg.GGN(objective, W).prepare().together == 64
    wide = lg.Objective(lambda p, x: x * p, lg.losses.SquaredError(), (torch.ones(5_000_000), torch.ones(5_000_000)))
    assert lg.GGN(wide, torch.ones(1)).together == 1
    assert backend.over_columns(lambda v: 2 * v, torch.ones(2, 3), 64).tolist() == np.full((2, 3), 2.0).tolist()
