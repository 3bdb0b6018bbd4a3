"""Process groups of a framework: which one it is, data parallelism over it, and what becomes of errors beside sums."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..dispatch import imported, owner_of_type
from ..protocols import Backend
from ..records import fields, rebuild
from .reduction import Reduction

__all__ = ["DataParallel", "telling"]

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
        Later, where another process raised: with its message, on every process that waits for it. What is raised
        before, as by ``lg.Objective(...)`` itself, is told inside of :func:`telling`.
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


@contextmanager
def telling(group: Any = None) -> Iterator[None]:
    """A context in which what this process raises is raised by the others too, where they wait for it in a sum.

    Parameters
    ----------
    group
        The process group of the sums, as :func:`DataParallel` takes it, or a :class:`Reduction`; None: all processes.

    Put it around the whole of a script that comes after the group is made: reading the data, making the model and the
    objective, and what is done with them. All processes enter it. One that raises before it takes part in a sum would
    leave the others waiting until the group's timeout; inside, they raise :class:`OtherProcessError` with its message
    within a second. What waits in a collective of one's own (``barrier()``) hears nothing.

    >>> import linop_gn as lg, torch
    >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    >>> with lg.distributed.telling():
    ...     net, share = torch.nn.Linear(3, 1), (torch.ones(8, 3), torch.zeros(8, 1))
    ...     fit = lg.distributed.DataParallel(lg.Objective(net, lg.losses.SquaredError(), share))
    ...     value = fit.value(net)
    >>> torch.distributed.destroy_process_group()

    Raises
    ------
    RuntimeError, TypeError, ValueError
        Where there is no process group, and for one that does not hold this process.
    """
    reduction = _reduction_of(group)
    with reduction.telling(), reduction.aside():
        yield


def _reduction_of(group: Any) -> Reduction:
    if isinstance(group, Reduction):
        return group
    found = None if group is None else owner_of_type(type(group))
    if found is not None:
        return found.processes(group, None)[0]  # type: ignore[no-any-return]
    if group is None:
        for backend in imported():
            with suppress(RuntimeError, TypeError):  # it has none
                return backend.processes(None, None)[0]  # type: ignore[no-any-return]
    raise RuntimeError(
        "lg.distributed.telling: there is no process group. Call the framework's init_process_group first, and enter "
        "the context after that."
    )


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
