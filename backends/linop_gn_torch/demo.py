"""PyTorch's part of ``linop-gn demo``: an ``nn.Module``, and SGD and Adam from ``torch.optim``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

import linop_gn as lg
from linop_gn.app.demo.problem import Batch, Weights
from linop_gn.app.demo.runs import Plan, Run, orders, timed

from . import backend

__all__ = ["TorchParticipant", "participant"]


class TorchParticipant:
    """See :class:`linop_gn.app.demo.participants.Participant`."""

    backend = backend
    optimizers = ("SGD", "Adam")
    packages = ("torch",)

    def module(self, start: Weights) -> nn.Module:
        """The network, with those weights."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (name, layer) in enumerate(start.items()):
            if i:
                layers[f"tanh{i}"] = nn.Tanh()
            layers[name] = nn.Linear(*layer["weight"].shape, dtype=torch.float64)
        module = nn.Sequential(layers)
        module.load_state_dict(self.params(start))
        return module

    def params(self, start: Weights) -> dict[str, torch.Tensor]:
        """Names and shapes as ``nn.Linear`` has them: weights are transposed."""
        return {
            f"{name}.{leaf}": torch.tensor(value.T if leaf == "weight" else value)
            for name, layer in start.items()
            for leaf, value in layer.items()
        }

    def weights(self, tree: dict[str, torch.Tensor]) -> Weights:
        """The inverse: nested by layer, weights transposed back."""
        found: Weights = {}
        for path, value in tree.items():
            name, leaf = path.split(".")
            array = value.numpy(force=True)
            found.setdefault(name, {})[leaf] = array.T if leaf == "weight" else array
        return found

    def objective(self, data: Batch, start: Weights) -> lg.Objective:
        x, y = map(torch.tensor, data)
        return lg.Objective(self.module(start), lg.losses.CrossEntropy(), (x, y))

    @contextmanager
    def in_processes(self) -> Iterator[tuple[int, int]]:
        """The group of all processes that torchrun has started: the number of this one, and how many there are."""
        dist.init_process_group("gloo")
        try:
            yield dist.get_rank(), dist.get_world_size()
            dist.barrier()
        finally:
            dist.destroy_process_group()

    def train(self, plan: Plan, start: Weights, data: Batch) -> Run:
        x, y = map(torch.tensor, data)
        module = self.module(start)
        rates: Any = {"lr": plan.rate, "momentum": 0.9} if plan.optimizer == "SGD" else {"lr": plan.rate}
        optimizer = getattr(torch.optim, plan.optimizer)(module.parameters(), **rates)

        def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
            optimizer.zero_grad()
            cross_entropy(module(inputs), targets).backward()
            optimizer.step()

        @torch.no_grad()
        def loss() -> float:
            return float(cross_entropy(module(x), y))

        drawn = torch.from_numpy(orders(len(y), plan.batch, plan.passes)) if plan.batch else None

        def go(i: int) -> None:
            for chosen in [slice(None)] if drawn is None else drawn[i]:
                step(x[chosen], y[chosen])

        return timed(plan, len(y), go, loss, lambda: {n: value.detach() for n, value in module.named_parameters()})


participant = TorchParticipant()
