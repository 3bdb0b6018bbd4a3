"""Checks of curvature operators against what their objective says they are.

Batches that differ in how many examples they count have to be summed and divided
once. An average of their averages is the commonest way of getting curvature that is
silently wrong (by 40 % for batches of 1 and 9 examples, say), and the operator alone
cannot show it: it is as symmetric and as positive as the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..curvature.at_point import GGN, BlockGGN, Hessian, Jacobian, LossHessian
from ..curvature.point import Point
from ..curvature.supplied import MissingDerivativeError
from ..curvature.terms import Terms
from ..operators.base import LinearOperator
from ..records import replace
from ..spaces import Space
from .data import entries, host, union
from .differences import Derivative, along
from .law import Found, law
from .matrices import Matrices
from .measure import DIFFERENCES, USELESS, NotApplicableError, largest, leafwise, norm, relative
from .oracle import block_numbers
from .subject import Subject, curvature_in, point_of, points_in, rebuilt
from .twin import MOST_NUMBERS, Twin

__all__ = ["batches", "dense", "differences", "gradient"]

NDArray = np.ndarray[Any, Any]
Map = Callable[[NDArray], NDArray]

COLUMNS = 12
"""Columns compared of a matrix that is too large to be compared as a whole, of which there are fewer if ..."""
ENTRIES = 20_000_000
"""... they would hold more numbers than this."""


@law(
    "products and the matrix assembled in float64",
    "The products are not those of the matrix J^T H_L J (or Hessian) of this objective. If gradient fails too, the "
    "loss's or the supplied first derivative is wrong. If differences fails too, a second derivative is: a loss's "
    "closed form, a custom backward rule. If neither does, look at how batches, blocks and weights are summed, or "
    "at a GPU that multiplies in TF32.",
    oracle=True,
)
def dense(subject: Subject) -> Found:
    """Products against the oracle's matrix: all of it, or columns at random coordinates."""
    A, expected = subject.operator, subject.against
    if not points_in(expected):
        raise NotApplicableError("not a curvature operator")
    matrix = subject.oracle.matrix(expected)
    m, n = A.shape
    whole = m * n <= subject.dense_limit
    chosen = np.arange(n) if whole else _coordinates(A.domain, max(2, min(COLUMNS, ENTRIES // n)), subject.seed)
    unit = np.zeros((n, len(chosen)))
    unit[chosen, np.arange(len(chosen))] = 1.0
    wanted = matrix.matmat(unit)
    given = subject.matrix if whole else subject.products(unit)
    names, groups = _by_leaf(A.domain, chosen)
    error, worst = leafwise(given, wanted, groups)
    note = f"the whole {m} x {n}" if whole else f"{len(chosen)} columns of {n}, at random coordinates"
    if len(names) > 1 and error > subject.tolerance + 10 * subject.oracle.uncertainty:
        note += f", worst in the columns of {names[worst]}"
    return Found(error, subject.oracle.uncertainty, "; ".join(filter(None, [note, subject.oracle.note])))


def _coordinates(space: Space, count: int, seed: int) -> NDArray:
    """Coordinates at random: one in each leaf (in ``count`` of them, if there are more), the rest anywhere."""
    rng = np.random.default_rng([seed, 2])
    parts = [part for part in space.slices.values() if part.stop > part.start]
    if len(parts) > count:
        parts = [parts[i] for i in rng.choice(len(parts), count, replace=False)]
    found = {int(rng.integers(part.start, part.stop)) for part in parts}
    while len(found) < min(count, space.size):
        found.add(int(rng.integers(space.size)))
    return np.array(sorted(found))


def _by_leaf(space: Space, chosen: NDArray) -> tuple[list[str], list[NDArray]]:
    """Positions in ``chosen`` by the leaf that they lie in."""
    found = {name: np.flatnonzero((chosen >= part.start) & (chosen < part.stop)) for name, part in space.slices.items()}
    touched = {name: positions for name, positions in found.items() if len(positions)}
    return list(touched), list(touched.values())


@law(
    "products and central differences",
    "The products are not the derivative that central differences of this function find: a custom backward rule, a "
    "supplied jvp, or a framework's own rule is wrong (torch.func.hessian and jvp of jacrev are, on normalisation "
    "layers), or the model takes a number out of the graph (math.exp(p), float(p), .item(), .detach()), or holds "
    "something constant by design (rows at an embedding's padding_idx=, stop_gradient, a rounding that gradients pass "
    "through: check it without). linop_gn's own operators avoid the framework's; otherwise report it with the layer.",
    oracle=True,
    floor=DIFFERENCES,
)
def differences(subject: Subject) -> Found:
    """The parts made at a point, against central differences of gradients and outputs in float64."""
    if not points_in(subject.against):
        raise NotApplicableError("not a curvature operator")
    if subject.against is not subject.operator:
        pairs = [(subject, subject.against)] if subject.against in curvature_in(subject.against) else []
    else:
        parts = curvature_in(subject.operator)
        pairs = [(subject if part is subject.operator else subject.part(part), part) for part in parts]
    found = [made for which, part in pairs for made in [_part_differences(which, part)] if made is not None]
    if not found:
        raise NotApplicableError("no part is a derivative of something that can be differenced")
    worst = max(found, key=lambda made: made.error if made.error == made.error else np.inf)
    return Found(worst.error, max(made.uncertainty for made in found), worst.note)


def _part_differences(subject: Subject, part: LinearOperator) -> Found | None:
    point = point_of(part)
    if point is None:
        return None
    at = subject.oracle.at(point)
    twin = at.twin
    if isinstance(part, Hessian):
        return _directional(subject, twin.gradient, twin.x, twin.directions(subject.V), twin.eps, "of gradients")
    if isinstance(part, Jacobian):
        return _directional(subject, twin.all_outputs, twin.x, twin.directions(subject.V), twin.eps, "of outputs")
    if isinstance(part, (GGN, BlockGGN)):
        return _quadratic(subject, at, part)
    if isinstance(part, LossHessian):
        ((term, z),) = at.batches()
        slope = partial(twin.loss_gradient, term)
        return _directional(subject, slope, z, subject.V, twin.eps, "of the loss's gradient", twin.scale)
    return None


def _directional(subject: Subject, f: Map, x: NDArray, V: NDArray, eps: float, what: str, scale: float = 0.0) -> Found:
    """A v against d/dt f(x + t v); times ``scale``, and counted as known where it is 0, if there is one."""
    found = []
    for v in subject.rounded(subject.operator.domain, V).T:
        made, given = along(f, x, v.reshape(x.shape), eps), subject.product(v)
        # Beside a product that is not zero a difference of zero tells, too.
        size = max(norm(made.value), norm(given) / (scale or 1.0))
        known = made.uncertainty / size if size and made.uncertainty else made.relative
        found.append((relative(given, made.value * (scale or 1.0)), _known(made) if scale else known))
    return _enough(found, what)


def _quadratic(subject: Subject, at: Matrices, part: GGN | BlockGGN) -> Found:
    """V^T G V against sum over batches of (J V)^T H_L (J V), with J V and H_L (J V) by differences."""
    space, twin = subject.operator.domain, at.twin
    D = twin.directions(subject.V)
    mask = np.ones((D.shape[1], D.shape[1]))
    if isinstance(part, BlockGGN):
        D, numbers = _in_blocks(D, part, subject.seed)
        mask = np.equal.outer(numbers, numbers).astype(float)
    D = subject.rounded(space, D)
    wanted, uncertainty = np.zeros_like(mask), 0.0
    for term, z in at.batches():
        pushed, bent = [], []
        for v in D.T:
            made = along(partial(twin.outputs, term), twin.x, v, twin.eps)
            size = float(np.abs(made.value).max()) or 1.0
            uncertainty = max(uncertainty, _known(made))
            pushed.append(made.value)
            if term.loss is None or term.loss.second_derivative:
                curved = along(partial(twin.loss_gradient, term), z, made.value.reshape(z.shape) / size, twin.eps)
                uncertainty = max(uncertainty, _known(curved))
                bent.append(curved.value * size)
            else:
                bent.append(twin.loss_curvature(term, z, made.value).reshape(-1))
        wanted += np.stack(pushed) @ np.stack(bent).T
    given = D.T @ subject.products(D)
    given = given - mask * (D.T @ (np.reshape(twin.l2, (-1, 1)) * D))
    return _enough([(relative(given, twin.scale * mask * wanted), uncertainty)], "of outputs")


def _known(made: Derivative) -> float:
    return made.relative if norm(made.value) else 0.0


def _in_blocks(D: NDArray, part: BlockGGN, seed: int) -> tuple[NDArray, NDArray]:
    """Each direction within one block: one block after the other, from a random one on."""
    first = int(np.random.default_rng([seed, 3]).integers(len(part.blocks)))
    numbers = (first + np.arange(D.shape[1])) % len(part.blocks)
    return np.where(np.equal.outer(block_numbers(part), numbers), D, 0.0), numbers


def _enough(found: list[tuple[float, float]], what: str) -> Found:
    """The outcome of several comparisons, unless differences could not tell."""
    uncertainty = max(u for _, u in found)
    if not uncertainty <= USELESS:
        raise NotApplicableError(
            f"differences {what} have no digit that counts here: the function is not smooth (many units switch at any "
            "step) or the derivative is lost in rounding"
        )
    return Found(largest([error for error, _ in found]), uncertainty, what)


@law(
    "value and gradient, and central differences",
    "The gradient is not that of the value: look for numbers that the model takes out of the graph (math.exp(p), "
    "float(p), .item(), .detach()) or holds constant by design (rows at an embedding's padding_idx=, stop_gradient), "
    "at vjp= or jacobian=, and at the loss's gradient, the weights and who divides by their sum.",
    oracle=True,
    floor=DIFFERENCES,
)
def gradient(subject: Subject) -> Found:
    """Value and gradient at the points, against the value in float64 and its central differences."""
    if not subject.points:
        raise NotApplicableError("not a curvature operator")
    found = [_gradient_at(subject, point) for point in subject.points]
    return _enough([pair for pairs in found for pair in pairs], "of the value")


def _gradient_at(subject: Subject, point: Point) -> list[tuple[float, float]]:
    ops, twin = point.space.backend, subject.oracle.at(point).twin
    try:
        g = host(point.space, point.gradient)
    except MissingDerivativeError as error:
        raise NotApplicableError(str(error)) from None
    value, wanted = float(ops.to_numpy(point.value)), twin.value(twin.x)
    found = [(abs(value - wanted) / abs(wanted) if value != wanted else 0.0, 0.0)]
    size = norm(g) / np.sqrt(len(g))
    steepest = g / size * norm(twin.x) / np.sqrt(len(g)) if size and norm(twin.x) else g
    for v in (steepest, *twin.directions(subject.draw(point.space, 4)).T):
        made = along(lambda x: np.array(twin.value(x)), twin.x, v, twin.eps)
        typical = max(abs(float(made.value[0])), norm(g) * norm(v) / np.sqrt(len(g)))
        difference = abs(float(g @ v) - float(made.value[0]))
        found.append((difference / typical if difference else 0.0, made.uncertainty / typical if typical else 0.0))
    return found


@law(
    "all batches, and their union in one",
    "The sum over batches is not that over their union: each batch has to count by the weight of its examples, "
    "divided once by the total. An average of averages is right for equal batches only. A loss that couples the "
    "examples of a batch cannot be split.",
    oracle=True,
)
def batches(subject: Subject) -> Found:
    """Value, gradient and products over many batches against those over their union in one."""
    if not subject.points:
        raise NotApplicableError("not a curvature operator")
    united: dict[int, Point] = {}
    for point in subject.points:
        twin = subject.oracle.at(point).twin
        if point.host or len(point.objective.batches) > 1 or point.objective.batches[0].stacked:
            united[id(point)] = point.anew(_together(point, twin))
    if not united:
        raise NotApplicableError("data of one batch")
    operator = rebuilt(subject.operator, lambda point: united.get(id(point), point))
    errors = [relative(Subject(operator).product(subject.V[:, 0]), subject.AV[:, 0])]
    for point in subject.points:
        if id(point) in united:
            one, space = united[id(point)], point.space
            errors += [relative(host(space, point.value), host(space, one.value))]
            errors += [relative(host(space, point.gradient), host(space, one.gradient))]
    return Found(largest(errors))


def _together(point: Point, twin: Twin) -> Terms:
    """The objective on all batches in one; NotApplicableError where that is another function."""
    ops, parts = point.space.backend, twin.batches
    if parts is None or entries(ops, parts) > MOST_NUMBERS:
        raise NotApplicableError(f"the batches hold more than {MOST_NUMBERS:,} numbers together")
    if point.objective.loss is not None and point.objective.loss.of_batch(parts[0].place) is not point.objective.loss:
        raise NotApplicableError("what is drawn for an example depends on the batch that it is in")
    try:
        terms = replace(point.objective, batches=(union(ops, parts),), stream=None, programs=None)
        one = Twin(point.anew(terms), twin.double)
        outputs = one.all_outputs(one.x)
    except Exception as error:
        raise NotApplicableError(f"the batches do not make one ({str(error).splitlines()[0]})") from None
    apart = twin.all_outputs(twin.x)
    if outputs.shape != apart.shape or not relative(outputs, apart) <= np.sqrt(twin.eps):
        raise NotApplicableError(
            "the model's outputs on the union are others (batch statistics, or examples not along the first axis)"
        )
    return terms
