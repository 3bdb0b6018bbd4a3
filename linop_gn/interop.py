"""To SciPy and from it.

:func:`to_scipy` lets SciPy's solvers use an operator of any framework;
:func:`from_scipy` brings in a SciPy ``LinearOperator``, a sparse matrix, or
anything that has a shape and products (PyLops operators do). Both ways a
product crosses the host: NumPy arrays go in and out of SciPy's side.

Frameworks with a SciPy of their own have products on the device: a backend may
have a method ``operator_of(obj, like, symmetric, psd)`` that returns an operator
for the sparse matrices and linear operators of its library, and None for all
other objects. Those whose framework is imported are asked first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arguments import described
from .dispatch import backend_of, imported
from .operators.base import LinearOperator, run
from .operators.checks import SYMMETRY_TOLERANCE, finite
from .operators.function import FunctionOperator
from .protocols import Array, Vector
from .records import record
from .spaces import Space

__all__ = ["HostOperator", "from_scipy", "sparse_symmetry", "to_scipy"]


def to_scipy(operator: LinearOperator) -> Any:
    """``operator`` as a ``scipy.sparse.linalg.LinearOperator`` on NumPy vectors.

    Vectors (n,) and columns (n, k) of any real dtype are converted to the
    operator's own; products come back as NumPy arrays of that dtype. Entries are in the order of the leaves.

    >>> import numpy as np, linop_gn as lg
    >>> from scipy.sparse.linalg import cg
    >>> A = lg.Diagonal(np.array([1.0, 2.0, 4.0]))
    >>> cg(lg.to_scipy(A), np.ones(3))[0].round(8)
    array([1.  , 0.5 , 0.25])

    Raises
    ------
    TypeError
        At a product with complex vectors.
    """
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    def product(apply: Callable[[LinearOperator, Vector], Vector], space: Space, target: Space) -> Callable[[Any], Any]:
        def on_host(x: Any) -> Any:
            x = np.asarray(x)
            if np.iscomplexobj(x):
                raise TypeError("a real operator was applied to a complex vector; apply it to .real and .imag apart.")
            x = x.reshape(-1) if x.ndim == 1 or x.shape[1] == 1 else x
            v = space.from_order(np.array(x), space.dtype)
            return np.array(target.in_order(run(apply, operator, v)))

        return on_host

    forward = product(LinearOperator.apply, operator.domain, operator.codomain)
    backward = product(LinearOperator.rapply, operator.codomain, operator.domain)
    return ScipyOperator(
        operator.shape,
        matvec=forward,
        rmatvec=backward,
        matmat=lambda x: forward(x).reshape(-1, x.shape[1]),
        rmatmat=lambda x: backward(x).reshape(-1, x.shape[1]),
        dtype=np.asarray(operator.backend.to_numpy(operator.domain.zeros())).dtype,
    )


@record
class HostOperator(FunctionOperator):
    """Products that a NumPy function computes on the host, whatever framework the vectors belong to.

    :func:`from_scipy` makes these; no compiler can trace them.
    """

    @property
    def host(self) -> bool:
        return True

    def matmat(self, v: Vector) -> Vector:
        return self.matvec(v)

    def rmatmat(self, u: Vector) -> Vector:
        return self.rmatvec(u)

    def _run(self, function: Callable[..., Any], v: Vector, source: Space, target: Space) -> Vector:
        if not self.backend.is_concrete(v):
            raise TypeError(
                "a product computed on the host cannot be part of a compiled program; call it outside the jit, "
                "or bring the matrix over as an array (Dense)."
            )
        x = self.backend.to_numpy(v)
        result = np.asarray(function(x))
        wanted = (target.size, *x.shape[1:])
        if result.shape != wanted:
            raise ValueError(f"a product computed on the host has shape {result.shape}; expected {wanted}.")
        if np.iscomplexobj(result):
            raise TypeError(
                "a product computed on the host is complex; operators here are real: lg.complex_operator makes a real "
                "one of it."
            )
        return self.backend.asarray(np.array(result), target.dtype, target.device)


def from_scipy(
    obj: Any, like: Array | None = None, *, symmetric: bool | None = None, psd: bool = False
) -> LinearOperator:
    """An operator from a SciPy ``LinearOperator``, a sparse matrix or array, or an object like these.

    Parameters
    ----------
    obj
        Anything with ``shape`` and either ``@`` or ``matvec``/``rmatvec``.
        SciPy's sparse matrices and PyLops operators are such; for a plain array
        use :class:`~linop_gn.Dense`.
    like
        An array whose framework, dtype and device vectors have; float64 NumPy
        vectors (or float32, as ``obj`` has it) if left out. Products are
        computed on the host, but for objects of a framework's own, whose vectors
        and products stay with it.
    symmetric, psd
        What is known. For a sparse matrix a claim of symmetry is checked, and a
        matrix that equals its transpose is found to be symmetric.

    Raises
    ------
    TypeError
        For an object without a shape or products, or a complex one.
    ValueError
        For a sparse matrix that holds NaN or infinity, or that is not symmetric
        though claimed to be.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sparse, linop_gn as lg
    >>> A = lg.from_scipy(sparse.diags_array([1.0, 2.0, 3.0]))
    >>> A, A @ np.ones(3)
    (HostOperator(3 x 3, symmetric, numpy float64), array([1., 2., 3.]))
    """
    from scipy import sparse

    source: Any = obj
    shape = getattr(obj, "shape", None)
    if isinstance(obj, LinearOperator):
        return obj
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise TypeError(
            f"from_scipy takes a SciPy LinearOperator, a sparse matrix or an object with a shape (m, n) and products; "
            f"got {type(obj).__module__}.{type(obj).__qualname__}."
        )
    m, n = (int(size) for size in shape)
    try:
        dtype = np.dtype(getattr(obj, "dtype", None) or np.float64)
    except TypeError as error:
        kind = type(obj).__module__.partition(".")[0]
        dense = any(backend.is_array(obj) for backend in imported())
        told = f"a dense array of {kind}: write lg.Dense(x)" if dense else described(obj, kind)
        raise TypeError(f"from_scipy takes what has products with NumPy's arrays, and this is {told}.") from error
    if dtype.kind == "c":
        raise TypeError(f"the operator is complex ({dtype}); lg.complex_operator makes a real one of it.")
    if (symmetric or psd) and m != n:
        raise ValueError(f"an operator of shape {(m, n)} cannot be symmetric or positive semi-definite.")
    theirs = _adopted(obj, like, symmetric, psd)
    if theirs is not None:
        return theirs
    if like is None:
        like = np.zeros(0, np.float32 if dtype == np.float32 else np.float64)
    domain, codomain = Space.flat(n, like), Space.flat(m, like)
    if sparse.issparse(obj):
        matrix: Any = sparse.csr_array(source)
        finite(matrix.data, "the sparse matrix")
        forward, backward = matrix.__matmul__, matrix.T.tocsr().__matmul__
        symmetric = sparse_symmetry(matrix, symmetric, psd)
    else:
        forward, backward = _products(obj), _adjoint_products(obj)
    return HostOperator(forward, domain, codomain, backward, symmetric=bool(symmetric), psd=psd)


def _adopted(obj: Any, like: Array | None, symmetric: bool | None, psd: bool) -> LinearOperator | None:
    """What a framework that is imported makes of an object of its own library."""
    for backend in imported():
        owner = backend if like is None else backend_of(like)
        made: LinearOperator | None = backend.operator_of(obj, like if owner is backend else None, symmetric, psd)
        if made is not None and owner is not backend:
            raise TypeError(
                f"a {type(obj).__module__}.{type(obj).__qualname__} has products on {backend.name} arrays, but like= "
                f"belongs to {owner.name}; leave it out, or bring the matrix over first."
            )
        if made is not None:
            return made
    return None


def sparse_symmetry(matrix: Any, symmetric: bool | None, psd: bool) -> bool:
    """Whether a sparse matrix is symmetric; an error if it is claimed to be and isn't."""
    if symmetric is False and not psd:
        return False
    if matrix.shape[0] != matrix.shape[1]:
        return False
    difference = abs(matrix - matrix.T)
    largest = float(difference.max()) if difference.nnz else 0.0
    if not (symmetric or psd):
        return largest == 0.0
    scale = float(abs(matrix).max()) if matrix.nnz else 0.0
    eps = float(np.finfo(matrix.dtype).eps) if matrix.dtype.kind == "f" else 0.0
    if largest > SYMMETRY_TOLERANCE * eps * scale:
        i, j = (int(k) for k in np.unravel_index(int(difference.tocsr().argmax()), matrix.shape))
        raise ValueError(
            f"the sparse matrix is not symmetric: entries {(i, j)} and {(j, i)} differ by {largest:.3g}. "
            "Symmetrise it, (M + M.T) / 2, or leave the claim out."
        )
    return True


def _by_columns(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``product`` of vectors (n,), also for columns (n, k)."""

    def run(x: Any) -> Any:
        if x.ndim == 1:
            return np.asarray(product(x)).reshape(-1)
        return np.stack([np.asarray(product(x[:, j])).reshape(-1) for j in range(x.shape[1])], axis=1)

    return run


def _products(obj: Any) -> Callable[[Any], Any]:
    if callable(getattr(obj, "matvec", None)):
        return _by_columns(obj.matvec)
    if hasattr(obj, "__matmul__"):
        return _by_columns(obj.__matmul__)
    raise TypeError(f"a {type(obj).__qualname__} has neither matvec nor @; wrap your function in FunctionOperator.")


def _adjoint_products(obj: Any) -> Callable[[Any], Any] | None:
    if callable(getattr(obj, "rmatvec", None)):
        return _by_columns(obj.rmatvec)
    transposed = getattr(obj, "T", None)
    return _products(transposed) if transposed is not None else None
