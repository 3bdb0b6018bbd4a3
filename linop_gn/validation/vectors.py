"""Vectors and trees between the device and the host."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..protocols import Array, Tree, Vector
from ..spaces import Space

__all__ = ["digest", "host", "place"]

NDArray = np.ndarray[Any, Any]


def host(space: Space, x: Array) -> NDArray:
    """The values of a vector in float64."""
    return np.asarray(space.backend.to_numpy(x)).astype(np.float64)


def place(space: Space, x: NDArray) -> Vector:
    """Host values as a new vector of the space, rounded to its dtype; whoever writes to it does not write to ``x``."""
    return space.backend.asarray(np.array(x), space.dtype, space.device)


def digest(backend: Any, tree: Tree) -> list[str]:
    """A fingerprint of each array in a tree."""
    found = []
    for leaf in backend.flatten(tree)[1]:
        if backend.is_array(leaf):
            values = np.ascontiguousarray(backend.to_numpy(leaf))
            found.append(hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest())
    return found
