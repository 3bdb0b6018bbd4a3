"""What trust-region methods ask of their options."""

from __future__ import annotations

from typing import Any

from .options import check_limits, check_tolerances

__all__ = ["check_region"]


def check_region(method: Any) -> None:
    """Raise for a radius, tolerance or limit that makes no sense; traced values pass."""
    radius = method.radius
    if isinstance(radius, (int, float)) and not radius > 0:
        raise ValueError(f"{type(method).__name__}: radius must be a number > 0 (infinity is one), got {radius}.")
    check_tolerances(method, "rtol", "atol")
    check_limits(method)
