"""Which curvature, which solver, which method: a few products are measured, and rules that can be read are applied.

Each rule holds of what was measured, or of what the objective is, and says why it advises what it does. In each part
the first that applies is the advice; ``docs/which.md`` shows all of them. No run is made, so that nothing is known of
how a method goes on from here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from . import html
from .arguments import require_instance, whole
from .curvature.at_point import GGN, Hessian
from .curvature.objective import Objective
from .curvature.supplied import MissingDerivativeError
from .foreign import advised
from .lanczos.basis import krylov
from .operators.base import LinearOperator
from .protocols import Tree
from .records import Partial

__all__ = ["RULES", "Advice", "Measured", "Rule", "advise"]

OTHERWISE = "otherwise"
FEW, OUTPUTS, NOISE, BATCHES = 256, 2000, 0.1, 4
_NOISY = f"the gradients of batches differ by more than {NOISE:g} of their mean"


@dataclass(frozen=True)
class Measured:
    """What is known of an objective at its parameters; None is what was not measured, for which ``notes`` says why."""

    parameters: int
    has_loss: bool
    convex: bool = False
    """Whether the loss is known to be convex in the outputs."""
    residuals: bool = False
    """Whether it is nonlinear least squares of residuals."""
    outputs: int | None = None
    """Numbers that the model returns, over all data in memory."""
    gradient_seconds: float | None = None
    ggn_seconds: float | None = None
    """Of a product, once linearised; the same for the Hessian below."""
    hessian_seconds: float | None = None
    lowest: float | None = None
    """The least and the largest Ritz value of the Hessian, or of the Gauss-Newton operator where there is none."""
    largest: float | None = None
    negative: bool | None = None
    """Whether a direction of negative curvature of the Hessian was found."""
    asymmetry: float | None = None
    """|u.Av - v.Au| over |u||Av| of random u and v."""
    difference: float | None = None
    """|(H - G)v| / |Hv| of a random v."""
    noise: float | None = None
    """How far the gradients of single batches are from their mean, in its norm; the root of the mean square."""
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """Of a part (``curvature``, ``solver``, ``method``): when it applies, what it advises, and why."""

    part: str
    when: str
    use: str
    why: str
    applies: Callable[[Measured], bool]

    @property
    def since(self) -> str:
        """When and why, as what follows "since"."""
        return self.why if self.when == OTHERWISE else f"{self.when}: {self.why}"


def _hessian(m: Measured) -> bool:
    """Whether the curvature is the Hessian."""
    return not m.has_loss or (not m.convex and "hessian" not in m.notes)


RULES = (
    Rule(
        "curvature",
        "the objective is a function without a loss of its own",
        "lg.Hessian",
        "a Gauss-Newton operator needs the model and the loss apart",
        lambda m: not m.has_loss,
    ),
    Rule(
        "curvature",
        "the loss is not known to be convex",
        "lg.Hessian",
        "the Gauss-Newton operator of such a loss need not be positive semi-definite",
        _hessian,
    ),
    Rule(
        "curvature",
        OTHERWISE,
        "lg.GGN",
        "it needs no second derivatives of the model, and is positive semi-definite where the loss is convex",
        lambda m: True,
    ),
    Rule(
        "solver",
        "the curvature is the Hessian",
        "lg.GLTR()",
        "it takes operators of any sign, and another radius costs no product",
        _hessian,
    ),
    Rule(
        "solver",
        _NOISY,
        "lg.CG(rtol=1e-2)",
        "a matrix that is made for one batch serves no other",
        lambda m: m.noise is not None and m.noise > NOISE,
    ),
    Rule(
        "solver",
        f"there are at most {FEW} parameters",
        "lg.Cholesky()",
        "as many products as parameters make the matrix, once for all dampings",
        lambda m: m.parameters <= FEW,
    ),
    Rule(
        "solver",
        f"the outputs are at most {OUTPUTS}, and a quarter of the parameters",
        "lg.GramSolve()",
        "the matrix is as large as the outputs are many, and is made once for all dampings",
        lambda m: m.convex and m.outputs is not None and m.outputs <= min(OUTPUTS, m.parameters // 4),
    ),
    Rule(
        "solver",
        OTHERWISE,
        "lg.CG(rtol=1e-2)",
        "it takes memory for a few vectors, and a preconditioner may save steps",
        lambda m: True,
    ),
    Rule(
        "method",
        "the curvature is the Hessian",
        "lg.TrustRegion()",
        "it leaves saddles, and its steps are bounded where curvature is negative",
        _hessian,
    ),
    Rule(
        "method",
        _NOISY,
        "lg.SGN()",
        "it takes a step for each batch, and judges it on that batch",
        lambda m: m.noise is not None and m.noise > NOISE,
    ),
    Rule(
        "method",
        f"the objective is least squares of residuals, with at most {FEW} parameters",
        "lg.least_squares",
        "it stops by facts about the fit, and tells standard errors",
        lambda m: m.residuals and m.parameters <= FEW,
    ),
    Rule(
        "method",
        OTHERWISE,
        "lg.LevenbergMarquardt()",
        "its damping goes by how well the model foretold each step",
        lambda m: True,
    ),
)


@dataclass(frozen=True)
class Advice:
    """What :func:`advise` says: ``measured``, and a rule for each part. Prints as sentences."""

    measured: Measured
    rules: tuple[Rule, ...]

    def _of(self, part: str) -> str:
        return next(rule.use for rule in self.rules if rule.part == part)

    @property
    def curvature(self) -> str:
        """The curvature, as it is written."""
        return self._of("curvature")

    @property
    def solver(self) -> str:
        """The solver, as it is written."""
        return self._of("solver")

    @property
    def method(self) -> str:
        """The method, as it is written."""
        return self._of("method")

    @property
    def code(self) -> str:
        """The call that the parts make."""
        if self.method == "lg.least_squares":
            return "lg.least_squares(residuals, params)"
        if self.method == "lg.SGN()":
            return "lg.minimize(objective, params, lg.SGN(), batches=batches)"
        if self.curvature == "lg.Hessian":
            return f"lg.minimize(objective, params, {self.method})"
        return f"lg.minimize(objective, params, lg.LevenbergMarquardt(solver={self.solver}))"

    def _facts(self) -> list[tuple[str, str]]:
        """What was measured."""
        m = self.measured
        unit = m.gradient_seconds
        loss = "none" if not m.has_loss else "convex" if m.convex else "not known to be convex"
        ritz = None if m.lowest is None else f"{m.lowest:.3g} .. {m.largest:.3g}"
        told = [
            ("parameters", m.parameters, "{}"),
            ("outputs", m.outputs, "{}"),
            ("loss", loss, "{}"),
            ("a gradient", unit, "{:.2g} s"),
            ("a Gauss-Newton product", m.ggn_seconds and unit and m.ggn_seconds / unit, "{:.2g} gradients"),
            ("a Hessian product", m.hessian_seconds and unit and m.hessian_seconds / unit, "{:.2g} gradients"),
            ("Ritz values", ritz, "{}"),
            ("negative curvature", {None: None, True: "found", False: "none found"}[m.negative], "{}"),
            ("asymmetry", m.asymmetry, "{:.1e}"),
            ("Hessian and Gauss-Newton differ by", m.difference, "{:.2g} of a product"),
            ("noise of the batches' gradients", m.noise, "{:.2g} of their mean"),
        ]
        return [(name, form.format(value)) for name, value, form in told if value is not None]

    def _missing(self) -> list[tuple[str, str]]:
        """What was not, and why: the first sentence of what was raised."""
        return [(_NAMES.get(name, name), why.partition(". ")[0]) for name, why in self.measured.notes.items()]

    def __str__(self) -> str:
        facts = self._facts()
        width = max(len(name) for name, _ in facts)
        lines = ["Measured:", *(f"  {name:{width}}  {text}" for name, text in facts)]
        if missing := self._missing():
            lines += ["Not measured:", *(f"  {name}: {why}" for name, why in missing)]
        lines += ["Advice:", *(f"  {rule.part}: {rule.use}, since {rule.since}." for rule in self.rules)]
        return "\n".join([*lines, f"  {self.code}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rules = [(rule.part, rule.use, rule.since) for rule in self.rules]
        notes = [(name, f"not measured: {why}") for name, why in self._missing()]
        return html.page(self.code, html.table(rules, ("part", "use", "since")), html.table(self._facts() + notes))


_NAMES = {
    "gradient": "the gradient",
    "ggn": "Gauss-Newton products",
    "hessian": "Hessian products",
    "noise": "noise of the batches' gradients",
}


def decide(measured: Measured) -> Advice:
    """The first rule of each part that applies."""
    first: dict[str, Rule] = {}
    for rule in RULES:
        if rule.part not in first and rule.applies(measured):
            first[rule.part] = rule
    return Advice(measured, tuple(first.values()))


@advised
def advise(objective: Objective, params: Tree, *, steps: int = 10, seed: int = 0) -> Advice:
    """Which curvature, solver and method to begin with, and why: by a few products at ``params``.

    Measured are: seconds of a gradient and of products with the Gauss-Newton operator and the Hessian (medians of
    three), extreme Ritz values by ``steps`` Lanczos steps, whether a direction of negative curvature turns up, symmetry
    on two random vectors, how far Hessian and Gauss-Newton operator differ on one, and how far the gradients of at most
    four batches are from their mean, where there are several. What could not be measured is said to be so. That
    no negative curvature was found proves nothing.

    Parameters
    ----------
    objective, params
        As for ``lg.minimize``.
    steps
        Lanczos steps.
    seed
        Of the random vectors.

    Returns
    -------
    Advice
        ``curvature``, ``solver``, ``method`` and ``code`` as they are written, ``measured``, ``rules``; prints well.

    >>> import numpy as np, linop_gn as lg
    >>> t = np.linspace(0.0, 5.0, 40)
    >>> fit = lg.Objective.from_residuals(
    ...     lambda p: p[0] * np.exp(-p[1] * t) - 2.0 * np.exp(-0.7 * t),
    ...     jacobian=lambda p: np.stack([np.exp(-p[1] * t), -t * p[0] * np.exp(-p[1] * t)], axis=1))
    >>> advice = lg.advise(fit, np.ones(2))
    >>> advice.curvature, advice.solver, advice.method
    ('lg.GGN', 'lg.Cholesky()', 'lg.least_squares')

    Raises
    ------
    TypeError
        For an objective that is none; inside a compiled program, where nothing can be measured.
    ValueError
        At parameters where products of the curvature are not finite.
    """
    require_instance("advise", objective, Objective, "an lg.Objective", "It knows model, loss and data.")
    steps = whole("advise", "steps", steps, 1)
    point = objective.at(params)
    space, ops = point.space, point.space.backend
    if not ops.is_concrete(point.x):
        raise TypeError("advise measures, which a compiled program cannot: call it outside of jit.")
    loss, notes = objective.loss, {}
    told: dict[str, Any] = {"parameters": space.size, "has_loss": loss is not None}
    v, u = space.random(seed), space.random(seed + 1)

    def gradient_at(i: int) -> float:  # elsewhere by rounding, since what was computed here is remembered
        made = point.anew(x=ops.axpy(1e-6 * (i + 1), v, ops.copy(point.x)))
        return float(ops.dot(made.gradient, v))

    try:
        told["gradient_seconds"] = _seconds(gradient_at)
    except MissingDerivativeError as error:
        notes["gradient"] = str(error)
    made: dict[str, LinearOperator] = {}
    if loss is not None:
        told["convex"] = bool(loss.convex)
        told["residuals"] = objective.whole and loss.reduction == "sum"
        made["ggn"] = GGN(point)
        if not point.host:
            told["outputs"] = math.prod(tuple(point.all_outputs.shape))
        else:
            notes["outputs"] = "the data are streamed"
    made["hessian"] = Hessian(point)
    products: dict[str, Any] = {}
    for name, A in made.items():
        try:
            products[name] = A @ v
            told[f"{name}_seconds"] = _seconds(Partial(_product, ops, A, v))
        except MissingDerivativeError as error:
            notes[name] = str(error)
    seen = next((name for name in ("hessian", "ggn") if name in products), None)
    if seen is not None:
        A, Av = made[seen], products[seen]
        if not math.isfinite(float(ops.dot(Av, Av))):
            raise ValueError(
                "advise: products of the curvature are not finite at these parameters, so that nothing can be measured "
                "there. Begin elsewhere; lg.validate and the framework's warnings say where NaN comes from."
            )
        values = krylov(A, u, min(steps, space.size)).eigenvalues().values
        low, high = float(min(values)), float(max(values))
        told |= {"lowest": low, "largest": high}
        if seen == "hessian":
            told["negative"] = low < -100.0 * ops.eps(v) * max(abs(low), abs(high))
        sizes = float(ops.dot(u, u)) ** 0.5 * float(ops.dot(Av, Av)) ** 0.5
        told["asymmetry"] = abs(float(ops.dot(u, Av)) - float(ops.dot(v, A @ u))) / sizes if sizes else 0.0
        if len(products) == 2:
            apart = Av - products["ggn"]
            size = float(ops.dot(Av, Av)) ** 0.5
            told["difference"] = float(ops.dot(apart, apart)) ** 0.5 / size if size else None
    told["noise"] = _noise(objective, params, notes)
    return decide(Measured(**told, notes=notes))


def _product(ops: Any, A: LinearOperator, v: Any, _: int) -> float:
    return float(ops.dot(A @ v, v))  # read, so that it is waited for


def _seconds(work: Callable[[int], Any]) -> float:
    """The median of three, after one in which programs are compiled."""
    times = []
    for i in range(4):
        begun = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _noise(objective: Objective, params: Tree, notes: dict[str, str]) -> float | None:
    batches = list(islice(objective.stream or objective.batches, BATCHES))
    if len(batches) < 2 or objective.whole or "gradient" in notes:
        notes["noise"] = "there are not several batches, which gradients could be compared of"
        return None
    if any(batch.stacked for batch in batches):
        notes["noise"] = "the batches are stacked"
        return None
    given = [tuple(x for x in (b.inputs, b.targets, b.weights) if x is not None) for b in batches]
    points = [objective.with_data(data).at(params) for data in given]
    ops = points[0].space.backend
    mean = ops.scale(0.0, ops.copy(points[0].gradient))
    for one in points:
        mean = ops.axpy(1.0 / len(points), one.gradient, mean)
    size = float(ops.dot(mean, mean))
    apart = [ops.axpy(-1.0, mean, ops.copy(one.gradient)) for one in points]
    return (sum(float(ops.dot(d, d)) for d in apart) / len(apart) / size) ** 0.5 if size else None
