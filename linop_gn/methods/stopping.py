"""What ends a run is a fact about the point, free of scale.

The undamped model's promise m = -(g.d + 1/2 d.G d) is compared with the value, and each entry of d with that of the
parameters. Neither says anything where damping or radius is what makes d small (damping d.d > d.G d); where the inner
solve failed or left too much; or where the same model promises more along D^2 g, D the magnitudes of the parameters:
one product, at the end, that sees what the choice of units hides.

Of up to 32 parameters a success is confirmed by all of G, n products, divided by its diagonal on both sides:

* What 1/2 g.G^-1 g promises must be little too: beside the fifth digit of the value, or twice what the trial promised.
  No eigenvalue counts for less than a round-off of the largest: of a gradient in what this precision takes for G's null
  space, that much is promised at least.
* Where rounding x moves the value beyond its fifth digit, (eps sum |x_j| G_jj^1/2)^2, nobody knows how near a minimum
  is: ``STAGNATED``, unless that is all that is left of the value.
* Along a part of x in G's null space, to rounding, with the parameters whose effect, |x_j| G_jj^1/2, is less than 1e-6
  of the value's root, the value is asked at 97 % and 103 % of it, where a parabola through these has its minimum, at
  none of it and at -3 times as much. If it stays at the first two and changes without it, or stays at one of them and
  is lower far away, x lies on a plateau, as of what is saturated, which ends as ``DIVERGING``; if it falls near x, this
  is no minimum, although G knows of no way from here: ``STAGNATED``.
* Where no parameter has any effect, G = 0 to rounding, and the value is not zero, everything is saturated:
  ``DIVERGING``.

Of more parameters CG takes at most 40 steps to what the undamped model promises, which must be as little, and as many
to the part of x that G knows of: along the rest of x the value is asked in the same way. What rounding x changes is
estimated by one product with x of random signs.

A gradient of zero is looked at so as well, unless the value is zero too.

Where the curvature is not known to be positive semi-definite, and the descent did not look at all of it, the success is
``UNEXPLORED``; an eigenvalue below zero is told, ``NEGATIVE_CURVATURE``: of up to 32 parameters any, of more where 40
steps of Lanczos from a random direction meet one. With high probability they meet what lies below about -1 % of the
spread; that they meet none is no proof, and the success stays ``UNEXPLORED``.

A step that is long and promises rounding is not taken, since along null directions rounding leads anywhere: the run
ends where it is. A row of refused trials ends a run as low as this precision allows where all that was promised in them
is rounding; otherwise it is a fault to be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..arguments import require_number
from ..draws import normal, signs
from ..protocols import Backend, Scalar, Vector
from ..records import record
from ..run.status import Code, is_one_of, verdict
from ..solvers.cg import CG
from ..solvers.problem import LinearProblem
from ..solvers.served import Inner, inner_solve
from ..spaces import wide
from .descents.base import Model, Noise, Trial

__all__ = ["LOST", "Facts", "Judged", "along", "and_lost"]

_FEW = 32
"""Parameters for which a product each is spent before a run is called a success."""
_LOOKS = 40
"""Steps of CG for what is promised of more, and for a plateau; products for curvature below zero."""
LOST = 1e-6
"""A parameter whose effect on the residuals, relative to these, is less than that has lost it."""
_NEAR = 0.03
_ENDS = [Code.DECREASE_SMALL, Code.STEP_SMALL, Code.AT_PRECISION, Code.UNEXPLORED]


class Judged(NamedTuple):
    """A step, once it is judged."""

    model: Model
    """At the point that it was made from."""
    trial: Trial
    start: Vector
    """Where the run began."""
    noise: Noise
    hidden: Scalar
    """What the model promises where nobody has looked; see :meth:`Facts.hidden`."""
    flat: Scalar
    """Whether the trial is long and promises nothing; see :meth:`Facts.flat`."""
    square: Scalar
    """d.d."""
    bent: Scalar
    """d.G d."""
    running: Scalar
    refused: Scalar
    doubt: Scalar
    """The largest decrease that was promised by a refused trial since a step was taken."""
    stuck: Scalar
    """Whether the next trial would be this one again."""
    first: Scalar
    """The gradient norm at the start."""
    gradient_norm: Scalar
    """Now."""
    value: Scalar
    """Now."""


@record
class Facts:
    """The tests of a run whose data stay the same.

    Parameters
    ----------
    rtol, atol
        The gradient's 2-norm is at most rtol times its norm at the start, or atol.
    ftol
        The undamped model promises at most ftol |value|; None: 4 round-offs.
    xtol
        Each entry of d is at most xtol times that of x, or of the start where that is larger; None: 4 round-offs.
    """

    rtol: Scalar = 0.0
    atol: Scalar = 0.0
    ftol: Scalar | None = None
    xtol: Scalar | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "ftol", "xtol"):
            require_number("Facts", name, getattr(self, name), optional=name in ("ftol", "xtol"))

    def begun(self, ops: Backend, model: Model) -> tuple[tuple[Scalar, Any], ...]:
        """Conditions and codes at the start."""
        return ((self._vanishes(model, model), Code.GRADIENT_SMALL),) if model.operator.psd else ()

    def _vanishes(self, model: Model, now: Any) -> Scalar:
        """Whether the gradient is at most atol, or zero where the value is too; others of zero are looked at first."""
        asked = (now.gradient_norm <= self.atol) & (self.atol > 0)
        return asked | (now.gradient_norm == 0) & (now.value == 0) if model.operator.psd else asked

    def hidden(
        self, ops: Backend, model: Model, trial: Trial, start: Vector, noise: Noise, running: Scalar
    ) -> tuple[Scalar, Scalar]:
        """What the model promises along the gradient in units of the parameters, and the products taken.

        Asked where the trial is short, or what it promises is near nothing.
        """
        near = trial.predicted <= ops.maximum(self.few(ops, model), noise.value)
        lost = (trial.status == Code.NONFINITE) & ops.logical_not(trial.predicted > 0)
        near = running & (near | lost | self._short(ops, model, trial, start)[1])

        def along_gradient(units: Vector) -> tuple[Scalar, Scalar]:
            xp = ops.namespace()
            largest = xp.max(units)
            units = xp.where(units > 0, units, xp.where(largest > 0, largest, xp.ones_like(largest)))
            v = units * units * model.gradient
            slope, curve = ops.dot(model.gradient, v), ops.dot(v, model.operator.apply(v))
            t = ops.divide(1.0, ops.max_abs(v / units))
            along = ops.where(slope > 0, t * (slope - 0.5 * t * curve), 0.0)  # as far as the parameters are large
            return ops.where(curve > 0, slope * 0.5 * ops.divide(slope, curve), along), 1

        return ops.branch(near, along_gradient, lambda units: (0.0 * noise.value, 0), _units(ops, model, start))

    def flat(
        self, ops: Backend, model: Model, trial: Trial, start: Vector, noise: Noise, hidden: Scalar
    ) -> tuple[Scalar, Scalar]:
        """Whether a trial that is no short step promises rounding, and whether x is about where the run began.

        Such a step is not taken: along a null direction of the curvature rounding would lead anywhere.
        """
        promised, nothing = trial.predicted, noise.value
        length, reach, first = (ops.sqrt(ops.dot(v, v)) for v in (trial.direction, model.x, start))
        near = reach <= 10.0 * ops.where(first > 0, first, 1.0)
        seen = (trial.free | is_one_of(trial.status, [Code.BOUNDARY, Code.INVARIANT])) & (hidden <= 0.01 * nothing)
        size = ops.maximum(reach, first)
        far = length >= 0.1 * ops.where(size > 0, size, 1.0)
        return seen & far & (promised >= 0) & (promised <= nothing), near

    def few(self, ops: Backend, model: Model) -> Scalar:
        """What is too little to go on for."""
        return (4.0 * ops.eps(model.x) if self.ftol is None else self.ftol) * ops.maximum(model.value, -model.value)

    def _least(self, ops: Backend, judged: Judged) -> Scalar:
        """What may be promised of a value that is called as low as this precision allows."""
        size = ops.maximum(judged.model.value, -judged.model.value)
        return ops.maximum(ops.maximum(1e-5 * size, 16.0 * judged.noise.blurred), self._gone(ops, judged))

    def _gone(self, ops: Backend, judged: Judged) -> Scalar:
        """What is nothing beside what there was at the start."""
        units = _units(ops, judged.model, judged.start)
        return ops.eps(units) ** 3 * judged.first * ops.sqrt(ops.dot(units, units))

    def _short(self, ops: Backend, model: Model, trial: Trial, start: Vector) -> tuple[Scalar, Scalar]:
        """The largest entry of d in units of the parameters, and whether that is small."""
        units = _units(ops, model, start)
        largest = ops.max_abs(trial.direction / ops.namespace().where(units > 0, units, 2e-38))
        return largest, largest <= (4.0 * ops.eps(model.x) if self.xtol is None else self.xtol)

    def claims(self, ops: Backend, judged: Judged) -> tuple[tuple[Scalar, Any], ...]:
        """Conditions and codes, the first that holds to be believed."""
        model, trial, noise, running = judged.model, judged.trial, judged.noise, judged.running
        few, eps, square, psd = self.few(ops, model), ops.eps(model.x), judged.square, model.operator.psd
        left, predicted = trial.left, trial.predicted
        largest, short = self._short(ops, model, trial, judged.start)
        if self.xtol is None:  # beside a far start it may be small, and change much of the value
            size = ops.maximum(model.value, -model.value)
            slight = predicted <= ops.maximum(1e-5 * size, self._gone(ops, judged))
            short = short & (slight | self._short(ops, model, trial, model.x)[1])
        # What the inner solve left of its residual may hide a decrease of |left|^2 / (2 lambda); without a damping the
        # curvature along d takes the place of lambda.
        damped = 2.0 * trial.damping_term
        stiff = ops.where(damped > 0, damped, judged.bent)
        below = ops.maximum(few, noise.value)
        solved = (left <= 1e3 * eps * model.gradient_norm) | (left * left * square <= 2.0 * stiff * below)
        lower = predicted >= 0
        seen = judged.hidden <= ops.maximum(below, 2.0 * predicted)
        whole = running & trial.free & solved & lower & seen
        small = whole & (predicted <= few)
        # Where x is far from the start, and d long, a small promise is that of a minimum at infinity.
        length, reach = ops.sqrt(square), ops.sqrt(ops.dot(model.x, model.x))
        flat, near = judged.flat
        flat, settled = running & flat, (length <= 0.01 * reach) | near
        bent = trial.status == Code.NEGATIVE_CURVATURE
        # A direction of zero is one that was not found, unless the gradient is zero.
        still = model.gradient_norm == 0
        hopeless = (length > 0) | still
        hopeless = hopeless & ((largest <= eps) | (lower & (predicted <= noise.value)))
        hopeless = judged.refused & (judged.stuck | hopeless)
        blind = lower & (judged.doubt <= noise.promised) & ops.logical_not(bent)
        least = self._least(ops, judged)
        low = blind & (judged.doubt <= least) & (judged.hidden <= least)
        told = (small, Code.DECREASE_SMALL), (whole & short, Code.STEP_SMALL)
        precise = whole & (predicted <= noise.blurred)
        explored = psd | is_one_of(trial.status, [Code.CONVERGED, Code.INVARIANT])
        ended = ops.where(explored, Code.GRADIENT_SMALL, Code.UNEXPLORED)
        broken = judged.refused & (trial.status == Code.NONFINITE) & ops.logical_not(ops.isfinite(judged.hidden))
        return (
            (broken, Code.NONFINITE),  # the curvature itself, not the solve with it
            (running & self._vanishes(model, judged), Code.GRADIENT_SMALL),
            (running & (self.rtol > 0) & (judged.gradient_norm <= self.rtol * judged.first), Code.REDUCED),
            (running & ((length == 0) | psd) & still, ops.where(bent, trial.status, ended)),
            (running & (length == 0) & (trial.status == Code.INNER_TOLERANCE), Code.INNER_TOLERANCE),
            ((small | flat) & ops.logical_not(settled), Code.DIVERGING),
            (flat, Code.AT_PRECISION),
            *told,
            (judged.refused & judged.stuck & (trial.status == Code.SINGULAR), Code.SINGULAR),
            (precise | (hopeless & low), Code.AT_PRECISION),
            (hopeless & blind, Code.STAGNATED),
            (hopeless, Code.NO_DECREASE),
        )

    def confirmed(
        self, ops: Backend, judged: Judged, code: Scalar, value_at: Callable[[Vector], Scalar]
    ) -> tuple[Scalar, Scalar, Scalar]:
        """The code, once G has been asked about a success, of few parameters all of it; products; evaluations."""
        model, noise, n = judged.model, judged.noise, judged.model.x.shape[0]
        status, psd, guess = judged.trial.status, model.operator.psd, code
        if not psd:
            unseen = (status == Code.UNEXPLORED) | judged.flat[0] & (status == Code.BOUNDARY)
            guess = ops.where(unseen & is_one_of(code, _ENDS), Code.UNEXPLORED, code)
        size, still = ops.maximum(model.value, -model.value), model.gradient_norm == 0
        still = still & is_one_of(code, [Code.GRADIENT_SMALL, Code.UNEXPLORED])
        open_ = ops.maximum(self._least(ops, judged), self.few(ops, model))
        open_ = ops.maximum(open_, 2.0 * judged.trial.predicted)
        level = ops.maximum(noise.value, 1e-10 * size)

        def blind(rounded: Scalar) -> Scalar:
            """Whether rounding x moves the value beyond its fifth digit, and is not all that is left of it."""
            return (rounded > 1e-5 * size) & (size > 8.0 * rounded) & ops.logical_not(still)

        if n > _FEW:

            def solve(x: Vector) -> tuple[Scalar, Scalar, Scalar]:
                found = _solved(ops, model, ops.scale(-1.0, ops.copy(model.gradient)))
                # Zeros are moved as well: G v = 0 only where no parameter has any effect.
                v = ops.namespace().where(x == 0, 1e-30, x) * signs(model.operator.domain, 1, 1)
                curved = model.operator.apply(v)
                dead = psd & (size > 0) & (ops.max_abs(curved) == 0)
                bent = ops.dot(v, curved)  # in the mean sum x_j^2 G_jj
                moved = ops.eps(x) ** 2 * ops.maximum(bent, -bent)
                rounded = n * moved  # at worst; of many parameters roundings hardly all go one way
                unseen = blind(_FEW * moved)
                more, nothing = -found.model > ops.maximum(open_, 2.0 * rounded), ops.maximum(level, 4.0 * rounded)

                def look(x: Vector) -> tuple[Scalar, Scalar, Scalar]:
                    rest = _uneven(ops, x)
                    seen = _solved(ops, model, model.operator.apply(rest))
                    flat = ops.axpy(-1.0, seen.x, rest)
                    plateau, falls, evaluations = along(ops, model, flat, size > 0, nothing, value_at)
                    lost = ops.any(found.status == Code.NONFINITE)
                    ends = (lost, Code.NONFINITE), (plateau | dead, Code.DIVERGING), (falls | unseen, Code.STAGNATED)
                    told = verdict(ops, guess, *ends)
                    return told, seen.products + 1, evaluations

                onward = ops.where(judged.refused, Code.STAGNATED, Code.RUNNING)
                told, products, evaluations = ops.branch(more, lambda x: (onward, 0, 0), look, x)
                return told, products + found.products + 1, evaluations

            asked = is_one_of(guess, _ENDS) | still
            guess, products, evaluations = ops.branch(asked, solve, lambda x: (guess, 0, 0), model.x)
            if psd:
                return guess, products, evaluations
            missed = lambda x: (ops.where(_is_bent(ops, model), Code.NEGATIVE_CURVATURE, guess), _LOOKS)  # noqa: E731
            told, more = ops.branch(guess == Code.UNEXPLORED, missed, lambda x: (guess, 0), model.x)
            return told, products + more, evaluations

        def ask(x: Vector) -> tuple[Scalar, Scalar, Scalar]:
            whole = _all_of(ops, model, judged.trial.direction, judged.start)
            known, rounded = whole.known, whole.rounded
            seen = ops.where(code == Code.UNEXPLORED, Code.GRADIENT_SMALL, code)
            # A long step in the null space says nothing of where x goes.
            seen = ops.where((code == Code.DIVERGING) & whole.null, Code.AT_PRECISION, seen)
            seen = seen if psd else ops.where(whole.least < 0, Code.NEGATIVE_CURVATURE, seen)

            nothing = ops.maximum(level, 4.0 * rounded)
            plateau, falls, evaluations = along(ops, model, whole.flat, whole.some, nothing, value_at)
            more = (whole.promise > ops.maximum(open_, 2.0 * rounded)) | falls
            told = verdict(
                ops,
                ops.where(known, seen, guess),
                ((code == Code.DIVERGING) & ops.logical_not(known & whole.null), Code.DIVERGING),
                (plateau | known & whole.dead, Code.DIVERGING),
                (ops.logical_not(known), Code.NONFINITE),
                (blind(rounded) | more & (judged.refused | falls), Code.STAGNATED),
                (more, Code.RUNNING),
            )
            return told, n, evaluations

        return ops.branch(is_one_of(code, [*_ENDS, Code.DIVERGING]) | still, ask, lambda x: (code, 0, 0), model.x)


def along(
    ops: Backend, model: Any, flat: Vector, asked: Scalar, level: Scalar, value_at: Callable[[Vector], Scalar]
) -> tuple[Scalar, Scalar, Scalar]:
    """Whether x lies on a plateau, and whether the value falls, along a part of x that the model is flat along.

    And the evaluations. On a plateau the value stays within ``level`` on both sides of x and changes without that part,
    or stays on one of them and is lower without it, or with -3 times as much.
    """
    zero, no = 0.0 * level, ops.logical_not
    size = ops.maximum(model.value, -model.value)

    def look(flat: Vector) -> tuple[Scalar, ...]:
        def go(i: Scalar, seen: Any) -> Any:
            t, _, ahead, behind, lowest, before = seen
            now = value_at(model.x - t * flat) - model.value
            bottom = ops.divide(-0.5 * _NEAR * (before - now), before + now)  # of the parabola through both
            t = ops.where(i == 0, -_NEAR, ops.where(i == 1, bottom, ops.where(i == 2, 1.0, 4.0)))
            return t, ahead, behind, lowest, before, now

        return *ops.repeat(5, go, (zero + _NEAR, *[zero] * 5))[1:], 5

    *near, far, beyond, evaluations = ops.branch(asked, look, lambda flat: (*[zero] * 5, 0), flat)
    sides = [ops.maximum(change, -change) <= level for change in near[:2]]
    falls = (near[0] < -level) | (near[1] < -level) | (near[2] < -level)
    much = ops.maximum(2e-4 * size, 100.0 * level)
    changes, lower = no(ops.maximum(far, -far) <= much), (far < -much) | (beyond < -much)
    still = sides[0] & sides[1] & changes | (sides[0] | sides[1]) & lower
    return still & (level <= 1e-4 * size) & (size > 0) & no(falls), falls, evaluations


def and_lost(ops: Backend, flat: Vector, x: Vector, effects: Vector, value: Scalar) -> Vector:
    """``flat``, and of x the parameters that have lost their effect, |x_j| times the norm of their column.

    Among columns made equally long these are seen like any other.
    """
    return ops.namespace().where(effects <= LOST * ops.sqrt(2.0 * abs(value)), x, flat)


def _uneven(ops: Backend, x: Vector) -> Vector:
    """x, each of its entries another bit larger: that are equal, as on a saddle between two, do not stay so."""
    return x * ops.asarray(1.0 + 0.1 * np.cos(2.4 * np.arange(x.shape[0])), *ops.describe(x)[1:])


def _solved(ops: Backend, model: Model, rhs: Vector) -> Inner:
    """G z = rhs by at most ``_LOOKS`` products."""
    return inner_solve(ops, CG(rtol=ops.eps(rhs), max_steps=_LOOKS), LinearProblem(model.operator, rhs))


def _is_bent(ops: Backend, model: Model) -> Scalar:
    """Whether Lanczos from a random direction meets curvature below zero, beyond rounding; ``_LOOKS`` products.

    T + shift I has a pivot below zero there: no vector is kept, and no eigenvalue computed.
    """
    G, zero = model.operator, 0.0 * model.gradient_norm
    v = normal(G.domain, 1, 1)[:, 0]

    def go(i: Scalar, carry: Any) -> Any:
        before, q, beta, shift, pivot, bent = carry
        w = ops.axpy(-beta, before, G.apply(q))
        alpha = ops.dot(q, w)
        w = ops.axpy(-alpha, q, w)
        norm = ops.sqrt(ops.dot(w, w))
        shift = ops.where(i == 0, ops.eps(q) ** 0.5 * ops.sqrt(alpha * alpha + norm * norm), shift)
        pivot = alpha + shift - ops.divide(beta * beta, pivot)
        met = ops.where(pivot < 0, 1.0, bent)
        return q, ops.scale(ops.divide(1.0, norm), w), norm, shift, ops.where(pivot > 0, pivot, 1.0), met

    begun = ops.zeros_like(v), ops.scale(ops.divide(1.0, ops.sqrt(ops.dot(v, v))), v), zero, zero, zero + 1.0, zero
    return ops.repeat(_LOOKS, go, begun)[-1] > 0


class Whole(NamedTuple):
    """What all of G says, by n products."""

    promise: Scalar
    """1/2 g.|G|^-1 g."""
    flat: Vector
    """A part of x that G is flat along, and the parameters that have lost their effect."""
    some: Scalar
    """Whether there is any."""
    least: Scalar
    """The lowest eigenvalue, 0 if rounding may have made it negative."""
    null: Scalar
    """Whether the trial's direction is flat."""
    known: Scalar
    """Whether all of this is known."""
    rounded: Scalar
    """What rounding x changes in the value by the curvature alone, squared sum of eps |x_j| G_jj^1/2."""
    dead: Scalar
    """Whether no parameter has any effect on the model, although the value is not zero."""


