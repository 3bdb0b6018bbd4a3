"""When an iteration that decreases a quadratic model has done enough.

A rule is a record with two pure functions::

    begin(ops, start, limit) -> memory        before the first step; any tree of scalars, tables, None
    look(ops, memory, now) -> (code, memory)  after every step

where ``start`` and ``now`` are :class:`Progress`. The code is a status:
``RUNNING`` to go on, ``SATISFIED`` (or another of :class:`~linop_gn.Status`) to
stop. ``CONVERGED`` is a claim about the residual: the method then recomputes
b - A x and looks again, so that it stays a fact; a rule may therefore be asked
twice at the same step. Numbers are the backend's scalars, one for each column
or block: a rule writes no ``if`` on them (``ops.where``), and works on columns,
on blocks and inside compiled programs unchanged.

======================= ======================================================
:class:`RelativeResidual` ||r||_2 <= max(rtol ||b||_2, atol), as in SciPy
:class:`MaxResidual`      max |r_i| <= atol
:class:`RelativeProgress` the quadratic model has levelled off (Martens, 2010)
:class:`AnyOf`            whichever of several rules is met first
======================= ======================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from ..arguments import whole
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.returned import require_code, require_pair
from ..run.status import Code
from .options import check_tolerances

__all__ = ["AnyOf", "MaxResidual", "Progress", "RelativeProgress", "RelativeResidual", "StopRule"]


LONGEST = 100_000
"""Steps that :class:`RelativeProgress` looks back over, at most."""


class Progress(NamedTuple):
    """Where a run is: numbers are in units of ``scale`` (the model's: its square), a power of two near b's entries."""

    step: Scalar
    norm: Scalar
    """2-norm of the residual b - A x."""
    model: Scalar
    """1/2 x^T A x - b^T x."""
    residual: Vector
    """b - A x itself; read it, never write to it."""
    scale: Scalar


class StopRule(Protocol):
    """What a method asks of a rule. Records (:func:`linop_gn.record`) keep numbers data in compiled programs.

    >>> import numpy as np, linop_gn as lg
    >>> @lg.record
    ... class EnoughDecrease:
    ...     least: float = 0.1
    ...     def begin(self, ops, start, limit):
    ...         return None
    ...     def look(self, ops, memory, now):
    ...         enough = -now.model * now.scale * now.scale >= self.least
    ...         return ops.where(enough, int(lg.Status.SATISFIED), int(lg.Status.RUNNING)), memory
    >>> A = lg.Diagonal(np.array([1.0, 10.0, 100.0]))
    >>> lg.solve(A, np.ones(3), lg.CG(stop=EnoughDecrease(0.02)))
    CG: satisfied after 1 steps, 1 products; residual ...
    The stopping rule was satisfied; the residual was not held to a tolerance.
    """

    def begin(self, ops: Backend, start: Progress, limit: int) -> Any:
        """What the rule remembers before step 0 is looked at; ``limit`` is the most steps there can be."""
        ...

    def look(self, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
        """The status code at this step, and what the rule remembers from now on (the same structure and shapes)."""
        ...


@record
class RelativeResidual:
    """Converged when ||b - A x||_2 <= max(rtol ||b||_2, atol); both are data."""

    rtol: Scalar = 1e-5
    atol: Scalar = 0.0

    def __post_init__(self) -> None:
        check_tolerances(self, "rtol", "atol")

    def begin(self, ops: Backend, start: Progress, limit: int) -> Any:
        wanted = ops.maximum(self.rtol * start.norm, ops.divide(self.atol, start.scale))
        # What is smaller is no residual of x: it is time to recompute it, before squares are out of range.
        return ops.maximum(wanted, ops.eps(start.residual) ** 2 * start.norm)

    def look(self, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
        return ops.where(now.norm <= memory, Code.CONVERGED, Code.RUNNING), memory


@record
class MaxResidual:
    """Converged when max |b - A x| <= atol (SGN, Gargiani et al., 2020: 1e-6). Costs a pass over r at each step.

    >>> import numpy as np, linop_gn as lg
    >>> A, b = lg.Diagonal(np.array([1.0, 10.0])), np.ones(2)
    >>> solution = lg.solve(A, b, lg.CG(stop=lg.MaxResidual(1e-6)))
    >>> solution.status.name, bool(np.abs(b - A @ solution.x).max() <= 1e-6)
    ('CONVERGED', True)
    """

    atol: Scalar = 1e-6

    def __post_init__(self) -> None:
        check_tolerances(self, "atol")

    def begin(self, ops: Backend, start: Progress, limit: int) -> Any:
        return ops.divide(self.atol, start.scale)

    def look(self, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
        return ops.where(ops.max_abs(now.residual) <= memory, Code.CONVERGED, Code.RUNNING), memory


@record
class RelativeProgress:
    """Levelled off: the model phi decreased, over the last k steps, by less than k eps of its size.

    With k = max(least, ceil(i / every)), stop at step i when::

        i > k,    phi(x_i) < 0,    (phi(x_i) - phi(x_(i-k))) / phi(x_i) < k eps

    Martens, Deep learning via Hessian-free optimization (2010), whose values are
    the defaults. The threshold is k eps, not eps. The values of phi come with the
    steps: no product. The run is a success, ``LEVELLED_OFF``; nothing is claimed
    of the residual.

    >>> import numpy as np, linop_gn as lg
    >>> A = lg.Diagonal(np.linspace(1.0, 1e4, 300))
    >>> lg.solve(A, np.ones(300), lg.CG(stop=lg.RelativeProgress())).status.name
    'LEVELLED_OFF'
    """

    eps: Scalar = 5e-4
    least: int = static(default=10)
    every: int = static(default=10)

    def __post_init__(self) -> None:
        check_tolerances(self, "eps")
        for name in ("least", "every"):
            object.__setattr__(self, name, whole("RelativeProgress", name, getattr(self, name), 1))

    def window(self, ops: Backend, step: Scalar) -> Scalar:
        """k at this step."""
        return ops.maximum(self.least, ops.minimum((step + (self.every - 1)) // self.every, LONGEST))

    def begin(self, ops: Backend, start: Progress, limit: int) -> Any:
        return ops.table(1 + max(self.least, min(-(-limit // self.every), LONGEST)), start.model)

    def look(self, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
        size = memory.shape[0]
        k = self.window(ops, now.step)
        memory = ops.write(memory, now.step % size, now.model)
        before = ops.lookup(memory, ops.maximum(now.step - k, 0) % size)
        flat = (now.step > k) & (now.model < 0) & (before - now.model < -k * self.eps * now.model)
        return ops.where(flat, Code.LEVELLED_OFF, Code.RUNNING), memory


@record
class AnyOf:
    """Whichever of the rules is met first; at the same step, the one that stands first.

    >>> import numpy as np, linop_gn as lg
    >>> rule = lg.AnyOf(lg.RelativeResidual(1e-8), lg.RelativeProgress())
    >>> lg.solve(lg.Diagonal(np.array([1.0, 10.0])), np.ones(2), lg.CG(stop=rule)).status.name
    'CONVERGED'
    """

    rules: tuple[StopRule, ...]

    def __init__(self, *rules: Any) -> None:
        if not rules:
            raise ValueError("AnyOf: give at least one rule.")
        for rule in rules:
            require_rule(rule, "AnyOf")
        object.__setattr__(self, "rules", tuple(rules))

    def begin(self, ops: Backend, start: Progress, limit: int) -> Any:
        return tuple(rule.begin(ops, start, limit) for rule in self.rules)

    def look(self, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
        code: Scalar = ops.scalar(Code.RUNNING, now.residual)
        states = []
        for rule, own in zip(self.rules, memory, strict=True):
            found, own = look_of(rule, ops, own, now)
            code = ops.where(code == Code.RUNNING, found, code)
            states.append(own)
        return code, tuple(states)


def look_of(rule: Any, ops: Backend, memory: Any, now: Progress) -> tuple[Scalar, Any]:
    """What a rule's ``look`` returns, looked at: a code, or one for each column, and what the rule remembers."""
    code, memory = require_pair(rule, "look", rule.look(ops, memory, now), "(code, memory)")
    return require_code(rule, "look", code), memory


def require_rule(given: Any, method: str) -> None:
    """Raise unless ``given`` is a rule.

    Raises
    ------
    TypeError
        Saying what a rule is.
    """
    if isinstance(given, type) or not (hasattr(given, "begin") and hasattr(given, "look")):
        what = f"the class {given.__qualname__}" if isinstance(given, type) else f"a {type(given).__qualname__}"
        raise TypeError(
            f"{method}: a stopping rule is {what}; give lg.RelativeResidual(), lg.MaxResidual(), "
            "lg.RelativeProgress(), lg.AnyOf(...), or a record of your own with begin(ops, start, limit) and "
            "look(ops, memory, now)."
        )
