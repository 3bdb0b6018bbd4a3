"""An operator as somebody outside writes it: the Kronecker sum of docs/operators.md, on every framework."""

import re
from pathlib import Path

import numpy as np
import pytest

import linop_gn as lg

IN_CI_ON_JAX = ("test_products_adjoint_and_flags", "test_operators_in_containers_are_prepared")

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
SOURCE = re.search(r"@lg\.record\nclass KroneckerSum.*?\n\n\n", PAGE, re.DOTALL).group()
exec(SOURCE, scope := {"lg": lg})
KroneckerSum = scope["KroneckerSum"]

rng = np.random.default_rng(0)
GENERAL = rng.standard_normal((2, 2)), rng.standard_normal((3, 3))
PSD = tuple(M @ M.T for M in GENERAL)


def made_of(backend, pair, **flags):
    A, B = (lg.Dense(backend.asarray(M, "float64"), **flags) for M in pair)
    want = np.kron(pair[0], np.eye(3)) + np.kron(np.eye(2), pair[1])
    return KroneckerSum(A, B), want


def test_it_is_short():
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 16


@pytest.mark.parametrize("pair", [GENERAL, PSD], ids=["general", "psd"])
def test_products_adjoint_and_flags(backend, pair):
    K, want = made_of(backend, pair, psd=pair is PSD)
    assert (K.symmetric, K.psd) == (K.T.symmetric, K.T.psd) == (pair is PSD,) * 2
    for operator, matrix in ((K, want), (K.T, want.T), (K.T @ K, want.T @ want), (2.0 * K - K, want)):
        np.testing.assert_allclose(backend.to_numpy(operator.to_dense()), matrix, atol=1e-12)
    b = rng.standard_normal((6, 2))
    product = backend.to_numpy(K.T @ backend.asarray(b, "float64"))
    np.testing.assert_allclose(product, want.T @ b, atol=1e-12)
    assert lg.validate(K).passed


def test_solvers_take_it(backend):
    (K, want), b = made_of(backend, PSD, psd=True), rng.standard_normal(6)
    for method in (lg.CG(rtol=1e-10), lg.MINRES(rtol=1e-10), lg.Cholesky()):
        step = lg.solve(lg.Damped(K, 0.1), backend.asarray(b, "float64"), method)
        assert step.succeeded
        np.testing.assert_allclose(backend.to_numpy(step.x), np.linalg.solve(want + 0.1 * np.eye(6), b), rtol=1e-7)


def test_other_numbers_are_the_same_program(jax):
    traces = []

    @jax.jit
    def product(K, v):
        traces.append(K)
        return K.matvec(v)

    for factor in (1.0, 2.0):
        K, want = made_of(lg.load("jax"), [factor * M for M in GENERAL])
        np.testing.assert_allclose(product(K, jax.numpy.ones(6)), want @ np.ones(6), rtol=1e-12)
    assert len(traces) == 1


@lg.record
class Lazy(lg.LinearOperator):
    """One whose products need its preparation."""

    diagonal_of: object

    @property
    def domain(self):
        return lg.Space.flat(3, like=self.diagonal_of)

    host = True

    def _prepare(self):
        return lg.Diagonal(self.diagonal_of, psd=True)


@lg.record
class Total(lg.LinearOperator):
    """The sum of operators, in whatever holds them."""

    parts: object

    @property
    def domain(self):
        return next(iter(self.each)).domain

    @property
    def each(self):
        return self.parts.values() if isinstance(self.parts, dict) else self.parts

    def matvec(self, v):
        return sum(part.matvec(v) for part in self.each)


@pytest.mark.parametrize("held", [tuple, list, lambda parts: dict(enumerate(parts))], ids=["tuple", "list", "dict"])
def test_operators_in_containers_are_prepared(backend, held):
    d = backend.asarray(np.arange(1.0, 4.0), "float64")
    A = Total(held((Lazy(d), Lazy(d))))
    assert A.host
    ready = A.prepare()
    assert not ready.host
    assert type(ready.parts) is type(A.parts)
    np.testing.assert_array_equal(backend.to_numpy(A @ d), 2 * np.arange(1.0, 4.0) ** 2)
