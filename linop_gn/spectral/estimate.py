"""What estimators have in common: blocks of probes, a run on the one driver, and the record that comes out.

An estimator is an iteration: each step draws a block of probes, multiplies it
by the operator as columns (n, b), and says what the value and its standard error
are now. So a run can be watched, stopped by its error bar or by a budget, and
compiled. Blocks are all of one size, a divisor of the number of probes: up to 8
where somebody looks, larger ones otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..arguments import require_number
from ..dispatch import backend_of
from ..distributed.agreed import require_alike
from ..distributed.watching import together
from ..draws import check_seed, normal
from ..operators.base import LinearOperator, require_operator, run
from ..protocols import Array, Backend, Carry, Scalar, Vector
from ..records import record, static
from ..run.loop import Reached, Watcher, drive, watchers_of
from ..run.solution import Outcome, brief
from ..run.status import Code, Status, verdict
from ..solvers.options import scale_of
from ..spaces import wide

__all__ = [
    "LEAST",
    "MISFITS",
    "Estimate",
    "Estimator",
    "Probed",
    "block_of",
    "check_numbers",
    "check_operator",
    "estimated",
    "exactly",
    "gathered",
    "is_looked_at",
    "scaled",
]

LEAST = 10
"""Probes before an error bar may end a run: of fewer it is too uncertain itself."""
LOOKED_AT, UNWATCHED = 8, 64
"""Columns of a block, at most, where somebody looks between blocks, and where nobody does."""


@record
class Estimate(Outcome):
    """A number that was estimated from products, and how far it may be from the true one.

    Attributes
    ----------
    value
        The estimate; NaN if no product was finite.
    standard_error
        Of the value, from the scatter of the probes: 0 if it is exact, infinite of a single probe. Of fewer than ten it
        scatters itself: intervals are those of Student's t.
    samples
        Probes; of an exact value, unit vectors.
    exact
        Whether the value is exact, to rounding.
    products, status, history
        As of a solution: ``CONVERGED`` if the standard error is at most max(rtol |value|, atol), ``MAX_STEPS`` if the
        products did not suffice for that, ``COMPLETED`` where no tolerance was given.
    """

    value: Any = None
    standard_error: Any = None
    samples: Scalar = None
    exact: bool = static(default=False)
    what: str = static(default="trace")
    psd: bool = static(default=True)
    """Whether the operator is known to be positive semi-definite."""
    remark: str = static(default="")
    """What is to be said of a value besides."""

    @property
    def sentence(self) -> str:
        """What happened, and what to do about it."""
        status: Status = self.status
        if self.exact and (status.succeeded or not int(self.products)):
            factored, known = _FACTORED.get(self.method), self.method.removeprefix("known ")
            if status is Status.NONFINITE:
                return f"No product was taken: what the operator knows itself ({known}) is out of range. Scale it."
            if status.succeeded:
                free = f"Exact: the operator knows its {known} without a product."
                return factored or (_EXACTLY if int(self.products) else free)
        if status is Status.NEGATIVE_CURVATURE and not self.psd:
            return _INDEFINITE
        said = [_SENTENCES.get(status, status.sentence)]
        if status in _WITH_VALUE and not self.exact:
            few = 1 < int(self.samples) < LEAST
            said += [_FEW] * few + [_ONE] * (int(self.samples) == 1) + [self.remark] * bool(self.remark)
        return " ".join(said)

    def _headline(self) -> str:
        counts = f"{int(self.products)} products with {int(self.samples)} probes"
        if self.exact:
            counts = f"{int(self.products)} products"
        return f"{self.what} {self._shown()}; {self.method}, {counts}, {self.status.name.lower()}"

    def _shown(self) -> str:
        value, error = shown(self.value), shown(self.standard_error)
        return value if self.exact else f"{value} +- {error}"

    def _sentences(self) -> list[str]:
        return [self.sentence]


def shown(value: Any) -> str:
    """A number, the first entries of an array of any framework, or how many leaves a tree has."""
    if isinstance(value, (int, float, np.number)):
        return brief(value)
    backend = backend_of(value)
    _, leaves, _ = backend.flatten(value)
    return brief(backend.to_numpy(leaves[0])) if len(leaves) == 1 else f"a tree of {len(leaves)} leaves"


_EXACTLY = "Exact: the products cover the whole space, a unit vector for each."
_FACTORED = {
    "rows of the Jacobian": "Exact: from the rows of the Jacobian, a product with its adjoint for each output.",
    "layers of the model": "Exact: from the layers of the model, a pass backward for each number of an example.",
}
_FEW = "From fewer than ten probes that error is uncertain itself: take more, or intervals of Student's t."
_ONE = "From one probe nobody knows that error: take ten or more."
_INDEFINITE = (
    "The products say that the operator is not positive definite: its determinant has no logarithm that is real. Add "
    "damping; log |det A| is half the logdet of A.T @ A."
)
_WITH_VALUE = (Status.CONVERGED, Status.COMPLETED, Status.MAX_STEPS, Status.STOPPED)
_SENTENCES = {
    Status.CONVERGED: "The standard error is at most rtol times the value, or atol.",
    Status.COMPLETED: "All products asked for were done; the standard error says what they were worth.",
    Status.MAX_STEPS: (
        "The products were used up before the standard error met the tolerance: give more of them (products=), or a "
        "larger rtol; of a value near zero, an atol."
    ),
    Status.NONFINITE: (
        "A product was not finite; the value is that of the blocks before, NaN if there were none. Check the operator "
        "at this point, or scale it."
    ),
    Status.NEGATIVE_CURVATURE: (
        "The operator is known to be or was declared positive semi-definite, and its products say that it is not: "
        "don't rely on the value. Take method='xtrace' for a trace, 'xdiag' for a diagonal, which need no "
        "definiteness; for a determinant add damping."
    ),
    Status.SINGULAR: "The operator is singular to working precision, and its determinant zero: add damping.",
}


MISFITS = (
    "The products with A and with its adjoint don't fit each other: the adjoint is another operator's, or products are "
    "not linear, or right to fewer digits than their dtype has (lg.validate measures how far)."
)
"""Of squares of operators that nobody declared symmetric."""
_NO_DERIVATIVE = (
    "an estimate has no derivative. Differentiate a sum of z.A z in your own program instead, for fixed probes z such "
    "as those of A.domain.random(seed)."
)


@record
class Probed:
    """The operator, prepared, the seed of its probes, and the tolerances: data."""

    operator: LinearOperator
    seed: Scalar
    rtol: Scalar
    like: Vector
    """A vector (1,) of the operator's dtype: that of the scalars."""
    shift: Scalar = 0.0
    """What is added to the operator's eigenvalues."""
    lowest: Scalar = 0.0
    """What none of these sums is below, where such a number is known."""
    atol: Scalar = 0.0

    @property
    def host(self) -> bool:
        """Whether products draw data from the host."""
        return self.operator.host

    def multiply(self, V: Array) -> Array:
        """A V for columns (n, b), as a new array."""
        return self.operator.matmat(self.operator.backend.cast(V, self.operator.dtype))


