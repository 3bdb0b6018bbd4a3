"""What a run of conjugate gradients carries from step to step, and what it tells of each."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..protocols import Backend, Scalar, Vector

__all__ = ["CGRow", "CGState", "along_start"]


class CGState(NamedTuple):
    """Everything is in units of ``scale``: x, r, p, and their norms."""

    x: Vector
    r: Vector
    p: Vector
    rz: Scalar
    rp: Scalar
    """r.p: equal to r.z, except after the residual was replaced."""
    most: Scalar
    """The largest residual norm that a positive definite operator could have led to."""
    norm: Scalar
    model: Scalar
    memory: Any
    """What the stopping rule remembers."""
    scale: Scalar
    verified: Scalar
    """Smallest norm of a residual that was recomputed after the recurrence had claimed the tolerance."""
    checking: Scalar
    """Whether the next product is spent on x, to recompute the residual, rather than on p."""
    status: Scalar
    steps: Scalar
    products: Scalar
    kept: Any
    """Iterates kept for the caller; None if none were asked for."""


class CGRow(NamedTuple):
    """2-norm of the residual, and the quadratic model, at each step."""

    residual: Scalar
    model: Scalar


def along_start(ops: Backend, rp: Scalar, energy: Scalar) -> Scalar:
    """The multiple t of x0 to start from: 1 unless the model at x0 is above that at zero, then the best one."""
    return ops.where(0.5 * energy <= rp, 1.0, ops.where(energy > 0, ops.divide(rp, energy), 0.0))
