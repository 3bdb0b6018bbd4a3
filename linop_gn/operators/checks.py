"""What operators check about the arrays they are made of, where values can be read.

Values are read on the host: inside a compiled program even a constant's
reductions are traced, but its entries can still be looked at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arguments import described, known_float
from ..protocols import Array, Backend, Scalar
from ..spaces import Space

__all__ = ["array_of", "finite", "nonnegative", "require_damping", "space_for", "symmetric_enough", "values_of"]

SYMMETRY_TOLERANCE = 1000.0
"""Largest |M - M^T| forgiven, in units of round-off of the largest entry: what X^T W X leaves, not a wrong matrix."""


def array_of(backend: Backend, x: Any, dimensions: tuple[int, ...], what: str) -> tuple[int, ...]:
    """The shape of ``x``, an array of the backend with one of these numbers of axes."""
    if not backend.is_array(x):
        raise TypeError(f"{what} is {described(x, backend.name)}.")
    shape = backend.describe(x)[0]
    if len(shape) not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise ValueError(f"{what} has shape {shape}; expected an array with {wanted} axes.")
    return shape


def space_for(space: Space | None, size: int, like: Array, what: str, backend: Backend) -> Space:
    """``space`` if it has vectors of this size, dtype and device, plain vectors for None."""
    if space is None:
        return Space.flat(size, like)
    if space.backend is not backend:
        raise TypeError(f"{what} belongs to {space.backend.name} but the array to {backend.name}; convert one of them.")
    if space.size != size:
        raise ValueError(f"{what} has {space.size} entries, but the array is made for {size}.")
    space.require(f"the array given with {what}", like)
    return space


def require_damping(backend: Backend, damping: Scalar, advice: str) -> None:
    """Refuse what is not one finite number >= 0, as far as its value is known."""
    value = 0.0
    try:
        if math.prod(getattr(damping, "shape", ())) != 1 or isinstance(damping, (str, bytes, bool, np.bool_)):
            raise TypeError("no number")  # known of traced ones too
        if backend.is_concrete(damping):
            value = known_float(damping)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"damping must be one number, got {damping!r}. {advice}") from error
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"damping must be a finite number >= 0, got {value}.")


def values_of(backend: Backend, x: Array, what: str) -> Any:
    """The finite values of ``x`` on the host; None in a trace, where they cannot be read."""
    if not backend.is_concrete(x):
        return None
    host = backend.to_numpy(x if "compiled" in backend.capabilities else backend.gathered(x))
    finite(host, what)
    return host


def nonnegative(diagonal: Any, claimed: bool | None, what: str) -> bool:
    """Whether no entry is negative; an error where one is but psd was claimed."""
    if claimed and (diagonal < 0).any():
        i = int(diagonal.argmin())
        raise ValueError(
            f"{what} was given with psd=True, but entry {i} is {float(diagonal[i]):.3g}; leave the claim out, or take "
            "the absolute or clipped values."
        )
    return bool((diagonal >= 0).all())


def finite(host: Any, what: str) -> None:
    """Refuse NaN and infinity, saying how many there are and where the first is."""
    good = np.isfinite(host)
    if not good.all():
        place = tuple(int(i[0]) for i in np.nonzero(~good))
        raise ValueError(
            f"{what} holds {good.size - int(good.sum())} entries that are NaN or infinite, the first at "
            f"{place if len(place) > 1 else place[0]}."
        )


def symmetric_enough(host: Any, eps: float, what: str, claim: str) -> None:
    """Refuse a matrix that is claimed symmetric but differs from its transpose by more than rounding."""
    if host.size == 0:
        return
    wide = np.asarray(host, dtype=np.float64)
    difference = np.abs(wide - wide.T)
    i, j = (int(k) for k in np.unravel_index(np.argmax(difference), difference.shape))
    largest, scale = float(difference[i, j]), float(np.abs(wide).max())
    if largest > SYMMETRY_TOLERANCE * eps * scale:
        raise ValueError(
            f"{what} was given with {claim}, but it is not symmetric: entries {(i, j)} and {(j, i)} differ by "
            f"{largest:.3g}, the largest of such differences (entries reach {scale:.3g}). Symmetrise it, "
            "(M + M.T) / 2, if that is only rounding; otherwise leave the claim out."
        )
