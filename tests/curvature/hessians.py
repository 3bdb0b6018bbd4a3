"""Dense Hessians of the cases: reverse over reverse in plain torch, a row at a time, with torch's own losses."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from .cases import Case, Data, full_weights
from .networks import flat, like


def hessian(case: Case, params: Any = None) -> np.ndarray[Any, Any]:
    """The Hessian (n, n) in float64."""
    torch = importlib.import_module("torch")
    params = case.params() if params is None else params
    x = torch.tensor(flat(params), requires_grad=True)
    tree = _tree(params, x)
    total, weight = 0.0, 0.0
    for batch in case.batches():
        z = case.net.model(tree, torch.tensor(batch.inputs))
        w = full_weights(case, batch, np.empty(tuple(z.shape)))
        total, weight = total + _total(torch, case, batch, z, torch.tensor(w)), weight + float(w.sum())
    value = total / weight if case.reduction == "mean" else total
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    rows = [torch.autograd.grad(g, x, retain_graph=True)[0] for g in gradient]
    return torch.stack(rows).numpy()


def _tree(params: Any, x: Any) -> Any:
    """Views of ``x`` in the containers of ``params``."""
    places = like(params, np.arange(x.numel()))

    def view(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: view(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [view(value) for value in tree]
        return x[tree.reshape(-1)].reshape(tree.shape)

    return view(places)


def _total(torch: Any, case: Case, batch: Data, z: Any, w: Any) -> Any:
    F = torch.nn.functional
    y = torch.tensor(np.where(batch.targets == -100, 0, batch.targets) if case.ignore else batch.targets)
    if case.loss.startswith("softmax"):
        if case.loss != "softmax of probabilities":
            y = F.one_hot(y, z.shape[-1]).double()
        if case.loss == "softmax smoothed":
            y = 0.8 * y + 0.2 / z.shape[-1]
        losses = -(y * F.log_softmax(z, dim=-1)).sum(-1)
    elif case.loss == "squared":
        losses = 0.7 * ((z - y) ** 2).flatten(1).sum(-1) if z.ndim > 1 else 0.7 * (z - y) ** 2
    elif case.loss == "binary":
        losses = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    else:
        losses = torch.exp(z) - y * z
    return (w * losses).sum()
