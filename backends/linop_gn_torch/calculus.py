"""Derivatives in torch: everything is reverse mode on a graph that is kept.

**Gauss-Newton.** ``J^T u`` is linear in u, so its derivative with respect to u,
along v, *is* J v (the R-operator by double backward). The forward runs once;
``J^T u`` is recorded at the loss gradient ``u = dL/dz``, where its value is the
gradient of the loss. Measured on one thread in multiples of a gradient (loss
and backward), with torch 2.13 on a dense net, a CNN and a small transformer:

=============================================  ====  ====  ====
J v and J^T u on the kept graph (this)         1.20  1.16  1.57
``torch.func.jvp`` + ``vjp`` for each product  2.35  2.23  2.50
=============================================  ====  ====  ====

and recording costs no more than the gradient that comes with it. Forward mode
would also refuse checkpointing and custom Functions; ``torch.func.linearize``
bakes the parameters in and costs 5 to 45 gradients to set up.

**Hessian.** The gradient is recorded once and every product is one backward
through it; the loss's own derivatives are in closed form where outputs are many
(:class:`.cotangents.Slope`). Never forward over reverse: ``jvp`` of ``jacrev`` or ``grad``, and
``torch.func.hessian`` with them, are silently wrong by 2e-2 to 2e-1 on Layer-,
Batch- and InstanceNorm in torch 2.13. Backward over backward is right there;
where *it* is not, :mod:`linop_gn_torch.safe_ops` replaces the operation.

Products of a graph whose parameters were meanwhile changed in place are an
error, as everywhere in torch. Products record nothing, except where they are
to be differentiated themselves (:mod:`linop_gn_torch.tracking`): then each
backward keeps the graph of what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from linop_gn.backend import CalculusDefaults, LinearizationDefaults
from linop_gn.distributed import OtherProcessError

from .advice import custom_functions, explained, require_linear
from .alone import ALONE, Alone
from .columns import in_columns
from .cotangents import forgotten, marked
from .gathering import gathered
from .hessians import TorchGradientLinearization
from .last_layer import LastLayer, TermByTerm
from .modules import adapt
from .nan import has_nan, operation_of_nan, tell_of_nan
from .precision import as_double
from .recording import Recording, apart, backward, edges, filled, keeping
from .safe_ops import both_ways, math_attention, once_differentiable, step_by_step, twice_differentiable
from .sharded import layout_of
from .spread import batch_norm_in_training
from .tail import Tail
from .tracking import constant, tracking
from .trees import map_tree
from .uses import TorchUses
from .wholes import in_full

__all__ = ["TorchCalculus", "TorchLinearization", "TorchOnePass"]

Leaves = Sequence[Tensor]


def _require_whole(params: Leaves, what: str) -> None:
    if layout_of(params) is not None:
        raise ValueError(
            f"{what} needs whole parameters, and these are DTensors: gather them, p.full_tensor(), or take what needs "
            "products alone, such as lg.GGN with lg.CG."
        )


def _rows(recording: Recording, flat: Tensor, leaves: list[Tensor], rows: Sequence[int]) -> list[list[Tensor]]:
    def row(i: int) -> list[Tensor]:
        return filled(backward([flat[i]], leaves, [None], retain_graph=True), leaves)

    return [recording.resume(partial(row, i)) for i in rows]


class TorchLinearization(LinearizationDefaults):
    """A function with its graph and the graph of ``u -> J^T u``. See :class:`linop_gn.protocols.Linearization`."""

    def __init__(
        self,
        function: Callable[[list[Tensor]], Tensor],
        params: Leaves,
        cotangent: Callable[[Tensor], Tensor],
        way: Alone = ALONE,
    ) -> None:
        with torch.enable_grad(), explained():
            self._recording, self._leaves, outputs = Recording.of(function, params)
            self._function, self._way = function, way
            self.outputs = constant(outputs)
            self._cotangent, custom = cotangent, custom_functions(outputs)
            self._plain = not (custom or self._recording.has_hooks or self._recording.is_watched) and way is ALONE
            self._tail = Tail.of(outputs) if self._plain and not tracking.get() else None
            self._ends = [outputs] if self._tail is None else self._tail.places
            self._like = self.outputs if self._tail is None else self._tail.like(self.outputs)
            del outputs
            first, *sums = self._scaled(cotangent(self.outputs).detach())
            u, self._place = marked(first)
            self._sums = [s.requires_grad_() for s in sums]
            with forgotten(u) if not (custom or self._recording.has_hooks) else nullcontext():
                recorded = self._vjp([u, *self._sums], range(len(self._leaves)), create_graph=True)
            self._recording.resume(lambda: require_linear(recorded, u, custom, way))
        self.gradient: list[Tensor] | None = filled(recorded, self._leaves)
        self._recorded, self._last = edges(recorded), None
        if self._place is not u and self._plain:
            self._last = LastLayer.of(self._recorded, self._place)
        self._looked, self._forward = False, False

    @property
    def fresh(self) -> bool:  # type: ignore[override]
        return not (self._last is None and self._tail is None) and not tracking.get()

    def _scaled(self, u: Tensor, fresh: bool = False) -> list[Tensor]:
        """What the ends of the graph get from u, which may be written over where it is ``fresh``."""
        if self._tail is None:
            return [u]
        if tracking.get() or in_columns.get():
            return self._tail.pull(u, False)
        return self._tail.pull(u if fresh else u.clone(), True)

    @property
    def seed(self) -> Tensor | None:  # type: ignore[override]
        whole = isinstance(self._place, Tensor) and self._tail is None and not tracking.get()
        return self._place.detach() if whole else None

    def jvp(self, tangents: Sequence[Tensor], only: tuple[int, ...] | None = None) -> Tensor:
        """J v, as the derivative of the recorded ``J^T u`` along u."""
        chosen = range(len(self._leaves)) if only is None else only
        pairs = [(r, v) for i, v in zip(chosen, tangents, strict=True) if (r := self._recorded[i]) is not None]
        if self._forward:
            return self._pushed(tangents, chosen)
        recorded, directions = [r for r, _ in pairs], [v for _, v in pairs]
        product = partial(backward, recorded, [self._place, *self._sums], directions)
        whole = tracking.get() or in_columns.get()
        with explained():
            if self._last is None or whole:
                result, *dt = self._recording.resume(lambda: product(**keeping()), records=tracking.get())
            else:
                result = self._last.jvp(recorded, directions, self._like)
                dt = backward(recorded, self._sums, directions, retain_graph=True)
        made = in_full(filled([result], [self._like])[0])  # a bias may come as it is
        if self._tail is not None:
            made = self._tail.push(made.clone() if self._last is None and not whole else made, dt, not whole)
        if not (
            self._looked or tracking.get() or in_columns.get()
        ):  # what is NaN at a point is so along all directions
            self._looked = True
            (bad,) = self._way.any(bool(made.sum().isnan() and made.isnan().any()))
            if bad and not self._way.any(any(v.isnan().any() for _, v in pairs))[0]:
                u = self._cotangent(constant(self.outputs))
                (first,) = self._way.any(has_nan(self.vjp(u)))
                at_fault = partial(backward, self._ends, self._leaves, self._scaled(u)) if first else product
                name = self._recording.resume(lambda: operation_of_nan(at_fault, retain_graph=True))
                return self._instead(made, (name, "first" if first else "second"), tangents, chosen)
        return made

    def owns(self, leaves: Sequence[Tensor]) -> bool:
        """See :meth:`linop_gn.protocols.Linearization.owns`; a custom Function may hold what it returned, a loss u.

        Elsewhere than on the CPU, where to copy is quick and to read numbers is slow, nobody has a use for leaves.
        """
        u = [self._place.detach()] if isinstance(self._place, Tensor) else []
        here = self.outputs.device.type == "cpu"
        return self._plain and here and not tracking.get() and apart([*leaves, *u, *(s.detach() for s in self._sums)])

    def uses(self) -> TorchUses | None:
        (end, *_) = self._ends
        if not isinstance(end, Tensor):
            return None
        # A graph of plain operations serves; of what was put in the place of others the parameters are read anew.
        with explained():
            found = TorchUses(self._recording, self._leaves, end)
        return None if found.otherwise else found

    def _instead(
        self, made: Tensor, cause: tuple[str, str], tangents: Sequence[Tensor], chosen: Sequence[int]
    ) -> Tensor:
        """J v by forward mode, from now on, if that is a number where ``made`` is NaN; told once."""
        pushed = made
        self._way.forget()
        try:
            pushed = self._pushed(tangents, chosen)
        except OtherProcessError:
            raise
        except RuntimeError:  # no forward mode
            pass
        self._forward = not self._way.any(bool(pushed.isnan().any()))[0]
        name, order = cause
        if self._forward:
            tell_of_nan(name, "J v by backward mode", "J v is taken by forward mode, at twice the cost.", order)
        else:
            tell_of_nan(name, "J v", None, order)
        return pushed if self._forward else made

    def _pushed(self, tangents: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
        return _pushed(self._recording, self._function, self._leaves, tangents, chosen, self.outputs)

    def vjp(self, cotangent: Tensor, only: tuple[int, ...] | None = None) -> list[Tensor]:
        """J^T u, for the leaves in ``only`` alone where that is given."""
        return self._pulled(self._scaled(cotangent), only)

    def pull(self, cotangent: Tensor, only: tuple[int, ...] | None = None) -> list[Tensor]:
        """J^T u, for a u that may be written over."""
        return self._pulled(self._scaled(cotangent, True), only)

    def _pulled(self, u: list[Tensor], only: tuple[int, ...] | None) -> list[Tensor]:
        chosen = range(len(self._leaves)) if only is None else only
        return filled(self._vjp(u, chosen, **keeping()), [self._leaves[i] for i in chosen])

    def _vjp(self, u: list[Tensor], chosen: Sequence[int], **options: bool) -> list[Tensor | None]:
        leaves = [self._leaves[i] for i in chosen]
        with explained():
            return self._recording.resume(
                lambda: backward(self._ends, leaves, u, **options), records="create_graph" in options
            )


_FORWARD: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether forward mode has been seen to work in a model."""


