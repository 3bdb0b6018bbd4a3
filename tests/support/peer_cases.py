"""Linear systems on which solvers are known to fail, what the answers are, and what ours says about them.

NumPy, SciPy's assignments and this package are all that it takes: the tests hold our own column of
docs/peers.md to these, and benchmarks/peer_failures.py hands the same systems
to other libraries. Everything is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

N = 40
"""One size for most systems: compiled backends compile once for it."""


LEAST = ("LSMR", "LSQR")


class Case(NamedTuple):
    """A x = b, how accurately it is to be solved, and the statuses of our methods."""

    name: str
    what: str
    family: str
    """"definite", "symmetric", "rectangular", "spectrum" (b starts the Krylov space) or "region"."""
    data: tuple[np.ndarray, ...]
    b: np.ndarray
    ours: dict[str, Status]
    """Status by method."""
    truth: str = "solution"
    """What there is to find: "solution", "least squares", "eigenvalues", "step", or "nothing"."""
    rtol: float = 1e-5
    max_steps: int = 1000
    x0: np.ndarray | None = None
    preconditioner: np.ndarray | None = None
    """A diagonal."""
    rounding: bool = False
    """Whether it is up to rounding in which way ours ends without success."""
    fixed: bool = False
    """Whether max_steps steps are to be taken, whatever the residual."""
    size: float | None = None
    """||A||; None where the data are A itself."""
    radius: float = 1.0
    """Of the trust region: the minimum of 1/2 x.A x - b.x over ||x|| <= radius is wanted."""
    product: Callable[..., Any] | None = None
    adjoint: Callable[..., Any] | None = None

    @property
    def dtype(self) -> str:
        return str(self.b.dtype)

    @property
    def columns(self) -> int:
        """Number of unknowns."""
        return self.data[0].shape[-1]

    def apply(self, v: Any, *data: Any) -> Any:
        """A v, on arrays of any library."""
        return (self.product or multiply)(v, *data)

    def apply_adjoint(self, u: Any, *data: Any) -> Any:
        """A^T u."""
        return (self.adjoint or self.product or multiply_adjoint)(u, *data)


def multiply(v: Any, matrix: Any) -> Any:
    """A v, where A is given by its entries or by its diagonal."""
    return matrix @ v if matrix.ndim == 2 else matrix * v


def multiply_adjoint(u: Any, matrix: Any) -> Any:
    """A^T u."""
    return matrix.T @ u if matrix.ndim == 2 else matrix * u


def method(case: Case, name: str) -> Any:
    """Ours, with the options of the case."""
    kind = getattr(lg, name.partition(" ")[0])
    if kind is lg.GLTR:
        return kind(radius=case.radius, rtol=1e-10 if name == "GLTR" else 0.0)
    if case.fixed:
        return kind(steps=case.max_steps)
    least = {"atol": case.rtol, "btol": case.rtol, "conlim": 1e8}  # the limit that is the default elsewhere
    tolerances = least if name in LEAST else {"rtol": case.rtol}
    return kind(max_steps=case.max_steps, **tolerances)


def operator(case: Case, data: tuple[Any, ...], b: Any) -> lg.LinearOperator:
    """A as an operator of ours on these arrays."""
    domain, symmetric = lg.Space.flat(case.columns, b), case.family != "rectangular"
    return lg.FunctionOperator(
        case.product or multiply,
        domain,
        domain if symmetric else lg.Space.flat(len(case.b), b),
        None if symmetric else (case.adjoint or multiply_adjoint),
        args=data,
        symmetric=symmetric,
    )


class Found(NamedTuple):
    """What ours returns: a solution, or eigenvalues."""

    x: np.ndarray
    status: Status
    steps: int


def solve(case: Case, name: str, backend: Any) -> Found:
    """Our answer, on arrays of a backend."""
    data = tuple(array(backend, entries, case.dtype) for entries in case.data)
    b = array(backend, case.b, case.dtype)
    A = operator(case, data, b)
    if name == "krylov":
        basis = lg.krylov(A, b, case.max_steps)
        return Found(np.asarray(basis.eigenvalues().values, dtype=np.float64), basis.status, int(basis.steps))
    chosen = method(case, name)
    if case.preconditioner is not None:
        chosen = lg.replace(chosen, preconditioner=lg.Diagonal(array(backend, case.preconditioner, case.dtype)))
    start = None if case.x0 is None else array(backend, case.x0, case.dtype)
    solution = lg.solve(A, b, chosen, x0=start)
    return Found(np.asarray(backend.to_numpy(solution.x), dtype=np.float64), solution.status, int(solution.steps))


def error(case: Case, x: Any) -> float:
    """How far x is from the answer, computed in float64.

    Of a solution ||b - A x|| / ||b||; of a least-squares solution
    ||A^T r|| / (||A|| ||r||); of eigenvalues the largest distance from an
    eigenvalue, each of which counts once, over ||A||; of a step in a trust
    region the part of the decrease that it misses, or infinity where it is
    longer by a tenth. NaN where x isn't finite, or where nothing is right.
    """
    data = tuple(entries.astype(np.float64) for entries in case.data)
    x, b = np.asarray(x, dtype=np.float64), case.b.astype(np.float64)
    if case.truth == "nothing" or not np.isfinite(x).all():
        return float("nan")
    if case.truth == "eigenvalues":
        spectrum = np.linalg.eigvalsh(data[0]) if data[0].ndim == 2 else data[0]
        distance = np.abs(x[:, None] - spectrum) / np.abs(spectrum).max()
        return float(distance[linear_sum_assignment(distance)].max()) if len(x) else 1.0
    if case.truth == "step":
        matrix = data[0] if data[0].ndim == 2 else np.diag(data[0])
        least = lowest(matrix, b, case.radius)
        too_long = np.linalg.norm(x) > 1.1 * case.radius
        return float("inf") if too_long else max(float(0.5 * x @ matrix @ x - b @ x - least), 0.0) / abs(least)
    unit = np.abs(b).max() or 1.0  # or squares of tiny numbers vanish
    x, b = x / unit, b / unit
    residual = b - case.apply(x, *data)
    if case.truth == "least squares":
        own = np.linalg.norm(data[0], 2) if data[0].ndim == 2 else np.abs(data[0]).max()
        scale = (case.size or own) * np.linalg.norm(residual)
        return float(np.linalg.norm(case.apply_adjoint(residual, *data)) / (scale or 1.0))
    return float(np.linalg.norm(residual) / (np.linalg.norm(b) or 1.0))


def lowest(matrix: np.ndarray, b: np.ndarray, radius: float) -> float:
    """min 1/2 x.A x - b.x over ||x|| <= radius, by eigenvalues and bisection on the multiplier; hard case included."""
    values, vectors = np.linalg.eigh(matrix)
    c, smallest = vectors.T @ b, values[0]

    def step(multiplier: float) -> np.ndarray:
        shifted = values + multiplier
        return np.divide(c, shifted, out=np.zeros_like(c), where=np.abs(shifted) > 1e-14 * np.abs(values).max())

    if smallest > 0 and np.linalg.norm(step(0.0)) <= radius:
        h = step(0.0)
    else:
        low = max(0.0, -smallest)
        high = low + np.linalg.norm(b) / radius + np.abs(values).max() * 1e-15
        for _ in range(200):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if np.linalg.norm(step(middle)) > radius else (low, middle)
        h = step(high)
        rest = radius**2 - h @ h
        if rest > 0:  # the hard case: along the lowest eigenvector to the boundary
            h[0] += np.sqrt(rest) * (1.0 if h[0] >= 0 else -1.0)
    return float(0.5 * h @ (values * h) - c @ h)


def right(case: Case, x: Any, slack: float = 10.0) -> bool:
    """Whether x is the answer to ten times the tolerance: norms and the norms that peers stop on differ."""
    return error(case, x) <= slack * (1e-10 if case.fixed else case.rtol)
