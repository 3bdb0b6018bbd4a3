"""Probes: the same numbers everywhere, and random enough."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.draws import check_seed, normal, sign_columns, signs, sphere
from linop_gn.testing.strategies import array


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_numbers_on_every_backend(backend, numpy_backend, dtype):
    here, there = (lg.Space.flat(101, array(ops, np.zeros(1), dtype)) for ops in (backend, numpy_backend))
    for seed, index in ((0, 0), (5, 3), (2**31 - 1, 40)):
        made = signs(here, seed, index)
        assert backend.describe(made)[1] == dtype
        np.testing.assert_array_equal(backend.to_numpy(made), signs(there, seed, index))
    np.testing.assert_allclose(backend.to_numpy(normal(here, 7, 3)), normal(there, 7, 3), rtol=1e-4, atol=1e-6)


def test_columns_from_any_first_one(backend, numpy_backend):
    here, there = (lg.Space.flat(101, array(ops, np.zeros(1))) for ops in (backend, numpy_backend))
    whole = sphere(there, 5, 0, 40)
    np.testing.assert_allclose(backend.to_numpy(sphere(here, 5, 30, 4)), whole[:, 30:34], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.sum(whole**2, axis=0), 101.0)
    each = np.stack([signs(there, 5, j) for j in range(29, 33)], axis=1)
    np.testing.assert_array_equal(backend.to_numpy(sign_columns(here, 5, 29, 4)), each)


def test_the_sphere_is_round():
    from scipy import stats

    W = sphere(lg.Space.flat(2000, np.zeros(1)), 1, 0, 20)
    assert stats.kstest(W.reshape(-1), "norm").pvalue > 1e-3
    C = np.corrcoef(W.T) - np.eye(20)
    assert abs(C).max() * np.sqrt(2000) < 5


def test_seeds_and_indices_may_be_data(jax):
    ops = lg.load("jax")
    space = lg.Space.flat(20, ops.asarray(0.0, "float64"))
    inside = jax.jit(lambda seed, index: signs(space, seed, index))
    for seed, index in ((3, 0), (4, 9)):
        np.testing.assert_array_equal(inside(seed, index), signs(space, seed, index))


def test_signs_are_fair_and_independent():
    n, probes = 3000, 60
    space = lg.Space.flat(n, np.zeros(1))
    Z = np.stack([signs(space, seed, j) for seed in range(4) for j in range(probes)])
    assert set(np.unique(Z)) == {-1.0, 1.0}
    between = Z @ Z.T / np.sqrt(n)  # of probes: each entry nearly standard normal
    along = Z.T @ Z / np.sqrt(len(Z))  # of entries
    for matrix, most in ((between, 5.0), (along, 6.5)):
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        assert abs(off).max() < most
        assert abs(off.std() - 1.0) < 0.05
    assert abs(Z.mean(axis=1)).max() < 5 / np.sqrt(n)


def test_normal_numbers_are_normal():
    from scipy import stats

    W = normal(lg.Space.flat(2000, np.zeros(1)), 1, 20)
    assert stats.kstest(W.reshape(-1), "norm").pvalue > 1e-3
    C = np.corrcoef(W.T) - np.eye(20)
    assert abs(C).max() * np.sqrt(2000) < 5


def test_bad_seeds_are_refused():
    with pytest.raises(TypeError, match=r"seed must be a whole number, got 1\.5"):
        check_seed("Jacobi", 1.5)
    with pytest.raises(TypeError, match="whole number, got True"):
        check_seed("Jacobi", True)
    with pytest.raises(ValueError, match=r"0 \.\. 2\^31 - 1, got -1"):
        check_seed("Jacobi", -1)
