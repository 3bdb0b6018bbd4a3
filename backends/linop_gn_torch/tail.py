"""What comes after the last product of a model entry by entry: a temperature, a cap 30 tanh(z / 30), a mask.

Of z = f(y, t), with a number t for all entries of y, or one for each class,

    dz = f_y o dy + f_t dt,    y gets f_y o u,    t gets the sum of f_t o u.

Autograd holds for each step what that saves, and what u has become there in the recorded J^T u: five arrays like z for
a cap, and a product takes three more. Here what the steps have saved is held, tanh(y / 30), or y where that is
multiplied by a t of the parameters, and the graph of y, at which J_y^T u is recorded as if there were nothing after it.
What is done with u and dy is done where they stand, a few rows at a time.

The Hessian of a loss L(f(y, t)) is J^T applied to the derivative of f_y o L'(z), and of the sum of f_t o L'(z). Of each
step x' = g(x), with s for the derivative of L in x and a dot for derivatives along a vector,

    x' = a x        ẋ' = a ẋ                ṡ = a ṡ'
    x' = t x        ẋ' = t ẋ + ṫ x          ṡ = t ṡ' + ṫ s'         t gets the sum of x ṡ' + ẋ s'
    x' = tanh x     ẋ' = (1 - x'^2) ẋ       ṡ = (1 - x'^2) ṡ' - 2 x' ẋ' s'

forward from dy to dz, and back from H dz; x / t is a product with 1 / t.

Outputs that are left out after these steps, or put in another order, might as well be before: all go entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from linop_gn.backend import Outer
from linop_gn.curvature.losses import parts

from .cotangents import MANY
from .graph import COPIES, LOOKS, SHAPED, kind

__all__ = ["Tail"]

_FEW = 64
"""The numbers of a t are this many times fewer than the outputs."""

Look = Callable[[Tensor], Tensor]


class _Step(NamedTuple):
    """One of the steps above, or x + c t."""

    a: Any = 1.0
    """A number, or an array with the outputs' axes; t where that is what x is multiplied by."""
    tanh: Tensor | None = None
    """x' of a tanh."""
    operand: int | None = None
    """Which t enters here."""
    x: Any = None
    """What t is multiplied by: x, or the number c."""

    @property
    def bilinear(self) -> bool:
        """Whether x' = t x."""
        return isinstance(self.x, Tensor)

    def of(self, cut: Callable[[Any], Any]) -> _Step:
        """That of some entries."""
        return self._replace(a=cut(self.a), tanh=cut(self.tanh), x=cut(self.x))

    def rate(self) -> Any:
        """dx'/dx."""
        return self.a if self.tanh is None else 1 - self.tanh * self.tanh

    def forward(self, v: Tensor, entering: Sequence[Tensor | None]) -> Tensor:
        """dx' for dx = v, and what enters from each t."""
        made: Tensor = v * self.rate()
        along = None if self.operand is None else entering[self.operand]
        return made if along is None else made + self.x * along


class _Operand(NamedTuple):
    """t, one number or one for each of the last axis."""

    place: GradientEdge
    t: Tensor
    shape: torch.Size
    inverse: bool
    """Whether 1 / t is what x is multiplied by."""

    def rate(self) -> Any:
        """Of what enters, along t."""
        return -1 / (self.t * self.t) if self.inverse else 1.0

    def entering(self, dt: Tensor | None) -> Tensor | None:
        """What of dt does."""
        return None if dt is None else dt.reshape(self.t.shape) * self.rate()

    def summed(self, terms: list[Tensor], like: Tensor) -> Tensor:
        """What t gets from sums over parts of the outputs."""
        total = torch.stack(terms).sum(0) * self.rate()
        return total.reshape(self.shape).to(like.dtype)

    def sum_of(self, x: Tensor) -> Tensor:
        """Over all entries that share a number."""
        return x.reshape(-1, self.t.numel()).sum(0) if self.t.ndim else x.sum()