def _all_of(ops: Backend, model: Model, d: Vector, start: Vector) -> Whole:
    """All of G, divided by its diagonal on both sides, so that nothing hides in units.

    No eigenvalue is taken for less than a round-off of the largest: as little is promised along that direction at
    least, unless it is one that g has no part in.
    """
    xp, n = ops.namespace(), model.x.shape[0]
    eye = ops.identity(n, model.x)
    G = model.operator.apply(eye)
    dtype = wide(ops.describe(G)[1])
    G, g, x, d, eye = (ops.cast(a, dtype) for a in (G, model.gradient, model.x, d, eye))
    norms, one = xp.sqrt(abs(xp.sum(G * eye, axis=0))), xp.ones_like(x)
    s = xp.where(norms > 0, 1.0 / xp.where(norms > 0, norms, one), one)
    C = 0.5 * (G + G.T) * s * xp.reshape(s, (-1, 1))
    finite = ops.isfinite(ops.max_abs(xp.reshape(C, (-1,))))
    e, V, sound = ops.eigh(ops.select(finite, C, eye))
    least, along, e = -ops.max_abs(xp.where(e < 0, e, 0.0 * e)), V.T @ (s * g), abs(e)
    least = ops.where(least < -(ops.eps(model.x) ** 0.5) * ops.max_abs(e), least, 0.0)
    kept = e > 10 * n * ops.eps(model.x) * xp.max(e)
    floor = ops.eps(model.x) * xp.max(e)
    promised = along * along / xp.where(e > floor, e, xp.where(floor > 0, floor, one))
    rounded = ops.eps(model.x) * ops.item(xp.sum(abs(x) / s))
    flat = s * (V @ xp.where(kept, 0.0 * e, V.T @ (_uneven(ops, x) / s)))
    effects = ops.cast(_units(ops, model, start), dtype) * norms
    flat = and_lost(ops, flat, x, effects, model.value)
    # Not because the parameters are small themselves, as near a minimum at zero.
    most = ops.maximum(ops.max_abs(effects), ops.max_abs(norms))
    size = ops.sqrt(2.0 * abs(model.value))
    dead = model.operator.psd & (size > 0) & (most <= ops.eps(x) * size)
    known, d = finite & sound, V.T @ (d / s)
    null = ops.item(xp.sum(e * d * d)) <= 10 * n * ops.eps(model.x) * ops.item(xp.max(e)) * ops.dot(d, d)
    promise = ops.where(known, 0.5 * ops.item(xp.sum(promised)), math.inf)
    return Whole(
        promise,
        ops.cast(flat, ops.describe(model.x)[1]),
        known & (ops.max_abs(flat) > 0),
        least,
        null,
        known,
        rounded * rounded,
        dead,
    )


def _units(ops: Backend, model: Model, start: Vector) -> Vector:
    """The magnitudes of the parameters: those of x, or of the start where they are larger."""
    return ops.namespace().where(abs(start) > abs(model.x), abs(start), abs(model.x))
