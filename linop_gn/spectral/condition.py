"""The condition number from one Lanczos run: the quotient of the largest and the smallest Ritz value.

Ritz values lie within the spectrum, so that their quotient is a lower bound.
An eigenvalue lies within a known distance of each (a residual's norm); how far
the quotient may be off if these are the extreme eigenvalues is its error. The
smallest one converges late where eigenvalues crowd there; damping bounds it.
Of an operator that is not known to be positive semi-definite A^T A is taken (A A^T
if that is smaller), whose condition number is the square: in double precision up
to about 1e7.
"""

from __future__ import annotations

from typing import Any

from ..arguments import known_float, require_number
from ..distributed.watching import told_to_all
from ..draws import check_seed, normal
from ..foreign import advised
from ..lanczos import answers
from ..lanczos.basis import Krylov
from ..operators.base import LinearOperator, require_operator
from ..operators.damped import shifted
from ..protocols import Scalar
from ..records import replace
from ..run.status import Code, succeeded
from .estimate import squared
from .functions import Approximation, approximation, code_for, grown

__all__ = ["condition_number"]


@told_to_all
@advised
def condition_number(A: LinearOperator, *, steps: int = 50, rtol: Scalar = 0.0, seed: Scalar = 0) -> Approximation:
    """The 2-norm condition number of an operator: of its largest singular value over the smallest one.

    Parameters
    ----------
    A
        Operator, square or not.
    steps
        Lanczos steps, with one product each; two, with A and its adjoint, and one more in all, unless A is
        known to be positive semi-definite.
    rtol
        If positive the run ends once the error is at most rtol times the value.
    seed
        Of the vector that the run starts from.

    Returns
    -------
    Approximation
        ``value``, which is also ``lower``; ``upper`` where A is damped: the largest Ritz value, with its distance, over
        the damping. ``SINGULAR``, with an infinite value, if the smallest Ritz value is zero to rounding.

    >>> import numpy as np, linop_gn as lg
    >>> found = lg.condition_number(lg.Diagonal(np.linspace(1.0, 50.0, 300)), steps=80)
    >>> round(float(found.value), 6)
    50.0

    Raises
    ------
    TypeError, ValueError
        For what is no operator, or steps, rtol or seed that are none.
    """
    require_operator("condition_number", A)
    require_number("condition_number", "rtol", rtol)
    check_seed("condition_number", seed)
    ops, root = A.backend, not A.psd
    inner, shift = shifted(squared(A, seed)[0] if root else A)
    damped = inner.psd and not (ops.is_concrete(shift) and known_float(shift) == 0)

    def told(K: Krylov) -> Approximation:
        xp, (values, bounds), eps = ops.small_namespace(), ops.call(answers.ritz, K), ops.eps(K.state.basis)
        inside = xp.isfinite(values)
        low, high = xp.argmin(xp.where(inside, values, xp.inf)), xp.argmax(xp.where(inside, values, -xp.inf))
        (least, near), (most, far) = ((ops.item(values[i]), ops.item(bounds[i])) for i in (low, high))
        largest = ops.maximum(abs(most), abs(least))
        negative = least < -800.0 * eps * largest  # of what is a square, or known as definite
        least, most = least + shift, most + shift
        singular = least <= 8.0 * eps * most
        quotient = ops.divide(most, least)
        error = quotient * (ops.divide(near, least) + ops.divide(far, most) + 8.0 * eps * quotient)
        if root:
            error, quotient = ops.divide(error, 2.0 * ops.sqrt(quotient)), ops.sqrt(quotient)
        code = code_for(ops, K, error, quotient, rtol, 0)
        code = ops.where(singular & (succeeded(code) | (code == Code.MAX_STEPS)), Code.SINGULAR, code)
        fault = Code.NOT_SYMMETRIC if root else Code.NEGATIVE_CURVATURE
        code = ops.where(negative & (succeeded(code) | (code == Code.SINGULAR)), fault, code)
        good = succeeded(code) | (code == Code.MAX_STEPS)
        value = ops.where(singular & (code == Code.SINGULAR), float("inf"), ops.where(good, quotient, float("nan")))
        error = ops.where(good, error, float("nan"))
        upper: Any = None
        if damped and not root:
            upper = ops.where(good, (most + far) / shift, float("nan"))
        made = approximation("condition_number", K, value, error, code, value, upper)
        return replace(made, products=2 * made.products + 1, psd=False) if root else made

    return grown(inner, normal(inner.domain, seed, 1)[:, 0], steps, rtol, told)
