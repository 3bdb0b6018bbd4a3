"""The systems that solvers may fail on, by family; what they are handed to and how answers are judged: peer_cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from peer_cases import LEAST, Case, N

from linop_gn import Status


def cases() -> list[Case]:
    """All systems, by family."""
    return [*definite(), *symmetric(), *rectangular(), *spectra(), *regions()]


def _maker(family: str, methods: Sequence[str], **defaults: Any) -> Callable[..., Case]:
    """Cases of one family; one status is that of all methods."""

    def case(name: str, what: str, A: Any, b: Any, status: Any, dtype: str = "float64", **options: Any) -> Case:
        parts = A if isinstance(A, tuple) else (A,)
        for key in ("x0", "preconditioner"):
            if key in options:
                options[key] = np.asarray(options[key], dtype=dtype)
        statuses = status if isinstance(status, tuple) else (status,) * len(methods)
        ours = dict(zip(methods, statuses, strict=True))
        data = tuple(np.asarray(part, dtype=dtype) for part in parts)
        return Case(name, what, family, data, np.asarray(b, dtype=dtype), ours, **(defaults | options))

    return case


def definite() -> list[Case]:
    """Handed to conjugate gradients."""
    ten, b = with_spectrum(np.linspace(0.1, 1, N)), gaussian(1, N)
    singular = with_spectrum([0.0, 0.0, *np.linspace(0.5, 2, N - 2)], 2)
    signs = with_spectrum([-0.3, *np.linspace(0.5, 2, N - 1)], 3)
    many = 100_000

    case = _maker("definite", ["CG"])

    return [
        case(
            "many unknowns in float32",
            "100,000 unknowns, condition number 10, eigenvalues in [0.1, 1], float32.",
            np.linspace(0.1, 1, many),
            gaussian(0, many),
            Status.CONVERGED,
            "float32",
        ),
        case(
            "small operator",
            "Condition number 10, eigenvalues in [1e-13, 1e-12]: as the curvature of a loss that is nearly fitted.",
            1e-12 * ten,
            b,
            Status.CONVERGED,
        ),
        case(
            "tiny right-hand side",
            "max |b| about 1e-30, float32: b^T b underflows.",
            ten,
            1e-30 * b,
            Status.CONVERGED,
            "float32",
        ),
        case(
            "huge right-hand side",
            "max |b| about 1e30, float32: b^T b overflows.",
            ten,
            1e30 * b,
            Status.CONVERGED,
            "float32",
        ),
        case("zero right-hand side", "b = 0. The answer is 0.", ten, 0 * b, Status.CONVERGED),
        case(
            "start at the solution",
            "x0 solves the system exactly: A = 2 I.",
            np.full(N, 2.0),
            2 * b,
            Status.CONVERGED,
            x0=b,
        ),
        case(
            "steps after the last",
            "A = 2 I and ten steps whatever the residual: the first step makes the residual an exact zero.",
            np.full(N, 2.0),
            np.round(8 * b),
            Status.COMPLETED,
            max_steps=10,
            fixed=True,
        ),
        case(
            "useless start",
            "x0 is 1e6 times larger than the solution, float32, tolerance 1e-5.",
            ten,
            b,
            Status.CONVERGED,
            "float32",
            x0=1e6 * gaussian(5, N),
        ),
        case(
            "drifting recurrence",
            "Condition number 1e5, 200 unknowns, float32, tolerance 1e-7: the residual that the recurrence updates "
            "leaves the true one, which rounding keeps above the tolerance.",
            np.logspace(-5, 0, 200),
            gaussian(6, 200),
            Status.STAGNATED,
            "float32",
            max_steps=8000,
            rtol=1e-7,
            truth="solution",
        ),
        case(
            "singular and consistent",
            "Two zero eigenvalues, b in the range of A.",
            singular,
            singular @ b,
            Status.CONVERGED,
        ),
        case(
            "singular and inconsistent",
            "Two zero eigenvalues, b not in the range: there is no solution.",
            singular,
            b,
            Status.MAX_STEPS,
            truth="nothing",
            rounding=True,
        ),
        case(
            "indefinite operator",
            "One negative eigenvalue among forty. There is a solution; conjugate gradients have no claim on it.",
            signs,
            b,
            Status.NEGATIVE_CURVATURE,
        ),
        case(
            "breakdown at once",
            "A = [[0, 1], [1, 0]], b = (1, 0): p^T A p = 0 at the first step. The solution is (0, 1).",
            [[0.0, 1.0], [1.0, 0.0]],
            [1.0, 0.0],
            Status.NEGATIVE_CURVATURE,
        ),
        case(
            "zero operator",
            "A = 0, b not: there is no solution.",
            np.zeros(N),
            b,
            Status.NEGATIVE_CURVATURE,
            truth="nothing",
        ),
        case(
            "overflow in a product",
            "The product overflows from the fourth step on.",
            (tridiagonal(np.linspace(1, 3, N)), unit(N, 3, 1e200)),
            unit(N),
            Status.NONFINITE,
            truth="nothing",
            product=overflowing,
        ),
        case("NaN in b", "One entry of b is NaN.", ten, _with(b, np.nan), Status.NONFINITE_INPUT, truth="nothing"),
        case(
            "infinity in b",
            "One entry of b is infinite.",
            ten,
            _with(b, np.inf),
            Status.NONFINITE_INPUT,
            truth="nothing",
        ),
        case(
            "indefinite preconditioner",
            "A is definite; half of the diagonal preconditioner is -1.",
            ten,
            b,
            Status.INDEFINITE_PRECONDITIONER,
            preconditioner=np.where(np.arange(N) % 2, 1.0, -1.0),
        ),
    ]


def symmetric() -> list[Case]:
    """Handed to minimal residuals."""
    signs = with_spectrum([*np.linspace(-2, -0.5, N // 2), *np.linspace(0.5, 2, N - N // 2)], 3)
    singular = with_spectrum([0.0, 0.0, *np.linspace(-2, -0.5, N // 2 - 1), *np.linspace(0.5, 2, N - N // 2 - 1)], 4)
    b, many = gaussian(7, N), 100_000
    both = np.where(np.arange(many) % 2, 1.0, -1.0)

    case = _maker("symmetric", ["MINRES"])

    return [
        case("indefinite", "Eigenvalues in [-2, -1/2] and [1/2, 2].", signs, b, Status.CONVERGED, rtol=1e-8),
        case(
            "many unknowns in float32",
            "100,000 unknowns, eigenvalues in [-1, -0.1] and [0.1, 1], float32.",
            both * np.linspace(0.1, 1, many),
            gaussian(0, many),
            Status.CONVERGED,
            "float32",
        ),
        case(
            "ill-conditioned",
            "Eigenvalues of both signs from 1e-6 to 1 in size, 60 unknowns, tolerance 1e-8.",
            np.where(np.arange(60) % 2, 1.0, -1.0) * np.logspace(-6, 0, 60),
            gaussian(8, 60),
            Status.CONVERGED,
            rtol=1e-8,
            max_steps=4000,
        ),
        case(
            "tiny right-hand side",
            "max |b| about 1e-30, float32: b^T b underflows.",
            signs,
            1e-30 * b,
            Status.CONVERGED,
            "float32",
        ),
        case(
            "huge right-hand side",
            "max |b| about 1e30, float32: b^T b overflows.",
            signs,
            1e30 * b,
            Status.CONVERGED,
            "float32",
        ),
        case("zero right-hand side", "b = 0. The answer is 0.", signs, 0 * b, Status.CONVERGED),
        case(
            "singular and consistent",
            "Two zero eigenvalues, b in the range of A.",
            singular,
            singular @ b,
            Status.CONVERGED,
        ),
        case(
            "singular and inconsistent",
            "Two zero eigenvalues, b not in the range: there is no solution, and there are least-squares solutions.",
            singular,
            b,
            Status.INCONSISTENT,
            truth="least squares",
        ),
        case(
            "zero first pivot",
            "A = [[0, 1], [1, 0]], b = (1, 0): the first Lanczos coefficient is zero. The solution is (0, 1).",
            [[0.0, 1.0], [1.0, 0.0]],
            [1.0, 0.0],
            Status.CONVERGED,
        ),
        case(
            "zero operator",
            "A = 0, b not: there is no solution; every x is a least-squares solution, 0 the shortest.",
            np.zeros(N),
            b,
            Status.INCONSISTENT,
            truth="least squares",
        ),
        case(
            "overflow in a product",
            "The product overflows from the fourth step on.",
            (tridiagonal(np.where(np.arange(N) % 2, -2.0, 1.0)), unit(N, 3, 1e200)),
            unit(N),
            Status.NONFINITE,
            truth="nothing",
            product=overflowing,
        ),
        case("NaN in b", "One entry of b is NaN.", signs, _with(b, np.nan), Status.NONFINITE_INPUT, truth="nothing"),
    ]


def rectangular() -> list[Case]:
    """Handed to least-squares solvers."""
    m, b = 60, gaussian(9, 60)
    tall = with_singular_values(m, np.linspace(1, 10, N), 5)
    deficient = with_singular_values(m, [0.0, 0.0, *np.linspace(1, 10, N - 2)], 6)
    steep = with_singular_values(m, np.logspace(-10, 0, N), 7)
    lower = np.eye(m, N) + 0.5 * np.eye(m, N, k=-1)

    case = _maker("rectangular", LEAST, truth="least squares", rtol=1e-6)

    return [
        case("least squares", "60 equations, 40 unknowns, condition number 10.", tall, b, Status.LEAST_SQUARES),
        case("consistent", "b in the range of A.", tall, tall @ gaussian(10, N), Status.CONVERGED, truth="solution"),
        case(
            "fewer equations than unknowns",
            "The transposed matrix, 40 equations.",
            tall.T,
            b[:N],
            Status.CONVERGED,
            truth="solution",
        ),
        case("rank-deficient", "Two zero singular values, b not in the range.", deficient, b, Status.LEAST_SQUARES),
        case("zero right-hand side", "b = 0. The answer is 0.", tall, 0 * b, Status.CONVERGED),
        case(
            "orthogonal right-hand side",
            "A^T b = 0 exactly: the answer is 0.",
            np.eye(m, N),
            np.where(np.arange(m) < N, 0.0, b),
            Status.LEAST_SQUARES,
        ),
        case(
            "tiny right-hand side",
            "max |b| about 1e-30, float32: b^T b underflows.",
            tall,
            1e-30 * b,
            Status.LEAST_SQUARES,
            "float32",
            rtol=1e-4,
        ),
        case(
            "huge right-hand side",
            "max |b| about 1e30, float32: b^T b overflows.",
            tall,
            1e30 * b,
            Status.LEAST_SQUARES,
            "float32",
            rtol=1e-4,
        ),
        case("orthonormal columns", "A^T A = I: one step solves it exactly.", np.eye(m, N), b, Status.LEAST_SQUARES),
        case(
            "ill-conditioned",
            "Condition number 1e10, the default limit on it (1e8).",
            steep,
            b,
            Status.CONDITION_LIMIT,
            rtol=1e-12,
            truth="nothing",
            max_steps=4000,
        ),
        case(
            "overflow in a product",
            "The product overflows from the fourth step on.",
            (lower, unit(N, 3, 1e200)),
            unit(m),
            Status.NONFINITE,
            truth="nothing",
            product=overflowing_tall,
            adjoint=adjoint_tall,
        ),
        case(
            "zero operator",
            "A = 0: every x is a least-squares solution, 0 the shortest.",
            np.zeros((m, N)),
            b,
            Status.LEAST_SQUARES,
        ),
        case("NaN in b", "One entry of b is NaN.", tall, _with(b, np.nan), Status.NONFINITE_INPUT, truth="nothing"),
    ]


def spectra() -> list[Case]:
    """Handed to Lanczos processes: b starts the Krylov space, max_steps is its size."""
    spread, b = np.logspace(-6, 0, N), gaussian(11, N)
    skew = with_spectrum(np.linspace(1, 10, N), 12) + np.triu(gaussian(13, N, N), 1)

    case = _maker("spectrum", ["krylov"], truth="eigenvalues", rtol=1e-10, max_steps=N)

    return [
        case(
            "whole spectrum",
            "40 steps, eigenvalues from 1e-6 to 1: all of them, each once.",
            spread,
            b,
            Status.INVARIANT,
        ),
        case(
            "invariant space",
            "b is a sum of three eigenvectors, ten steps: the space ends at three.",
            np.linspace(1, 10, N),
            unit(N) + unit(N, 7) + unit(N, 20),
            Status.INVARIANT,
            max_steps=10,
        ),
        case(
            "an eigenvector",
            "b is an eigenvector, five steps.",
            np.linspace(1, 10, N),
            unit(N),
            Status.INVARIANT,
            max_steps=5,
        ),
        case(
            "tiny start",
            "max |b| about 1e-30, float32: b^T b underflows.",
            spread,
            1e-30 * b,
            Status.INVARIANT,
            "float32",
            rtol=1e-5,
        ),
        case(
            "tiny operator",
            "Eigenvalues from 1e-36 to 1e-30, float32: products underflow when squared.",
            1e-30 * spread,
            b,
            Status.INVARIANT,
            "float32",
            rtol=1e-5,
        ),
        case("zero start", "b = 0: there is no space.", spread, 0 * b, Status.CONVERGED, truth="nothing"),
        case(
            "overflow in a product",
            "The product overflows from the fourth step on.",
            (tridiagonal(np.linspace(1, 3, N)), unit(N, 3, 1e200)),
            unit(N),
            Status.NONFINITE,
            truth="nothing",
            product=overflowing,
            max_steps=10,
        ),
        case(
            "not symmetric",
            "The operator isn't symmetric; the library is told, or takes it for granted, that it is.",
            skew,
            b,
            Status.NOT_SYMMETRIC,
            truth="nothing",
            max_steps=10,
        ),
        case("NaN in b", "One entry of b is NaN.", spread, _with(b, np.nan), Status.NONFINITE_INPUT, truth="nothing"),
    ]


def regions() -> list[Case]:
    """min 1/2 x.A x - b.x over ||x|| <= radius, handed to trust-region solvers; a tenth of the decrease is forgiven."""
    signs, b = np.linspace(-2, 5, N), gaussian(14, N)

    case = _maker("region", ["GLTR", "GLTR rtol=0"], truth="step", rtol=1e-2)

    return [
        case(
            "inside",
            "A definite, the minimum within the region.",
            with_spectrum(signs + 3, 1),
            b,
            (Status.UNEXPLORED, Status.INVARIANT),
            radius=100.0,
        ),
        case("indefinite", "Eigenvalues in [-2, 5], radius 1.", with_spectrum(signs, 1), b, Status.BOUNDARY),
        case(
            "hard case",
            "b has no part in the lowest eigenvector, and the region is so large that the step needs it.",
            signs,
            b * (signs > signs[0]),
            Status.BOUNDARY,
            radius=20.0,
        ),
        case(
            "blind to negative curvature",
            "b has no part in any eigenvector of negative curvature: its Krylov space is that of a definite operator.",
            signs,
            b * (signs > 0.3),
            (Status.UNEXPLORED, Status.BOUNDARY),
            radius=20.0,
        ),
        case("saddle point", "b = 0, A indefinite.", signs, 0 * b, (Status.UNEXPLORED, Status.BOUNDARY)),
        case(
            "small right-hand side", "max |b| about 1e-20, A indefinite, radius 1.", signs, 1e-20 * b, Status.BOUNDARY
        ),
        case("small region", "Radius 1e-12.", signs, b, Status.BOUNDARY, radius=1e-12),
        case(
            "overflow in a product",
            "The product overflows from the fourth step on.",
            (tridiagonal(np.linspace(1, 3, N)), unit(N, 3, 1e200)),
            unit(N),
            Status.NONFINITE,
            truth="nothing",
            product=overflowing,
        ),
        case("NaN in b", "One entry of b is NaN.", signs, _with(b, np.nan), Status.NONFINITE_INPUT, truth="nothing"),
    ]


# parts


def overflowing(v: Any, matrix: Any, large: Any) -> Any:
    """A v, and past the range of numbers once v reaches where ``large`` isn't zero; linear in v, as JAX wants it."""
    return matrix @ v + large * (large * v)


