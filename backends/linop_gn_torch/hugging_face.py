"""Batches of Hugging Face's models: dicts of inputs with ``labels``, of which -100 do not count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

__all__ = ["IGNORED", "inputs_and_labels", "predicts_next"]

IGNORED = -100
"""The label of positions that do not count."""


def inputs_and_labels(batch: Mapping[str, Any], shifted: bool) -> tuple[dict[str, Any], Tensor]:
    """``(inputs, labels)``; ``shifted`` labels are one place to the left, where the outputs that predict them are.

    >>> import torch
    >>> inputs_and_labels({"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 3]])}, True)
    ({'input_ids': tensor([[1, 2, 3]])}, tensor([[   2,    3, -100]]))
    """
    labels = _labels(batch)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "num_items_in_batch")}
    return inputs, pad(labels[..., 1:], (0, 1), value=IGNORED) if shifted else labels


@torch.no_grad()
def predicts_next(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether the model's own loss is the cross-entropy of the *next* labels, as a causal language model's is.

    One forward in eval mode tells: its loss is compared with that of its logits, with the labels as they are and one
    place to the left.

    Raises
    ------
    ValueError
        For a batch without labels, and for a model whose own loss is neither.
    """
    labels = _labels(batch)
    with _in_eval(model):
        outputs = model(**{name: value for name, value in batch.items() if name != "num_items_in_batch"})
    own, logits = getattr(outputs, "loss", None), getattr(outputs, "logits", None)
    found: dict[bool, float] = {}
    if own is not None and logits is not None and not labels.is_floating_point() and logits.shape[:-1] == labels.shape:
        for shifted in (False, True) if labels.ndim > 1 else (False,):
            targets = inputs_and_labels(batch, shifted)[1].flatten()
            loss = cross_entropy(logits.float().flatten(0, -2), targets, ignore_index=IGNORED)
            found[shifted] = abs(float(loss) - float(own))
    best = min(found, key=found.__getitem__, default=False)
    if not found or not found[best] <= 1e-4 * (1 + abs(float(own))):
        raise ValueError(
            f"the loss of {type(model).__name__} is not the cross-entropy of its logits with 'labels', as they are or "
            f"one place to the left: give the optimiser a loss, and step((inputs, targets))."
        )
    return best


def _labels(batch: Mapping[str, Any]) -> Tensor:
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"a batch of names, {sorted(batch)}, needs 'labels', which the loss compares with the outputs: add them, "
            "or step((inputs, targets))."
        )
    return labels


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
