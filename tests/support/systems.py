"""Linear systems for the tests of solvers, and the float64 checks that they share."""

import functools
import importlib
import os
import sys

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import poison_backend
from linop_gn.testing.strategies import array

N = 7
"""One size for most tests: compiled backends compile once for it."""

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}


def host(backend, x):
    """An array of the backend as a float64 copy on the host."""
    return np.array(backend.to_numpy(x), dtype=np.float64)


def rounded(x, dtype):
    """What is left of float64 numbers in ``dtype``, as float64."""
    return np.asarray(x).astype(dtype).astype(np.float64)


def orthogonal(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def with_spectrum(values, seed):
    """A dense symmetric matrix with these eigenvalues."""
    Q = orthogonal(len(values), seed)
    matrix = (Q * np.asarray(values)) @ Q.T
    return (matrix + matrix.T) / 2


def benign(seed, n=N):
    """Eigenvalues within a factor of four: CG's rounding errors stay rounding errors to the last step."""
    return with_spectrum(np.random.default_rng(seed).uniform(0.5, 2.0, n), seed)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape or N)


def operator(backend, matrix, dtype="float64"):
    return lg.Dense(array(backend, matrix, dtype), symmetric=True)


def calls(run):
    """Calls of Python's and of C functions that ``run`` makes, once it has been run before."""
    run()
    made = [0]

    def count(frame, event, argument):
        made[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return made[0]


def calls_of(method, backend=None):
    """Calls that an ordinary tick takes, and those of a whole solve beside its ticks; on a diagonal, in NumPy."""
    backend = backend or lg.load("numpy")
    A, b = lg.Diagonal(array(backend, np.logspace(-3, 0, 100))), array(backend, np.ones(100))
    few, many = (calls(functools.partial(lg.solve, A, b, method(steps=k))) for k in (10, 30))
    return (many - few) / 20, few - (many - few) / 2


def tolerable(matrix, x, b, dtype):
    """How far rounding alone may move a recomputed residual: of the product in ``dtype``, and of x itself."""
    sizes = np.linalg.norm(matrix, 2) * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
    return 8 * (len(b) + 4) * EPS[dtype] * sizes


def tridiagonal(pivots, couplings):
    """T = L D L^T with L unit lower bidiagonal.

    From b = e_1 every Krylov space is spanned by unit vectors, CG's k-th iterate
    is T_k^-1 e_1, and its k-th curvature has the sign of the k-th pivot.
    """
    n = len(pivots)
    L = np.eye(n)
    L[np.arange(1, n), np.arange(n - 1)] = couplings
    return L @ np.diag(pivots) @ L.T


def unit(n=N, k=0):
    e = np.zeros(n)
    e[k] = 1.0
    return e


def section(T, k):
    """T_k^-1 e_1, filled up with zeros: CG's k-th iterate from b = e_1."""
    x = np.zeros(len(T))
    if k:
        x[:k] = np.linalg.solve(T[:k, :k], unit(k))
    return x


FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
in_full = pytest.mark.skipif(not FULL, reason="in nox -s tests_full, or devices_full")
"""For kits whose programs take long to compile, of methods that other tests compile too."""

OF_A_BACKEND = (
    "goes_down",
    "the_start_is_not_written_to",
    "a_trial_without_a_gradient_is_refused",
    "a_start_without_numbers",
    "streamed_data",
    "other_data_keep_the_rest",
    "comes_back_from_a_file",
)
"""What a backend may spoil of a method that keeps every law on NumPy: arithmetic, writing, NaN, batches, files."""


def load(name):
    """The backend called ``name``; a skip where its framework is not installed."""
    if name == "poison":
        return poison_backend
    pytest.importorskip(name)
    if name == "array_api_strict":
        from linop_gn.testing.strict import strict_backend

        return strict_backend
    return lg.load(name)


def spare(backend, enough):
    """Skip one of several cases where each is compiled and one is enough."""
    if "compiled" in backend.capabilities and not enough:
        pytest.skip("compiled for one case of these")


class Counter:
    """Counts the calls of a product, inside compiled loops too."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1


@functools.cache
def _counting(name):
    """A product of this backend that counts, and its counter: always the same, so that it is compiled once."""
    counter = Counter()
    tell = functools.partial(importlib.import_module("jax").debug.callback, counter) if name == "jax" else counter

    def product(v, matrix):
        tell()
        return matrix @ v

    return product, counter


def counted(backend, matrix, dtype="float64"):
    """(operator, counter): products with ``matrix``, counted from now on when they are computed."""
    product, counter = _counting(backend.name)
    counter.calls = 0
    M = array(backend, matrix, dtype)
    return lg.FunctionOperator(product, lg.Space.flat(len(matrix), M), args=(M,), symmetric=True), counter


def finished(backend):
    """Wait until everything that was asked for has happened."""
    if backend.name == "jax":
        importlib.import_module("jax").effects_barrier()
