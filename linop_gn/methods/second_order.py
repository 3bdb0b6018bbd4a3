r"""One second-order method, composed of parts: curvature, descent, control, search, stopping.

At the accepted point x, with gradient g and curvature G(x), once:

    kept = descent.query(g, G)

and at each step, at the damping or radius ``level``:

    d, m = descent.step(kept, level)                 a direction, and the decrease that the model promises
    t, accepted = search(f, x, d)
    rho = (f(x) - f(x + d)) / m                      the gain ratio; minus infinity of a trial that is refused
    level = control(level, rho)
    x = x + t d, linearised and queried, if accepted

The state holds what was linearised and queried at x: a refused trial linearises nothing, and takes only the products
that the descent needs for another level, none with a basis or a factorisation. A trial whose value or gradient is not
finite is refused. All of a step is one program, inner solver included; numbers are its data.

Parts are records of a few lines: see :mod:`linop_gn.methods.descents`, :mod:`~linop_gn.methods.controls`,
:mod:`~linop_gn.methods.searches`, :mod:`~linop_gn.methods.stopping`; :mod:`~linop_gn.methods.named` has compositions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..arguments import require_instance, require_number
from ..curvature.at_point import GGN
from ..curvature.point import Point
from ..operators.base import LinearOperator
from ..protocols import Backend, Scalar, Vector
from ..records import record, static
from ..run.returned import row_type
from ..run.status import Code, alike, verdict, where_new
from .averaging import Average, begin_average, go_on_average
from .base import Method
from .controls import Control, Seen, followed
from .damping import Nielsen, clip
from .descents.base import Descent, Model, Noise, queried, tried
from .descents.solve import Solve
from .problem import MinimizeProblem
from .scaling import in_units, require_x_scale, units_of
from .searches import Accept, Found, Line, Search, searched
from .stopping import Facts, Judged

__all__ = ["SecondOrder", "SecondOrderState"]


RELATIVE = 1e-2
"""The damping at the start where none is given, in units of the curvature along the gradient."""
_SPENT = ("products", "evaluations", "linearisations", "refused")


class SecondOrderState(NamedTuple):
    """The accepted point, what was linearised and queried there, and the level of the next trial."""

    x: Vector
    gradient: Vector
    gradient_norm: Scalar
    value: Scalar
    operator: LinearOperator
    kept: Any
    """What the descent keeps."""
    first: Scalar
    """The gradient norm at the start."""
    level: Scalar
    """Damping or radius."""
    begun: Scalar
    """The level at the start."""
    unit: Scalar
    """Of the bounds on the level: the largest d.G d / d.d, or damping at the start; of a radius, the first one."""
    growth: Scalar
    """What the control remembers."""
    ratio: Scalar
    length: Scalar
    inner_steps: Scalar
    """Of the descent's solver."""
    doubt: Scalar
    """The largest decrease that was promised by a refused trial since a step was taken."""
    status: Scalar
    steps: Scalar
    products: Scalar
    evaluations: Scalar
    linearisations: Scalar
    refused: Scalar
    units: Vector | None = None
    """S of x = S z; None without ``x_scale``."""
    average: Average | None = None


