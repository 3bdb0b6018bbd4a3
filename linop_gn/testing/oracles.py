"""Dense float64 NumPy answers, worked out without the code that they check.

A matrix is read off an operator by products with unit vectors, one at a time;
derivatives come from central differences, h = eps^(1/3) |x| (error near 1e-10
of the function's scale), or, for functions that take complex numbers, from the
complex step of Squire and Trapp (1998), Im f(x + i h) / h, exact to rounding
because nothing is subtracted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..operators.base import LinearOperator

__all__ = [
    "complex_step_jacobian",
    "conjugate_gradient_errors",
    "dense",
    "finite_difference_gradient",
    "finite_difference_hessian",
    "finite_difference_jacobian",
    "relative_error",
]

NDArray = np.ndarray[Any, Any]


def dense(operator: LinearOperator) -> NDArray:
    """The matrix (m, n) of ``operator`` in float64, a column a product.

    >>> import linop_gn as lg
    >>> dense(lg.Damped(lg.Diagonal(np.array([1.0, 2.0])), 0.5))
    array([[1.5, 0. ],
           [0. , 2.5]])
    """
    space, backend = operator.domain, operator.backend
    columns = np.empty(operator.shape)
    for j in range(space.size):
        unit = np.zeros(space.size)
        unit[j] = 1.0
        result = operator @ backend.asarray(unit, space.dtype, space.device)
        whole = result if backend.is_array(result) else operator.codomain.pack(result)
        columns[:, j] = backend.to_numpy(whole).reshape(-1)
    return columns


def relative_error(value: Any, expected: Any) -> float:
    """max |value - expected| over max |expected|; 0 for two zeros, NaN if there is one in ``value``.

    >>> relative_error(np.array([1.0, 2.2]), np.array([1.0, 2.0])).__round__(3)
    0.1
    """
    value, expected = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if value.shape != expected.shape:
        raise ValueError(f"shapes differ: {value.shape} and {expected.shape}.")
    if value.size == 0:
        return 0.0
    difference, scale = float(np.abs(value - expected).max()), float(np.abs(expected).max())
    return difference / scale if scale > 0 else difference


def _steps(x: NDArray) -> NDArray:
    scale = np.where(x == 0, 1.0, np.abs(x))
    h: NDArray = np.cbrt(np.finfo(np.float64).eps) * scale
    return (x + h) - x  # what the sum really adds


def finite_difference_jacobian(function: Callable[[NDArray], NDArray], x: NDArray) -> NDArray:
    """The Jacobian (m, n) of a NumPy function of (n,) by central differences.

    >>> finite_difference_jacobian(lambda x: np.array([x[0] * x[1], x[1] ** 2]), np.array([2.0, 3.0])).round(6)
    array([[3., 2.],
           [0., 6.]])
    """
    x = np.asarray(x, dtype=np.float64)
    columns = []
    for j, h in enumerate(_steps(x)):
        forward, backward = x.copy(), x.copy()
        forward[j] += h
        backward[j] -= h
        difference = np.asarray(function(forward), dtype=np.float64) - np.asarray(function(backward), dtype=np.float64)
        columns.append(difference.reshape(-1) / (forward[j] - backward[j]))
    return np.stack(columns, axis=1)


def finite_difference_gradient(function: Callable[[NDArray], Any], x: NDArray) -> NDArray:
    """The gradient (n,) of a scalar NumPy function by central differences.

    >>> finite_difference_gradient(lambda x: x[0] * x[1] ** 2, np.array([2.0, 3.0])).round(6)
    array([ 9., 12.])
    """
    gradient: NDArray = finite_difference_jacobian(lambda z: np.asarray(function(z)).reshape(1), x)[0]
    return gradient


def finite_difference_hessian(gradient: Callable[[NDArray], NDArray], x: NDArray) -> NDArray:
    """The Hessian (n, n) by central differences of a gradient, symmetrised.

    >>> finite_difference_hessian(lambda x: np.array([2 * x[0] + x[1], x[0]]), np.array([1.0, 1.0])).round(6)
    array([[2., 1.],
           [1., 0.]])
    """
    jacobian = finite_difference_jacobian(gradient, x)
    return (jacobian + jacobian.T) / 2


def complex_step_jacobian(function: Callable[[NDArray], NDArray], x: NDArray) -> NDArray:
    """The Jacobian (m, n), to rounding, of a NumPy function that is analytic (no ``abs``, no comparison).

    >>> complex_step_jacobian(lambda x: np.array([np.exp(x[0]) * x[1]]), np.array([0.0, 3.0]))
    array([[3., 1.]])
    """
    x = np.asarray(x, dtype=np.float64)
    columns = []
    for j in range(x.size):
        z = x.astype(np.complex128)
        z[j] += 1e-100j
        columns.append(np.asarray(function(z)).reshape(-1).imag / 1e-100)
    return np.stack(columns, axis=1)


def conjugate_gradient_errors(matrix: NDArray, rhs: NDArray, steps: int) -> list[float]:
    """Energy norms of the error of exact-arithmetic CG from zero after 0, 1, ... ``steps`` steps.

    Each iterate minimises the energy over a Krylov space, found here by a least
    squares solution over an orthonormal basis of it: no recurrence is shared
    with any implementation of CG.

    >>> conjugate_gradient_errors(np.diag([1.0, 4.0]), np.array([1.0, 2.0]), 2)[-1] < 1e-12
    True
    """
    matrix, rhs = np.asarray(matrix, dtype=np.float64), np.asarray(rhs, dtype=np.float64)
    root = np.linalg.cholesky(matrix).T
    solution = np.linalg.solve(matrix, rhs)
    target = root @ solution
    basis: list[NDArray] = []
    errors = [float(np.linalg.norm(target))]
    direction = rhs
    for _ in range(steps):
        for _ in range(2):
            for q in basis:
                direction = direction - (q @ direction) * q
        norm = float(np.linalg.norm(direction))
        if norm > 1e-13 * float(np.linalg.norm(rhs)) * max(1.0, float(np.linalg.norm(matrix, 2))):
            basis.append(direction / norm)
        columns = np.stack(basis, axis=1)
        coefficients = np.linalg.lstsq(root @ columns, target, rcond=None)[0]
        errors.append(float(np.linalg.norm(root @ (columns @ coefficients) - target)))
        direction = matrix @ basis[-1]
    return errors
