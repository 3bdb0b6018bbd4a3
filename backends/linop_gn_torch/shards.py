"""Vectors of which each process has a part: DTensors (n,), their columns (n, k) and bases (k, n).

Arithmetic is that of local parts. DTensor's own operations are used for what each process does with its entries
alone, such as products entry by entry; what they would send nobody hears of, and how they place what they make is
looked at here. Collectives are sent here, where the processes of a reduction hear of each other's failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from linop_gn.distributed.reduction import require_others

__all__ = [
    "all_gather",
    "all_reduce",
    "astray",
    "finish",
    "is_sharded",
    "largest",
    "local",
    "mark_of_bits",
    "over_shards",
    "placed",
    "qr_over_shards",
    "reduce_scatter",
    "require_alike",
    "require_basis",
    "rows_like",
    "sharing",
    "spread",
    "summed",
    "vector_like",
    "wait",
    "whole",
]

sharing: ContextVar[Any] = ContextVar("sharing", default=None)
"""The reduction over the processes that have a share of the data each; None where each has all of them."""


_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def mark_of_bits(arrays: Sequence[Tensor]) -> int:
    """Of sums of the bits as whole numbers, which no order of adding changes: read from the device once."""
    sums = []
    for x in arrays:
        x = torch.view_as_real(x) if x.is_complex() else x
        bits = x.detach().contiguous().reshape(-1).view(_WHOLE[x.element_size()])
        sums += [bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)]
    places = {x.device for x in sums}
    sums = sums if len(places) < 2 else [x.cpu() for x in sums]
    return hash(tuple(torch.stack(sums).tolist())) & 0xFFFFFFFF if sums else 0


def is_sharded(x: Any) -> bool:
    """Whether it is a DTensor; told by name, because torch takes a while to import what makes them."""
    return type(x) is not Tensor and type(x).__name__ == "DTensor"


def local(x: Any) -> Any:
    """What this process has of a DTensor; anything else as it is.

    Raises
    ------
    ValueError
        For one that is a sum not yet taken, of which this process has a summand.
    """
    if not is_sharded(x):
        return x
    if any(p.is_partial() for p in x.placements):
        raise astray(x, "whole entries")
    return x.detach().to_local()


def astray(x: Any, wanted: str) -> ValueError:
    """The error for an array of which a process would be taken to have another part than it has."""
    had = f"is placed as {tuple(x.placements)}" if is_sharded(x) else "is a plain tensor"
    return ValueError(
        f"an array of shape {tuple(x.shape)} {had}, where {wanted} are due, so that the part that this process has is "
        "not what it would be taken for. Bring it into the layout of the parameters: x.redistribute(placements=...), "
        "or lg.Space.of(params).layout.spread(part)."
    )


def require_alike(like: Any, *others: Any) -> None:
    """Raise unless the processes have the same entries of all these vectors, or columns."""
    for x in others:
        if not is_sharded(x) or x.placements != like.placements or x.shape[:1] != like.shape[:1]:
            raise astray(x, f"vectors placed as {tuple(like.placements)}")


def require_basis(basis: Any, x: Any) -> None:
    """Raise unless the processes have the same entries of the basis, in rows, and of the vector, or columns."""
    same = is_sharded(basis) and is_sharded(x) and len(basis.placements) == len(x.placements)
    if not same or any(p.is_shard(1) != q.is_shard(0) for p, q in zip(basis.placements, x.placements, strict=True)):
        raise astray(x if is_sharded(basis) else basis, "a basis and vectors that lie alike")


def whole(x: Tensor) -> Tensor:
    """What a DTensor is, on each process; a plain tensor as it is."""
    if not is_sharded(x):
        return x
    placements: Any = x.placements  # type: ignore[attr-defined]
    if x.ndim or not all(p.is_replicate() or p.is_partial("sum") for p in placements):
        return x.full_tensor()  # type: ignore[attr-defined,no-any-return]
    found = x.detach().to_local().clone()  # type: ignore[attr-defined]  # a sum of entries
    partial = [i for i, placement in enumerate(placements) if placement.is_partial()]
    return all_reduce(found, x.device_mesh, partial, sharing.get())  # type: ignore[attr-defined]


def over_shards(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function`` of what this process has of vectors, as a vector; the argument itself where that was written into.

    Of several processes with the same entries each does the same.
    """
    like = next(x for x in arguments if is_sharded(x))
    require_alike(like, *arguments)
    parts = [local(x) for x in arguments]
    made = function(*parts)
    for part, x in zip(parts, arguments, strict=True):
        if part is made:
            return x
    return spread(made, like.device_mesh, like.placements, len(like) if like.ndim else 0)