def _works_forward(model: Any) -> bool | None:
    with suppress(TypeError):  # a model of a kind that is in no such dictionary
        return _FORWARD.get(model)
    return None


class TorchOnePass(LinearizationDefaults):
    """A function for one product: its graph, no graph of ``J^T u``, and J v by forward mode, which keeps nothing.

    A product with J and J^T costs 5 forward passes so, and 7 by double backward, whose graphs hold three times as much.
    Forward mode alone is right where forward over reverse is not; the first product with a model holds it to the
    adjoint, and where it fails or is missing, products go by double backward.
    """

    gradient = None

    def __init__(
        self,
        function: Callable[[list[Tensor]], Tensor],
        params: Leaves,
        cotangent: Callable[[Tensor], Tensor],
        model: Any,
        way: Alone = ALONE,
    ) -> None:
        self._made_of = function, params, cotangent, way
        self._model, self._way = model, way
        self._other: TorchLinearization | None = None
        with torch.enable_grad(), explained():
            self._recording, self._leaves, self._outputs = Recording.of(function, params, kernels=both_ways)
        self.outputs = constant(self._outputs)

    def jvp(self, tangents: Sequence[Tensor], only: tuple[int, ...] | None = None) -> Tensor:
        """J v, by one pass forward with dual numbers."""
        chosen = range(len(self._leaves)) if only is None else only
        if self._other is None and not in_columns.get():
            made = self._forward(tangents, chosen)
            if made is not None:
                return made
        return self._by_double_backward().jvp(tangents, only)

    def vjp(self, cotangent: Tensor, only: tuple[int, ...] | None = None) -> list[Tensor]:
        """J^T u, for the leaves in ``only`` alone where that is given."""
        if self._other is not None:
            return self._other.vjp(cotangent, only)
        leaves = self._leaves if only is None else [self._leaves[i] for i in only]
        product = partial(backward, [self._outputs], leaves, [cotangent], retain_graph=True)
        with explained():
            return filled(self._recording.resume(product), leaves)

    def _by_double_backward(self) -> TorchLinearization:
        if self._other is None:
            self._way.forget()
            self._other = TorchLinearization(*self._made_of)
        return self._other

    def _forward(self, tangents: Sequence[Tensor], chosen: Sequence[int]) -> Tensor | None:
        """J v, or None where forward mode fails; which of both is remembered for the model."""
        made = None
        try:
            made = _pushed(self._recording, self._made_of[0], self._leaves, tangents, chosen, self.outputs)
        except (torch.OutOfMemoryError, OtherProcessError):
            raise
        except RuntimeError:  # no forward mode
            if self._way is not ALONE and _works_forward(self._model):
                raise  # it had some on all processes
        else:
            if _works_forward(self._model):
                return made
        (fails,) = self._way.any(made is None)
        good = not (fails or made is None) and self._is_adjoint(tangents, chosen, made)
        with suppress(TypeError):  # a model that cannot be told from others
            _FORWARD[self._model] = good
        return made if good else None

    def _is_adjoint(self, tangents: Sequence[Tensor], chosen: Sequence[int], made: Tensor) -> bool:
        """Whether <u, J v> = <J^T u, v> for the gradient u of the loss."""
        u = self._made_of[2](self.outputs).detach()
        gradient = self.vjp(u, tuple(chosen))
        self._way.meet()
        gradient = self._way.summed(gradient, chosen)
        pairs = [(g.double(), v.double()) for g, v in zip(gradient, tangents, strict=True)]
        of_leaves = [sum(float((x * y).sum()) for x, y in of) for of in (pairs, [(g, g) for g, _ in pairs])]
        of_leaves.append(sum(float(v.square().sum()) for _, v in pairs))
        u, made = u.double(), made.double()
        of_outputs = [float((x * y).sum()) for x, y in ((u, made), (u, u), (made, made))]
        (expected, g, v), (found, seed, pushed) = self._way.totals(of_leaves, of_outputs)
        size = (g * v) ** 0.5 + (seed * pushed) ** 0.5
        return abs(found - expected) <= torch.finfo(self.outputs.dtype).eps ** 0.5 * size


