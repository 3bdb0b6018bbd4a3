"""Derivatives of solutions, in torch: an autograd Function whose backward is one more solve.

Where the right-hand side or a tensor among the operator's data requires
gradients, the run itself is done as always, on plain numbers, and x = A^-1 b is
then put into the graph. Its backward solves A^T w = u with the same method,
records the defect b - A x at the solution, one product, and pulls w back
through that; for a solution of least norm there are two more terms
(:mod:`linop_gn.implicit`). With ``create_graph=True`` the same is done on the
graph that it belongs to, what is solved for being a solution like x, so that
there are derivatives of any order. Neither the starting point nor the
preconditioner has one: they change the way to the solution, not the solution.

Parameters of a module require gradients because modules are made that way, not
because somebody asked. A curvature operator taken at such parameters therefore
does not put a solution into a graph, which would grow from step to step of a
training loop. Where there is a graph for another reason, they are in it too.

A tensor that a function of the user's closes over is no data: only the graphs of its products know of it. The first
product of a solve is looked at: where it has a derivative in such a tensor, a warning says that x has none.

A solve for a derivative that fails gives NaN, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from linop_gn.backend import Scalar
from linop_gn.curvature.point import Point
from linop_gn.implicit import require_implicit, tangent, tangent_solve, trusted
from linop_gn.operators.function import FunctionOperator
from linop_gn.records import replace
from linop_gn.run.status import Status

from .advice import nodes
from .data import Data, may_ask
from .tracking import tracked
from .trees import flatten_tree

__all__ = ["TorchImplicit"]

Run = Callable[[Any, Any], tuple[Tensor, Any]]
R = TypeVar("R")

_looking: ContextVar[bool] = ContextVar("looking", default=False)
"""Whether the next product of a user's function is looked at for tensors that nobody knows of."""


class TorchImplicit:
    """The part of the backend's loops that puts solutions into the user's graph."""

    def implicit(self, run: Run, method: Any, problem: Any, operator: Any) -> tuple[Tensor, Any]:
        """See :meth:`linop_gn.protocols.Loops.implicit`."""
        if not torch.is_grad_enabled():
            return run(method, problem)
        asking = may_ask(operator) or may_ask(problem.rhs) or may_ask(method)
        data = Data((method, operator, problem.rhs)) if asking else None
        if data is None or not data.asks:
            before = _looking.set(problem.preconditioner is None)  # which has no derivative
            try:
                return run(method, problem)
            finally:
                _looking.reset(before)
        if not problem.rhs.requires_grad:  # whose memory is the user's, and may be written to before the derivatives
            problem = replace(problem, rhs=problem.rhs.clone())
            data = Data((method, operator, problem.rhs))
        plain = replace(problem, **{name: Data(getattr(problem, name)).detached() for name in _FIELDS})
        with torch.no_grad():
            x, told = run(Data(method).detached(), plain)
        require_implicit(method, problem, x)
        system = _System(self, Data(method).detached(), plain, data, x, told.code)
        return _Solved.apply(system, *data.tensors), told  # type: ignore[no-untyped-call]

    def alone(self, make: Callable[[], R]) -> tuple[R, bool]:
        """See :meth:`linop_gn.protocols.Arrays.alone`."""
        product = make()
        if _looking.get():
            _looking.set(False)
            for part in [product] if isinstance(product, Tensor) else flatten_tree(product)[1]:
                _warn_of_unknown(part)
        return product, False


_FIELDS = ("operator", "rhs", "x0", "preconditioner")


