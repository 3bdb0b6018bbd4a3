"""Hypothesis strategies: spectra, matrices, trees, dampings, on any backend.

Structure (sizes, kinds, scales, trees) is drawn by Hypothesis, so that it
shrinks; entries come from NumPy's generator with a drawn seed, so that they are
generic numbers rather than the zeros that shrinking prefers. Everything is
drawn as float64 NumPy data and handed to a backend by :func:`array`: the same
strategy serves all of them.

Compiled backends translate anew for each shape, so for those sizes come from a
short list: data are drawn, not shapes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ..protocols import Array, Backend, Tree
from .device import device_of

__all__ = [
    "KINDS",
    "SymmetricMatrix",
    "array",
    "columns",
    "dampings",
    "dtypes",
    "layouts",
    "matrices",
    "scales",
    "seeds",
    "sizes",
    "symmetric_matrices",
    "tree",
    "vector",
]

NDArray = np.ndarray[Any, Any]

KINDS = ("spd", "psd", "indefinite", "clustered")
"""Spectra: well-conditioned positive; positive with zeros; both signs; three tight clusters, positive."""

COMPILED_SIZES = (1, 4, 7)


def array(backend: Backend, host: Any, dtype: str = "float64") -> Array:
    """An array of the backend from NumPy data, on the device that its tests use."""
    return backend.asarray(np.asarray(host), dtype, device_of(backend))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of NumPy generators."""
    return st.integers(0, 2**32 - 1)


def sizes(backend: Backend, largest: int = 12) -> st.SearchStrategy[int]:
    """Sizes 1 .. ``largest``; a few of them on compiled backends."""
    if "compiled" in backend.capabilities:
        return st.sampled_from([size for size in COMPILED_SIZES if size <= largest])
    return st.integers(1, largest)


def dtypes(backend: Backend) -> st.SearchStrategy[str]:
    """Dtypes that numbers are compared in."""
    return st.sampled_from(["float64", "float32"] if "float64" in backend.capabilities else ["float32"])


def scales(low: int = -6, high: int = 6) -> st.SearchStrategy[float]:
    """Powers of ten."""
    return st.integers(low, high).map(lambda exponent: 10.0**exponent)


def dampings() -> st.SearchStrategy[float]:
    """Nothing, or 1e-8 .. 1e4."""
    return st.one_of(st.just(0.0), st.floats(-8, 4).map(lambda exponent: float(10.0**exponent)))


class SymmetricMatrix(NamedTuple):
    """What :func:`symmetric_matrices` draws."""

    matrix: NDArray
    """Exactly symmetric, (n, n)."""
    spectrum: NDArray
    """The eigenvalues that it was made of, ascending."""
    kind: str
    scale: float


@st.composite
def symmetric_matrices(
    draw: st.DrawFn,
    size: int,
    kinds: tuple[str, ...] = KINDS,
    scale: st.SearchStrategy[float] | None = None,
) -> SymmetricMatrix:
    """Q diag(spectrum) Q^T with a random orthogonal Q, times a power of ten."""
    kind = draw(st.sampled_from(kinds))
    factor = draw(scales() if scale is None else scale)
    rng = np.random.default_rng(draw(seeds()))
    spectrum = np.sort(factor * _spectrum(rng, kind, size))
    Q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = (Q * spectrum) @ Q.T
    return SymmetricMatrix((matrix + matrix.T) / 2, spectrum, kind, factor)


def _spectrum(rng: np.random.Generator, kind: str, size: int) -> NDArray:
    values: NDArray = rng.uniform(0.5, 2.0, size)
    if kind == "psd":
        values[: (size + 1) // 2] = 0.0
    elif kind == "indefinite":
        values[: (size + 1) // 2] *= -1.0
    elif kind == "clustered":
        values = np.array([0.01, 1.0, 100.0])[np.arange(size) % 3] * (1 + 1e-6 * values)
    return values


@st.composite
def matrices(draw: st.DrawFn, rows: int, cols: int, scale: st.SearchStrategy[float] | None = None) -> NDArray:
    """A general matrix with normal entries, times a power of ten."""
    factor = draw(scales(-3, 3) if scale is None else scale)
    matrix: NDArray = factor * np.random.default_rng(draw(seeds())).standard_normal((rows, cols))
    return matrix


@st.composite
def vector(draw: st.DrawFn, size: int) -> NDArray:
    """A vector (size,) with normal entries."""
    return np.random.default_rng(draw(seeds())).standard_normal(size)


@st.composite
def columns(draw: st.DrawFn, size: int, most: int = 4) -> NDArray:
    """Columns (size, k), k from 1."""
    return np.random.default_rng(draw(seeds())).standard_normal((size, draw(st.integers(1, most))))


_SHAPES = st.one_of(st.just(()), st.tuples(st.integers(0, 3)), st.tuples(st.integers(1, 3), st.integers(1, 3)))
_KEYS = st.sampled_from(["weight", "bias", "layer1", "layer2", "head", "a.b"])


def layouts(leaves: int = 6) -> st.SearchStrategy[Any]:
    """Nested dicts, lists and tuples of shapes: trees to be, with at least one entry."""
    nested = st.recursive(
        _SHAPES.map(Shape),
        lambda inner: st.one_of(
            st.dictionaries(_KEYS, inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=2).map(tuple),
        ),
        max_leaves=leaves,
    )
    return nested.filter(lambda layout: entries(layout) > 0)


class Shape(NamedTuple):
    """The shape of a leaf, told apart from a tuple that is a container."""

    shape: tuple[int, ...]


def entries(layout: Any) -> int:
    """How many entries a tree of this layout has."""
    if isinstance(layout, Shape):
        return int(np.prod(layout.shape, dtype=int))
    return sum(entries(inner) for inner in (layout.values() if isinstance(layout, dict) else layout))


def tree(backend: Backend, layout: Any, seed: int, dtype: str = "float64") -> Tree:
    """A tree of this layout, with normal entries, on a backend."""
    rng = np.random.default_rng(seed)

    def fill(inner: Any) -> Tree:
        if isinstance(inner, Shape):
            return array(backend, rng.standard_normal(inner.shape), dtype)
        if isinstance(inner, dict):
            return {key: fill(value) for key, value in inner.items()}
        return type(inner)(fill(value) for value in inner)

    return fill(layout)
