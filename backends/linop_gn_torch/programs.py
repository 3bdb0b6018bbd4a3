"""Programs at a point: a trace, compiled, and the linearisations whose products it makes.

What a program cannot do is asked of the eager linearisation, which is made when it is first needed: products with some
of the leaves (blocks), products that are recorded to be differentiated themselves, those under autocast, and those of a
point where they are NaN, whose origin is told.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from linop_gn.backend import LinearizationDefaults

from .columns import in_columns
from .cotangents import MANY
from .nan import has_nan
from .tracing import Traced
from .tracking import tracking

__all__ = ["COMPILER", "Program", "TracedGradientLinearization", "TracedLinearization", "can_compile", "has_autocast"]

Leaves = Sequence[Tensor]

COMPILER = "inductor"
"""What makes programs of a trace: a name that ``torch._dynamo`` knows. ``"eager"`` runs the trace as it is."""


def can_compile(device: str = "cpu") -> bool:
    """Whether inductor finds the compiler that it needs: of C++ for the CPU."""
    from torch._inductor import config

    return device != "cpu" or any(name is not None and shutil.which(name) for name in config.cpp.cxx)


class Program:
    """A trace, compiled: what depends on the point at once, and each half when it is first run."""

    def __init__(self, traced: Traced, inputs: list[Tensor]) -> None:
        self.traced = traced
        self._known = _compiled(traced.known, [*inputs, *traced.constants])
        self._halves: list[Any] = [None] * len(traced.halves)
        self.kept = [t.new_zeros(()).expand(t.shape) for t in self.at(inputs)[0]]
        """Like what is kept of a point."""

    def at(self, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What is kept of a point, and what is saved for products there."""
        given = [*inputs, *self.traced.constants]
        with torch.no_grad():
            made = self._known(*given)
        saved = [given[i] if own else made[i] for own, i in self.traced.saved]
        return list(made[: self.traced.kept]), saved

    def run(self, which: int, saved: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
        """The results of a half; by the trace itself where vectors stand for several."""
        half = self.traced.halves[which]
        given = [*(saved[i] for i in half.reads), *vectors]
        with torch.no_grad():
            if in_columns.get():
                return list(half.module(*given))
            if self._halves[which] is None:
                self._halves[which] = _compiled(half.module, given, often=True)
            return list(self._halves[which](*given))


def _compiled(module: Any, examples: list[Tensor], often: bool = False) -> Callable[..., Sequence[Tensor]]:
    """``module`` by :data:`COMPILER`. On CUDA what is run ``often`` is launched as one graph, which has never been run.

    A CUDA graph writes to the same memory each time, so that results are copied out of it.
    """
    if COMPILER != "inductor":
        made: Callable[..., Sequence[Tensor]] = torch._dynamo.lookup_backend(COMPILER)(module, examples)
        return made
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own, which are errors to some users
        from torch._inductor.compile_fx import compile_fx

        if not (often and any(t.is_cuda for t in examples)):
            return compile_fx(module, examples)  # type: ignore[no-any-return,no-untyped-call,return-value]
        graphed: Any = compile_fx(module, examples, config_patches={"triton.cudagraphs": True})
    return lambda *given: [t.clone() for t in graphed(*given)]


class _Traced(LinearizationDefaults):
    """A program at a point."""

    _like: list[Leaves]
    """What the vectors of each product have to be like."""

    def __init__(self, program: Program, inputs: list[Tensor], asked: Any) -> None:
        self._program, self._asked = program, asked
        self._kept, self._saved = program.at(inputs)
        given = [*inputs, *program.traced.constants]
        self._read = [given[i] for own, i in program.traced.saved if own]
        self._versions = list(map(_version, self._read))
        self._eager: Any = None
        self._looked, self._broken = False, False

    @property
    def eager(self) -> Any:
        """The same linearisation without a program."""
        if self._eager is None:
            self._require_unwritten()
            self._eager = self._asked.eager()
        return self._eager

    def _require_unwritten(self) -> None:
        if list(map(_version, self._read)) != self._versions:
            raise RuntimeError(
                "parameters or data were changed in place after the model was linearised: build the operator anew "
                "after changing them, or give it copies."
            )

    def _run(self, which: int, vectors: Leaves) -> list[Tensor] | None:
        """The results of a half; None where an eager product is due."""
        like = self._like[which]
        if self._broken or tracking.get() or has_autocast():
            return None
        if len(vectors) != len(like) or not all(map(_alike, vectors, like)):
            return None  # which says what is wrong
        self._require_unwritten()
        return self._program.run(which, self._saved, [v.contiguous() for v in vectors])

    def _is_nan(self, made: Leaves, vectors: Leaves) -> bool:
        """Whether the first product at the point is NaN of vectors that are not: eager ones say where that is from."""
        if not (self._looked or in_columns.get()):
            self._looked = True
            self._broken = has_nan(made) and not has_nan(vectors)
        return self._broken


class TracedLinearization(_Traced):
    """See :class:`linop_gn.protocols.Linearization`."""

    def __init__(self, program: Program, inputs: list[Tensor], asked: Any) -> None:
        super().__init__(program, inputs, asked)
        (self.outputs,) = self._kept
        self._large = self.outputs.numel() >= MANY
        self._like = [asked.params, [self.outputs]]
        self.gradient: list[Tensor] | None = self.vjp(asked.cotangent(self.outputs).detach())

    @property
    def fresh(self) -> bool:  # type: ignore[override]
        return self._large and not tracking.get()

    def jvp(self, tangents: Leaves, only: tuple[int, ...] | None = None) -> Tensor:
        """J v."""
        made = None if only is not None else self._run(0, tangents)
        if made is None or self._is_nan(made, tangents):
            eager: Tensor = self.eager.jvp(tangents, only)
            return eager.clone() if self.fresh and not self.eager.fresh else eager
        return made[0].clone() if self.fresh and _shares(made[0], (*tangents, *self._saved)) else made[0]

    def vjp(self, cotangent: Tensor, only: tuple[int, ...] | None = None) -> list[Tensor]:
        """J^T u."""
        made = None if only is not None else self._run(1, [cotangent])
        if made is None:
            made = self.eager.vjp(cotangent, only)
        return made


class TracedGradientLinearization(_Traced):
    """See :class:`linop_gn.protocols.GradientLinearization`."""

    def __init__(self, program: Program, inputs: list[Tensor], asked: Any) -> None:
        asked.look(program.kept[1])
        super().__init__(program, inputs, asked)
        self.value, _, *self.gradient = self._kept
        self._kept = []  # the outputs are as large as all else
        self._like = [asked.params]

    def hvp(self, tangents: Leaves) -> list[Tensor]:
        """H v."""
        made = self._run(0, tangents)
        if made is None or self._is_nan(made, tangents):
            made = self.eager.hvp(tangents)
        return made


def has_autocast() -> bool:
    """Whether operations choose their dtypes now."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _alike(x: Tensor, like: Tensor) -> bool:
    return x.dtype is like.dtype and x.shape == like.shape and x.device == like.device


def _shares(t: Tensor, others: Leaves) -> bool:
    """Whether writing into ``t`` would write into another of its entries, or into others."""
    own = t.untyped_storage().data_ptr()
    return not t.is_contiguous() or any(x.untyped_storage().data_ptr() == own for x in others)


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version
