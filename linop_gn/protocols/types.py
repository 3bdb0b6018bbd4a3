"""What the contract speaks of: arrays, vectors, scalars and trees of whichever framework."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Array", "Scalar", "Tree", "Vector"]

Array: TypeAlias = Any
"""An array of whichever framework."""
Vector: TypeAlias = Any
"""A flat array ``(n,)``, or ``(n, k)`` for ``k`` columns."""
Scalar: TypeAlias = Any
"""Python number, 0-d array, or array ``(k,)``: one number for each column."""
Tree: TypeAlias = Any
"""Nested containers of arrays, as the framework defines them."""
