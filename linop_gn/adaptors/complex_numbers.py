r"""Complex numbers as pairs of real ones.

Vectors, derivatives and solvers here are real. C^n is R^2n: z = u + iv is the pair (u, v), with the inner product
Re(w^H z) and the norm of z. In it

    A z   is   [Re A  -Im A] [u]        A^H   is the transpose,        Hermitian   is   symmetric,
               [Im A   Re A] [v]

and a Hermitian positive definite A is a symmetric positive definite matrix, with each eigenvalue twice. CG, MINRES,
LSMR and LSQR have real coefficients on complex systems too, so that their iterates are those of the complex methods.
The derivative of a function of complex numbers is that of the pairs: whether it is holomorphic does not matter, and
1/2 sum |r|^2 is least squares of the pairs of r.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..dispatch import backend_of, namespace, owner_of
from ..interop import HostOperator
from ..operators.base import LinearOperator
from ..operators.checks import SYMMETRY_TOLERANCE
from ..operators.function import FunctionOperator
from ..protocols import Array, Tree
from ..records import Partial
from ..spaces import Space

__all__ = ["as_complex", "as_real", "complex_operator"]


class Complex(NamedTuple):
    """A complex array as two real ones."""

    re: Array
    im: Array


def as_real(x: Any, *, stacked: bool = False, jacobian: bool = False) -> Any:
    """A tree with a pair ``(re, im)`` for each complex array; of a function, the same function of such trees.

    Parameters
    ----------
    x
        A tree (dict, list, tuple) of arrays, whose real ones stay as they are. Or a function, which is then called with
        complex arrays for pairs, and whose complex result of shape (...) comes back as one real array (..., 2): a
        model, residuals, a scalar function.
    stacked
        Whether a tree has one real array (..., 2) for each complex one, rather than a pair: as outputs have, for
        targets.
    jacobian
        Of a function: it is the derivative dr/dz of residuals r that are holomorphic in the complex parameters, a
        complex tree like these with the shape of r in front of each leaf; the function of pairs is the ``jac=`` of
        ``as_real(r)``.

    Raises
    ------
    TypeError
        For a module or a container of a framework's own, whose parameters are to be taken as a dict first.

    >>> import numpy as np, linop_gn as lg
    >>> z = {"z": np.array([1 + 2j, 3.0]), "x": np.ones(2)}
    >>> lg.as_real(z)["z"]
    Complex(re=array([1., 3.]), im=array([2., 0.]))
    >>> lg.as_complex(lg.as_real(z))["z"]
    array([1.+2.j, 3.+0.j])
    >>> y = np.array([2j, 3 + 4j])
    >>> fit = lg.least_squares(lg.as_real(lambda z: z**2 - y), lg.as_real(np.array([2 + 1j, 1 + 1j])))
    >>> lg.as_complex(fit.x).round(6)
    array([1.+1.j, 2.+1.j])
    """
    if callable(x) and owner_of(x) is None and not _is_tree(x):
        if hasattr(x, "parameters") or isinstance(x, LinearOperator):
            raise TypeError(
                f"as_real takes trees of arrays and plain functions, got a {type(x).__qualname__}: write a function of "
                "its parameters, as a dict of arrays. Complex operators become real by lg.complex_operator."
            )
        return Partial(_slopes if jacobian else _on_pairs, x)
    return _mapped(x, stacked)


def as_complex(x: Any) -> Any:
    """The inverse of :func:`as_real`: a complex array for each pair; all else as it is.

    >>> import numpy as np, linop_gn as lg
    >>> lg.as_complex([lg.as_real(np.array([1j])), np.ones(1)])
    [array([0.+1.j]), array([1.])]
    """
    if isinstance(x, Complex):
        z = x.re + 1j * x.im
        return np.asarray(z) if isinstance(z, np.generic) else z
    return _within(x, as_complex) if _is_tree(x) else x


def _is_tree(x: Any) -> bool:
    return isinstance(x, (dict, list, tuple))


def _within(x: Any, function: Callable[[Any], Any]) -> Any:
    """The container with ``function`` of what is in it."""
    if isinstance(x, dict):
        return type(x)((name, function(value)) for name, value in x.items())
    made = [function(value) for value in x]
    return type(x)(*made) if hasattr(x, "_fields") else type(x)(made)


def _mapped(x: Any, stacked: bool) -> Any:
    if isinstance(x, (list, tuple)) and x and all(isinstance(value, (int, float, complex)) for value in x):
        x = np.asarray(x)
    if _is_tree(x):
        return _within(x, lambda value: _mapped(value, stacked))
    x = np.asarray(x) if isinstance(x, (complex, np.complexfloating)) else x
    if x is None or isinstance(x, (bool, int, float, np.generic)):
        return x
    if not hasattr(x, "dtype"):
        raise TypeError(
            f"as_real takes dicts, lists and tuples of arrays, and there is a {type(x).__module__}."
            f"{type(x).__qualname__}: take its arrays out into a dict first."
        )
    if "complex" not in str(x.dtype):
        return x
    xp = namespace(x)
    re, im = xp.real(x), xp.imag(x)
    return xp.stack([re, im], axis=-1) if stacked else Complex(re, im)


def _on_pairs(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return as_real(function(*as_complex(args), **as_complex(kwargs)), stacked=True)


def _slopes(jac: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    return _in_pairs(x, jac(as_complex(x), *as_complex(args), **as_complex(kwargs)))


def _in_pairs(x: Any, J: Any) -> Any:
    """dr/du = J and dr/dv = iJ for z = u + iv, each as pairs of r: (..., 2, *shape of z)."""
    if _is_tree(x) and not isinstance(x, Complex):
        if isinstance(x, dict):
            return type(x)((name, _in_pairs(value, J[name])) for name, value in x.items())
        made = [_in_pairs(*both) for both in zip(x, J, strict=True)]
        return type(x)(*made) if hasattr(x, "_fields") else type(x)(made)
    xp, leaf = namespace(J), x.re if isinstance(x, Complex) else x
    re, im = (xp.real(J), xp.imag(J)) if "complex" in str(J.dtype) else (J, xp.zeros_like(J))
    axis = len(J.shape) - len(leaf.shape)
    along = xp.stack([re, im], axis=axis)
    return Complex(along, xp.stack([-im, re], axis=axis)) if isinstance(x, Complex) else along


def complex_operator(
    A: Any,
    like: Tree = None,
    *,
    adjoint: Callable[..., Tree] | None = None,
    codomain: Tree = None,
    hermitian: bool | None = None,
    psd: bool = False,
    args: tuple[Any, ...] = (),
) -> LinearOperator:
    """A complex operator as a real one on pairs ``(re, im)``: Hermitian is symmetric, the adjoint the transpose.

    Parameters
    ----------
    A
        A complex matrix (m, n) of any framework; a complex ``scipy.sparse`` array or ``LinearOperator``; or a function
        of complex trees, ``A(z, *args)``.
    like
        Of a function: a complex tree like its vectors. Of what SciPy has: an array of the framework, dtype and device
        that re and im are to have.
    adjoint, codomain, args
        Of a function: the product with A^H; a complex tree like its results, where these are no vectors of the domain;
        arrays that both functions are given after the vector, which are data.
    hermitian
        Whether A = A^H. A claim is checked for matrices; left out, a matrix that equals its adjoint is found to be.
    psd
        Whether it is Hermitian positive semi-definite.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.complex_operator(np.array([[2.0, 1j], [-1j, 2.0]]), psd=True)
    >>> x = lg.as_complex(lg.solve(A, lg.as_real(np.array([1.0, 1j])), lg.CG(rtol=1e-12)).x)
    >>> x.round(6), A
    (array([1.+0.j, 0.+1.j]), FunctionOperator(4 x 4, psd, numpy float64))

    Raises
    ------
    TypeError, ValueError
        For what is no operator, a matrix that is not Hermitian though claimed to be, and products that do not fit.
    """
    known: Any = {"symmetric": bool(hermitian or psd), "psd": psd}
    if callable(A) and not hasattr(A, "shape"):
        if like is None:
            raise TypeError("complex_operator: of a function, like= is a complex tree like the vectors that it takes.")
        domain = Space.of(as_real(like), "vector")
        target = domain if codomain is None else Space.of(as_real(codomain), "result")
        across = None if adjoint is None else Partial(_tree_product, adjoint)
        return FunctionOperator(Partial(_tree_product, A), domain, target, across, args=args, on="tree", **known)
    if len(getattr(A, "shape", ())) != 2:
        raise TypeError(
            "complex_operator takes a matrix (m, n), what SciPy has for one, or a function, got a "
            f"{type(A).__qualname__}" + (f" of shape {tuple(A.shape)}." if hasattr(A, "shape") else ".")
        )
    if adjoint is not None or codomain is not None or args:
        raise TypeError("complex_operator: adjoint=, codomain= and args= are for functions; a matrix has its own.")
    if hasattr(A, "tocsr") or hasattr(A, "matvec"):
        return _of_scipy(A, like, hermitian, psd)
    ops = backend_of(A)
    if ops.is_concrete(A):
        known["symmetric"] = _is_hermitian(np.asarray(ops.to_numpy(A)), hermitian, psd)
    xp = ops.namespace()
    A = A if "complex" in str(A.dtype) else A + 0j
    domain, target = (Space.of(as_real(xp.conj(A[0, :]))), Space.of(as_real(xp.conj(A[:, 0]))))
    return FunctionOperator(_product, domain, target, _adjoint_product, args=(A,), on="tree", **known)


def _tree_product(function: Callable[..., Tree], v: Tree, *args: Any) -> Tree:
    return as_real(function(as_complex(v), *args))


def _product(v: Complex, A: Array) -> Any:
    return as_real(A @ as_complex(v))


def _adjoint_product(u: Complex, A: Array) -> Any:
    xp = namespace(A)
    return as_real(xp.conj(xp.conj(as_complex(u)) @ A))


def _is_hermitian(A: Any, claimed: bool | None, psd: bool) -> bool:
    """Whether a matrix, dense or sparse, is; an error if it is claimed to be and isn't."""
    m, n = A.shape
    if m != n or (claimed is False and not psd):
        if claimed or psd:
            raise ValueError(f"complex_operator: a matrix of shape {(m, n)} is not Hermitian.")
        return False
    difference, size = float(abs(A - A.conj().T).max()), float(abs(A).max())
    if not (claimed or psd):
        return difference == 0.0
    if not difference <= SYMMETRY_TOLERANCE * float(np.finfo(A.dtype).eps) * size:
        raise ValueError(
            f"complex_operator: the matrix is not Hermitian, by {difference:.3g}. Take (A + A.conj().T) / 2, or leave "
            "the claim out."
        )
    return True


def _of_scipy(A: Any, like: Any, hermitian: bool | None, psd: bool) -> LinearOperator:
    m, n = A.shape
    like = np.zeros(0) if like is None else like

    def pairs(size: int) -> Space:
        zero = Space.flat(size, like).zeros()
        return Space.of(Complex(zero, zero), "vector")

    def on_pairs(product: Callable[[Any], Any], size: int) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            y = np.asarray(product(x[:size] + 1j * x[size:]))
            return np.concatenate([y.real, y.imag])

        return run

    if hasattr(A, "tocsr"):
        A = A.tocsr()
        hermitian = _is_hermitian(A, hermitian, psd)
        forward, backward = A.__matmul__, A.conj().T.tocsr().__matmul__
    else:
        forward, backward = A.dot, A.H.dot
    alike: Any = {"symmetric": bool(hermitian or psd), "psd": psd}
    return HostOperator(on_pairs(forward, n), pairs(n), pairs(m), on_pairs(backward, m), **alike)