class _System:
    """A solution x, the numbers that it was found with, and the tensors that it depends on."""

    def __init__(self, ops: Any, method: Any, problem: Any, data: Data, x: Tensor, code: Scalar) -> None:
        self.ops, self.method, self.problem, self.data, self.x, self.code = ops, method, problem, data, x, code

    def pull(self, tensors: list[Tensor], x: Tensor, u: Tensor) -> list[Tensor | None]:
        """The derivative of u.x in the tensors, in the graph of tensors, x and u where one is being recorded."""
        again = torch.is_grad_enabled()
        method, given, b = self.data.filled(tensors)
        A, inner = tangent(self.method, self.problem.operator)
        live, M = tangent(method, given)[0], self.problem.preconditioner
        w = self._solve(inner, A.T, live.T, u, None if M is None else M.T)
        alone = len(tensors) == 1 and tensors[0] is self.data.tree[2]
        if alone and (self.method.square or not inner.square) and not self.data.holds(FunctionOperator):
            return [w]  # b is all there is
        fixed = [(x, w)]
        if not inner.square:  # u.dx = w.(db - dA x) + a.(dA^T r) + (u - A^T w).(dA^T z)
            a, z = self._solve(inner, A, live, w), self._solve(inner, A.T, live.T, x)
            with tracked() if again else nullcontext():
                fixed += [(method.defect(given, b, x), a), (z, u - live.rapply(w))]
        if not again:
            fixed = [(v.detach(), c.detach()) for v, c in fixed]
        with tracked():
            # Each a tensor of its own: one may have been computed from another.
            own = [t.view_as(t) if again else t.detach().requires_grad_() for t in tensors]
            method, operator, rhs = self.data.filled(own)
            (x, _), *others = fixed
            products = [method.defect(operator, rhs, x)]
            products += [tangent(method, operator)[0].rapply(v) for v, _ in others]
            moving = [(p, v, c) for p, (v, c) in zip(products, fixed, strict=True) if p.requires_grad]
            if not moving:
                return [None] * len(own)
            if not self.data.holds(Point):  # whose linearisations have leaves of their own
                for p, v, _ in moving:
                    _require_known(p, [*own, v])
            outputs, _, cotangents = zip(*moving, strict=True)
            return list(torch.autograd.grad(outputs, own, cotangents, create_graph=again, allow_unused=True))

    def _solve(self, method: Any, A: Any, live: Any, h: Tensor, inverse: Any = None) -> Tensor:
        """A^-1 h, or A^+ h, in the graph of ``live``, which is A, and h where one is being recorded."""
        problem = replace(self.problem, operator=A, rhs=h, x0=None, preconditioner=inverse)
        w: Tensor = self.ops.implicit(self._run, method, problem, live)[0]
        return w

    def _run(self, method: Any, problem: Any) -> tuple[Tensor, Any]:
        parts = problem.operator, problem.preconditioner, problem.rhs
        w, reached = tangent_solve(self.ops, method, self.problem, *parts)
        return _unless_failed(problem.rhs, w, (self.code, self.method), (reached, method)), _Told(reached)


def _require_known(product: Tensor, known: list[Tensor]) -> None:
    """Refuse a product in whose graph there are other tensors than those that are known to be data."""
    for node in nodes(product, (get_gradient_edge(t).node for t in known if t.requires_grad)):
        if hasattr(node, "variable"):
            raise NotImplementedError(_left_out(node.variable))


def _warn_of_unknown(product: Any) -> None:
    """Warn where a product has a derivative in a tensor, which is no module's parameter, and the solution none."""
    if isinstance(product, Tensor) and product.requires_grad:
        held = (getattr(node, "variable", None) for node in nodes(product))
        unknown = next((x for x in held if x is not None and not isinstance(x, nn.Parameter)), None)
        if unknown is not None:
            warnings.warn(_left_out(unknown), RuntimeWarning, stacklevel=2)


def _left_out(tensor: Tensor) -> str:
    return (
        f"the operator uses a tensor of shape {tuple(tensor.shape)} that requires gradients and is not among its data, "
        "so that the derivative of a solution would leave it out. Hand it to the operator (lg.FunctionOperator(..., "
        "args=(tensor,))), or detach() it if it is a constant."
    )


class _Told:
    def __init__(self, code: Scalar) -> None:
        self.code = code


class _Solved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, system: _System, *tensors: Tensor) -> Tensor:
        x = system.x
        del system.x  # held by what is saved below: the two would hold each other
        ctx.system = system
        ctx.save_for_backward(x, *tensors)
        return x

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        system: _System = ctx.system
        return None, *system.pull(tensors, x, u)


def _unless_failed(u: Tensor, w: Tensor, *runs: tuple[Scalar, Any]) -> Tensor:
    """``w``, or NaN where something was asked for and a run's status, a column's or the whole's, is of no solution."""
    good = np.logical_and.reduce([np.isin(code, trusted(method)) for code, method in runs])
    if good.all():
        return w
    if good.shape != tuple(u.shape[1:]):  # one for each block of a vector
        good = good.all()
    failed = torch.as_tensor(~np.asarray(good), device=u.device) & (u != 0).any(dim=0)
    if not failed.any():
        return w
    names = sorted({Status(int(c)) for code, method in runs for c in np.ravel(code) if c not in trusted(method)})
    sentences = " ".join(f"{status.name}: {status.sentence}" for status in names)
    warnings.warn(
        f"a derivative of a solution is NaN, because the solve for it, or for the solution, failed. {sentences}",
        RuntimeWarning,
        stacklevel=2,
    )
    return torch.where(failed, torch.nan, w)
