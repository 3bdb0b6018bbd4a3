"""What a run of conjugate gradients carries from step to step (:mod:`linop_gn.solvers.cg`)."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..protocols import Scalar, Vector

__all__ = ["CGState"]


class CGState(NamedTuple):
    """Everything is in units of ``scale``: x, r, p, and their norms."""

    x: Vector
    r: Vector
    p: Vector
    rz: Scalar
    rp: Scalar
    """r.p: equal to r.z, except after the residual was replaced."""
    norm: Scalar
    model: Scalar
    steps: Scalar
    products: Scalar
    least: Scalar
    """1 / ||A||, as far as it has shown; 0 once a residual was replaced, for no more is learned then."""
    room: Scalar
    """||b||^2 / (16 eps ||A||): where the model is lower than -room the rounding of A x may exceed b, since ||x|| is at
    least 2 |model| / ||b||. With a preconditioner all norms here are in M's; from a start infinite, for then b's is not
    known."""
    verified: Scalar
    """Smallest norm of a residual that was recomputed after the recurrence had claimed the tolerance."""
    hope: Scalar
    """Where the recurrence claims so little it is recomputed: the tolerance, and no less than a tenth of the latest."""
    best: Any
    """x at the smallest of them, once there is one."""
    best_model: Scalar
    back: Scalar
    """Whether that one is the answer, whose norm and model are told."""
    trial: Scalar
    """Length of a step along p that is to be verified before it is taken; 0 where there is none."""
    claim: Scalar
    """Status that waits for the residual to be recomputed at x + trial p; the next product is spent on it."""
    status: Scalar
    whole: Scalar
    """||b||^2, in the norm of M."""
    memory: Any
    """What the stopping rule remembers."""
    scale: Scalar
    kept: Any
    """Iterates kept for the caller; None if none were asked for."""
