"""Laws of linear algebra, checked by random probes.

With random u and v alone, <u, A v> = <A^T u, v> is a weak test: a wrong part of
the product is nearly orthogonal to a random u, so a relative error of e shows as
e / sqrt(m). The probe u = A v, which is what the Gauss-Newton operator itself
uses, has no such dilution; both are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .law import Found, law
from .measure import NotApplicableError, largest, norm, relative
from .subject import Subject

__all__ = ["adjoint", "finite", "lanczos", "linearity", "psd", "symmetry"]

NDArray = np.ndarray[Any, Any]

LANCZOS_STEPS = 24
LANCZOS_ENTRIES = 50_000_000


@law(
    "products with random vectors are finite",
    "A product holds NaN or infinity. Look for overflow, a square root or norm at exactly 0, a logarithm of 0, a "
    "masked where() whose other branch is not finite, or parameters that have already diverged.",
    exact=True,
    after=(),
)
def finite(subject: Subject) -> Found:
    """How many entries of products are NaN or infinite."""
    try:
        products = subject.AV
    except Exception:  # the first product went well: whether a repeated one does is the next check's question
        products = subject.first[:, None]
    bad = np.asarray(np.logical_not(np.isfinite(products)))
    count = int(bad.sum())
    if not count:
        return Found(0.0)
    rows: NDArray = np.any(bad, axis=1)
    leaves = [name for name, part in subject.operator.codomain.slices.items() if rows[part].any()]
    named = ", ".join(leaves[:4]) + (", ..." if len(leaves) > 4 else "")
    return Found(float(count), note=f"{count} of {bad.size} are not{f', in {named}' if named else ''}")


@law(
    "A (a v + b w) and a A v + b A w",
    "The product is not linear in the vector. Of a function, pass its linearisation (a JVP), not the function; "
    "look for clipping, normalisation, affine terms or a product rounded to a coarser dtype.",
)
def linearity(subject: Subject) -> Found:
    """A (a v + b w) against a A v + b A w, and A (2^-6 v) against 2^-6 A v."""
    space, errors = subject.operator.domain, []
    a, b, small = 0.75, -1.25, 2.0**-6
    for i in range(subject.probes):
        v, w = subject.V[:, i], subject.V[:, i - 1]
        Av, Aw = subject.AV[:, i], subject.AV[:, i - 1]
        together = subject.product(subject.rounded(space, a * v + b * w))
        errors.append(_over(together - (a * Av + b * Aw), abs(a) * norm(Av) + abs(b) * norm(Aw)))
        errors.append(relative(subject.product(small * v), small * Av))
    return Found(largest(errors))


@law(
    "<u, A v> and <A^T u, v>",
    "rmatvec is not the adjoint of matvec: a missing transpose, a sign, a factor, or a boundary row. For a pair "
    "jvp=, vjp= both have to be taken at the same parameters and inputs.",
)
def adjoint(subject: Subject) -> Found:
    """<u, A v> against <A^T u, v>, for random u and for u = A v."""
    codomain, errors = subject.operator.codomain, []
    if not subject.has_adjoint:
        raise NotApplicableError("it has no adjoint product")
    for i in range(subject.probes):
        v, Av = subject.V[:, i], subject.AV[:, i]
        errors.append(_asymmetry(subject.U[:, i], Av, subject.ATU[:, i], v))
        along = subject.rounded(codomain, _scaled(Av))
        errors.append(_asymmetry(along, Av, subject.transposed(along), v))
    return Found(largest(errors))


@law(
    "<u, A v> and <v, A u>",
    "It claims to be symmetric and is not. Leave symmetric=True out and give the adjoint product, or look for a "
    "J and a J^T that were not taken at the same point; CG and Lanczos are wrong for such an operator.",
)
def symmetry(subject: Subject) -> Found:
    """<u, A v> against <v, A u>; entry by entry where the matrix is small."""
    if not subject.operator.symmetric:
        raise NotApplicableError("it does not claim to be symmetric")
    if subject.operator.shape[0] != subject.operator.shape[1]:
        return Found(float("inf"), note=f"its shape is {subject.operator.shape}")
    errors = []
    for i in range(subject.probes):
        v, Av = subject.V[:, i], subject.AV[:, i]
        probes = subject.V[:, i - 1], subject.rounded(subject.operator.domain, _scaled(Av))
        errors += [_asymmetry(u, Av, subject.product(u), v) for u in probes]
    if subject.is_small:
        errors.append(relative(subject.matrix, subject.matrix.T))
    return Found(largest(errors))


@law(
    "v^T A v >= 0, over the largest eigenvalue",
    "It claims to be positive semi-definite and is not. Leave psd=True out, add damping larger than the most "
    "negative eigenvalue, or check that the loss, if it promises convex, is convex in the outputs.",
    oracle=True,
)
def psd(subject: Subject) -> Found:
    """How negative v^T A v gets, relative to the largest eigenvalue seen."""
    if not subject.operator.psd:
        raise NotApplicableError("it does not claim to be positive semi-definite")
    quotients = [float(v @ Av) / max(float(v @ v), 1e-300) for v, Av in zip(subject.V.T, subject.AV.T, strict=True)]
    if subject.is_small:
        values = np.linalg.eigvalsh((subject.matrix + subject.matrix.T) / 2)
        how = "eigenvalues of the matrix"
    else:
        steps = max(2, min(LANCZOS_STEPS, LANCZOS_ENTRIES // subject.operator.domain.size))
        values = lanczos(subject.product, subject.V[:, 0], steps, subject.tolerance)
        how = f"Ritz values of {len(values)} Lanczos steps"
    found = np.concatenate([values, quotients])
    scale = float(np.abs(found).max())
    return Found(max(0.0, -float(found.min())) / scale if scale else 0.0, note=how)


def lanczos(product: Callable[[NDArray], NDArray], start: NDArray, steps: int, invariant: float = 1e-12) -> NDArray:
    """Ritz values of a symmetric operator after some Lanczos steps, orthogonalised in full (Paige, 1972).

    Stops where a residual is ``invariant`` times the largest product: then the values are eigenvalues.

    >>> lanczos(lambda v: np.array([3.0, -1.0]) * v, np.array([1.0, 1.0]), 5).round(6)
    array([-1.,  3.])
    """
    basis, images, largest_image = [start / norm(start)], [], 0.0
    for j in range(min(steps, start.size)):
        images.append(product(basis[j]))
        Q = np.stack(basis, axis=1)
        rest = images[j]
        for _ in range(2):
            rest = rest - Q @ (Q.T @ rest)
        largest_image = max(largest_image, norm(images[j]))
        if j + 1 == min(steps, start.size) or not norm(rest) > invariant * largest_image:
            break
        basis.append(rest / norm(rest))
    T = Q.T @ np.stack(images, axis=1)
    values: NDArray = np.linalg.eigvalsh((T + T.T) / 2)
    return values


def _scaled(x: NDArray) -> NDArray:
    """``x`` with a norm of sqrt(size), as random vectors have, so that no dtype overflows."""
    size = norm(x)
    return x * (np.sqrt(x.size) / size) if size else x


def _over(difference: NDArray, scale: float) -> float:
    size = norm(difference)
    return size / scale if size else 0.0


def _asymmetry(u: NDArray, Av: NDArray, ATu: NDArray, v: NDArray) -> float:
    """|<u, A v> - <A^T u, v>| over the larger of the products of norms."""
    difference = abs(float(u @ Av) - float(ATu @ v))
    return difference / max(norm(u) * norm(Av), norm(ATu) * norm(v)) if difference else 0.0
