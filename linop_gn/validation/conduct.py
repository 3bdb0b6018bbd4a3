"""How an operator behaves: the same each time, in every format, and without touching what is not its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..curvature.point import Point
from ..curvature.term import outputs_of
from ..protocols import Array
from ..spaces import Space
from .data import digest, host, place, unstacked
from .law import Found, law
from .measure import NotApplicableError, largest, norm, relative
from .subject import Subject, rebuilt

__all__ = ["aliasing", "columns", "determinism", "formats", "inputs"]

NDArray = np.ndarray[Any, Any]

_ANEW = (
    "The same parameters and data, linearised anew, give something else: the model draws random numbers (dropout, "
    "noise), or the data do (augmentation, sampling). A curvature operator needs one fixed function. Use evaluation "
    "mode, fix the draw (an nn.Module given to lg.Objective as it is draws from one seed; in JAX make the key an "
    "argument; elsewhere seed the generator inside the function), or hold the batches in a list."
)


@law(
    "products repeated, and linearised anew",
    "The same product, taken twice, differs: the function keeps state or draws random numbers in each product. "
    "Make it a pure function of the vector and its arguments.",
    steady=True,
    after=("finite",),
)
def determinism(subject: Subject) -> Found:
    """The same product again, the same product after linearising anew, and the model's outputs evaluated twice."""
    asked: dict[str, Callable[[Subject], float]] = {"the same product, taken again, differs": _repeated}
    if "compiled" in subject.operator.backend.capabilities and not subject.points:
        asked["products that are not compiled differ"] = _uncompiled
    if subject.points:
        asked["products linearised anew differ"] = lambda s: _repeated(Subject(rebuilt(s.operator, Point.anew)), s)
        asked["the model's outputs differ between calls"] = lambda s: largest([_outputs_differ(p) for p in s.points])
    error, advice = 0.0, _ANEW if subject.points else ""
    for note, measure in asked.items():
        try:
            error = largest([error, measure(subject)])
        except Exception as raised:
            return Found(float("inf"), note=f"a second time raised {type(raised).__name__}: {raised}", advice=advice)
        if not error <= subject.tolerance:
            return Found(error, note=note, advice=advice)
    return Found(error, note="equal up to rounding" if error else "bit for bit the same")


def _repeated(subject: Subject, first: Subject | None = None) -> float:
    first = first or subject
    return largest([relative(subject.product(first.V[:, 0]), first.first) for _ in range(2)])


def _uncompiled(subject: Subject) -> float:
    """A compiler makes a constant of what the host draws: without it, a product differs from the next."""
    ready, domain = subject.operator.prepare(), subject.operator.domain
    made = [host(subject.operator.codomain, ready.matvec(place(domain, subject.V[:, 0]))) for _ in range(2)]
    return largest([relative(made[0], made[1]), relative(made[0], subject.first)])


def _outputs_differ(point: Point) -> float:
    """How much two evaluations of the model on the same data differ, uncompiled: a compiler freezes the first draw.

    Streams may come in another order, so for these it is the sums of the losses that are compared.
    """
    precision = point.precision()
    point = point.abroad()
    terms, space, runs = point.objective, point.space, []
    summed = terms.host or terms.loss is None
    with precision:
        for _ in range(2):
            found = []
            for batch in terms.stream_batches(space) if terms.host else unstacked(terms, space):
                term = terms._term(space, batch)
                z = term.evaluate(point.x)[0] if summed else outputs_of(term, point.x)
                found.append(host(space, z).reshape(-1))
            runs.append(np.sum(found, axis=0) if summed else np.concatenate(found))
    return relative(*runs)


@law(
    "A V and its columns one at a time",
    "matmat differs from matvec on each column: usually an axis that broadcasts the wrong way. Remove matmat (the "
    "base class applies matvec to each column) or mend it.",
    after=("finite", "determinism", "aliasing"),
)
def columns(subject: Subject) -> Found:
    """A V against the products of its columns; the adjoint's too, where there is one."""
    A = subject.operator
    errors = [relative(host(A.codomain, subject.apply(place(A.domain, _several(subject.V)))), _several(subject.AV))]
    if not A.symmetric and subject.has_adjoint:
        errors.append(relative(host(A.domain, subject.apply_transposed(place(A.codomain, subject.U))), subject.ATU))
    return Found(largest(errors))