class EstimatorState(NamedTuple):
    """Where an estimate stands, in units of ``scale``."""

    value: Any
    error: Any
    scale: Scalar
    """A power of two near the largest entry of the first block's products."""
    samples: Scalar
    status: Scalar
    steps: Scalar
    products: Scalar
    held: Any
    """What the estimator keeps of its probes."""
    row: Any
    """Value and error as the history has them."""


class EstimatorRow(NamedTuple):
    """The value, and its standard error; 2-norms where these are vectors."""

    value: Scalar
    standard_error: Scalar


class Estimator:
    """The loop's side of an estimator; subclasses are records with ``start`` and ``absorb``."""

    samples: int
    block: int
    """Probes of a step."""
    title: ClassVar[str]
    each: ClassVar[int] = 1
    """Products that a probe takes."""
    before: int = 0
    """Products that ``start`` takes."""

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        return self.samples // self.block

    def start(self, ops: Backend, problem: Probed) -> tuple[Any, Scalar]:
        """What is held before the first probe, and the scale: 0.0 if it is to be that of the first block."""
        raise NotImplementedError

    def absorb(self, ops: Backend, problem: Probed, s: EstimatorState) -> tuple[Any, Any, Any, Scalar, Scalar]:
        """(value, error, held, scale, fault) with one block more; the fault is a status code, or ``RUNNING``."""
        raise NotImplementedError

    def unknown(self, ops: Backend, problem: Probed) -> Any:
        """A value that is not known yet."""
        return ops.scalar(math.nan, problem.like)

    def size(self, ops: Backend, value: Any) -> Scalar:
        """The number that the history has for a value or an error."""
        return value

    def times(self, ops: Backend, scale: Scalar, value: Any) -> Any:
        """A value or an error in the user's units."""
        return value * scale

    def spent(self, before: Any, held: Any) -> Scalar:
        """Products of a step, of what was held before it and after."""
        return self.each * self.block

    def init(self, ops: Backend, problem: Probed) -> EstimatorState:
        """Nothing known yet."""
        none = ops.scalar(0, problem.like)
        held, scale = self.start(ops, problem)
        value, error = self.unknown(ops, problem), self.unknown(ops, problem)
        row = EstimatorRow(self.size(ops, value), self.size(ops, error))
        return EstimatorState(value, error, scale, none, Code.RUNNING + none, none, none + self.before, held, row)

    def step(self, ops: Backend, problem: Probed, s: EstimatorState) -> EstimatorState:
        """One block more."""
        value, error, held, scale, fault = self.absorb(ops, problem, s)
        samples, size = s.samples + self.block, self.size(ops, error)
        finite = ops.isfinite(self.size(ops, value))
        sound = finite & (fault == Code.RUNNING)
        asked = (problem.rtol > 0) | (problem.atol > 0)
        small = (size <= problem.rtol * abs(self.size(ops, value))) | (size * scale <= problem.atol)
        enough = asked & (samples >= LEAST) & small
        status = verdict(
            ops,
            ops.where(samples >= self.samples, ops.where(asked, Code.MAX_STEPS, Code.COMPLETED), Code.RUNNING),
            (ops.logical_not(finite), Code.NONFINITE),
            (fault != Code.RUNNING, fault),
            (enough, Code.CONVERGED),
        )
        value = ops.select(sound, self.times(ops, scale, value), s.value)
        error = ops.select(sound, self.times(ops, scale, error), s.error)
        return EstimatorState(
            value=value,
            error=error,
            scale=scale,
            samples=samples,
            status=status,
            steps=s.steps + 1,
            products=s.products + self.spent(s.held, held),
            held=held,
            row=EstimatorRow(self.size(ops, value), self.size(ops, error)),
        )

    def observe(self, state: EstimatorState) -> EstimatorRow:
        """Value and standard error."""
        row: EstimatorRow = state.row
        return row

    def answer(self, ops: Backend, problem: Probed, state: EstimatorState) -> Any:
        """The value."""
        return state.value