class Tail:
    """The steps from y to the outputs, and the places of y and of each t in the graph."""

    def __init__(self, place: GradientEdge, operands: list[_Operand], steps: list[_Step], look: Look | None) -> None:
        self.places = [place, *(operand.place for operand in operands)]
        self._operands, self._steps, self._look = operands, steps, look
        self._shape = _shape(place)

    @classmethod
    def of(cls, outputs: Tensor) -> Tail | None:
        """What comes after y in the graph of many ``outputs``; None where that is nothing, or not known."""
        if outputs.numel() < MANY or type(outputs) is not Tensor or not outputs.requires_grad:
            return None
        here, place, seen = get_gradient_edge(outputs), None, 0
        operands: list[_Operand] = []
        steps: list[_Step] = []
        looks: list[Look] = []
        while kind(here.node):
            look = _look(here, outputs.dtype)
            if look is not None:
                looks.append(look)
                here = _given(here, 0)
                continue
            read = _read(here, outputs)
            if read is None:
                break
            step, y, operand = read
            if operand is not None:
                if looks and operand.t.ndim:
                    break
                step = step._replace(operand=len(operands))
                operands.append(operand)
            steps.insert(0, step.of(partial(_seen, _composed(looks), _shape(here))))
            here, place, seen = y, y, len(looks)
        if place is None or not kind(place.node) or not all(map(_is_finite, steps)):
            return None  # of what is no number, who is at fault is found in the whole graph
        return cls(place, operands, steps, _composed(looks[:seen]))

    @property
    def is_linear(self) -> bool:
        """Whether z is in y, and nothing else enters."""
        return all(step.tanh is None and step.operand is None for step in self._steps)

    def like(self, outputs: Tensor) -> Tensor:
        """An array of y's shape, without memory."""
        return outputs if self._look is None else outputs.new_empty(()).expand(self._shape)

    def push(self, dy: Tensor, dt: Sequence[Tensor | None], fresh: bool) -> Tensor:
        """dz, which is written over dy where that is ``fresh``."""
        z = dy if self._look is None else self._look(dy)
        entering = self._entering(dt)
        for place, steps in self._parts(z.shape, fresh):
            made = z[place]
            for step in steps:
                made = step.forward(made, entering)
            if not fresh:
                return made
            z[place] = made
        return z

    def pull(self, u: Tensor, fresh: bool) -> list[Tensor]:
        """What y and each t get from u, which is written over where it is ``fresh``."""
        sums: list[list[Tensor]] = [[] for _ in self._operands]
        for place, steps in self._parts(u.shape, fresh):
            s = u[place]
            for step in reversed(steps):
                if step.operand is not None:
                    sums[step.operand].append(self._operands[step.operand].sum_of(step.x * s))
                s = s * step.rate()
            if not fresh:
                u = s
                break
            u[place] = s
        return [self._unseen(u), *self._summed(sums, u)]

    def bend(
        self, outer: Outer, hessian: Any, z: Tensor, dy: Tensor, dt: Sequence[Tensor | None], seeds: Sequence[Tensor]
    ) -> list[Tensor]:
        """The derivative, along dy and dt, of what y and each t get from L'(z), which ``seeds`` are; writes over dy."""
        dz, entering = dy if self._look is None else self._look(dy), self._entering(dt)
        sums: list[list[Tensor]] = [[] for _ in self._operands]

        def way(place: Any, v: Tensor, slope: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
            steps, xs = self._at(place, dz.shape), [v]
            for step in steps:
                xs.append(step.forward(xs[-1], entering))
            s, ds = slope, product(xs[-1])
            for step, dx, next_dx in zip(steps[::-1], xs[-2::-1], xs[:0:-1], strict=True):
                t = None if step.operand is None else self._operands[step.operand]
                if t is not None and step.operand is not None:
                    sums[step.operand].append(t.sum_of(step.x * ds + dx * s if step.bilinear else step.x * ds))
                rate, along = step.rate(), None if step.operand is None else entering[step.operand]
                ds = ds * rate
                if step.tanh is not None:
                    ds = ds - 2 * step.tanh * next_dx * s
                elif along is not None and step.bilinear:
                    ds = ds + along * s
                s = s * rate
            return ds

        outer.through(hessian, z, dz, way)
        made = self._summed(sums, dz)
        for i, (t, along, s) in enumerate(zip(self._operands, dt, seeds, strict=True)):
            if t.inverse and along is not None:
                made[i] = made[i] - 2 / t.t.reshape(t.shape) * along * s
        return [self._unseen(dz), *made]

    def _entering(self, dt: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [t.entering(along) for t, along in zip(self._operands, dt, strict=True)]

    def _summed(self, sums: list[list[Tensor]], like: Tensor) -> list[Tensor]:
        return [t.summed(terms, like) for t, terms in zip(self._operands, sums, strict=True)]

    def _parts(self, shape: torch.Size, apart: bool) -> Iterator[tuple[Any, list[_Step]]]:
        """Places of a few rows, and the steps there; all at once unless ``apart``."""
        for place in parts.places(tuple(shape), max(0, len(shape) - 1) if apart else 0, parts.FEW):
            yield place, self._at(place, shape)

    def _at(self, place: Any, shape: torch.Size) -> list[_Step]:
        return [step.of(partial(_cut, place, shape)) for step in self._steps]

    def _unseen(self, u: Tensor) -> Tensor:
        """An array of y's shape for u, with zeros for what is left out."""
        if self._look is None:
            return u
        with torch.enable_grad():
            y = u.new_empty(()).expand(self._shape).requires_grad_()
            return torch.autograd.grad(self._look(y), y, u)[0]


def _shape(edge: GradientEdge) -> torch.Size:
    return torch.Size(edge.node._input_metadata[edge.output_nr].shape)


def _dtype(edge: GradientEdge) -> torch.dtype:
    made: torch.dtype = edge.node._input_metadata[edge.output_nr].dtype
    return made


def _given(edge: GradientEdge, index: int) -> GradientEdge:
    return GradientEdge(*edge.node.next_functions[index][:2])


def _cut(place: Any, shape: torch.Size, x: Any) -> Any:
    return x.expand(shape)[place] if isinstance(x, Tensor) and x.ndim else x


def _seen(look: Look | None, shape: torch.Size, x: Any) -> Any:
    return x if look is None or not isinstance(x, Tensor) or not x.ndim else look(x.expand(shape))


def _composed(looks: Sequence[Look]) -> Look | None:
    """All of them, the last one first."""
    if not looks:
        return None
    given = tuple(looks)

    def look(x: Tensor) -> Tensor:
        for one in reversed(given):
            x = one(x)
        return x

    return look


def _look(edge: GradientEdge, dtype: torch.dtype) -> Look | None:
    """An operation that leaves out entries or puts them in another order."""
    node, which = edge.node, edge.output_nr
    name = kind(node)
    if not (name in SHAPED or name in LOOKS or name in COPIES) or node.next_functions[0][0] is None:
        return None
    if _dtype(edge) is not dtype or _dtype(_given(edge, 0)) is not dtype:
        return None
    if name in COPIES:
        return lambda x: x
    if name in SHAPED:
        shape = _shape(edge)
        return lambda x: x.reshape(shape)

    def look(x: Tensor) -> Tensor:
        made = LOOKS[name](node, x)
        return made if isinstance(made, Tensor) else made[which]

    return look


def _read(edge: GradientEdge, outputs: Tensor) -> tuple[_Step, GradientEdge, _Operand | None] | None:
    """One step, what it is done with, and the t that enters."""
    node: Any = edge.node
    shape, dtype, name = _shape(edge), outputs.dtype, kind(edge.node)
    given = [(i, _given(edge, i)) for i, (other, *_) in enumerate(node.next_functions) if other is not None]
    large = [i for i, one in given if _shape(one) == shape and _dtype(one) is dtype]
    if len(large) != 1 or len(given) > 2:
        return None
    index, y = large[0], _given(edge, large[0])
    others = [one for i, one in given if i != index]
    entering = others[0] if others else None

    def alone(step: _Step) -> tuple[_Step, GradientEdge, None] | None:
        return None if others else (step, y, None)

    if name == "Tanh":
        return alone(_Step(tanh=node._saved_result.detach()))
    if name == "Neg":
        return alone(_Step(-1.0))
    if name == "Rsub":  # other - alpha x
        return alone(_Step(-node._saved_alpha)) if index == 0 else None
    if name == "MaskedFill":
        return alone(_Step((~node._saved_mask).to(dtype)))
    if name == "Where":
        taken = node._saved_condition
        return alone(_Step((taken if index == len(node.next_functions) - 2 else ~taken).to(dtype)))
    if name in {"Add", "Sub"}:
        c = node._saved_alpha * (-1 if name == "Sub" else 1)
        factors = (c, 1) if index else (1, c)
        found = None if entering is None else _operand(entering, outputs, None, False)
        step = _Step(factors[0], x=None if found is None else factors[1])
    elif name == "Mul" or (name == "Div" and index == 0):
        by, x = node._saved_self if index else node._saved_other, None
        if by is None:
            return None
        by = by.detach().to(dtype)  # a number comes in a dtype of its own
        by = by.reshape(()) if by.numel() == 1 else by
        found = None if entering is None else _operand(entering, outputs, by, name == "Div")
        if found is not None:
            x = (node._saved_other if index else node._saved_self).detach()
        step = _Step(1 / by if name == "Div" else by, x=x)
    else:
        return None
    return None if others and found is None else (step, y, found)


def _operand(edge: GradientEdge, outputs: Tensor, t: Tensor | None, inverse: bool) -> _Operand | None:
    """A t of few numbers, for all entries or for the last axis."""
    shape = _shape(edge)
    if shape.numel() * _FEW > outputs.numel() or any(n != 1 for n in shape[:-1]) or _dtype(edge) is not outputs.dtype:
        return None
    flat = torch.Size(() if shape.numel() == 1 else shape[-1:])
    return _Operand(edge, outputs.new_zeros(flat) if t is None else t.reshape(flat), shape, inverse)


def _is_finite(step: _Step) -> bool:
    known = [x.aminmax() for x in (step.a, step.tanh, step.x) if isinstance(x, Tensor)]
    return all(bool(least.isfinite()) and bool(most.isfinite()) for least, most in known)  # NaN where there is one
