"""What trust-region methods ask of their options."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arguments import require_number
from .options import check_limits, check_tolerances

__all__ = ["check_region"]


def check_region(method: Any) -> None:
    """Raise for a radius, tolerance or limit that makes no sense; traced values pass."""
    name = type(method).__name__
    if method.radius is None or np.ndim(method.radius) > 0:
        raise TypeError(f"{name}: radius must be one number, got {method.radius!r}.")
    require_number(name, "radius", method.radius, positive=True, infinite=True)
    check_tolerances(method, "rtol", "atol")
    check_limits(method)
