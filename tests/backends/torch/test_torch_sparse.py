"""Sparse tensors: no vectors or matrices of ours, but inputs of models, Jacobians, and what functions multiply by."""

import pytest
import torch

import linop_gn as lg

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]
ROWS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
SQUARE = ROWS.T @ ROWS + torch.eye(3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_doors_say_what_to_do(layout):
    matrix, vector = SQUARE.to_sparse(layout=layout), torch.ones(3).to_sparse()
    for door in (
        lambda: lg.Dense(matrix),
        lambda: lg.Diagonal(vector),
        lambda: lg.solve(lg.Dense(SQUARE), vector, lg.CG()),
        lambda: lg.solve(lg.Dense(SQUARE), torch.ones(3), lg.CG(), x0=vector),
        lambda: lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (SQUARE, SQUARE)).gradient(matrix),
        lambda: lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (SQUARE, vector)).gradient(torch.ones(3)),
    ):
        with pytest.raises(TypeError, match=r"layout torch\.sparse|the targets belong to torch"):
            door()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_advice_solves_it(layout):
    space = lg.Space.flat(3, torch.ones(3))
    A = lg.FunctionOperator(lambda v, x: x @ v, space, args=(SQUARE.to_sparse(layout=layout),), psd=True)
    found = lg.solve(A, torch.ones(3), lg.CG(rtol=1e-6)).x
    assert torch.allclose(found, torch.linalg.solve(SQUARE, torch.ones(3)), atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_as_inputs_and_as_jacobians(layout):
    rows, y, p = ROWS.to_sparse(layout=layout), torch.ones(2), torch.tensor([1.0, 2.0, 3.0])
    dense = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (ROWS, y))
    for made in (
        lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (rows, y)),
        lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (ROWS, y), jacobian=lambda p, x: rows),
    ):
        assert torch.allclose(made.gradient(p), dense.gradient(p))
        assert torch.allclose(lg.GGN(made, p) @ p, lg.GGN(dense, p) @ p)