def _pushed(
    recording: Recording,
    function: Callable[[list[Tensor]], Tensor],
    params: Leaves,
    tangents: Sequence[Tensor],
    chosen: Sequence[int],
    like: Tensor,
) -> Tensor:
    """J v of ``function`` by forward mode."""
    with torch.autograd.forward_ad.dual_level() as level, recording.kernels():
        leaves = [constant(leaf) for leaf in params]
        for i, v in zip(chosen, tangents, strict=True):
            leaves[i] = torch.autograd.forward_ad.make_dual(leaves[i], v)
        with nullcontext() if tracking.get() or in_columns.get() else TermByTerm():
            made = torch.autograd.forward_ad.unpack_dual(function(leaves), level=level).tangent
    return torch.zeros_like(like) if made is None else constant(in_full(made))


class TorchCalculus(CalculusDefaults):
    """First and second derivatives, as :class:`linop_gn.protocols.Calculus` asks for them.

    >>> import torch
    >>> calculus = TorchCalculus()
    >>> at = calculus.linearize(lambda leaves: leaves[0] ** 2, [torch.tensor([1.0, 2.0])], torch.ones_like)
    >>> at.outputs, at.gradient, at.jvp([torch.tensor([1.0, 1.0])])
    (tensor([1., 4.]), [tensor([2., 4.])], tensor([2., 4.]))
    """

    adapt = staticmethod(adapt)
    as_double = staticmethod(as_double)

    def linearize(
        self, function: Callable[[list[Tensor]], Tensor], params: Leaves, cotangent: Callable[[Tensor], Tensor]
    ) -> Any:
        """See :meth:`linop_gn.protocols.Calculus.linearize`."""
        params, way = gathered(params)
        with way.run("J"):
            made = TorchLinearization(way.over(function), params, cotangent, way)
        return way.linearized(made)

    def linearize_gradient(self, function: Callable[[list[Tensor]], Tensor], params: Leaves) -> Any:
        """See :meth:`linop_gn.protocols.Calculus.linearize_gradient`."""
        params, way = gathered(params)
        with way.run("H"):
            made = TorchGradientLinearization(way.over(function), params, way)
        return way.linearized(made)

    def linearize_once(
        self,
        function: Callable[[list[Tensor]], Tensor],
        params: Leaves,
        cotangent: Callable[[Tensor], Tensor],
        model: Any,
    ) -> Any:
        """See :meth:`linop_gn.protocols.Calculus.linearize_once`."""
        if tracking.get() or _works_forward(model) is False:
            return self.linearize(function, params, cotangent)
        params, way = gathered(params)
        with way.run("J once"):
            made = TorchOnePass(way.over(function), params, cotangent, model, way)
        return way.linearized(made)

    def coupling(self, model: Any) -> str | None:
        """See :meth:`linop_gn.protocols.Calculus.coupling`."""
        found = batch_norm_in_training(model)
        return None if found is None else type(found).__name__

    def evaluate(self, function: Callable[[list[Tensor]], Any], params: Leaves) -> Any:
        # Not under no_grad: a model may differentiate inside. Constants have no graph, so nothing is recorded anyway.
        params, way = gathered(params)
        with torch.enable_grad(), twice_differentiable(), explained(), way.run("value"):
            return map_tree(constant, way.over(function)([constant(p) for p in params]))

    def gradient(
        self,
        function: Callable[[list[Tensor]], Tensor],
        params: Leaves,
        cotangent: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        # Kernels that are differentiated once may be any; those of attention draw the numbers that evaluations draw.
        with explained():
            params, way = gathered(params)
            with way.run("gradient"):
                made = Recording.of(way.over(function), params, cotangent is None, kernels=lambda: math_attention)
                recording, leaves, value = made
                u = None if cotangent is None else cotangent(value.detach())
                gradient = recording.resume(lambda: backward([value], leaves, [u]))
        return value.detach(), way.completed(filled(gradient, leaves))

    def compiled(self) -> Any:
        from .compiled import CompiledCalculus  # what traces and compiles takes long to import

        return CompiledCalculus()

    def uses(self, function: Callable[[list[Tensor]], Tensor], params: Leaves) -> TorchUses:
        _require_whole(params, "a Kronecker factor")
        with explained():
            return TorchUses(*Recording.of(function, params, kernels=step_by_step))

    def jacobian_rows(
        self, function: Callable[[list[Tensor]], Tensor], params: Leaves, rows: Sequence[int]
    ) -> list[list[Tensor]]:
        # Plain kernels where they will do (attention's random draws depend on its kernel): an oracle is another way.
        _require_whole(params, "a Jacobian, row by row,")
        recording, leaves, outputs = Recording.of(function, params, kernels=once_differentiable)
        with torch.enable_grad():
            return _rows(recording, outputs.reshape(-1), leaves, rows)

    def hessian_rows(
        self, function: Callable[[list[Tensor]], Tensor], params: Leaves, rows: Sequence[int]
    ) -> list[list[Tensor]]:
        _require_whole(params, "a Hessian, row by row,")
        recording, leaves, value = Recording.of(function, params, scalar=True)
        with torch.enable_grad():
            gradient = recording.resume(lambda: backward([value], leaves, [None], create_graph=True), records=True)
            flat = torch.cat(
                [(torch.zeros_like(x) if g is None else g).reshape(-1) for g, x in zip(gradient, leaves, strict=True)]
            )
            return _rows(recording, flat, leaves, rows)
