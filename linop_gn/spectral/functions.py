"""Functions of a symmetric operator at one vector: b.A^-1 b between bounds, and f(A) b, from one Lanczos run.

After k steps from b, with A Q = Q T up to its last column and b = ||b|| q_0,

    f(A) b  is nearly  ||b|| Q f(T) e_1,        b.A^-1 b  nearly  ||b||^2 e_1.T^-1 e_1 .

The second is a Gauss rule, which is too small for 1/x; a Gauss-Radau rule with a
node below the spectrum is too large (Golub and Meurant, 2010). Such a number is
known where A is damped. The error of f(A) b is not bounded but guessed: three
times what the last quarter of the steps has changed, which is what is left over
if it falls as 1 / k, and what eigenvalues moved by rounding would change. Of a
damped operator the undamped is multiplied by, and the damping added to
eigenvalues, which keeps the digits of small ones.
``scipy.linalg.funm`` and ``expm_multiply`` need a matrix, or are for exp alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arguments import known_float, require_number, whole
from ..distributed.watching import told_to_all
from ..foreign import advised
from ..lanczos import answers
from ..lanczos.basis import Krylov, krylov
from ..lanczos.tridiagonal import filled, spectrum
from ..operators.base import LinearOperator
from ..operators.damped import shifted
from ..protocols import Array, Backend, Scalar
from ..records import Partial, record
from ..run.solution import brief
from ..run.status import Code, Status, succeeded, verdict
from .estimate import MISFITS, Estimate, EstimatorRow, check_operator, require_symmetric

__all__ = ["Approximation", "approximation", "code_for", "grown", "inverse_quadratic", "matrix_function"]

FIRST = 10
"""Steps before the first look at a tolerance; their number is doubled from look to look."""


@record
class Approximation(Estimate):
    """What one Lanczos run approximates: no probes are drawn; ``standard_error`` is a bound of the error, or a guess.

    ``lower`` and ``upper`` are bounds, None where there is none.
    """

    lower: Any = None
    upper: Any = None

    @property
    def sentence(self) -> str:
        """What happened, and what to do about it."""
        status: Status = self.status
        misfits = status is Status.NOT_SYMMETRIC and not self.psd
        said = MISFITS if misfits else _SENTENCES.get(status, status.sentence)
        return f"{said} {_AT_LEAST.format(brief(self.standard_error))}" if self._is_least else said

    @property
    def _is_least(self) -> bool:
        """Whether the value is a lower bound, and nobody knows an upper one."""
        one_sided = self.what == "condition_number" and self.upper is None
        return one_sided and self.status in (Status.COMPLETED, Status.CONVERGED, Status.MAX_STEPS)

    def _shown(self) -> str:
        return f"at least {brief(self.value)}" if self._is_least else super()._shown()

    def _headline(self) -> str:
        between = "" if self.upper is None else f" (between {brief(self.lower)} and {brief(self.upper)})"
        told = f"{self.what} {self._shown()}{between}"
        return f"{told}; {self.method}, {int(np.sum(self.products))} products, {self.status.name.lower()}"


_AT_LEAST = (
    "The value is a lower bound; it is right to {} if the extreme eigenvalues are near the Ritz values at the ends, "
    "and nothing bounds it from above (damping would)."
)
_SENTENCES = {
    Status.CONVERGED: "The error is at most rtol times the value.",
    Status.COMPLETED: "All steps asked for were done; the error says what they were worth.",
    Status.INVARIANT: "The Krylov space has become invariant under the operator: the value is exact, to rounding.",
    Status.MAX_STEPS: "The steps were used up before the error met rtol: take more (steps=), or a larger rtol.",
    Status.NONFINITE: (
        "The function is not finite at an eigenvalue, or a product was not finite. Add damping, or check the operator."
    ),
    Status.SINGULAR: "The operator is singular to working precision: add damping.",
}


@told_to_all
@advised
def inverse_quadratic(
    A: LinearOperator, b: Any, *, steps: int = 50, lowest: Scalar | None = None, rtol: Scalar = 0.0
) -> Approximation:
    """b.A^-1 b of a positive definite operator, from at most ``steps`` products, between bounds.

    Parameters
    ----------
    A
        Symmetric operator.
    b
        A vector of its domain: tree or flat.
    lowest
        A positive number that is not above any eigenvalue of A; by default the damping, where the undamped operator is
        known to be positive semi-definite. Without it there is a lower bound only, which is the value then.
    rtol
        If positive the run ends once the error is at most rtol times the value.

    Returns
    -------
    Approximation
        ``value``, the middle of ``lower`` and ``upper``; ``standard_error``, half of what lies between, or a guess
        where there is no upper bound.

    >>> import numpy as np, linop_gn as lg
    >>> A, b = lg.Damped(lg.Diagonal(np.linspace(0.0, 9.0, 500)), 0.5), np.ones(500)
    >>> found = lg.inverse_quadratic(A, b, steps=12)
    >>> bool(found.lower < np.sum(1 / (A.operator.values + 0.5)) < found.upper)
    True

    Raises
    ------
    TypeError, ValueError
        For an operator that is not known to be symmetric, columns, or a vector that does not fit.
    """
    inner, shift = _undamped("inverse_quadratic", A, rtol)
    require_number("inverse_quadratic", "lowest", lowest, positive=True, optional=True)
    ops = A.backend
    bounded = lowest is not None or (inner.psd and not (ops.is_concrete(shift) and known_float(shift) == 0))
    end = shift if lowest is None else lowest

    def told(K: Krylov) -> Approximation:
        xp, s, eps = ops.small_namespace(), K.state, ops.eps(K.state.basis)
        highest = ops.item(xp.max(xp.abs(s.alphas) + 2.0 * xp.abs(s.betas))) * s.ascale

        def integral(rule: tuple[Array, Array]) -> tuple[Scalar, Scalar, Scalar]:
            nodes, weights = rule
            used = weights > 0
            values = xp.where(used, nodes + shift, 1.0)
            safe = xp.where(values > 0, values, 1.0)
            lost = 8.0 * eps * highest * xp.sum(xp.where(used, weights / safe / safe, 0.0))
            return ops.item(xp.sum(xp.where(used, weights / safe, 0.0))), ops.item(lost), ops.item(xp.min(values))

        lower, lost, least = integral(ops.call(answers.rule, K))
        if bounded:
            upper = ops.maximum(integral(ops.call(answers.rule, K, ops.small(end - shift, s.basis)))[0], lower)
            value, error = 0.5 * (lower + upper), 0.5 * (upper - lower) + lost
        else:
            values, vectors, inside = ops.call(Partial(decomposed, True), K)
            early = vectors[0, :] ** 2 * (s.norm * s.scale) ** 2
            change = lower - integral((values, xp.where(inside, early, 0.0)))[0]
            value, error = lower, ops.where(s.status == Code.INVARIANT, 0.0, 3.0 * abs(change)) + lost
        wrong = (least <= -8.0 * eps * highest) & (s.steps > 0)
        singular = (least <= 8.0 * eps * highest) & (end == 0) & (s.steps > 0)
        code = code_for(ops, K, error, abs(value), rtol, steps)
        code = verdict(ops, code, (wrong, Code.NEGATIVE_CURVATURE), (singular, Code.SINGULAR))
        good = succeeded(code) | (code == Code.MAX_STEPS)
        value, error, lower = (ops.where(good, x, float("nan")) for x in (value, error, lower - lost))
        bounds = (lower, ops.where(good, upper + lost, float("nan")) if bounded else None)
        return approximation("inverse_quadratic", K, value, error, code, *bounds)

    return grown(inner, b, steps, rtol, told)


NAMED: dict[str, Callable[[Any, Array], Array]] = {
    "exp": lambda xp, x: xp.exp(x),
    "log": lambda xp, x: xp.log(x),
    "sqrt": lambda xp, x: xp.sqrt(x),
    "inverse": lambda xp, x: 1.0 / x,
    "inverse_root": lambda xp, x: 1.0 / xp.sqrt(x),
}


@told_to_all
@advised
def matrix_function(
    A: LinearOperator, b: Any, function: str | Callable[[Array], Array], *, steps: int = 50, rtol: Scalar = 0.0
) -> Approximation:
    """f(A) b of a symmetric operator, from at most ``steps`` products, in the format of b.

    Parameters
    ----------
    A
        Symmetric operator.
    b
        A vector of its domain: tree or flat.
    function
        ``"exp"``, ``"log"``, ``"sqrt"``, ``"inverse"``, ``"inverse_root"``, or a function of an array of eigenvalues:
        NumPy's, in JAX one of ``jax.numpy``.
    steps
        Lanczos steps; as many vectors are kept.
    rtol
        If positive the run ends once the error is at most rtol times the value, in 2-norms.

    Returns
    -------
    Approximation
        ``value``, and ``standard_error``, a guess at the 2-norm of its error.

    >>> import numpy as np, linop_gn as lg
    >>> A, b = lg.Diagonal(np.linspace(1.0, 4.0, 200)), np.ones(200)
    >>> root = lg.matrix_function(A, b, "inverse_root", steps=15)
    >>> bool(np.linalg.norm(root.value - b / np.sqrt(A.values)) < 1e-6)
    True

    Raises
    ------
    TypeError, ValueError
        For an operator that is not known to be symmetric, columns, a vector that does not fit, or an unknown name.
    """
    inner, shift = _undamped("matrix_function", A, rtol)
    if isinstance(function, str) and function not in NAMED:
        raise ValueError(f"matrix_function: function must be one of {', '.join(map(repr, NAMED))}, or callable.")
    if not callable(function) and not isinstance(function, str):
        raise TypeError(f"matrix_function: function must be a name or callable, got {function!r}.")
    ops = A.backend

    def applied(values: Array) -> Array:
        xp = ops.small_namespace()
        values = (xp.maximum(values, 0.0) if inner.psd else values) + shift
        return NAMED[function](xp, values) if isinstance(function, str) else function(values)

    def told(K: Krylov) -> Approximation:
        xp, s = ops.small_namespace(), K.state
        noise = 8.0 * ops.eps(s.basis) * ops.item(xp.max(xp.abs(s.alphas) + 2.0 * xp.abs(s.betas))) * s.ascale

        def coefficients(early: bool, moved: Scalar = 0.0) -> tuple[Array, Scalar]:
            values, vectors, inside = ops.call(Partial(decomposed, early), K)
            values = xp.where(inside, values, values[0])
            made = xp.where(inside, applied(values + moved), 0.0)
            return vectors @ (made * vectors[0, :]), ops.item(xp.min(values))

        whole, least = coefficients(False)
        lost = coefficients(False, noise)[0] - whole  # what rounding of eigenvalues may do
        part = filled(xp, coefficients(True)[0][:, None], whole.shape[0])[:, 0]
        size = s.norm * s.scale
        finite = xp.all(xp.isfinite(whole))
        whole = xp.where(size > 0, xp.where(finite, whole, 0.0), 0.0)
        parts = (whole, xp.where(finite, part, 0.0) - whole, lost)
        norm, change, lost = (ops.where(size > 0, ops.item(xp.sqrt(xp.sum(c * c))) * size, 0.0) for c in parts)
        error = ops.where(s.status == Code.INVARIANT, 0.0, 3.0 * change) + lost
        code = code_for(ops, K, error, norm, rtol, steps)
        if inner.psd:
            code = ops.where((least < -100.0 * noise) & (size > 0), Code.NEGATIVE_CURVATURE, code)
        code = ops.where((ops.item(xp.where(finite, 1.0, 0.0)) > 0) | (size == 0), code, Code.NONFINITE)
        x = ops.call(answers.combined, K, whole[:, None] * size)[0][:, 0]
        good = succeeded(code) | (code == Code.MAX_STEPS)
        x = ops.select(good, x, x + float("nan"))
        error = ops.where(good, error, float("nan"))
        return approximation("matrix_function", K, K.space.unpack(x) if K.as_tree else x, error, code)

    return grown(inner, b, steps, rtol, told)


def decomposed(early: bool, space: Krylov) -> tuple[Array, Array, Array]:
    """T's eigenvalues in user's units, its eigenvectors, and which count; without the last quarter of its rows."""
    ops, s = space.operator.backend, space.state
    count = ops.maximum(s.first, 1)
    count = count - count // 4 if early else count
    S = spectrum(ops, (s.alphas, s.betas), count)
    return S.values * s.ascale, S.vectors, ops.small_namespace().arange(S.values.shape[0]) < count


def _undamped(door: str, A: LinearOperator, rtol: Scalar) -> tuple[LinearOperator, Scalar]:
    check_operator(door, A)
    require_number(door, "rtol", rtol)
    require_symmetric(door, A)
    return shifted(A)


def grown(
    A: LinearOperator, b: Any, steps: int, rtol: Scalar, told: Callable[[Krylov], Approximation]
) -> Approximation:
    """What is told of a Krylov space that grows until the tolerance is met, or of one of ``steps`` vectors."""
    steps = whole("krylov", "steps", steps, 1)
    asked = isinstance(rtol, (int, float)) and rtol > 0
    K = krylov(A, b, min(FIRST, steps) if asked else steps)
    with np.errstate(all="ignore"):  # the status tells
        found = told(K)
        while asked and A.backend.is_concrete(found.code) and K.status is Status.COMPLETED and K.steps < steps:
            if found.code != Code.MAX_STEPS:
                break
            K = K.extend(min(int(K.steps), steps - int(K.steps)))
            found = told(K)
    return found


def code_for(ops: Backend, K: Krylov, error: Scalar, size: Scalar, rtol: Scalar, steps: int) -> Scalar:
    """The status of an approximation with this error."""
    code = K.state.status
    ended = (code != Code.COMPLETED) & (code != Code.RUNNING)
    short = ops.where(rtol > 0, ops.where(error <= rtol * size, Code.CONVERGED, Code.MAX_STEPS), Code.COMPLETED)
    return ops.where(ended, code, short)


def approximation(
    what: str, K: Krylov, value: Any, error: Scalar, code: Scalar, lower: Any = None, upper: Any = None
) -> Approximation:
    """The record of what is told of a Krylov space."""
    return Approximation(
        code=code,
        steps=K.state.steps,
        products=K.state.products,
        rows=np.zeros((0, 2)),
        names=EstimatorRow._fields,
        method="Lanczos",
        value=value,
        standard_error=error,
        samples=1,
        what=what,
        lower=lower,
        upper=upper,
    )