def _several(V: NDArray) -> NDArray:
    """The columns with the first repeated, so that there are two at least; everywhere as many, for compilers' sake."""
    return np.concatenate([V, V[:, :1]], axis=1)


@law(
    "tree, flat vector and columns",
    "A @ v depends on the format of v, or comes back in another shape, dtype or device. Products are flat vectors "
    'of the codomain; check that function returns those (on="flat") or trees like it (on="tree").',
    after=("finite", "determinism", "aliasing"),
)
def formats(subject: Subject) -> Found:
    """A @ tree, A @ flat and A @ columns against the product, in values, shapes, dtypes and devices."""
    A = subject.operator
    v, Av = subject.V[:, 0], subject.AV[:, 0]
    given: list[tuple[str, Any, NDArray]] = [("tree", A.domain.unpack(place(A.domain, v)), Av)]
    for what, flat, wanted in (("flat", v, Av), ("columns", _several(subject.V), _several(subject.AV))):
        if tuple(flat.shape) != A.domain.shapes[0]:  # which reads as the tree, if that is one array of this very shape
            given.append((what, place(A.domain, flat), wanted))
    errors, wrong = [], []
    for what, vector, wanted in given:
        try:
            result = A @ vector
            made = A.codomain.pack(result, "product") if what == "tree" else _checked(A.codomain, result, wanted.shape)
            errors.append(relative(host(A.codomain, made), wanted))
        except (TypeError, ValueError) as error:
            wrong.append(f"{what}: {error}")
    return Found(float("inf"), note=" ".join(wrong)) if wrong else Found(largest(errors))


def _checked(space: Space, result: Array, shape: tuple[int, ...]) -> Array:
    got = tuple(getattr(result, "shape", ()))
    if got != shape:
        raise ValueError(f"the product has shape {got}, expected {shape}.")
    return space.check(result, "product")


@law(
    "arrays given that were written to",
    "A product wrote to an array that is not its own; solvers then compute with spoilt vectors. Copy before "
    "operations in place (x += ..., out=, relu_).",
    exact=True,
)
def inputs(subject: Subject) -> Found:
    """How many of the arrays given (vectors, columns, trees, parameters, data) were written to."""
    A, V = subject.operator, subject.V
    flat, several = place(A.domain, V[:, 0]), place(A.domain, _several(V))
    runs: list[tuple[str, Callable[[Any], Any], Any]] = [
        ("the vector", subject.apply, flat),
        ("the columns", subject.apply, several),
        ("the tree", A.__matmul__, A.domain.unpack(place(A.domain, V[:, 0]))),
    ]
    if not A.symmetric and subject.has_adjoint:
        runs.append(("the adjoint's vector", subject.apply_transposed, place(A.codomain, subject.U[:, 0])))
    touched = []
    for name, function, given in runs:
        before = digest(A.backend, given)
        function(given)
        if digest(A.backend, given) != before:
            touched.append(name)
    if subject.data_digests() != subject.data_before:
        touched.append("the parameters or the data")
    return Found(float(len(touched)), note=f"written to: {', '.join(touched)}" if touched else "")


@law(
    "products that share memory",
    "A product must be a new array, which the caller may overwrite: return a copy, not the input, a view of it, or "
    "a buffer that the operator keeps.",
    exact=True,
    after=("finite", "determinism", "inputs"),
)
def aliasing(subject: Subject) -> Found:
    """In how many ways a product that the caller overwrites changes the vector, another product, or the operator."""
    A = subject.operator
    if "in_place" not in A.backend.capabilities:
        raise NotApplicableError(f"arrays of {A.backend.name} cannot be written to")
    v, w = place(A.domain, subject.V[:, 0]), place(A.domain, subject.V[:, -1])
    first, second = subject.apply(v), subject.apply(w)
    shared = []
    if not relative(host(A.codomain, first), subject.AV[:, 0]) <= subject.tolerance:
        shared.append("the next product")
    A.backend.scale(0.0, second)
    if norm(host(A.domain, w) - subject.V[:, -1]):
        shared.append("the vector it was made from")
    if not relative(subject.product(subject.V[:, 0]), subject.AV[:, 0]) <= subject.tolerance:
        shared.append("what later products need")
    return Found(float(len(shared)), note=f"a product shares memory with {', '.join(shared)}" if shared else "")
