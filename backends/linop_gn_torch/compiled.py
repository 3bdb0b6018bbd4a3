"""Products as compiled programs: traced once for a model and the shapes of its data, and probed before they are used.

    known(params, data) -> z, saved     J(saved, v) -> J v     J^T(saved, u) -> J^T u     H(saved, v) -> H v

(:mod:`linop_gn_torch.tracing`), each made fast by inductor. ``J v`` is the derivative of ``J^T u`` along u and ``H v``
one backward over the gradient's graph, as in :mod:`linop_gn_torch.calculus`, whose operations these are: forward over
reverse would be silently wrong on normalisation layers. Measured on one thread, in gradients, with torch 2.13 on the
dense net, the CNN and the transformer of ``benchmarks/bench_torch_curvature.py``:

========================  ====  ====  ====
J^T H_L J v, compiled     1.08   .82  1.01
J^T H_L J v, eager        1.21   .85  1.45
========================  ====  ====  ====

To compile takes 10 seconds to two minutes. So it is done when somebody asks (``compile=True``), for so
many shapes at most, and what cannot be compiled is eager with a warning that says why. Compilers have been wrong: the
first time that a program is used its results are compared with the eager ones, and where they differ it is not used.

A program is that of a model as it was: an ``nn.Module`` that has changed is another function (:func:`~.modules.adapt`),
and so is a function that finds other numbers or objects than before (:mod:`~.marks`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, ClassVar

import optree
import torch
from torch import Tensor, nn

from linop_gn.backend import Outer
from linop_gn.records import Partial, data_fields, on_new_record, rebuild, static_fields

from . import programs
from .calculus import TorchCalculus
from .cotangents import Slope
from .marks import mark
from .programs import Program, TracedGradientLinearization, TracedLinearization, can_compile, has_autocast
from .recording import Recording, backward, filled
from .tracing import RefusedError, Traced, trace
from .tracking import tracking

__all__ = ["MOST", "CompiledCalculus"]

Leaves = Sequence[Tensor]

MOST = 4
"""Programs of each kind that are kept by an objective."""
_FEW = 1 << 18
"""Entries that are compared at once."""
_NAMESPACE = "linop_gn_torch_programs"
_insertion_order = optree.dict_insertion_ordered(True, namespace=_NAMESPACE)  # a model may go through a dict in order
_insertion_order.__enter__()


def _register(kind: type) -> None:
    """Records are trees here: their data are arrays of a program, what is static belongs to the program."""
    data, fixed = data_fields(kind), static_fields(kind)

    def parts(given: Any) -> tuple[Any, Any, Any]:
        held = tuple(getattr(given, name) for name in fixed)
        marks = tuple(mark(x) for x in held if callable(x))
        return [getattr(given, name) for name in data], (held, marks), data

    def whole(fixed_and_marks: Any, children: Any) -> Any:
        return rebuild(kind, dict(zip((*data, *fixed), (*children, *fixed_and_marks[0]), strict=True)))

    optree.register_pytree_node(kind, parts, whole, namespace=_NAMESPACE)


on_new_record(_register)


@dataclass
class _Linearize:
    """What is asked for: a function, linearised."""

    function: Callable[[list[Tensor]], Tensor]
    params: Leaves
    cotangent: Callable[[Tensor], Tensor]
    kind: ClassVar[str] = "Gauss-Newton"
    at: ClassVar[Callable[..., Any]] = TracedLinearization

    def eager(self) -> Any:
        return TorchCalculus().linearize(self.function, self.params, self.cotangent)

    def vectors(self, first: Any) -> list[list[Tensor]]:
        """Like those of products."""
        return [_normal(self.params), [first.outputs.contiguous()]]

    def probed(self, lin: Any) -> Iterator[tuple[str, list[Tensor]]]:
        """What has to be the same, by name; large things one by one."""
        yield "outputs", [lin.outputs]
        yield "J v", [lin.jvp(_normal(self.params))]
        yield "J^T u", lin.vjp(*_normal([lin.outputs]))

    @staticmethod
    def traced(call: Call, inputs: list[Tensor], v: list[Tensor], u: list[Tensor]) -> list[list[Tensor]]:
        leaves, z, recording = call.recorded(inputs)
        seed = u[0].detach().requires_grad_()
        recorded = recording.resume(lambda: backward([z], leaves, [seed], create_graph=True), records=True)
        pairs = [(r, t) for r, t in zip(recorded, v, strict=True) if r is not None]
        Jv = recording.resume(lambda: backward([r for r, _ in pairs], [seed], [t for _, t in pairs]), records=True)
        return [[z.detach()], filled(Jv, [seed]), filled(recorded, leaves)]


@dataclass
class _LinearizeGradient:
    """What is asked for: the gradient of a function, linearised."""

    function: Callable[[list[Tensor]], Tensor]
    params: Leaves
    look: Callable[[Tensor], None]
    kind: ClassVar[str] = "Hessian"
    at: ClassVar[Callable[..., Any]] = TracedGradientLinearization

    def eager(self) -> Any:
        return TorchCalculus().linearize_gradient(self.function, self.params)

    def vectors(self, first: Any) -> list[list[Tensor]]:
        return [_normal(self.params)]

    def probed(self, lin: Any) -> Iterator[tuple[str, list[Tensor]]]:
        made = lin.hvp(_normal(self.params))
        yield "gradient and H v", [lin.value, *lin.gradient, *made]  # of which the first two may be noise

    @staticmethod
    def traced(call: Call, inputs: list[Tensor], v: list[Tensor]) -> list[list[Tensor]]:
        leaves, (z, outer), recording = call.recorded(inputs)
        if outer is not None and outer.known(z):
            value, root = outer.value(z.detach()), z
            with torch.enable_grad():
                seed: Tensor = Slope.apply(z, outer)  # type: ignore[no-untyped-call]
        else:
            with torch.enable_grad():
                value = root = z if outer is None else outer.total(z)
            seed = torch.ones_like(value, requires_grad=True)
        recorded = recording.resume(lambda: backward([root], leaves, [seed], create_graph=True), records=True)
        pairs = [(r, t) for r, t in zip(recorded, v, strict=True) if r is not None]
        Hv = recording.resume(lambda: backward([r for r, _ in pairs], leaves, [t for _, t in pairs]), records=True)
        return [[value.detach(), z.detach(), *filled(recorded, leaves)], filled(Hv, leaves)]


class CompiledCalculus:
    """Linearisations by programs, as :class:`linop_gn.protocols.Compiled` describes them.

    :data:`MOST` of each kind are kept. ``traced`` counts what has been traced.
    """

    def __init__(self) -> None:
        self._programs: dict[Any, Program | None] = {}
        self._told: set[str] = set()
        self._lock = RLock()
        self.traced = 0

    def linearize(
        self,
        function: Callable[[list[Tensor]], Tensor],
        params: Leaves,
        cotangent: Callable[[Tensor], Tensor],
        program: Partial[Tensor],
    ) -> Any:
        return self._made(_Linearize(function, params, cotangent), program)

    def linearize_gradient(
        self,
        function: Callable[[list[Tensor]], Tensor],
        params: Leaves,
        program: Partial[tuple[Tensor, Outer | None]],
        look: Callable[[Tensor], None],
    ) -> Any:
        return self._made(_LinearizeGradient(function, params, look), program)

    def _made(self, asked: Any, function: Partial[Any]) -> Any:
        if tracking.get() or has_autocast():
            return asked.eager()
        try:
            call = Call(function, asked.params)
        except RefusedError as reason:
            return self._instead(asked.eager(), reason)
        key = asked.kind, call.key
        with self._lock:
            known = self._programs.get(key)
            if known is not None:
                return asked.at(known, call.inputs, asked)
            first = asked.eager()  # what is wrong with the model, or the data, is told here
            if key in self._programs or not self._has_room(asked.kind):
                return first
            expected = dict(asked.probed(first))
            if not all(bool(t.isfinite().all()) for group in expected.values() for t in group):
                return first  # nothing to compare with
            self._programs[key] = None
            try:
                traced = self._trace(asked, call, first)
                first = None  # it is large, and both may not find room
                made = Program(traced, call.inputs)
                second = asked.at(made, call.inputs, asked)
                for name, found in asked.probed(second):
                    _require_same(name, found, expected.pop(name))
            except RefusedError as reason:
                return self._instead(first or asked.eager(), reason)
            except Exception as error:
                said = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
                return self._instead(first or asked.eager(), f"torch cannot trace or compile the model ({said})")
            self._programs[key] = made
            return second

    def _trace(self, asked: Any, call: Call, first: Any) -> Traced:
        if programs.COMPILER == "inductor" and not can_compile(asked.params[0].device.type):
            raise RefusedError("there is no C++ compiler (install g++ or clang++, or name one in CXX)")
        self.traced += 1
        return trace(partial(asked.traced, call), call.inputs, *asked.vectors(first))

    def _has_room(self, kind: str) -> bool:
        kept = [program for (other, _), program in self._programs.items() if other == kind]
        if len(kept) >= MOST and any(program is not None for program in kept):
            self._tell(
                f"there are {MOST} {kind} programs, for as many shapes of data or states of the model, and no more are "
                "made: give batches one shape (drop_last=True), and a model that stays as it is (mode, buffers, "
                "parameters that are not trained). Other"
            )
        return len(kept) < MOST

    def _instead(self, eager: Any, reason: Any) -> Any:
        self._tell(f"{reason}. The")
        return eager

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(f"compile=True: {reason} products are eager.", UserWarning, stacklevel=2)

    def __reduce__(self) -> Any:
        return CompiledCalculus, ()  # a copy compiles anew


class Call:
    """A function of a record and leaves, as a program's key and inputs."""

    def __init__(self, function: Partial[Any], params: Leaves) -> None:
        self._function, self._leaves = function.func, len(params)
        held, self._structure = optree.tree_flatten(function.args, namespace=_NAMESPACE)
        self._is_tensor = [isinstance(x, Tensor) for x in held]
        self._held = [None if isinstance(x, Tensor) else x for x in held]
        tensors = [*params, *(x for x in held if isinstance(x, Tensor))]
        if odd := [t for t in tensors if type(t) not in (Tensor, nn.Parameter) or t.layout is not torch.strided]:
            raise RefusedError(f"parameters or data hold a {type(odd[0]).__qualname__} ({odd[0].layout})")
        self.inputs = [t.detach().resolve_conj().resolve_neg().contiguous() for t in tensors]
        shapes = tuple((t.shape, t.dtype, t.device) for t in self.inputs)
        others = tuple((type(x), x) for x in self._held)
        self.key = function.func, self._structure, shapes, others, torch.get_default_dtype()
        try:
            hash(self.key)
        except TypeError as error:
            raise RefusedError(f"the data, or the loss, hold what is no tensor and no number ({error})") from None

    def recorded(self, inputs: list[Tensor]) -> tuple[list[Tensor], Any, Recording]:
        """The leaves of a graph, what the function makes of them, and how it was recorded."""
        leaves = [t.detach().requires_grad_() for t in inputs[: self._leaves]]
        given = iter(inputs[self._leaves :])
        held = [next(given) if one else x for one, x in zip(self._is_tensor, self._held, strict=True)]
        recording = Recording()
        (record,) = optree.tree_unflatten(self._structure, held)
        with torch.enable_grad():
            made = recording.make(lambda: self._function(record, leaves))
        if recording.has_hooks:
            raise RefusedError("the model saves tensors through hooks, as checkpointing does, which a program cannot")
        return leaves, made, recording