def spread(part: Tensor, mesh: Any, placements: Any, length: int) -> Tensor:
    """The vector (n,), or columns, of which this process has a part."""
    from torch.distributed.tensor import DTensor

    shape = torch.Size((length, *part.shape[1:]))
    stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return DTensor.from_local(part.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride)


def vector_like(like: Any, part: Tensor) -> Tensor:
    """A vector, or columns, like those of the basis, or like the vector, of which this process has a part."""
    return spread(part, like.device_mesh, placed([p.is_shard() for p in like.placements]), like.shape[-1])


def rows_like(like: Any, part: Tensor) -> Tensor:
    """A basis of vectors (n,) like the vector, or like those of the basis, of which this process has some columns."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements = [Shard(1) if p.is_shard() else Replicate() for p in like.placements]
    shape = torch.Size((len(part), like.shape[-1]))
    stride = like.shape[-1], 1
    return DTensor.from_local(part, like.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def qr_over_shards(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Q, which lies as the columns (n, k) do, and R (k, k), on each process: the QR of all processes' R.

    One all-gather of k^2 numbers from each (Demmel, Grigori, Hoemmen and Langou, 2012). Rows of zeros are left out, so
    that Q is zero where a vector has no entry.
    """
    own, k, mesh = local(columns), columns.shape[1], columns.device_mesh  # type: ignore[attr-defined]
    used = (own != 0).any(1)
    Q, upper = torch.linalg.qr(own[used])
    R, place = upper.new_zeros(k, k), 0
    R[: len(upper)] = upper
    cut = [i for i, placement in enumerate(columns.placements) if placement.is_shard()]  # type: ignore[attr-defined]
    for i in reversed(cut):
        parts = R.new_empty(len(R) * mesh.size(i), k)
        group = mesh.get_group(i)
        wait(lambda parts=parts, R=R, group=group: all_gather(parts, R, group))
        R = parts
    for i in cut:
        place = place * mesh.size(i) + mesh.get_coordinate()[i]
    both, R = torch.linalg.qr(R)
    made = torch.zeros_like(own)
    made[used] = Q @ both[place * k : place * k + len(upper)]
    return spread(made, mesh, columns.placements, len(columns)), R  # type: ignore[attr-defined]


def all_reduce(x: Tensor, mesh: Any, axes: Iterable[int], reduction: Any, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """``x`` summed over the processes along these axes of the mesh; writes into it."""
    for i in axes:
        group = mesh.get_group(i)
        finish(reduction, lambda group=group: dist.all_reduce(x, op, group, async_op=True))
    return x


def all_gather(parts: Tensor, own: Tensor, group: Any) -> Any:
    """Begin to collect what the processes of a group have, under the name that this torch has for it."""
    begin = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return begin(parts, own, group, async_op=True)


def reduce_scatter(own: Tensor, parts: Tensor, group: Any) -> Any:
    """Begin to sum parts of the processes of a group, of which each gets its own."""
    begin = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return begin(own, parts, group=group, async_op=True)


def summed(number: Any, like: Any) -> Any:
    """The sum of a number that each process has of its part of ``like``, or of one for each column."""
    return _reduced(number, like, dist.ReduceOp.SUM)


def largest(number: Any, like: Any) -> Any:
    """The largest of such numbers; NaN where one is."""
    worst = _reduced([number, np.where(np.isnan(number), 1.0, 0.0)], like, dist.ReduceOp.MAX)
    found = np.where(worst[1] > 0, np.nan, worst[0])
    return float(found) if found.ndim == 0 else found


def _reduced(number: Any, like: Any, op: Any) -> Any:
    if (reduction := sharing.get()) is not None:  # before others are waited for
        reduction.require_mesh(like.device_mesh)
    sent = torch.tensor(np.asarray(number), dtype=torch.float64, device=local(like).device)
    cut = [i for i, placement in enumerate(like.placements) if placement.is_shard()]
    all_reduce(sent, like.device_mesh, cut, sharing.get(), op)
    return sent.item() if sent.ndim == 0 else sent.numpy(force=True)


def wait(begin: Callable[[], Any]) -> None:
    """Have a collective done; with the processes of a reduction, hear what others raise instead of entering it."""
    finish(sharing.get(), begin)


def finish(reduction: Any, begin: Callable[[], Any]) -> None:
    """:func:`wait`, with the processes of this reduction, or of none."""
    require_others()
    if reduction is None:
        begin().wait()
    else:
        reduction.finish(begin)


def placed(kind: Sequence[bool]) -> tuple[Any, ...]:
    """The placements of vectors, by which axes of the mesh cut."""
    from torch.distributed.tensor import Replicate, Shard

    return tuple(Shard(0) if is_cut else Replicate() for is_cut in kind)
