"""log det by stochastic Lanczos quadrature: against dense quadratures on the same probes, bounds, and bad operators."""

import numpy as np
import pytest
from systems import FULL, spare, with_spectrum

import linop_gn as lg
from linop_gn.draws import sign_columns
from linop_gn.testing.strategies import array

SIZE = 40


def probes(count, seed):
    return sign_columns(lg.Space.flat(SIZE, np.zeros(1)), seed, 0, count)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_it_is_the_mean_of_quadratic_forms(backend, damping):
    """Enough steps for the rules to be exact."""
    spare(backend, FULL and damping > 0)
    matrix = with_spectrum(np.linspace(0.5, 3, SIZE) ** 2, 0)
    dense = lg.Dense(array(backend, matrix), psd=True)
    found = lg.logdet(lg.Damped(dense, damping) if damping else dense, products=36, steps=18, seed=5)
    values, vectors = np.linalg.eigh(matrix + damping * np.eye(SIZE))
    forms = np.sum(np.log(values)[:, None] * (vectors.T @ probes(2, 5)) ** 2, axis=0)
    assert float(found.value) == pytest.approx(forms.mean(), abs=1e-4)
    assert float(found.standard_error) == pytest.approx(forms.std(ddof=1) / np.sqrt(2), abs=1e-3)
    assert (int(found.products), int(found.samples), found.succeeded) == (36, 2, True)
    exact = lg.logdet(lg.Damped(dense, damping), products=SIZE)
    assert float(exact.value) == pytest.approx(np.log(values).sum(), abs=1e-12)
    assert (exact.exact, int(exact.products), float(exact.standard_error)) == (True, SIZE, 0.0)


@pytest.mark.parametrize("spectrum", [np.logspace(-5, 1, 150), np.where(np.arange(150) < 8, 100.0, 0.0)])
def test_the_bound_of_the_rules_is_part_of_the_bar(spectrum):
    matrix, damping = with_spectrum(spectrum, 0), 1e-4
    size = np.log(spectrum + damping).sum()
    A = lg.Damped(lg.Dense(matrix, psd=True), damping)
    found = [lg.logdet(A, products=120, steps=12, seed=seed) for seed in range(20)]
    assert np.mean([abs(one.value - size) <= 1.96 * one.standard_error for one in found]) >= 0.9
    plain = lg.Dense(matrix + damping * np.eye(150), psd=True)
    given = lg.logdet(plain, products=120, steps=12, lowest=damping)
    assert given.value == pytest.approx(found[0].value, rel=1e-6)


def test_steps_beyond_the_spectrum_are_not_taken():
    matrix = with_spectrum(np.where(np.arange(SIZE) < 20, 2.0, 3.0), 0)
    found = lg.logdet(lg.Dense(matrix, psd=True), products=39, steps=13)
    assert found.products == 3 * 2
    assert found.succeeded


@pytest.mark.parametrize(("lowest", "status"), [(-1.0, "NEGATIVE_CURVATURE"), (0.0, "SINGULAR"), (np.nan, "NONFINITE")])
def test_no_number_for_what_has_none(lowest, status):
    spectrum = np.linspace(1, 2, SIZE)
    spectrum[0] = 0.0 if np.isnan(lowest) else lowest
    matrix = with_spectrum(spectrum, 0)
    factor = np.nan if np.isnan(lowest) else 1.0
    A = lg.FunctionOperator(lambda v: factor * (matrix @ v), lg.Space.flat(SIZE, matrix), symmetric=True)
    for products in (39, SIZE):
        found = lg.logdet(A, products=products, steps=13)
        assert found.status.name == status
        assert not found.succeeded
        assert np.isnan(found.value)


def test_damping_keeps_its_digits():
    """In float32 the sum of 1 and 1e-9 has lost the damping."""
    values = np.where(np.arange(SIZE) < 2, 1.0, 0.0).astype(np.float32)
    found = lg.logdet(lg.Damped(lg.Diagonal(values), 1e-9), products=39, steps=3)
    assert abs(found.value - np.log(values.astype(float) + 1e-9).sum()) <= 2 * found.standard_error