def _normal(like: Leaves) -> list[Tensor]:
    """Normal numbers, the same each time."""
    made = []
    for t in like:
        generator = torch.Generator(t.device).manual_seed(len(made))
        made.append(torch.randn(t.shape, dtype=t.dtype, device=t.device, generator=generator))
    return made


def _require_same(name: str, found: list[Tensor], wanted: list[Tensor]) -> None:
    """Refuse a program whose results differ from the eager ones by more than the root of their precision."""
    gap = _norm(wanted, found)
    size, most = _norm(wanted), max(torch.finfo(t.dtype).eps for t in wanted) ** 0.5
    if not gap <= most * size:
        raise RefusedError(
            f"the {programs.COMPILER} program is wrong: its {name} and the eager one differ by "
            f"{gap / (size or 1):.1e} of their size, where {most:.0e} would be much"
        )


def _norm(arrays: Leaves, others: Leaves = ()) -> float:
    """That of the arrays, or of their differences from others: of a few entries at a time, in double precision."""
    total = 0.0
    for i, t in enumerate(arrays):
        parts = [x.reshape(-1).split(_FEW) for x in (t, *others[i : i + 1])]
        for part, *other in zip(*parts, strict=True):
            total += float((part.double() - other[0] if other else part.double()).square().sum())
    return total**0.5
