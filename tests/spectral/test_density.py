"""Spectral densities against those of dense spectra, and what their error bars promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn import Status, draws
from linop_gn.testing.strategies import array, seeds


def dense(d, seed=0):
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(d), len(d))))
    M = Q * d @ Q.T
    return (M + M.T) / 2


@given(n=st.integers(1, 30), m=st.integers(1, 8), seed=seeds())
def test_each_probe_is_exact_for_polynomials_of_a_degree_below_2m(numpy_backend, n, m, seed):
    seed %= 2**31
    rng = np.random.default_rng(seed)
    M = dense(rng.uniform(-1, 1, n), seed)
    A, coefficients = lg.Dense(M, symmetric=True), rng.standard_normal(2 * m)
    phi = lg.spectral_density(A, probes=2, steps=m, seed=seed)
    values, V = np.linalg.eigh(M)
    each = [np.sum((V.T @ draws.signs(A.domain, seed, i)) ** 2 * np.polyval(coefficients, values)) / n for i in (0, 1)]
    mean, error = phi.mean(lambda x: np.polyval(coefficients, x))
    size = abs(coefficients).sum()
    assert abs(mean - np.mean(each)) < 1e-9 * size
    assert abs(error - abs(each[0] - each[1]) / 2) < 1e-9 * size
    np.testing.assert_allclose(phi.weights.sum(axis=1), 1.0)


def test_the_truth_lies_within_a_few_standard_errors():
    d = np.concatenate([np.random.default_rng(1).standard_normal(180), np.full(20, 6.0)])
    phi = lg.spectral_density(lg.Dense(dense(d), symmetric=True), probes=30, steps=60)
    for f in (np.abs, np.exp, np.cos):
        mean, error = phi.mean(f)
        assert abs(mean - f(d).mean()) < 4 * error
        assert error < 0.2 * abs(f(d).mean())
    share, error = phi.below(5.0)
    assert abs(share - 0.9) < 4 * error + 1e-12
    found = phi.smooth(width=0.5)
    exact = np.exp(-0.5 * ((found.x[:, None] - d) / 0.5) ** 2).mean(axis=1) / (0.5 * math.sqrt(2 * math.pi))
    assert (abs(found.mean - exact) < 4.5 * found.standard_error + 2e-3).all()
    assert abs(np.trapezoid(found.mean, found.x) - 1) < 1e-2


def test_outliers_are_eigenvalues_and_all_of_them():
    bulk = np.random.default_rng(2).uniform(-1, 1, 300)
    spikes = np.array([-9.0, 4.0, 6.0, 20.0])
    phi = lg.spectral_density(lg.Dense(dense(np.concatenate([bulk, spikes])), symmetric=True), probes=4, steps=40)
    found = phi.outliers()
    np.testing.assert_allclose(found[:4], [20, -9, 6, 4], atol=1e-5)
    assert abs(np.subtract.outer(found, np.concatenate([bulk, spikes]))).min(axis=1).max() < 1e-4


def test_a_logarithmic_axis_has_the_positive_and_the_negative_share():
    d = np.concatenate([np.logspace(-6, 2, 150), -np.logspace(-3, -1, 40), np.zeros(10)])
    phi = lg.spectral_density(lg.Diagonal(d, psd=False), probes=10, steps=150)
    found = phi.smooth(log=True)
    positive, negative = found.x > 0, found.x < 0
    total = np.trapezoid(found.mean[positive], np.log10(found.x[positive]))
    assert abs(total - 0.75) < 0.1
    total = np.trapezoid(found.mean[negative][::-1], np.log10(-found.x[negative][::-1]))
    assert abs(total - 0.2) < 0.1


@pytest.mark.parametrize(
    ("A", "value"),
    [(lg.Diagonal(np.zeros(7)), 0.0), (lg.Diagonal(np.full(7, 3.0)), 3.0), (lg.Diagonal(np.ones(1)), 1.0)],
)
def test_one_eigenvalue(A, value):
    phi = lg.spectral_density(A, probes=3, steps=5)
    assert phi.status is Status.COMPLETED
    assert phi.mean(lambda x: x) == pytest.approx((value, 0.0))
    assert phi.range == pytest.approx((value, value))
    assert np.isfinite(phi.smooth().mean).all()
    assert np.isfinite(phi.smooth(log=True).mean).all()
    assert phi.outliers() == pytest.approx([value])


def test_a_block_is_as_if_it_were_alone():
    one, two = dense(np.linspace(0, 1, 30)), dense(np.linspace(5, 9, 50))
    A = lg.BlockDiagonal([lg.Dense(one, symmetric=True), lg.Dense(two, symmetric=True)])
    first, second = (lg.spectral_density(A, block=part.name, probes=6, steps=30) for part in A.partition)
    assert (first.size, second.size) == (30, 50)
    assert first.range == pytest.approx((0, 1), abs=1e-3)
    assert second.range == pytest.approx((5, 9), abs=1e-3)
    assert lg.jensen_shannon(first, second) == pytest.approx(1.0, abs=1e-3)
    assert lg.jensen_shannon(first, second, log=True) > 0.9
    with pytest.raises(ValueError, match="no block 'middle'"):
        lg.spectral_density(A, block="middle")
    with pytest.raises(ValueError, match=r"lg\.BlockGGN"):
        lg.spectral_density(lg.Dense(one, symmetric=True), block="middle")


def test_the_distance_is_a_distance():
    wide, shifted = (lg.spectral_density(lg.Diagonal(c + np.linspace(0, 1, 200))) for c in (0.0, 0.5))
    assert lg.jensen_shannon(wide, wide) == 0
    assert lg.jensen_shannon(wide, shifted) == pytest.approx(lg.jensen_shannon(shifted, wide))
    # two uniform densities that share half: the divergence is a half bit
    assert lg.jensen_shannon(wide, shifted) == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_frameworks_agree(backend):
    M = dense(np.linspace(-1, 2, 40))
    here = lg.spectral_density(lg.Dense(M, symmetric=True), probes=2, steps=10)
    there = lg.spectral_density(lg.Dense(array(backend, M, "float64"), symmetric=True), probes=2, steps=10)
    assert there.products == 20
    np.testing.assert_allclose(there.nodes, here.nodes, atol=1e-9)
    np.testing.assert_allclose(there.weights, here.weights, atol=1e-9)


def test_what_fails_is_told_and_left_out():
    calls = []

    def product(v):
        calls.append(0)
        return v * (np.nan if len(calls) > 12 else 1.0) * np.arange(50.0)

    space = lg.Space.flat(50, np.zeros(1))
    phi = lg.spectral_density(lg.FunctionOperator(product, space, symmetric=True), probes=4, steps=10)
    assert phi.status is Status.NONFINITE
    assert len(phi.nodes) == 1
    assert math.isfinite(phi.mean(np.abs)[0])
    lost = lg.spectral_density(lg.FunctionOperator(lambda v: np.nan * v, space, symmetric=True))
    assert lost.status is Status.NONFINITE
    assert math.isnan(lost.mean(np.abs)[0])
    assert math.isnan(lost.below(1e9)[0])
    assert np.isnan(lost.smooth(np.ones(3)).mean).all()
    assert "nan" in repr(lost)
    some = lg.spectral_density(lg.Diagonal(np.arange(9.0)), probes=5, watch=[lambda look: look.step >= 2])
    assert some.status is Status.STOPPED
    assert len(some.nodes) == 2


def test_refusals_say_what_to_do(jax):
    with pytest.raises(ValueError, match="not known to be"):
        lg.spectral_density(lg.Dense(np.triu(np.ones((3, 3)))))
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda M: lg.spectral_density(lg.Dense(M, symmetric=True)).nodes)(jax.numpy.eye(3))
    phi = lg.spectral_density(lg.Diagonal(np.arange(5.0)))
    with pytest.raises(ValueError, match="none of them zero"):
        phi.smooth(np.zeros(2), log=True)
    with pytest.raises(ValueError, match="width"):
        phi.smooth(width=0.0)


def test_a_picture():
    pytest.importorskip("matplotlib")
    phi = lg.spectral_density(lg.Diagonal(np.linspace(-1, 9, 60), psd=False), probes=3, steps=20)
    for log in (False, True):
        (axes,) = phi.plot(log=log).axes
        assert axes.get_ylim()[1] > 0
        assert axes.get_xlabel()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigenvalues_that_are_zero_to_rounding_count_as_zeros(dtype):
    J = (np.random.default_rng(0).standard_normal((20, 100)) * np.logspace(0, -2, 20)[:, None]).astype(dtype)
    A = lg.FunctionOperator(lambda v: J.T @ (J @ v), lg.Space.flat(100, J), psd=True)
    phi = lg.spectral_density(A, probes=8, steps=60)
    share, error = phi.below(0.0)
    assert abs(share - 0.8) < 4 * error < 0.1
    axis = phi.smooth(log=True)
    assert (axis.x > 1e-6 * phi.range[1]).all()
    assert np.trapezoid(axis.mean, np.log10(axis.x)) == pytest.approx(1 - share, abs=1e-3)


def test_distances_to_densities_of_zeros_and_to_none_at_all():
    space = lg.Space.flat(9, np.zeros(1))
    zeros, ones = lg.spectral_density(lg.Diagonal(np.zeros(9))), lg.spectral_density(lg.Diagonal(np.ones(9)))
    none = lg.spectral_density(lg.FunctionOperator(lambda v: v * np.nan, space, symmetric=True))
    half = lg.spectral_density(lg.Diagonal(np.repeat([0.0, 1.0], [40, 40])))
    for log in (False, True):
        assert lg.jensen_shannon(zeros, zeros, log=log) == 0.0
        assert lg.jensen_shannon(zeros, ones, log=log) == pytest.approx(1.0)
        assert math.isnan(lg.jensen_shannon(none, ones, log=log))
        assert 0.2 < lg.jensen_shannon(half, ones, log=log) < 0.8


def test_an_operator_that_is_not_known_as_symmetric_is_refused():
    with pytest.raises(ValueError, match="spectral_density needs a symmetric operator"):
        lg.spectral_density(lg.Dense(np.triu(np.ones((3, 3)))))


def test_zeros_beside_small_eigenvalues_are_not_told_apart_and_that_is_said():
    phi = lg.spectral_density(lg.Diagonal(np.r_[np.zeros(200), np.geomspace(1e-6, 1, 200)]), probes=10, steps=30)
    for x in (0.0, 1e-12):
        share, error = phi.below(x)
        assert abs(share - 0.5) <= error
    assert phi.below(-1e-9) == (0.0, 0.0)  # it is known to be positive semi-definite
    assert "more steps would tell better" in repr(phi)


@pytest.mark.parametrize("psd", [True, False])
@pytest.mark.parametrize("steps", [12, 40])
def test_the_error_of_a_share_counts_what_the_steps_leave_open(psd, steps):
    rng = np.random.default_rng(0)
    small = np.r_[np.zeros(40), np.geomspace(1e-6, 1e-1, 70), np.linspace(0.5, 5, 10)]
    d = small if psd else np.r_[small, -np.geomspace(1e-5, 1e-2, 40)]
    A, right = lg.Dense(dense(d), symmetric=True, psd=psd), []
    for seed in range(6):
        phi = lg.spectral_density(A, probes=10, steps=steps, seed=seed)
        for x in rng.choice([-1.0, 1.0], 30) * 10.0 ** rng.uniform(-7, 1, 30):
            share, error = phi.below(x)
            right.append(abs(share - np.mean(d <= x)) <= 1.96 * error + 1e-12)
    assert np.mean(right) > 0.93


@given(n=st.integers(2, 25), m=st.integers(1, 25), seed=seeds())
def test_the_share_of_a_probe_lies_in_what_is_open(numpy_backend, n, m, seed):
    """Of each probe the measure is known here: v's squared coefficients."""
    seed %= 2**31
    rng = np.random.default_rng(seed)
    M = dense(rng.choice([-1, 1], n) * 10.0 ** rng.uniform(-3, 0, n), seed)
    A = lg.Dense(M, symmetric=True)
    phi, (values, V) = lg.spectral_density(A, probes=1, steps=m, seed=seed), np.linalg.eigh(M)
    measure = (V.T @ draws.signs(A.domain, seed, 0)) ** 2 / n
    for x in rng.uniform(-1, 1, 5):
        share, _, half = phi._below(x)
        assert abs(share - measure[values <= x].sum()) <= half + 0.1
