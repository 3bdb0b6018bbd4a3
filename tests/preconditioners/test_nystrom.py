"""The randomised Nyström preconditioner against dense algebra and the bounds of its paper."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import counted, finished, gaussian, host, operator, with_spectrum

import linop_gn as lg
from linop_gn.preconditioners import Nystrom
from linop_gn.preconditioners.nystrom import sketch
from linop_gn.testing.strategies import array

IN_CI_ON_JAX = (
    "test_the_sketch_lies_below_the_operator_and_is_right_at_full_rank",
    "test_at_full_rank_it_is_the_inverse",
    "test_products_are_those_promised_and_damping_is_free",
    "test_columns_and_trees",
    "test_errors_say_what_to_do",
)

SIZE = 24


def decaying(seed, last=-6.0, n=SIZE):
    return with_spectrum(10.0 ** np.linspace(1, last, n), seed)


def dense(backend, M):
    return host(backend, M.to_dense())


def condition(matrix, M):
    values = np.linalg.eigvals(M @ matrix)
    assert abs(values.imag).max() <= 1e-6 * abs(values.real).max()
    return values.real.max() / values.real.min()


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-8, 1.0, 1e8]))
def test_the_sketch_lies_below_the_operator_and_is_right_at_full_rank(backend, seed, scale):
    matrix = scale * decaying(seed)
    A = lg.Dense(array(backend, matrix), psd=True)
    size = np.linalg.norm(matrix, 2)
    for rank in (5, SIZE):
        U, d = (host(backend, x) for x in sketch(A, rank, seed))
        np.testing.assert_allclose(U.T @ U, np.eye(rank), atol=1e-12)
        assert (d >= 0).all()
        left = np.linalg.eigvalsh(matrix - (U * d) @ U.T)  # 0 <= A_nys <= A
        assert left.min() >= -1e-12 * size
        if rank == SIZE:
            assert abs(left).max() <= 1e-12 * size


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), damping=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_the_condition_number_keeps_to_its_bounds(numpy_backend, seed, damping):
    """Proposition 5.3 (for every sketch) and theorem 1.1 (28 on average, for twice the effective dimension)."""
    matrix = decaying(seed)
    A = lg.Dense(matrix, psd=True)
    effective = np.trace(matrix @ np.linalg.inv(matrix + damping * np.eye(SIZE)))
    rank = min(SIZE - 1, 2 * int(np.ceil(1.5 * effective)) + 1)
    U, d = sketch(A, rank, seed)
    E = np.linalg.norm(matrix - (U * d) @ U.T, 2)
    M = dense(numpy_backend, Nystrom(rank, seed=seed)(lg.Damped(A, damping)))
    found = condition(matrix + damping * np.eye(SIZE), M)
    assert found <= (d.min() + damping + E) / damping * (1 + 1e-6)
    assert found < 3 * 28
    assert found < np.linalg.cond(matrix + damping * np.eye(SIZE))


def test_28_in_expectation(numpy_backend):
    matrix, damping, found = decaying(0), 1e-3, []
    effective = np.trace(matrix @ np.linalg.inv(matrix + damping * np.eye(SIZE)))
    for seed in range(30):
        recipe = Nystrom(2 * int(np.ceil(1.5 * effective)) + 1, seed=seed)
        M = dense(numpy_backend, recipe(lg.Damped(lg.Dense(matrix, psd=True), damping)))
        found.append(condition(matrix + damping * np.eye(SIZE), M))
    assert np.mean(found) < 28
    assert max(found) > 1.0


def test_at_full_rank_it_is_the_inverse(backend):
    matrix = with_spectrum(np.linspace(0.5, 2, SIZE), 1)
    for rank in (SIZE, SIZE + 10):
        M = Nystrom(rank)(lg.Damped(lg.Dense(array(backend, matrix), psd=True), 0.25))
        np.testing.assert_allclose(dense(backend, M), np.linalg.inv(matrix + 0.25 * np.eye(SIZE)), atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_positive_definite_where_precision_ends(backend, dtype):
    """Eigenvalues over 14 decades; vectors inside the sketched space, where the usual form loses its sign."""
    matrix = decaying(2, last=-13)
    A = lg.Dense(array(backend, matrix, dtype), psd=True)
    U, _ = sketch(A, 10, 0)
    for damping in (0.0, 1e-12, 1e-3):
        M = Nystrom(10)(lg.Damped(A, damping))
        assert M.psd
        for j in range(10):
            v = U[:, j]
            assert float(backend.dot(v, M @ v)) > 0
        both = dense(backend, M)
        assert np.isfinite(both).all()
        np.testing.assert_allclose(both, both.T, atol=1e-5 * abs(both).max())


def test_zero_and_tiny_and_rank_deficient_operators(backend):
    zero = lg.Diagonal(array(backend, np.zeros(SIZE)))
    np.testing.assert_allclose(dense(backend, Nystrom(3)(zero)), np.eye(SIZE), atol=1e-12)
    U = np.random.default_rng(0).standard_normal((SIZE, 2))
    A = lg.LowRank(array(backend, U))
    M = Nystrom(6)(lg.Damped(A, 1e-3))
    np.testing.assert_allclose(dense(backend, M), np.linalg.inv(U @ U.T + 1e-3 * np.eye(SIZE)), rtol=1e-6, atol=1e-6)
    tiny = lg.Diagonal(array(backend, np.full(SIZE, 1e-30), "float32"), psd=True)
    assert np.isfinite(dense(backend, Nystrom(3)(tiny))).all()


def test_products_are_those_promised_and_damping_is_free(backend):
    A, counter = counted(backend, decaying(0))
    A = lg.replace(A, psd=True)
    recipe = Nystrom(5)
    prepared = recipe.prepare(lg.Damped(A, 1.0))
    finished(backend)
    assert counter.calls == 5
    made = [dense(backend, recipe.finish(prepared, lg.Damped(A, damping))) for damping in (0.1, 1.0)]
    finished(backend)
    assert counter.calls == 5
    np.testing.assert_allclose(made[1], dense(backend, recipe(lg.Damped(A, 1.0))), rtol=1e-12)


def test_columns_and_trees(backend):
    like = {"a": array(backend, np.zeros(10)), "b": array(backend, np.zeros((7, 2)))}
    A = lg.Dense(array(backend, decaying(1)), psd=True, domain=lg.Space.of(like))
    M = Nystrom(5)(lg.Damped(A, 1e-2))
    V = gaussian(0, SIZE, 2)
    np.testing.assert_allclose(
        host(backend, M @ array(backend, V)), dense(backend, M) @ V, atol=1e-10 * abs(V).max() * 100
    )
    assert set(M @ like) == {"a", "b"}


def test_under_jit_seed_damping_and_data_are_data(jax):
    ops = lg.load("jax")

    def run(seed):
        A = lg.Damped(lg.Dense(array(ops, decaying(seed)), psd=True), 10.0**-seed)
        return lg.solve(A, array(ops, gaussian(0, SIZE)), lg.CG(preconditioner=Nystrom(5, seed=seed)))

    run(0)
    before = ops.compilations()
    run(1)
    run(2)
    assert ops.compilations() == before
    inside = jax.jit(lambda A, b, seed: lg.solve(A, b, lg.CG(rtol=1e-10, preconditioner=Nystrom(5, seed=seed))).x)
    A, b = lg.Damped(lg.Dense(array(ops, decaying(0)), psd=True), 1e-2), array(ops, gaussian(0, SIZE))
    np.testing.assert_allclose(inside(A, b, 3), np.linalg.solve(decaying(0) + 1e-2 * np.eye(SIZE), b), rtol=1e-6)


def test_errors_say_what_to_do(backend):
    A = operator(backend, decaying(0))
    with pytest.raises(ValueError, match=r"needs a positive semi-definite operator, .*psd=True.*Gauss-Newton.*Jacobi"):
        Nystrom()(lg.Damped(A, 1.0))
    with pytest.raises(ValueError, match="rank must be a whole number >= 1"):
        Nystrom(0)
    bad = lg.FunctionOperator(_poisoned, A.domain, psd=True)
    with pytest.raises(ValueError, match=r"Nystrom: what it computed for .* holds NaN or infinity"):
        Nystrom(3)(bad)


def _poisoned(v):
    return v * float("nan")