# parts of estimators


def block_of(count: int, looked_at: bool, most: int = UNWATCHED) -> int:
    """The largest divisor of a count up to ``most``; up to 8 if somebody looks between blocks."""
    most = min(LOOKED_AT if looked_at else most, count)
    return next(size for size in range(most, 0, -1) if count % size == 0)


def scaled(ops: Backend, scale: Scalar, Y: Array) -> tuple[Array, Scalar]:
    """Y / scale, in single precision at least, and the scale: that of Y if there is none (0). Consumes Y."""
    xp = ops.small_namespace()
    Y = ops.cast(Y, wide(ops.describe(Y)[1]))
    scale = ops.where(scale > 0, scale, ops.power_of_two(ops.item(xp.max(ops.max_abs(Y))), Y))
    return ops.scale(ops.divide(1.0, scale), Y), scale


def squared(A: LinearOperator, seed: Scalar) -> tuple[LinearOperator, Scalar]:
    """B^T B or B B^T of B = A / scale, the smaller one, and the scale, by one product: A's own square may overflow."""
    ops = A.backend
    with np.errstate(all="ignore"):
        w = run(LinearOperator.apply, A, normal(A.domain, seed, 1)[:, 0])
        scale = scale_of(ops, w)
        B = A * ops.divide(1.0, scale)
    return (B @ B.T if A.codomain.size < A.domain.size else B.T @ B), scale


