"""Tensors and trees of tensors: recognise, describe, flatten, pack, convert."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linop_gn.backend import Product

from .columns import in_columns
from .modules import trainable
from .sharded import layout_of
from .shards import is_sharded, largest, local, whole
from .spread import require_local
from .tracking import constant
from .trees import map_tree

__all__ = ["TorchArrays"]

_SHARED = (torch.float32, torch.float64)
_BLOCK = 1 << 16
"""Entries that are compared at a time, which a processor's cache holds."""


@cache
def _name(given: torch.dtype | torch.device) -> str:
    """Of a dtype or a device: to spell it takes as long as an operation."""
    return str(given).removeprefix("torch.")


def _is_plain(x: Tensor) -> bool:
    """Whether NumPy sees the memory of it, without a copy."""
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in _SHARED and x.is_contiguous()


def _of_kind(x: Tensor, kind: torch.dtype) -> Tensor:
    """Cast where it is of another dtype: a call that does nothing takes half as long as one that does."""
    return x if x.dtype is kind else x.to(kind)


class TorchArrays:
    """The part of the backend that :class:`linop_gn.protocols.Arrays` describes."""

    def version(self) -> str:
        return torch.__version__

    def devices(self) -> list[str]:
        """The CPU and every accelerator of the one kind that torch sees."""
        if not torch.accelerator.is_available():
            return ["cpu"]
        kind = torch.accelerator.current_accelerator()
        return ["cpu", *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]

    def generators(self) -> tuple[torch.Generator, ...]:
        return torch.default_generator, *torch.cuda.default_generators

    def is_array(self, x: Any) -> bool:
        """Whether it is a tensor with memory of its own for every entry: arithmetic, and derivatives, need that."""
        return isinstance(x, Tensor) and x.layout is torch.strided

    def is_concrete(self, tree: Any) -> bool:
        return not torch.compiler.is_compiling()

    def normalize(self, tree: Any) -> Any:
        """An ``nn.Module`` becomes the dict of its trainable parameters; anything else stays as it is."""
        return trainable(tree) if isinstance(tree, nn.Module) else tree

    def describe(self, x: Tensor) -> tuple[tuple[int, ...], str, Hashable]:
        return tuple(x.shape), _name(x.dtype), _name(x.device)

    def layout(self, leaves: Sequence[Any], names: Sequence[str] = ()) -> Any:
        return layout_of(leaves)

    def spread(self, layout: Any, part: Tensor) -> Tensor:
        return part if layout is None else layout.spread(part)

    def gathered(self, matrix: Tensor) -> Tensor:
        return whole(matrix)

    def agreed(self, layout: Any, number: Tensor) -> Tensor:
        return layout.agreed(number)  # type: ignore[no-any-return]

    def all_finite(self, x: Any) -> bool:
        if is_sharded(x):
            return math.isfinite(largest(self.max_abs(local(x).reshape(-1)), x))  # type: ignore[attr-defined]
        if isinstance(x, Tensor) and math.isfinite(x.detach().sum().item()):
            return True  # it may overflow, but hides neither NaN nor infinity; the extremes take twice as long
        return super().all_finite(x)  # type: ignore[misc,no-any-return]

    def same(self, x: Tensor, y: Tensor) -> bool:
        if x.numel() < _BLOCK or not (_is_plain(x) and _is_plain(y)) or x.shape != y.shape or x.dtype is not y.dtype:
            return torch.equal(x, y)  # in half the time of a comparison and a reduction, and no memory
        # NumPy's comparison takes a third of the time of torch's, which looks at one entry after the other.
        a, b = (t.detach().numpy().reshape(-1) for t in (x, y))
        return all(np.array_equal(a[i : i + _BLOCK], b[i : i + _BLOCK]) for i in range(0, a.size, _BLOCK))

    def lying(self, leaves: Sequence[Tensor], dtype: str) -> Tensor | None:
        first, kind, end = leaves[0], getattr(torch, dtype), 0
        if type(first) is not Tensor:
            return None
        own, start = first.untyped_storage().data_ptr(), first.storage_offset()
        for leaf in leaves:
            if type(leaf) is not Tensor or leaf.dtype is not kind or leaf.requires_grad or not leaf.is_contiguous():
                return None
            if leaf.storage_offset() != start + end or leaf.untyped_storage().data_ptr() != own:
                return None
            end += leaf.numel()
        return first.as_strided((end,), (1,), start)

    def pack(self, leaves: Sequence[Tensor], dtype: str) -> Tensor:
        """A new flat tensor, in the order of ``torch.nn.utils.parameters_to_vector``.

        >>> from linop_gn_torch import backend
        >>> backend.pack([torch.ones(1, 2), torch.zeros(1)], "float64")
        tensor([1., 1., 0.], dtype=torch.float64)
        """
        if torch.is_inference_mode_enabled():  # what is made in there could not be differentiated out here
            with torch.inference_mode(False), torch.no_grad():
                return self.pack(leaves, dtype)
        kind = getattr(torch, dtype)
        return torch.cat([_of_kind(leaf.reshape(-1), kind) for leaf in leaves])

    def laid(self, pieces: Sequence[Tensor | Product]) -> Tensor:
        """Products are written where they belong: to copy them there takes as long as they do."""
        parts = [part for piece in pieces for part in (piece if isinstance(piece, Product) else (piece,))]
        if in_columns.get() or any(part.requires_grad or is_sharded(part) for part in parts):
            return super().laid(pieces)  # type: ignore[misc,no-any-return]
        sizes = [piece.size if isinstance(piece, Product) else piece.numel() for piece in pieces]
        made = parts[0].new_empty(sum(sizes))
        for piece, room in zip(pieces, made.split(sizes), strict=True):
            if isinstance(piece, Product):
                torch.mm(*piece, out=room.view(piece.left.shape[0], -1))
            else:
                room.copy_(piece)
        return made

    def split(self, vector: Tensor, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> list[Tensor]:
        """Views of the vector (copies only where a leaf has another dtype, or columns are not contiguous)."""
        pieces = vector.split_with_sizes([math.prod(shape) for shape in shapes])
        columns = vector.shape[1:]
        return [
            _of_kind(piece.reshape((*shape, *columns)), getattr(torch, dtype))
            for piece, shape, dtype in zip(pieces, shapes, dtypes, strict=True)
        ]

    def asarray(self, host: Any, dtype: str, device: Hashable = None) -> Tensor:
        """A new tensor (never an alias of NumPy memory)."""
        return torch.tensor(np.array(host, order="C"), dtype=getattr(torch, dtype), device=device)  # type: ignore[arg-type]

    def lendable(self, x: Tensor) -> Tensor:
        return x.detach().contiguous()

    def to_numpy(self, x: Tensor) -> Any:
        """A copy on the host (bfloat16, which NumPy lacks, as float32)."""
        if type(x) is not Tensor:
            require_local(x, f"an array of shape {tuple(x.shape)}")
        plain = x.detach()
        if plain.dtype is torch.bfloat16:
            plain = plain.float()
        return np.array(plain.numpy(force=True))

    def detach(self, tree: Any) -> Any:
        """Cut from any graph, unless a product is being recorded (:mod:`linop_gn_torch.tracking`)."""
        return map_tree(constant, tree)