@record
class SecondOrder(Method):
    """A second-order method of these parts.

    Parameters
    ----------
    curvature
        ``lg.GGN``, ``lg.Hessian``, ``lg.BlockGGN``, or any function from a point to a symmetric operator.
    descent
        Of ``lg.descents``, or an ``lg.descents.Descent`` of your own: the direction.
    control
        ``lg.Nielsen()``, ``lg.Marquardt()``, ``lg.ConstantDamping()``, of ``lg.controls``, or an
        ``lg.controls.Control`` of your own: how the level follows what was seen.
    search
        Of ``lg.searches``, or an ``lg.searches.Search`` of your own: the length.
    stopping
        ``lg.methods.Facts(...)``; None for none, where each step sees other data.
    level
        The damping, or the radius, at the start. None, of a damping: 0.01 g.G g / g.g there, by one product.
    least, most
        Its bounds: of a damping, in units of the largest d.G d / d.d that there was (at first: of the level); of a
        radius, in units of the first one.
    model
        ``"undamped"`` or ``"damped"``: which predicted decrease the gain ratio divides by.
    name
        What results call the method.
    judged_on
        Where curvature, acceptance and gradient have different data: whether the gain ratio is of the values on the
        data of the ``"acceptance"``, like the search, or on those of the ``"curvature"`` (as in Martens' code).

    x_scale
        Sizes s of the parameters, an array or a tree like them, or ``"start"``: the magnitudes of the start (their
        mean where one is zero). All is done for z = x / s: the damping is lambda / s^2, the region ||d / s|| <= radius,
        and the promise that ends a run is free of units. ``gradient_norm`` stays that of x. None: 1, at no cost.
    average
        beta of an average of x over the steps, which :func:`linop_gn.averaged` tells and no step looks at; None: none.
    weight_decay
        x <- x + t (d - weight_decay x) where a step is taken, decoupled from gradient and model, as AdamW's with the
        length t for its rate: t and the gain ratio are those of d alone. Where a run then comes to rest is no
        stationary point of the objective, so that none is claimed: ``stopping=None``.

    Where the acceptance has data of its own, ``value`` is on these.

    The history has ``value``, ``gradient_norm``, ``damping`` or ``radius``, ``ratio``, ``length``,
    ``inner_steps``, and what was spent: ``products``, ``evaluations``, ``linearisations``, ``refused``.

    >>> import numpy as np, linop_gn as lg
    >>> t = np.array([0.0, 1.0, 2.0, 3.0])
    >>> decay = lg.Objective.from_residuals(
    ...     lambda p: p[0] * np.exp(p[1] * t) - 2.0 * np.exp(-0.5 * t),
    ...     jacobian=lambda p: np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1))
    >>> method = lg.SecondOrder(descent=lg.descents.TrustRegion(), control=lg.controls.Radius(), level=1.0)
    >>> fit = lg.minimize(decay, np.array([1.0, 0.0]), method)
    >>> fit.succeeded, fit.params.round(4)
    (True, array([ 2. , -0.5]))

    Raises
    ------
    TypeError, ValueError
        When made, for a part that is none of its kind; in ``lg.minimize`` for a curvature that the descent can't take.
    """

    curvature: Callable[..., Any] = static(default=GGN)
    descent: Descent = Solve()
    control: Control = Nielsen()
    search: Search = Accept()
    stopping: Any = Facts()
    level: Scalar | None = 1.0
    least: Scalar = 0.0
    most: Scalar = 1e12
    model: str = static(default="undamped")
    name: str = static(default="SecondOrder")
    judged_on: str = static(default="acceptance")
    x_scale: Any = None
    average: Scalar | None = None
    weight_decay: Scalar | None = None

    kept_by = ("curvature", "descent", "x_scale", "average")
    supports = frozenset({"curvature", "acceptance"})

    def __post_init__(self) -> None:
        if self.model not in ("undamped", "damped"):
            raise ValueError(f"{self.name}: model must be 'undamped' or 'damped', got {self.model!r}.")
        if self.judged_on not in ("acceptance", "curvature"):
            raise ValueError(f"{self.name}: judged_on must be 'acceptance' or 'curvature', got {self.judged_on!r}.")
        if not callable(self.curvature) or isinstance(self.curvature, LinearOperator):
            raise TypeError(f"{self.name}: curvature must be a function of a point, as lg.GGN, got {self.curvature!r}.")
        parts = (
            (
                "descent",
                Descent,
                "lg.descents.Solve(lg.CG())",
                "One of your own derives from lg.descents.Descent.",
            ),
            ("control", Control, "lg.Nielsen()", "One of your own derives from lg.controls.Control."),
            ("search", Search, "lg.searches.Accept()", "One of your own derives from lg.searches.Search."),
        )
        for part, kind, example, advice in parts:
            require_instance(f"{self.name}: {part}", getattr(self, part), kind, f"one such as {example}", advice)
        for name, number in (
            (self.descent.level, self.level),
            ("weight_decay", self.weight_decay),
            ("least", self.least),
            ("most", self.most),
        ):
            require_number(self.name, name, number, optional=name not in ("least", "most"))
        require_number(self.name, "average", self.average, below=1.0, optional=True)
        if (self.least > self.most) is True:
            raise ValueError(f"{self.name}: least must be at most most, got {self.least} and {self.most}.")
        if self.stopping is not None and not hasattr(self.stopping, "claims"):
            raise TypeError(
                f"{self.name}: stopping must be such as lg.methods.Facts(), or None; got {self.stopping!r}."
            )
        object.__setattr__(self, "x_scale", require_x_scale(self.name, self.x_scale))
        if self.control.level not in (None, self.descent.level):
            fit = "lg.controls.Radius()" if self.descent.level == "radius" else "lg.Nielsen()"
            raise ValueError(
                f"{self.name}: control {type(self.control).__name__} is for a {self.control.level}, and descent "
                f"{type(self.descent).__name__} goes by a {self.descent.level}: take another such as control={fit}."
            )
        if self.weight_decay is not None and self.stopping is not None:
            raise ValueError(
                f"{self.name}: weight_decay= pulls away from the objective's stationary points, so that no test of "
                "them ends a run: pass stopping=None. For a minimum, make the penalty a part of the objective."
            )
        if self.level is None and self.descent.level != "damping":
            raise ValueError(f"{self.name}: level=None is for dampings; a radius is a number, such as level=1.0.")

    @property
    def title(self) -> str:
        return self.name

    columns = ("value", "gradient_norm", "level", "ratio", "length", "inner_steps", *_SPENT)

    def observe(self, state: SecondOrderState) -> NamedTuple:
        names = tuple(self.descent.level if name == "level" else name for name in self.columns)
        return row_type("SecondOrderRow", names)(*(getattr(state, name) for name in self.columns))

    def init(self, ops: Backend, problem: MinimizeProblem) -> SecondOrderState:
        point = problem.at(problem.start)
        units = units_of(ops, self.name, self.x_scale, problem)
        here, raw = self._model(ops, problem, point)
        model, seen = in_units(ops, here, units), in_units(ops, here._replace(operator=raw), units)
        self.descent.check(seen.operator, 1.0 if self.level is None else self.level)
        kept, products = queried(self.descent, ops, seen, None)
        zero, count = ops.scalar(0.0, point.x), ops.scalar(0, point.x)
        sound = ops.isfinite(model.value) & ops.isfinite(model.gradient_norm)
        lost = ops.logical_not(sound)
        if self.level is None:

            def measured(g: Vector) -> tuple[Scalar, Scalar]:
                bent = ops.divide(ops.dot(g, model.operator.apply(g)), model.gradient_norm * model.gradient_norm)
                stiff = ops.maximum(bent, -bent)
                return RELATIVE * ops.where((stiff > 0) & ops.isfinite(stiff), stiff, 1.0), count + 1

            asked = sound & (model.gradient_norm > 0)
            level, more = ops.branch(asked, measured, lambda g: (zero + RELATIVE, count), model.gradient)
            products = products + more
        else:
            level = zero + self.level
        begun: tuple[tuple[Scalar, Any], ...] = ()
        if self.stopping is not None:
            begun = (_vanished(ops, here.gradient, here.gradient_norm, 0.0), *self.stopping.begun(ops, here))
        return SecondOrderState(
            **here._asdict(),
            kept=kept,
            first=here.gradient_norm + 0.0,
            level=level,
            begun=level + 0.0,
            unit=level + 0.0,
            growth=zero + 2.0,
            ratio=zero + math.nan,
            **alike("length doubt", zero),
            status=verdict(ops, count + Code.RUNNING, (lost, Code.NONFINITE_INPUT), *begun),
            **alike("steps refused inner_steps", count),
            products=count + products,
            **alike("evaluations linearisations", count + 1),
            units=units,
            average=begin_average(ops, self.average, here.x),
        )

    def step(self, ops: Backend, problem: MinimizeProblem, s: SecondOrderState) -> SecondOrderState:
        running, no = s.status == Code.RUNNING, ops.logical_not
        here = Model(*(getattr(s, name) for name in Model._fields))
        # Of a zero gradient no solver takes a product: that is how a finished run stays where it is.
        masked = ops.mask(running, ops.copy(s.gradient))
        model = here._replace(gradient=masked, gradient_norm=ops.where(running, s.gradient_norm, 0.0))
        model, start = in_units(ops, model, s.units), problem.start if s.units is None else problem.start / s.units
        trial = tried(self.descent, ops, model, s.kept, s.level)
        line, noise = Line(ops, problem, model._replace(x=here.x), trial, s.length, s.units), Noise.of(ops, model)
        square, bent = ops.dot(trial.direction, trial.direction), -2.0 * (trial.predicted + line.slope)
        unit, hidden, asked = s.unit, 0.0 * square, 0
        if self.descent.level == "damping":
            unit = ops.maximum(unit, ops.where(running & (square > 0), ops.divide(bent, square), 0.0))
        if self.stopping is not None:
            hidden, asked = self.stopping.hidden(ops, model, trial, start, noise, running)
            flat = self.stopping.flat(ops, model, trial, start, noise, hidden)
        found = searched(self.search, ops, line)
        ratio, finite, equal, more = self._judged(ops, problem, line, found, noise, hidden)
        equal = equal & (s.doubt <= noise.promised)
        ratio = ops.where(equal, 1.0, ratio)  # as far as rounding can tell
        taken = running & ops.isfinite(found.value) & (found.accepted | (equal & (found.value <= here.value)))
        target = found.line.at(ops, found.length)
        if self.stopping is not None:  # a step that rounding swallows would be taken for ever
            changed = ops.max_abs(target - here.x) != 0
            taken, equal = taken & changed & no(flat[0]), equal & changed
            if model.operator.psd:  # of a zero gradient no step is: what was kept of those before would make one
                taken = taken & (model.gradient_norm > 0)
        value = found.value
        if self.weight_decay is not None:
            target, value = ops.axpy(-self.weight_decay * found.length, here.x, target), None
        moved, here, kept, spent = self._moved(ops, problem, here, trial.kept, taken, target, value, s.units)
        if value is not None or problem.once:
            here = here._replace(value=ops.where(moved, found.value, here.value))
        elif problem.acceptance is not None:
            more = more + ops.where(taken, 1, 0)

        refused = running & no(moved) & (no(equal) | taken)
        ratio, finite = ops.where(refused, -math.inf, ratio), finite & (moved | no(taken)) & (trial.predicted > 0)
        seen = Seen(s.steps + 1, s.begun, ratio, ops.sqrt(square))
        level, growth = followed(self.control, ops, s.level, s.growth, seen)
        level = clip(ops, level, self.least * unit, self.most * unit)
        doubt = ops.where(refused, ops.maximum(s.doubt, ops.where(finite, trial.predicted, math.inf)), 0.0)
        status, looked = s.status, 0
        if self.stopping is not None:
            stuck, sizes = refused & (level == s.level) & no(trial.other), (square, bent)
            told = (noise, hidden, flat, *sizes, running, refused, doubt, stuck, s.first)
            judged = Judged(model, trial, start, *told, here.gradient_norm, here.value)
            ended, code = _vanished(ops, here.gradient, here.gradient_norm, s.first)
            status = verdict(ops, status, (running & ended, code), *self.stopping.claims(ops, judged))

            def value_at(z: Vector) -> Scalar:
                return problem.value_at(z if s.units is None else s.units * z)

            status, more_products, looked = self.stopping.confirmed(ops, judged, status, value_at)
            asked = asked + more_products
            if problem.once:  # the curvature of the next batch may be finite
                status = ops.where(running & (status == Code.NONFINITE), Code.RUNNING, status)
        news = {"level": level, "growth": growth, "ratio": ratio, "length": found.length, "doubt": doubt}
        average = s.average
        if average is not None:

            def go_on(x: Vector) -> Average | None:
                return go_on_average(ops, self.average, average, x)

            average = ops.branch(running, go_on, lambda x: s.average, here.x)
        return s._replace(
            **here._asdict(),
            kept=kept,
            average=average,
            unit=unit,
            **where_new(ops, running, s, **news, inner_steps=trial.steps),
            status=status,
            products=s.products + ops.where(running, trial.products + spent + asked, 0),
            evaluations=s.evaluations + ops.where(running, found.evaluations + more + looked, 0),
            linearisations=s.linearisations + ops.where(taken, 1, 0),
            refused=s.refused + ops.where(refused, 1, 0),
        )

    def renew(self, ops: Backend, problem: MinimizeProblem, state: SecondOrderState) -> SecondOrderState:
        """The state at the same x for the problem's data; level, averages and counts are kept."""
        model, raw = self._model(ops, problem, problem.at(state.x))
        kept, products = queried(
            self.descent, ops, in_units(ops, model._replace(operator=raw), state.units), state.kept
        )
        return state._replace(**model._asdict(), kept=kept, doubt=0.0 * state.doubt, products=state.products + products)

    def _model(
        self, ops: Backend, problem: MinimizeProblem, point: Point, value: Scalar = None
    ) -> tuple[Model, LinearOperator]:
        """The model at a point, and the curvature as it was made, which knows the point."""
        curvature = self.curvature(problem.for_curvature(point))
        if not isinstance(curvature, LinearOperator):
            raise TypeError(f"{self.name}: curvature(point) must give a linear operator, got {curvature!r:.100}.")
        # in other units nothing that the descent has prepared would hold
        operator = self.descent.prepared(curvature) if self.x_scale is None else curvature.prepare()
        gradient = point.gradient
        value = ops.item(problem.for_acceptance(point).value) if value is None else value
        return Model(point.x, gradient, ops.sqrt(ops.dot(gradient, gradient)), value, operator), curvature

    def _moved(
        self,
        ops: Backend,
        problem: MinimizeProblem,
        here: Model,
        kept: Any,
        taken: Scalar,
        target: Vector,
        value: Scalar,
        units: Vector | None,
    ) -> tuple[Scalar, Model, Any, Scalar]:
        """Whether the target is the new point, the model there or here, what is kept of it, and the products taken."""
        if problem.once:
            return taken, here._replace(x=ops.select(taken, target, here.x)), kept, ops.scalar(0, here.x)

        none = ops.scalar(0, here.x)

        def stay(target: Vector) -> tuple[Any, ...]:
            return False, here, kept, none

        def move(target: Vector) -> tuple[Any, ...]:
            there, raw = self._model(ops, problem, problem.at(target), value)

            def settle(target: Vector) -> tuple[Any, ...]:
                new, products = queried(self.descent, ops, in_units(ops, there._replace(operator=raw), units), kept)
                return True, there, new, none + products

            return ops.branch(ops.isfinite(there.gradient_norm), settle, stay, target)

        return ops.branch(taken, move, stay, target)

    def _judged(
        self, ops: Backend, problem: MinimizeProblem, line: Line, found: Found, noise: Noise, hidden: Scalar
    ) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        """The gain ratio, whether there is one, whether the two values are equal as far as rounding can tell.

        And how many evaluations that took.
        """
        whole = found.whole is not None
        length, value = (line.one, found.whole) if whole else (found.length, found.value)
        predicted = line.trial.predicted
        if found.at is not None or not whole:
            length = length if found.at is None else found.at
            predicted = ops.where(length == 1.0, predicted, line.predicted(length))
        actual = line.start - value
        equal = (predicted > 0) & (predicted <= noise.value) & (actual <= noise.value)
        equal = equal & ((actual >= 0) | (actual >= -noise.value) & (hidden > noise.promised))
        if self.model == "damped":
            predicted = predicted - length * length * line.trial.damping_term
        if self.judged_on == "acceptance" or problem.curvature is None:
            return line.ratio(ops, value, predicted), ops.isfinite(value), equal, 0
        ends = (problem.for_curvature(problem.at(x)) for x in (line.at(ops, 0.0), line.at(ops, length)))
        before, after = (ops.item(point.value) for point in ends)
        return line.ratio(ops, after, predicted, before), ops.isfinite(after), equal, 2


def _vanished(ops: Backend, gradient: Vector, norm: Scalar, first: Scalar) -> tuple[Scalar, Any]:
    """Whether g^T g is zero for want of range, of a g that has not come down by the round-off; and the code for it."""
    (largest,) = ops.branch(norm == 0, lambda g: (ops.max_abs(g),), lambda g: (0.0 * norm,), gradient)
    return largest > ops.eps(gradient) * first, Code.BREAKDOWN
