"""A change of variables z = S^-1 x, S = diag(s): gradient S g, curvature S G S, direction d = S z.

A damping is then lambda S^-2, a region ||S^-1 d|| <= radius. x itself is never changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arguments import known
from ..operators.congruence import Congruence
from ..protocols import Backend, Vector
from ..records import record
from .descents.base import Model
from .problem import MinimizeProblem

__all__ = ["FromStart", "in_units", "require_x_scale", "units_of"]


@record
class FromStart:
    """The magnitudes of the start; of an entry that is zero, the mean of those that are not, or 1."""


def require_x_scale(owner: str, given: Any) -> Any:
    """``given``, with ``FromStart()`` for ``"start"``; raise for another word, or a number that is no size."""
    if isinstance(given, str):
        if given != "start":
            raise ValueError(
                f"{owner}: x_scale must be 'start', numbers > 0 like the parameters or None, got {given!r}."
            )
        return FromStart()
    return given


def units_of(ops: Backend, owner: str, given: Any, problem: MinimizeProblem) -> Vector | None:
    """s (n,), a new vector; None where the parameters are taken as they are."""
    if given is None:
        return None
    xp, start = ops.namespace(), problem.start
    if isinstance(given, FromStart):
        sizes = abs(start)
        some = ops.isfinite(ops.max_abs(sizes)) & (ops.max_abs(sizes) > 0)
        count = xp.sum(xp.where(sizes > 0, xp.ones_like(sizes), xp.zeros_like(sizes)))
        mean = ops.where(some, ops.divide(xp.sum(sizes), count), 1.0)
        return xp.where(sizes > 0, sizes, mean + xp.zeros_like(sizes))
    space = problem.space
    if space.is_flat:
        s = given if ops.is_array(given) else ops.asarray(np.asarray(given), space.dtype, space.device)
    else:
        s = space.pack(given, "x_scale")
    if tuple(s.shape) not in ((), tuple(start.shape)):
        raise ValueError(
            f"{owner}: x_scale has shape {tuple(s.shape)}; expected {tuple(start.shape)}, as the parameters."
        )
    host = known(owner, "x_scale", s)
    if host is not None and not (np.isfinite(host).all() and (host > 0).all()):
        raise ValueError(f"{owner}: x_scale must be finite and > 0 in each entry, as sizes of the parameters are.")
    return ops.cast(s, space.dtype) + xp.zeros_like(start)


def in_units(ops: Backend, model: Model, units: Vector | None) -> Model:
    """The model of z; the model given where there are no units."""
    if units is None:
        return model
    g = units * model.gradient
    A = Congruence(model.operator, units)
    return Model(model.x / units, g, ops.sqrt(ops.dot(g, g)), model.value, A)
