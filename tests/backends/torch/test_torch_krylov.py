"""Lanczos on the Gauss-Newton operator of a small transformer, in single precision beside double."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import linop_gn as lg


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, activation="gelu", norm_first=True)
    model = nn.Sequential(nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    model.append(nn.Linear(32, 50))
    return model, torch.randint(50, (4, 16)), torch.randint(50, (4, 16))


def system(model, x, y):
    objective = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))
    params = dict(model.named_parameters())
    G = lg.GGN(objective, params).prepare()
    return G, -G.domain.pack(objective.gradient(params))


@pytest.mark.parametrize("way", ["selective", "full"])
def test_twenty_steps_in_single_precision_reach_the_decrease_of_double(transformer, way):
    model, x, y = transformer
    G, b = system(model, x, y)
    G64, b64 = system(copy.deepcopy(model).double(), x, y)
    K, exact = lg.krylov(G, b, 20, reorthogonalise=way), lg.krylov(G64, b64, 20, reorthogonalise="full")
    for damping in (1e-6, 1e-3):
        step = K.solve(damping).x.double()
        value = 0.5 * step.dot(lg.Damped(G64, damping) @ step) - b64.dot(step)
        assert value.item() <= 0.999 * float(exact.solve(damping).model) < 0
    values = np.asarray(exact.eigenvalues().values)
    np.testing.assert_allclose(np.asarray(K.eigenvalues().values), values, atol=1e-4 * values.max())
