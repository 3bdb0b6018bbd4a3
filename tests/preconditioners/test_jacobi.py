"""Jacobi's preconditioner: exact and estimated diagonals, guards, and no product for another damping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import N, counted, finished, gaussian, host, operator, with_spectrum

import linop_gn as lg
from linop_gn.draws import signs
from linop_gn.preconditioners import Jacobi
from linop_gn.testing.strategies import array, dampings

IN_CI_ON_JAX = (
    "test_it_divides_by_the_diagonal",
    "test_products_are_those_promised",
    "test_a_tree_is_no_obstacle",
    "test_a_diagonal_that_is_not_finite_is_an_error",
)

WAYS = [Jacobi(), Jacobi("exact"), Jacobi("estimate", probes=3, seed=4)]


def graded(seed, n=N, decades=5):
    """A positive definite matrix that is badly scaled: D S D with a good S."""
    S = with_spectrum(np.random.default_rng(seed).uniform(0.5, 2.0, n), seed)
    D = 10.0 ** np.linspace(0, decades, n)
    return D[:, None] * S * D


def by_probes(backend, matrix, probes, seed):
    """The estimate that the module's docstring describes, in NumPy."""
    space = lg.Space.flat(len(matrix), array(backend, np.zeros(1)))
    samples = [z * (matrix @ z) for z in (host(backend, signs(space, seed, i)) for i in range(probes))]
    mean = np.mean(samples, axis=0)
    return np.abs(mean) if probes == 1 else np.maximum(abs(mean), np.std(samples, axis=0) / np.sqrt(probes - 1))


@given(seed=st.integers(0, 2**16), damping=dampings(), known=st.booleans())
def test_it_divides_by_the_diagonal(backend, seed, damping, known):
    matrix = graded(seed)
    A = operator(backend, matrix) if known else counted(backend, matrix)[0]
    for way in WAYS:
        M = way(lg.Damped(A, damping))
        estimated = way.diagonal == "estimate" and not known
        want = by_probes(backend, matrix, 3, 4) if estimated else np.diag(matrix)
        np.testing.assert_allclose(host(backend, M.values), 1 / (want + damping), rtol=1e-9)
        assert M.psd


def test_an_estimate_is_right_on_average(numpy_backend):
    matrix = with_spectrum(np.linspace(1, 2, N), 0)
    A, _ = counted(numpy_backend, matrix)
    probes = 4000
    got = 1 / Jacobi("estimate", probes=probes, seed=1)(A).values
    error = np.sqrt((matrix**2).sum(axis=1) - np.diag(matrix) ** 2) / np.sqrt(probes)
    assert (abs(got - np.diag(matrix)) < 4 * error).all()
    assert abs(got - np.diag(matrix)).max() > error.max() / 100  # it is an estimate


def test_products_are_those_promised(backend):
    matrix = with_spectrum(np.linspace(1, 2, N), 0)
    for recipe, products in ((Jacobi(), N), (Jacobi("exact"), N), (Jacobi("estimate", probes=5), 5)):
        A, counter = counted(backend, matrix)
        prepared = recipe.prepare(lg.Damped(A, 1.0))
        finished(backend)
        assert counter.calls == products
        for damping in (0.0, 1.0, 10.0):
            M = recipe.finish(prepared, lg.Damped(A, damping))
        finished(backend)
        assert counter.calls == products
        np.testing.assert_allclose(host(backend, M.values), host(backend, recipe(lg.Damped(A, 10.0)).values))


def test_a_tree_is_no_obstacle(backend):
    like = {"a": array(backend, np.zeros(3)), "b": array(backend, np.zeros((2, 2)))}
    A = lg.Dense(array(backend, graded(1)), psd=True, domain=lg.Space.of(like))
    step = lg.solve(A, like | {"a": array(backend, np.ones(3))}, lg.CG(rtol=1e-8, preconditioner=Jacobi()))
    want = np.linalg.solve(graded(1), np.r_[np.ones(3), np.zeros(4)])
    np.testing.assert_allclose(host(backend, step.x["a"]), want[:3], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whatever_the_diagonal_it_is_positive_and_finite(backend, dtype):
    tiny = float(np.finfo(dtype).smallest_normal)
    d = np.array([4.0, -2.0, 0.0, tiny / 8, 1e-30, 2.0])
    given = array(backend, d, dtype)
    A = lg.FunctionOperator(_times, lg.Space.flat(6, given), args=(given,), symmetric=True)
    for recipe in (Jacobi(), Jacobi("estimate", probes=2)):
        values = host(backend, recipe(A).values)
        np.testing.assert_allclose(values, [0.25, 0.5, 0.25, 0.25, 1e30, 0.5], rtol=1e-5)
        np.testing.assert_allclose(host(backend, recipe(lg.Damped(A, 1.0)).values), 1 / (abs(d) + 1), rtol=1e-5)
    zero = lg.Diagonal(array(backend, np.zeros(3), dtype))
    np.testing.assert_array_equal(host(backend, Jacobi()(zero).values), np.ones(3))


def _times(v, d):
    return d * v


def test_a_diagonal_that_is_not_finite_is_an_error(backend):
    d = array(backend, np.array([1.0, np.nan, 1.0]))
    A = lg.FunctionOperator(_times, lg.Space.flat(3, d), args=(d,), symmetric=True)
    for recipe in (Jacobi(), Jacobi("estimate")):
        with pytest.raises(ValueError, match=r"Jacobi: what it computed for .* holds NaN or infinity"):
            lg.solve(A, array(backend, np.ones(3)), lg.CG(preconditioner=recipe))


def test_other_data_damping_and_seed_are_the_same_program(jax):
    ops = lg.load("jax")

    def run(seed):
        A = lg.Damped(counted(ops, graded(seed))[0], 10.0**-seed)
        for recipe in (Jacobi(), Jacobi("estimate", probes=3, seed=seed)):
            lg.solve(A, array(ops, gaussian(seed)), lg.CG(rtol=1e-3, preconditioner=recipe))

    run(0)
    before = ops.compilations()
    run(1)
    run(2)
    assert ops.compilations() == before


@settings(max_examples=5)
@given(seed=st.integers(0, 99), damping=st.floats(0.1, 10.0))
def test_inside_the_users_jit(jax, seed, damping):
    ops = lg.load("jax")
    A, b = operator(ops, graded(seed)), array(ops, gaussian(seed))
    for which in range(2):
        inside = _jitted(jax, which)(lg.Damped(A, damping), b, seed)
        recipe = (Jacobi(), Jacobi("estimate", probes=3, seed=seed))[which]
        outside = lg.solve(lg.Damped(A, damping), b, lg.CG(rtol=1e-10, preconditioner=recipe)).x
        np.testing.assert_allclose(inside, outside, rtol=1e-6)


_programs = {}


def _jitted(jax, which):
    def solve(A, b, seed):
        recipe = Jacobi() if which == 0 else Jacobi("estimate", probes=3, seed=seed)
        return lg.solve(A, b, lg.CG(rtol=1e-10, preconditioner=recipe)).x

    return _programs.setdefault(which, jax.jit(solve))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="'auto', 'exact' or 'estimate', got 'both'"):
        Jacobi("both")
    with pytest.raises(ValueError, match="probes must be a whole number >= 1, got 0"):
        Jacobi(probes=0)
    with pytest.raises(TypeError, match="seed must be a whole number"):
        Jacobi(seed=0.5)
    with pytest.raises(TypeError, match="the class Jacobi; give a linear operator"):
        lg.CG(preconditioner=Jacobi)