def test_it_stops_and_refuses():
    A = lg.Dense(with_spectrum(np.linspace(1, 3, 200), 0), psd=True)
    early = lg.logdet(A, products=199, steps=6, rtol=0.05)
    assert early.status is lg.Status.CONVERGED
    assert 10 <= early.samples < 33
    unit = lg.Dense(with_spectrum(np.exp(np.linspace(-1, 1, 200)), 0), psd=True)  # log det = 0
    found = lg.logdet(unit, products=199, steps=6, rtol=1e-3, atol=3.0)
    assert found.status is lg.Status.CONVERGED
    assert found.samples < 33
    assert abs(found.value) < 4 * found.standard_error < 12.1
    with pytest.raises(ValueError, match="5 products are less than the 30 steps"):
        lg.logdet(A, products=5)
    with pytest.raises(ValueError, match=r"logdet needs a symmetric operator.*A\.T @ A"):
        lg.logdet(lg.Dense(np.triu(np.ones((3, 3)))))
    with pytest.raises(ValueError, match="lowest must be a finite number > 0"):
        lg.logdet(A, products=100, lowest=-1.0)


def test_the_exact_one_sees_that_an_operator_is_not_symmetric():
    M = np.triu(np.ones((5, 5)))
    A = lg.FunctionOperator(lambda v: M @ v, lg.Space.flat(5, M), symmetric=True)
    found = lg.logdet(A)
    assert found.status == lg.Status.NOT_SYMMETRIC
    assert np.isnan(found.value)


SPREAD = {
    "decades": np.geomspace(1e-9, 1, 120),
    "cluster": np.r_[1e-6 * np.linspace(1, 1.1, 60), np.linspace(0.1, 1, 60)],
    "even": np.linspace(0.1, 3, 120),
}


@pytest.mark.parametrize("kind", sorted(SPREAD))
def test_what_the_steps_have_not_seen_is_part_of_the_bar(kind):
    spectrum = SPREAD[kind]
    A, size = lg.Dense(with_spectrum(spectrum, 0), psd=True), np.log(spectrum).sum()
    found = [lg.logdet(A, products=119, steps=9, seed=seed) for seed in range(8)]
    assert np.mean([abs(one.value - size) <= 2.2 * one.standard_error for one in found]) >= 0.8
    assert "if the operator is singular the value means nothing" in found[0].sentence
    known = lg.logdet(A, products=119, steps=9, lowest=spectrum[0])
    assert "means nothing" not in known.sentence
    assert known.standard_error <= 1.01 * found[0].standard_error


def test_a_singular_operator_has_no_narrow_bar():
    A = lg.Dense(with_spectrum(np.r_[np.zeros(80), np.geomspace(1e-4, 1, 80)], 0), psd=True)
    found = lg.logdet(A, products=150, steps=15)
    assert not found.succeeded or found.standard_error > 0.5 * abs(found.value)


@pytest.mark.parametrize(
    ("products", "said"), [(13, "From one probe"), (39, "From fewer than ten probes"), (130, None)]
)
def test_few_probes_are_said_to_be_few(products, said):
    found = lg.logdet(lg.Dense(with_spectrum(np.linspace(1, 2, 140), 0), psd=True), products=products, steps=13)
    assert (said or "") in found.sentence
    assert said is not None or "probe" not in found.sentence


@pytest.mark.parametrize("products", [39, SIZE])
def test_nobody_is_said_to_have_declared_what_nobody_has(products):
    matrix = with_spectrum(np.linspace(-1, 2, SIZE), 0)
    space = lg.Space.flat(SIZE, matrix)
    for known in ({"symmetric": True}, {"psd": True}):
        found = lg.logdet(lg.FunctionOperator(lambda v: matrix @ v, space, **known), products=products, steps=13)
        assert found.status is lg.Status.NEGATIVE_CURVATURE
        assert ("declared" in found.sentence) == ("psd" in known)
