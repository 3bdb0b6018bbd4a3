"""What GLTR carries from step to step, and the row it leaves in the history."""

from __future__ import annotations

from typing import NamedTuple

from ..protocols import Array, Scalar
from .lanczos_state import LanczosState

__all__ = ["GLTRRow", "GLTRState"]


class GLTRState(NamedTuple):
    """h, multiplier, residual and rate are in the units of the Lanczos process."""

    lanczos: LanczosState
    h: Array
    multiplier: Scalar
    residual: Scalar
    rate: Scalar
    """The model over ||h||."""
    length: Scalar
    """||h||."""
    active: Scalar
    """Whether the step is on the boundary."""
    checking: Scalar
    """Whether the next product is spent on x, to recompute the residual."""
    goal: Scalar
    """What the recomputed residual is held to."""
    good: Scalar
    """The status of an answer inside that is found to hold."""
    status: Scalar
    steps: Scalar
    products: Scalar


class GLTRRow(NamedTuple):
    """||b - (A + multiplier I) x||, 1/2 x.A x - b.x, the multiplier, and ||x||, at each step."""

    residual: Scalar
    model: Scalar
    multiplier: Scalar
    norm: Scalar
