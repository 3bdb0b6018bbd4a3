"""Small tridiagonal problems against dense algebra in float64, and in 60 digits."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from regions import precise_tridiagonal
from systems import EPS, N

from linop_gn.lanczos.tridiagonal import shifted, spectrum, trust_region
from linop_gn.testing.strategies import array, scales, seeds

IN_CI_ON_JAX = ("test_shifted_systems_are_solved", "test_the_hard_case", "test_rows_beyond_the_count_take_no_part")

EPSILON = EPS["float64"]


def tridiagonal_of(seed, k, kind="indefinite"):
    rng = np.random.default_rng(seed)
    alphas, betas = rng.standard_normal(k), np.abs(rng.standard_normal(k)) + 0.01
    if kind == "definite":
        alphas = 2.0 * (np.abs(alphas) + betas + np.roll(betas, 1))
    if kind == "weak":
        betas = 1e-6 * betas
    return alphas, betas


def dense(alphas, betas):
    return np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)


def small(ops, *parts):
    like = array(ops, np.zeros(2))
    return tuple(ops.small(part, like) for part in parts)


@functools.cache
def programs(ops):
    """The two problems as functions of data alone, which a backend compiles once."""

    def shifts_of(alphas, betas, count, norm, shifts):
        return shifted(ops, (alphas, betas), count, norm, shifts, EPSILON)

    def region_of(alphas, betas, count, norm, radii):
        S = spectrum(ops, (alphas, betas), count)
        return S.values, trust_region(ops, S, norm, radii, EPSILON)

    return shifts_of, region_of


def solve_shifted(ops, *data):
    return ops.call(programs(ops)[0], *data)


def solve_region(ops, *data):
    return ops.call(programs(ops)[1], *data)


@given(seed=seeds(), shift=st.floats(0, 10), norm=scales())
def test_shifted_systems_are_solved(backend, seed, shift, norm):
    alphas, betas = tridiagonal_of(seed, N, "definite")
    a, b, shifts = small(backend, alphas, betas, [0.0, shift])
    found = solve_shifted(backend, a, b, N, norm, shifts)
    for i, sigma in enumerate((0.0, shift)):
        matrix = dense(alphas, betas) + sigma * np.eye(N)
        expected = np.linalg.solve(matrix, norm * np.eye(N)[0])
        h = np.asarray(found.h)[:, i]
        np.testing.assert_allclose(h, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
        assert float(found.model[i]) == pytest.approx(-0.5 * norm * expected[0], rel=1e-12)
        assert float(found.residual[i]) == pytest.approx(betas[-1] * abs(expected[-1]), rel=1e-8)
    assert np.asarray(found.used).tolist() == [N, N]
    assert not np.asarray(found.negative).any()


@pytest.mark.parametrize("where", range(N))
@pytest.mark.parametrize("pivot", [-1.0, 0.0])
def test_the_first_pivot_that_is_not_positive_ends_the_section(backend, where, pivot):
    pivots = np.linspace(1.0, 2.0, N)
    pivots[where] = pivot
    couplings = np.full(N, 0.5)
    L = np.eye(N) + np.diag(couplings[1:], -1)
    T = L @ np.diag(pivots) @ L.T
    a, b, shifts = small(backend, np.diag(T), [*np.diag(T, 1), 0.3], [0.0])
    found = solve_shifted(backend, a, b, N, 1.0, shifts)
    assert int(found.used[0]) == where
    assert bool(found.negative[0]) is (pivot < 0)
    assert bool(found.noisy[0]) is (pivot == 0)
    h = np.asarray(found.h)[:, 0]
    assert not h[where:].any()
    if where:
        np.testing.assert_allclose(h[:where], np.linalg.solve(T[:where, :where], np.eye(where)[0]), atol=1e-12)
    coupling = abs(T[where, where - 1]) if where else 1.0
    assert float(found.residual[0]) == pytest.approx(coupling * (abs(h[where - 1]) if where else 1.0), rel=1e-12)


@pytest.mark.parametrize("kind", ["indefinite", "definite", "weak"])
@given(data=st.data(), seed=seeds(), norm=scales())
def test_trust_regions_in_sixty_digits(numpy_backend, kind, data, seed, norm):
    k = data.draw(st.integers(1, 8))
    radius = 10.0 ** data.draw(st.floats(-8, 8))
    alphas, betas = tridiagonal_of(seed, k, kind)
    S = spectrum(numpy_backend, (alphas, betas), k)
    found = trust_region(numpy_backend, S, norm, np.array([radius]), EPSILON)
    h, multiplier, value = precise_tridiagonal(alphas, betas, norm, radius)
    size = np.abs(dense(alphas, betas)).sum(axis=0).max()
    assert float(found.model[0]) == pytest.approx(value, rel=1e-12)
    assert float(found.multiplier[0]) == pytest.approx(multiplier, rel=1e-13, abs=1e-14 * size)
    assert np.linalg.norm(found.h[:, 0]) <= radius * (1 + 1e-14)
    np.testing.assert_allclose(found.h[:, 0], h, rtol=0, atol=1e-11 * np.abs(h).max())


@given(seed=seeds())
def test_the_hard_case(backend, seed):
    """T splits, and the part that the right-hand side is in has not the lowest eigenvalue."""
    rng = np.random.default_rng(seed)
    alphas = np.array([1.0, 2.0, 3.0, -1.0, 0.5, -2.0, 1.0]) + 0.1 * rng.uniform(size=N)
    betas = np.array([0.5, 0.4, 0.0, 0.3, 0.2, 0.1, 0.0])
    T = dense(alphas, betas)
    lowest = np.linalg.eigvalsh(T)[0]
    easy = np.linalg.solve(T[:3, :3] - lowest * np.eye(3), np.eye(3)[0])
    radii = np.linalg.norm(easy) * np.array([0.5, 1.5, 1e3])
    a, b, r = small(backend, alphas, betas, radii)
    _, found = solve_region(backend, a, b, N, 1.0, r)
    assert np.asarray(found.hard).tolist() == [False, True, True]
    assert np.asarray(found.active).all()
    for i, radius in enumerate(radii):
        h, multiplier = np.asarray(found.h)[:, i], float(found.multiplier[i])
        assert np.linalg.norm(h) == pytest.approx(radius, rel=1e-13)
        residual = (T + multiplier * np.eye(N)) @ h - np.eye(N)[0]
        np.testing.assert_allclose(residual, 0, atol=1e-13 * radius * 5 + 1e-13)
        assert multiplier >= -lowest - 1e-13
        assert float(found.model[i]) == pytest.approx(0.5 * h @ T @ h - h[0], rel=1e-12)


@given(seed=seeds())
def test_without_a_boundary_there_is_a_minimum_or_it_is_said_that_there_is_none(backend, seed):
    for kind in ("definite", "indefinite"):
        alphas, betas = tridiagonal_of(seed, N, kind)
        T = dense(alphas, betas)
        a, b, r = small(backend, alphas, betas, [np.inf])
        _, found = solve_region(backend, a, b, N, 1.0, r)
        definite = np.linalg.eigvalsh(T)[0] > 0
        assert bool(found.unbounded[0]) is not definite
        assert np.isfinite(np.asarray(found.h)).all()
        if definite:
            assert float(found.multiplier[0]) == 0.0
            np.testing.assert_allclose(np.asarray(found.h)[:, 0], np.linalg.solve(T, np.eye(N)[0]), atol=1e-12)


@pytest.mark.parametrize("count", [1, 3, N])
def test_rows_beyond_the_count_take_no_part(backend, count):
    alphas, betas = tridiagonal_of(3, N)
    *T, shifts = small(backend, alphas, betas, [3.0, 5.0])
    part = small(backend, alphas[:count], betas[:count])

    def both(rows):
        values, region = solve_region(backend, *rows, count, 1.0, shifts)
        return values, *solve_shifted(backend, *rows, count, 1.0, shifts), *region

    of_all, alone = both(tuple(T)), both(part)
    np.testing.assert_allclose(np.asarray(of_all[0])[:count], np.asarray(alone[0]), atol=1e-14)
    for x, y in zip(of_all[1:], alone[1:], strict=True):
        assert_leading(x, y)


def assert_leading(x, y):
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    np.testing.assert_allclose(x[: len(y)], y, atol=1e-12)
    assert not x[len(y) :].any()


def test_a_zero_right_hand_side(backend):
    a, b, r = small(backend, *tridiagonal_of(0, N, "definite"), [1.0])
    _, found = solve_region(backend, a, b, N, 0.0, r)
    assert not np.asarray(found.h).any()
    assert not np.asarray(found.active).any()
