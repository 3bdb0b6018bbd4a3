"""Krylov spaces inside the user's own programs: made, asked, extended and returned there."""

import numpy as np
import pytest
from systems import N, benign, gaussian, operator

import linop_gn as lg
from linop_gn.testing.strategies import array


@pytest.fixture(scope="module")
def ops(jax):
    return lg.load("jax")


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_made_and_asked_in_a_program_that_is_compiled_once(jax, ops):
    traces = []

    @jax.jit
    def program(matrix, b, dampings, radius):
        traces.append(1)
        K = lg.krylov(lg.Dense(matrix, symmetric=True), b, N, reorthogonalise="full")
        return K, K.solve(dampings).x, K.trust_region(radius).x

    for seed in range(3):
        matrix, b, dampings = benign(seed), gaussian(seed), np.array([0.1 * (seed + 1), 1.0])
        K, X, x = program(array(ops, matrix), array(ops, b), array(ops, dampings), array(ops, 0.1 + seed))
        for i, sigma in enumerate(dampings):
            np.testing.assert_allclose(X[:, i], np.linalg.solve(matrix + sigma * np.eye(N), b), atol=1e-12)
        assert np.linalg.norm(x) == pytest.approx(min(0.1 + seed, np.linalg.norm(np.linalg.solve(matrix, b))))
        assert K.status is lg.Status.INVARIANT  # out here it answers too
        np.testing.assert_allclose(K.eigenvalues().values, np.linalg.eigvalsh(matrix), atol=1e-12)
        np.testing.assert_array_equal(K.solve(dampings).x, X)
    assert len(traces) == 1


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_the_operator_stands_once_and_other_questions_hold_none(jax, ops):
    def product(v, matrix):
        return jax.numpy.cos(0.0 * v[0]) * (matrix @ v)

    M = array(ops, benign(0))
    A = lg.FunctionOperator(product, lg.Space.flat(N, M), args=(M,), symmetric=True)
    b = array(ops, gaussian(0))
    assert str(jax.make_jaxpr(lambda b: lg.krylov(A, b, 4).solve([0.0, 1.0]).x)(b)).count("cos") == 1
    K = lg.krylov(A, b, 4)
    for question in (lambda s: K.solve(s).x, lambda s: K.trust_region(s).x, K.residual):
        assert "cos" not in str(jax.make_jaxpr(question)(0.5))


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_many_right_hand_sides_by_vmap(jax, ops):
    B = array(ops, gaussian(0, 3, N) * np.array([[1.0], [0.0], [1e3]]))
    A = operator(ops, benign(0))
    X = jax.jit(jax.vmap(lambda b: lg.krylov(A, b, N, reorthogonalise="full").solve(0.5).x))(B)
    expected = np.linalg.solve(benign(0) + 0.5 * np.eye(N), np.asarray(B).T).T
    np.testing.assert_allclose(X, expected, rtol=0, atol=1e-9)


def test_other_data_compile_nothing(ops):
    def run(seed):
        K = lg.krylov(operator(ops, benign(seed)), array(ops, gaussian(seed)), 4)
        K.solve([0.1 * seed, 1.0]), K.trust_region(1.0 + seed), K.eigenvalues()

    run(0)
    before = ops.compilations()
    for seed in range(1, 5):
        run(seed)
    assert ops.compilations() == before