def gathered(
    ops: Backend, count: Scalar, mean: Scalar, squares: Scalar, values: Array
) -> tuple[Scalar, Scalar, Scalar]:
    """Mean and squared deviations of ``count`` values and these; the standard error of the mean.

    Chan, Golub and LeVeque (1983).
    """
    xp, more = ops.small_namespace(), values.shape[0]
    here, total = ops.item(xp.mean(values)), 1.0 * (count + more)
    gap = here - mean
    squares = squares + ops.item(xp.sum((values - here) ** 2)) + gap * gap * (count * more / total)
    return mean + gap * (more / total), squares, error_of(ops, squares, total)


def error_of(ops: Backend, squares: Scalar, count: Scalar) -> Scalar:
    """The standard error of a mean, of the squared deviations; infinite for a single value."""
    return ops.where(count > 1, ops.sqrt(ops.divide(squares, count * (count - 1.0))), math.inf)


# the door's side


def is_looked_at(watch: Sequence[Watcher], *tolerances: Scalar) -> bool:
    """Whether somebody looks between blocks: a watcher, or a tolerance."""
    return bool(watch) or not all(isinstance(given, (int, float)) and given == 0 for given in tolerances)


def check_operator(door: str, A: Any) -> None:
    """Raise unless A is a square linear operator."""
    require_operator(door, A)
    if not A.domain.agrees(A.codomain):
        raise ValueError(
            f"{door} needs a square operator, got {A!r}; of a rectangular one there are singular values, lg.svds(A), "
            "lg.frobenius_norm(A) and the operators A.T @ A and A @ A.T."
        )


def check_numbers(door: str, rtol: Scalar, atol: Scalar, seed: Scalar) -> None:
    """Raise unless the tolerances and the seed, as far as they are known, are some."""
    require_number(door, "rtol", rtol)
    require_number(door, "atol", atol)
    check_seed(door, seed)


def require_symmetric(door: str, A: LinearOperator, otherwise: str = "") -> None:
    """Raise unless A is known to be symmetric; the advice ends with what there is otherwise."""
    if not A.symmetric:
        raise ValueError(
            f"{door} needs a symmetric operator, and {A!r} is not known to be. Declare it (symmetric=True; of "
            "lg.complex_operator hermitian=True) if it is" + (f"; {otherwise}." if otherwise else ".")
        )


def estimated(
    door: str,
    A: LinearOperator,
    estimator: Any,
    rtol: Scalar,
    atol: Scalar,
    seed: Scalar,
    watch: Sequence[Watcher],
    every: int,
    exact: bool = False,
    shift: Scalar = 0.0,
    lowest: Scalar = 0.0,
    remark: str = "",
) -> Estimate:
    """What the estimator finds out about A."""
    backend = A.backend
    like = A.domain.backend.asarray(np.zeros(1), A.dtype, A.domain.device)

    def told(carry: Carry) -> Estimate:
        state, rows = carry
        return Estimate(
            code=state.status,
            steps=state.steps,
            products=state.products,
            rows=rows if not isinstance(rows, list) else backend.rows(carry, 0, len(rows)),
            names=EstimatorRow._fields,
            method=estimator.title,
            value=state.value,
            standard_error=state.error,
            samples=state.samples,
            exact=exact,
            what=door,
            psd=A.psd,
            remark=remark,
        )

    require_alike(A.reduction, door, A.domain, (A, estimator, rtol, atol, seed, shift, lowest))
    with backend.unguarded(), np.errstate(all="ignore"):  # the status tells
        problem: Probed = backend.constant(Probed(A.prepare(), seed, rtol, like, shift, lowest, atol), _NO_DERIVATIVE)
        with Reached(told, "error.result has the estimate so far."):
            shown = together(A.reduction, backend, problem.like, watchers_of(watch))
            carry = drive(backend, estimator, problem, estimator.steps, shown, every, estimator.title)
        return told(carry)


def exactly(
    door: str,
    value: Any,
    error: Any,
    products: Any = 0,
    method: str = "known diagonal",
    code: Any = Code.COMPLETED,
    psd: bool = True,
) -> Estimate:
    """A value that no probe was needed for."""
    return Estimate(
        code=code,
        steps=0,
        products=products,
        rows=np.zeros((0, 2)),
        names=EstimatorRow._fields,
        method=method,
        value=value,
        standard_error=error,
        samples=products,
        exact=True,
        what=door,
        psd=psd,
    )
