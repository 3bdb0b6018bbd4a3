"""To ``cupyx.scipy.sparse`` and from it, with products on the device.

:func:`linop_gn.to_scipy` serves SciPy, on the host; :func:`to_cupyx` serves the
solvers of ``cupyx.scipy.sparse.linalg``, and nothing leaves the GPU. The way
back is :func:`linop_gn.from_scipy`, which asks this backend about objects that
come from ``cupyx``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from linop_gn.backend import Vector
from linop_gn.interop import sparse_symmetry
from linop_gn.operators import FunctionOperator, LinearOperator
from linop_gn.operators.checks import finite
from linop_gn.records import record, static
from linop_gn.spaces import Space

from .placement import there

__all__ = ["CupyxMatrix", "from_cupyx", "to_cupyx"]


def to_cupyx(operator: LinearOperator) -> Any:
    """``operator``, whose arrays are CuPy's, as a ``cupyx.scipy.sparse.linalg.LinearOperator``.

    Vectors (n,) and columns (n, k) of any real dtype are converted to the
    operator's own; products are new arrays of that dtype on its device.

    Raises
    ------
    TypeError
        For an operator of another framework; at a product with complex vectors.
    """
    from cupyx.scipy.sparse.linalg import LinearOperator as CupyxOperator

    space = operator.domain
    if space.backend.name != "cupy":
        raise TypeError(
            f"the operator belongs to {space.backend.name}, and cupyx needs products on CuPy arrays; use to_scipy for "
            "SciPy's solvers on the host, or make the operator from CuPy arrays."
        )
    ready = operator.prepare()

    def product(apply: Callable[[LinearOperator, Vector], Vector]) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            if x.dtype.kind == "c":
                raise TypeError("a real operator was applied to a complex vector; apply it to .real and .imag apart.")
            flat = x.reshape(-1) if x.ndim == 1 or x.shape[1] == 1 else x
            with there(x):
                v = cupy.asarray(flat, dtype=space.dtype)
            return space.backend.call(apply, ready, v)

        return run

    def columns(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: function(x).reshape(-1, x.shape[1])

    forward, backward = product(LinearOperator.apply), product(LinearOperator.rapply)
    return CupyxOperator(
        operator.shape,
        matvec=forward,
        rmatvec=backward,
        matmat=columns(forward),
        dtype=np.dtype(space.dtype),
        rmatmat=columns(backward),
    )


@record
class CupyxMatrix(LinearOperator):
    """A sparse matrix on the GPU, with its transpose in rows too: both products read along rows."""

    matrix: Any
    transpose: Any
    domain: Space = static(default=None)
    codomain: Space = static(default=None)
    symmetric: bool = static(default=False)
    psd: bool = static(default=False)

    def matvec(self, v: Vector) -> Vector:
        return self.matrix @ v

    def rmatvec(self, u: Vector) -> Vector:
        return self.transpose @ u

    matmat = matvec
    rmatmat = rmatvec


def from_cupyx(obj: Any, like: Any, symmetric: bool | None, psd: bool) -> LinearOperator | None:
    """An operator from a sparse matrix or ``LinearOperator`` of cupyx; None for anything else.

    Vectors are float64 (float32 where ``obj`` is) on the matrix's device, or have dtype and device of ``like``.
    """
    if not any(base.__module__.partition(".")[0] == "cupyx" for base in type(obj).__mro__):
        return None
    dtype = like.dtype if like is not None else np.float32 if obj.dtype == np.float32 else np.float64
    if hasattr(obj, "tocsr"):
        with there(obj.data):
            return _from_sparse(obj.tocsr().astype(dtype), symmetric, psd)
    like = cupy.zeros(1, dtype) if like is None else like
    domain, codomain = Space.flat(obj.shape[1], like), Space.flat(obj.shape[0], like)
    forward, backward = (_cast(product, dtype) for product in (obj.matvec, obj.rmatvec))
    return FunctionOperator(forward, domain, codomain, backward, symmetric=bool(symmetric or psd), psd=psd)


def _from_sparse(matrix: Any, symmetric: bool | None, psd: bool) -> CupyxMatrix:
    finite(cupy.asnumpy(matrix.data), "the sparse matrix")
    known = sparse_symmetry(matrix, symmetric, psd)
    domain, codomain = Space.flat(matrix.shape[1], matrix.data), Space.flat(matrix.shape[0], matrix.data)
    return CupyxMatrix(matrix, matrix.T.tocsr(), domain, codomain, known, psd)


def _cast(product: Callable[[Any], Any], dtype: Any) -> Callable[[Any], Any]:
    return lambda v: product(v).astype(dtype, copy=False)
