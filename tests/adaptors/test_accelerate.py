"""The recipe of docs/torch_optim.md for Accelerate: accumulation, and states that resume bit for bit."""

import pytest

pytest.importorskip("accelerate", reason="accelerate is no part of the test environment: docs/torch_optim.md")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from linop_gn_torch import optim
from recipes import recipe
from torch import nn

DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(64, 3, generator=DRAWS)
DATA = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.sin(X.sum(1, keepdim=True))), 16)


def parts():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    opt = optim.LevenbergMarquardt(net, nn.MSELoss())
    return net, opt, DATA, torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)


def accelerated(**options):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True, **options)


@pytest.mark.parametrize("every", [1, 2])
def test_steps_and_states(every, tmp_path):
    accelerator = accelerated(gradient_accumulation_steps=every)
    model, opt, loader, scheduler = accelerator.prepare(*parts())
    epoch = recipe("import Accelerator")["epoch"]
    first = epoch(accelerator, model, opt, loader, scheduler)
    accelerator.save_state(tmp_path)
    weights, bits = model[0].weight.clone(), opt.state_dict()["run"]
    second = epoch(accelerator, model, opt, loader, scheduler)
    accelerator.load_state(tmp_path)
    assert torch.equal(model[0].weight, weights)
    assert torch.equal(opt.state_dict()["run"], bits)
    assert epoch(accelerator, model, opt, loader, scheduler) == second

    _, opt, loader, scheduler = parts()
    batches, told = list(loader), []
    for i in range(0, 4, every):
        told.append(float(opt.step(batches[i : i + every] if every > 1 else batches[i])))
        scheduler.step()
    assert told == first
