"""Errors at the door: parameters and inputs that no derivative could be taken with.

Targets and weights are the loss's business (:meth:`Loss.check`); what is here
concerns every model. Values are read where they are known: not those that a
compiled function of somebody else is given, but those that it closes over.
"""

from __future__ import annotations

from typing import Any

from ..dispatch import how_to_bring, owner_of
from ..protocols import Array, Backend, Vector
from ..spaces import Space, require_here
from .batches import Batch

__all__ = ["require_counted", "require_finite_inputs", "require_finite_parameters", "require_fitting"]
__all__ += ["require_one_process"]


def require_finite_parameters(space: Space, x: Vector | tuple[Array, ...]) -> None:
    """Raise for NaN or infinity in the parameters, naming the leaves."""
    ops = space.backend
    if ops.all_finite(x):
        return
    parts = zip(space.names, space.split(x), strict=True)
    bad = [name or "the array" for name, part in parts if not ops.all_finite(part)]
    if bad:
        raise ValueError(f"the parameters hold NaN or infinity in {bad}; nothing can be computed there.")


def require_finite_inputs(ops: Backend, inputs: Any) -> None:
    """Raise for NaN or infinity in floating inputs, those of examples without weight included."""
    pairs = zip(*ops.flatten(inputs)[:2], strict=True)
    floating = [(name, x) for name, x in pairs if ops.is_array(x) and "float" in ops.describe(x)[1]]
    if ops.all_finite(tuple(x for _, x in floating)):
        return
    for name, leaf in floating:
        if not ops.all_finite(leaf):
            raise ValueError(
                f"the inputs{f' ({name})' if name else ''} hold NaN or infinity; clean the data first (for "
                "examples that don't count as well: a weight of zero does not stop NaN from spreading)."
            )


def require_fitting(space: Space, batch: Batch) -> None:
    """Raise for data of another framework or device than the parameters'."""
    ops = space.backend
    for what in ("inputs", "targets", "weights"):
        value = getattr(batch, what)
        if value is None:
            continue
        if ops.is_array(value):  # what a loop has: flattening takes longer than a look
            require_here(ops, value, f"what the {what} are")
            if ops.describe(value)[2] in (None, space.device):
                continue
        for name, leaf in zip(*ops.flatten(value)[:2], strict=True):
            where = f"the {what}{f' ({name})' if name else ''}"
            if not ops.is_array(leaf):
                if isinstance(leaf, (int, float, bool, str)) or (what == "inputs" and owner_of(leaf) is ops):
                    continue  # the model's own affair, as sparse tensors are
                raise TypeError(
                    f"{where} belong to {type(leaf).__module__.partition('.')[0]} ({type(leaf).__qualname__}) but the "
                    f"parameters to {ops.name}; {how_to_bring(ops)}, those of a loader as it makes them (collate_fn)."
                )
            device = ops.describe(leaf)[2]
            if None not in (device, space.device) and device != space.device:
                raise ValueError(f"{where} are on {device} but the parameters on {space.device}; move one of them.")


def require_counted(ops: Backend, weight: Any) -> None:
    """Raise if the examples of all batches together are known to weigh nothing."""
    if weight is not None and ops.is_concrete(weight) and not float(weight) > 0:
        raise ValueError("no example of any batch counts: all are ignored or have weight zero. Look at the mask.")


def require_one_process(terms: Any, who: str, why: str = "needs the outputs of all examples at once") -> None:
    """Raise for an objective whose data are shared out over processes."""
    if terms is not None and terms.reduce is not None:
        raise ValueError(
            f"{who} {why}, and this objective's are shared out over processes. Take what needs products with the "
            "parameters only, such as lg.GGN with lg.CG, or an objective of all data in one process (without reduce=)."
        )
