"""What trust-region methods ask of their options."""

from __future__ import annotations

from typing import Any

from .options import check_limits, check_tolerances, plain

__all__ = ["check_region"]


def check_region(method: Any) -> None:
    """Raise for a radius, tolerance or limit that makes no sense; traced values pass."""
    radius = plain(method, "radius")
    if method.radius is None or (radius is not None and not radius > 0):
        raise ValueError(
            f"{type(method).__name__}: radius must be a number > 0 (infinity is one), got {method.radius}."
        )
    check_tolerances(method, "rtol", "atol")
    check_limits(method)