def overflowing_tall(v: Any, matrix: Any, large: Any) -> Any:
    """The same with more rows than columns."""
    return matrix @ (v + large * (large * v))


def adjoint_tall(u: Any, matrix: Any, large: Any) -> Any:
    """A^T u within that range."""
    return matrix.T @ u


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(gaussian(seed, n, n))[0]


def with_spectrum(values: Any, seed: int = 0) -> np.ndarray:
    """A dense symmetric matrix with these eigenvalues."""
    Q = orthogonal(len(values), seed)
    matrix = (Q * np.asarray(values)) @ Q.T
    return (matrix + matrix.T) / 2


def with_singular_values(m: int, values: Any, seed: int = 0) -> np.ndarray:
    """A dense m x n matrix with these singular values."""
    n = len(values)
    return (orthogonal(m, seed)[:, :n] * np.asarray(values)) @ orthogonal(n, seed + 1).T


def tridiagonal(pivots: Any) -> np.ndarray:
    """L D L^T with L unit lower bidiagonal: from b = e_1 Krylov spaces are spanned by unit vectors."""
    n = len(pivots)
    L = np.eye(n) + 0.5 * np.eye(n, k=-1)
    return L @ np.diag(pivots) @ L.T


def unit(n: int, k: int = 0, size: float = 1.0) -> np.ndarray:
    return size * np.eye(n)[k]


def _with(b: np.ndarray, value: float) -> np.ndarray:
    b = b.copy()
    b[2] = value
    return b
