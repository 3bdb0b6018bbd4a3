r"""Gauss-Newton by an inner optimiser: many steps on models of fresh minibatches, then one search on the true loss.

An outer step at x has N minibatches, the batches of its data. The inner step on minibatch i linearises the model at x
and goes down the gradient, at q, of what the minibatch's loss then is,

    J_i^T (grad L_i + H_i J_i (q - x))           its expansion to the second order: Gauss-Newton
    J_i^T grad L_i(z_i + J_i (q - x))            itself, convex, not quadratic: prox-linear

by an optimiser, whose state and q go on from outer step to outer step; the next run begins where this one ended,
whatever the search made of it. Then x moves along q - x by the length of the lowest true loss among
1, 2^(-1/2), 2^(-1), ..., on data of its own where the acceptance has some. With ``blocks`` each block has its own
model, the others being held at x, all on the same minibatches (layerwise), and there is one search for all.

Abreu, Vyas, Kakade and Morwani, *The Potential of Second-Order Optimization for LLMs* (2025), arXiv 2510.09378. An
outer step is N steps one after the other, and as many passes of evaluation as the search has lengths: N steps of the
inner optimiser on the true loss (``lg.FirstOrder``) are what it is to be compared with.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

from ..arguments import require_instance, require_number
from ..curvature.batches import Batch
from ..curvature.gram import require_no_l2
from ..curvature.pieces import linearised_gradient
from ..distributed.reduction import Reduction
from ..distributed.watching import telling
from ..protocols import Backend, Scalar, Vector
from ..records import Partial, record, replace, static
from ..run.returned import row_type
from ..run.status import Code, alike, verdict
from .averaging import Average, average_of, begin_average, go_on_average
from .base import Method
from .controls import Schedule, level_at
from .first_order import require_schedule
from .optimisers import Adam, Optimiser, groups_of, hashable, require_optimiser, updated
from .problem import MinimizeProblem
from .searches import Grid

__all__ = ["InnerGaussNewton", "InnerState", "Linearised", "ProxLinear"]

_UNEVEN = (
    "one process has fewer minibatches than another, and each inner step takes one of every process: give all of them "
    "equally many; their sizes may differ."
)


class InnerState(NamedTuple):
    """The outer and the inner parameters, and what the inner optimiser keeps."""

    x: Vector
    value: Scalar
    q: Vector
    """Where the inner run ended."""
    kept: Any
    last: tuple[Vector, Scalar]
    """The latest point where gradients were finite, and its value."""
    average: Average | None
    losses: tuple[Scalar, ...]
    """Of the lengths tried, the longest first."""
    length: Scalar
    rate: Scalar
    """Of the latest inner step."""
    status: Scalar
    steps: Scalar
    inner_steps: Scalar
    products: Scalar
    evaluations: Scalar
    refused: Scalar


class _Run(NamedTuple):
    """An inner run: q, what the optimiser keeps, the average, sums of values and weights, the last rate, the count."""

    q: Vector
    kept: Any
    average: Average | None
    value: Scalar
    weight: Scalar
    rate: Scalar
    steps: Scalar


@record
class Linearised(Method):
    """Inner steps on the model linearised at each minibatch, and a search: see :func:`InnerGaussNewton`.

    ``of`` is ``"quadratic"`` (Gauss-Newton) or ``"loss"`` (prox-linear).
    """

    optimiser: Optimiser = Adam()
    rate: Scalar = 1e-3
    schedule: Schedule | None = None
    inner_schedule: Schedule | None = None
    search: Grid | None = Grid()
    average: Scalar | None = None
    inner_average: Scalar | None = None
    of: str = static(default="quadratic")
    blocks: Any = static(default=None)
    warm: bool = static(default=True)
    name: str = static(default="Linearised")

    of_data = ()
    kept_by = ("optimiser", "average", "search")
    supports = frozenset({"acceptance"})

    def __post_init__(self) -> None:
        require_optimiser(self.name, self.optimiser)
        for number, below in (("rate", math.inf), ("average", 1.0), ("inner_average", 1.0)):
            require_number(self.name, number, getattr(self, number), below=below, optional=number != "rate")
        require_schedule(self.name, self.schedule)
        require_schedule(self.name, self.inner_schedule)
        if self.search is not None:
            advice = "None takes the whole way."
            require_instance(f"{self.name}: search", self.search, Grid, "lg.searches.Grid(count=5)", advice)
        if self.of not in ("quadratic", "loss"):
            raise ValueError(f"{self.name}: of must be 'quadratic' or 'loss', got {self.of!r}.")
        object.__setattr__(self, "blocks", hashable(self.blocks))

    @property
    def title(self) -> str:
        return self.name

    @property
    def told_before(self) -> bool:  # type: ignore[override]
        """Without a search the values come with the linearisations."""
        return self.search is None

    columns = ("value", "length", "rate", "inner_steps", "products", "evaluations", "refused")

    def observe(self, state: InnerState) -> NamedTuple:
        names = (*self.columns, *(f"loss_{i}" for i in range(len(state.losses))))
        return row_type("InnerRow", names)(*(getattr(state, name) for name in self.columns), *state.losses)

    def init(self, ops: Backend, problem: MinimizeProblem) -> InnerState:
        if problem.objective.loss is None:
            raise ValueError(
                f"{self.name} linearises the model and not the loss, and this objective is a plain scalar function: "
                "make it with lg.Objective(model, loss, data) or lg.Objective.from_residuals(residuals)."
            )
        require_no_l2(problem.objective, self.name)
        if problem.objective.host and problem.objective.reduce is not None:
            raise ValueError(
                f"{self.name} steps with each minibatch, and processes cannot tell whether their streams hold equally "
                "many: hold them in a list."
            )
        x = ops.copy(problem.start)
        zero, count, value = ops.scalar(0.0, x), ops.scalar(0, x), problem.value_at(x)
        return InnerState(
            x=x,
            value=value,
            q=ops.copy(x),
            kept=self.optimiser.init(ops, problem.space, x),
            last=(ops.copy(x), value + 0.0),
            average=begin_average(ops, self.average, x),
            losses=(zero + math.nan,) * (0 if self.search is None else self.search.count),
            length=zero,
            rate=zero + self.rate,
            status=ops.where(ops.isfinite(value), Code.RUNNING, Code.NONFINITE_INPUT) + count,
            **alike("steps inner_steps products refused", count),
            evaluations=count + 1,
        )

    def renew(self, ops: Backend, problem: MinimizeProblem, state: InnerState) -> InnerState:
        """The state as it is: each step looks at its data itself."""
        return state

    def step(self, ops: Backend, problem: MinimizeProblem, s: InnerState) -> InnerState:
        running = s.status == Code.RUNNING
        made: InnerState = ops.branch(running, partial(self._stepped, ops, problem), lambda s: s, s)
        return made

    def _stepped(self, ops: Backend, problem: MinimizeProblem, s: InnerState) -> InnerState:
        run = self._inner_run(ops, problem, s)
        end = run.q if self.inner_average is None else average_of(ops, run.average, run.q)
        d = ops.axpy(-1.0, s.x, ops.copy(end))
        sound = ops.isfinite(ops.max_abs(d))
        length, value, losses, evaluations = self._searched(ops, problem, s.x, d, run)
        taken, lost = sound & ops.isfinite(value), ops.logical_not(sound)
        x = ops.select(taken, ops.axpy(length, d, ops.copy(s.x)), ops.select(lost, s.last[0], ops.copy(s.x)))
        groups = 1 if self.blocks is None else len(groups_of(problem.space, self.blocks))
        return InnerState(
            x=x,
            value=ops.where(taken, value, ops.where(lost, s.last[1], s.value)),
            q=run.q,
            kept=run.kept,
            last=(ops.select(lost, s.last[0], ops.copy(s.x)), ops.where(lost, s.last[1], s.value)),
            average=go_on_average(ops, self.average, s.average, x),
            losses=losses,
            length=ops.where(taken, length, 0.0 * length),
            rate=run.rate,
            status=verdict(ops, s.status, (lost, Code.NONFINITE)),
            steps=s.steps,
            inner_steps=s.inner_steps + run.steps,
            products=s.products + groups * run.steps,
            evaluations=s.evaluations + evaluations,
            refused=s.refused + ops.where(taken, 0, 1),
        )

    # the inner run

    def _inner_run(self, ops: Backend, problem: MinimizeProblem, s: InnerState) -> _Run:
        terms, zero = problem.objective, 0.0 * s.rate
        q = ops.copy(s.q if self.warm else s.x)
        kept = s.kept if self.warm else self.optimiser.init(ops, problem.space, s.x)
        average = begin_average(ops, self.inner_average, s.x)
        run = _Run(q, kept, average, zero, zero, s.rate, ops.scalar(0, s.x))
        if terms.reduce is not None:
            terms.reduce.require_same(ops, s.x, len(terms.batches), _UNEVEN)
        for term in terms.streamed(problem.space, s.x) if terms.host else terms.in_memory(problem.space):
            if term.batch.stacked:
                _, leaves, _ = ops.flatten((term.batch.inputs, term.batch.targets, term.batch.weights))
                run = ops.repeat(leaves[0].shape[0], partial(self._of_slice, ops, term, s), run)
            else:
                with telling(terms.reduce):
                    run = self._inner_step(ops, term, s, run, terms.reduce)
        return run

    def _of_slice(self, ops: Backend, term: Any, s: InnerState, i: Scalar, run: _Run) -> _Run:
        """The inner step on one minibatch of a stack."""
        b = term.batch
        _, leaves, structure = ops.flatten((b.inputs, b.targets, b.weights))
        batch = Batch(*ops.unflatten(structure, [leaf[i, ...] for leaf in leaves]))
        return self._inner_step(ops, replace(term, batch=batch), s, run)

    def _inner_step(
        self, ops: Backend, term: Any, s: InnerState, run: _Run, reduction: Reduction | None = None
    ) -> _Run:
        space, piece = term.space, term.linearize(s.x)
        blocks = None if self.blocks is None else tuple(b.leaves for b in groups_of(space, self.blocks))
        v = ops.axpy(-1.0, s.x, ops.copy(run.q))
        g, sums = piece.apply(Partial(linearised_gradient, blocks, self.of == "loss"), v), [piece.weight, piece.value]
        if reduction is not None:
            g, *sums = reduction.sum(ops, [g, *sums])
        weight, total = map(ops.item, sums)
        if term.loss.reduction == "mean":
            g = ops.scale(ops.divide(1.0, weight), g)
        rate = self.rate + 0.0 * run.rate
        if self.schedule is not None:
            rate = level_at(self.schedule, ops, s.inner_steps + run.steps, rate)
        if self.inner_schedule is not None:
            rate = level_at(self.inner_schedule, ops, run.steps, rate)
        d, kept = updated(self.optimiser, ops, space, g, run.kept, run.q, rate)
        q = ops.axpy(1.0, d, run.q)
        average = go_on_average(ops, self.inner_average, run.average, q)
        value = run.value + total
        return _Run(q, kept, average, value, run.weight + weight, rate, run.steps + 1)

    # the search

    def _searched(
        self, ops: Backend, problem: MinimizeProblem, x: Vector, d: Vector, run: _Run
    ) -> tuple[Scalar, Scalar, tuple[Scalar, ...], Any]:
        """The length, the value there or (on data for one step, unsearched) at x, all values, and how many."""
        one, grid = 0.0 * run.rate + 1.0, self.search
        if grid is None:
            loss = problem.objective.loss
            assert loss is not None
            if problem.once:
                return one, run.value if loss.reduction == "sum" else ops.divide(run.value, run.weight), (), 0
            return one, problem.value_at(ops.axpy(1.0, d, ops.copy(x))), (), 1

        def trial(i: Scalar, s: Any) -> Any:
            length, best, lowest, losses = s
            value = problem.value_at(ops.axpy(length, d, ops.copy(x)))
            better = value < lowest
            losses = ops.write(losses, i, value)
            return grid.shrink * length, ops.where(better, length, best), ops.where(better, value, lowest), losses

        bound = problem.value_at(x) if grid.decrease else 0.0 * one + math.inf
        begun = one, one, bound, ops.table(grid.count, one)
        _, length, value, table = ops.repeat(grid.count, trial, begun)
        value = ops.where(value < bound, value, math.inf + 0.0 * value)
        losses = tuple(ops.lookup(table, i) for i in range(grid.count))
        return length, value, losses, grid.count + (1 if grid.decrease else 0)


def InnerGaussNewton(optimiser: Optimiser | None = None, rate: Scalar = 1e-3, **parts: Any) -> Linearised:
    """Gauss-Newton on a stream of minibatches by an inner optimiser, and a search on the true loss.

    Parameters
    ----------
    optimiser
        Of ``lg.optimisers``, or of optax or torch by their adapters; ``Adam()`` by default. Muon on matrices
        is what was published.
    rate
        Its rate.
    schedule
        How that goes on with the inner steps, counted over all outer steps; ``lg.controls.Cosine(steps=1000)``.
    inner_schedule
        The same with the inner steps of each outer step, ``lg.controls.Cosine(steps=N)``; of what ``schedule`` says.
    search
        ``lg.searches.Grid``: the lengths; None takes the whole way.
    blocks
        ``"layer"``, ``"leaf"``, or what ``lg.optimisers.Groups`` takes: a model for each block, the others held.
    warm
        Whether q and what the optimiser keeps go on from the last inner run; else each begins anew, at x.
    inner_average
        beta of an average over the inner steps, to which the direction then leads, instead of to the last of them.
    average
        beta of an average of x over the outer steps, which :func:`linop_gn.averaged` tells and no step looks at.

    The data of a step are a list of N minibatches, ``lg.minimize(objective, params, method, batches=[[b1, b2], ...])``,
    and ``lg.StepData([...], acceptance=[...])`` has others for the search. Where all have one shape, JAX runs them in
    their order in one loop; others after these. A minibatch's loss is divided by its own weight.

    The history has ``value``, on the data of the acceptance (without a search and on a stream: before the step, on the
    step's own), ``length``, ``rate``, ``inner_steps`` (each linearises a minibatch), ``products`` (J v and J^T u, for
    each block), ``evaluations`` (passes through the data of the acceptance), ``refused``, and the values of all lengths
    tried, ``loss_0``, ``loss_1``, ...

    Where the inner run ends beyond all numbers the run ends as ``NONFINITE``, at the latest x whose gradients were
    numbers.

    >>> import numpy as np, linop_gn as lg
    >>> x, w = np.random.default_rng(0).standard_normal((8, 10, 3)), np.array([1.0, 2.0, 3.0])
    >>> minibatches = [(part, part @ w) for part in x]
    >>> fit = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), minibatches, jacobian=lambda p, x: x)
    >>> run = lg.minimize(fit, np.zeros(3), lg.InnerGaussNewton(lg.optimisers.SGD(0.5), 0.3), max_steps=8)
    >>> run.params.round(2), int(run.history["inner_steps"][-1])
    (array([1., 2., 3.]), 64)
    """
    return Linearised(Adam() if optimiser is None else optimiser, rate, **{"name": "InnerGaussNewton", **parts})


def ProxLinear(optimiser: Optimiser | None = None, rate: Scalar = 1e-3, **parts: Any) -> Linearised:
    """:func:`InnerGaussNewton` with the loss itself of the linearised model, in place of its quadratic expansion.

    >>> import numpy as np, linop_gn as lg
    >>> x = np.random.default_rng(0).standard_normal((4, 10, 3))
    >>> minibatches = [(part, part[:, 0] > 0) for part in x]
    >>> loss = lg.losses.BinaryCrossEntropy()
    >>> fit = lg.Objective(lambda p, x: x @ p, loss, minibatches, jacobian=lambda p, x: x)
    >>> run = lg.minimize(fit, np.zeros(3), lg.ProxLinear(lg.optimisers.Adam(), 0.3), max_steps=10)
    >>> bool(run.value < 0.2)
    True
    """
    return Linearised(Adam() if optimiser is None else optimiser, rate, of="loss", **{"name": "ProxLinear", **parts})
