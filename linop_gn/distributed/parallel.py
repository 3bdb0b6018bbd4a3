"""Data parallelism over the process groups of a framework: which one it is, and what its part gives."""

from __future__ import annotations

from typing import Any, TypeVar

from ..dispatch import owner_of_type
from ..protocols import Backend
from ..records import fields, rebuild

__all__ = ["DataParallel"]

T = TypeVar("T")


def DataParallel(objective: T, group: Any = None) -> T:
    """``objective`` summed over the processes of a group, each of which has made it with its own share of the data.

    Parameters
    ----------
    objective
        An ``lg.Objective`` without a ``reduce=``, of the examples of this process: any number of them, in any batches.
        Its model may be a ``DistributedDataParallel`` module, which is taken for the module inside of it.
    group
        A process group of the framework; None for all processes, or for the group of the module.

    Value, gradient and products are those of all examples together, the same on each process to the last bit; so the
    solvers and methods take the same steps everywhere, and whatever they change stays the same everywhere. A product is
    one all-reduce, value, gradient and the number of examples together are another. All processes have to do the same:
    what one of them leaves out, the others wait for.

    >>> import linop_gn as lg, torch
    >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    >>> net, share = torch.nn.Linear(3, 1), (torch.ones(8, 3), torch.zeros(8, 1))
    >>> fit = lg.distributed.DataParallel(lg.Objective(net, lg.losses.SquaredError(), share))
    >>> bool(lg.minimize(fit, net, max_steps=5).value < 1e-6)
    True
    >>> torch.distributed.destroy_process_group()

    Raises
    ------
    TypeError, ValueError, RuntimeError
        For what is no objective, a framework without process groups, a group that does not hold this process, and a
        model that mixes the examples of a process (batch norm in training mode).
    OtherProcessError
        Later, where another process raised: with its message, on every process that waits for it.
    """
    terms: Any = objective
    if not hasattr(terms, "reduce") or not hasattr(terms, "with_data"):
        raise TypeError(
            f"lg.distributed.DataParallel takes an lg.Objective of this process's data, got a "
            f"{type(objective).__qualname__}."
        )
    if terms.reduce is not None:
        raise ValueError("lg.distributed.DataParallel: the objective is summed over processes already (reduce=).")
    reduction, model = _backend_of(terms, group).processes(group, terms.model)
    with reduction.telling():
        reduction.check_model(model)
    return rebuild(type(objective), fields(objective) | {"reduce": reduction, "model": model})


def _backend_of(terms: Any, group: Any) -> Backend:
    """The framework of the group, the model or the data."""
    arrays = [x for batch in terms.batches for x in _leaves((batch.inputs, batch.targets, batch.weights))]
    for thing in (group, terms.model, *arrays):
        found = owner_of_type(type(thing))
        if found is not None:
            return found
    raise TypeError(
        "lg.distributed.DataParallel cannot tell whose processes are meant, from streamed or no data and a "
        "plain function: give it the group, as torch.distributed.group.WORLD."
    )


def _leaves(tree: Any) -> list[Any]:
    parts = tree.values() if isinstance(tree, dict) else tree
    return [x for part in parts for x in _leaves(part)] if isinstance(tree, (dict, list, tuple)) else [tree]
