"""Numbers near the ends of a dtype's range, and sizes at which single precision runs out."""

import itertools

import numpy as np
import pytest
from systems import EPS, FULL, N, benign, gaussian, host, operator, spare, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

IN_CI_ON_JAX = (
    "test_right_hand_sides_near_the_ends_of_the_range",
    "test_subnormal_right_hand_sides",
    "test_matrices_near_the_ends_of_the_range",
    "test_a_tolerance_out_of_reach_stagnates_near_rounding",
)

COMPILED = "compiled"


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", s) for s in (1e-37, 1e-30, 1e-20, 1e20, 1e30, 1e37)]
    + [("float64", s) for s in (1e-300, 1e-200, 1e200, 1e300)],
)
def test_right_hand_sides_near_the_ends_of_the_range(backend, dtype, size):
    if COMPILED in backend.capabilities and size == 1e-37:
        pytest.skip("XLA takes some of these entries, which are subnormal, for zero")
    A, b, method = operator(backend, benign(0), dtype), gaussian(0), lg.CG(rtol=1e-5)
    plain, solution = (lg.solve(A, array(backend, y, dtype), method) for y in (b, size * b))
    assert plain.status is solution.status is Status.CONVERGED
    assert abs(int(solution.steps) - int(plain.steps)) <= 1
    np.testing.assert_allclose(host(backend, solution.x) / size, host(backend, plain.x), rtol=0, atol=1e-4)
    for name, unit in (("residual", size), ("model", size * size)):
        rows, limits = solution.history[name], np.finfo(solution.history[name].dtype)
        if float(limits.tiny) * 1e7 < unit < float(limits.max):
            np.testing.assert_allclose(rows[:4] / unit, plain.history[name][:4], rtol=1e-3)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-40), ("float64", 1e-310)])
def test_subnormal_right_hand_sides(backend, dtype, size):
    b = size * gaussian(0)
    solution = lg.solve(operator(backend, benign(0), dtype), array(backend, b, dtype), lg.CG(rtol=1e-2))
    if COMPILED in backend.capabilities:
        assert (solution.status, int(solution.products)) == (Status.CONVERGED, 0)  # XLA takes subnormals for zero
    else:
        assert solution.status is Status.STAGNATED  # its last digits are lost in x: nobody may call that converged
        np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(benign(0), b), atol=0.05 * size)


@pytest.mark.parametrize("of_matrix", [1e-20, 1e-12, 1e12, 1e30])
def test_matrices_near_the_ends_of_the_range(backend, of_matrix):
    b = gaussian(0) * np.sqrt(of_matrix)
    solution = lg.solve(operator(backend, of_matrix * benign(0), "float32"), array(backend, b, "float32"))
    assert solution.status is Status.CONVERGED
    expected = np.linalg.solve(of_matrix * benign(0), b)
    np.testing.assert_allclose(host(backend, solution.x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(
    ("of_matrix", "of_rhs", "status"), [(1e-20, 1e30, Status.NONFINITE), (1e20, 1e-30, Status.STAGNATED)]
)
def test_solutions_that_no_number_can_hold_are_not_called_converged(backend, of_matrix, of_rhs, status):
    A = lg.Diagonal(array(backend, np.full(N, of_matrix), "float32"))
    for b in (gaussian(0), gaussian(0, N, 2)):
        solution = lg.solve(A, array(backend, of_rhs * b, "float32"))
        assert solution.status == (status if b.ndim == 1 else [status] * 2)


def test_a_start_beyond_the_range_of_the_right_hand_side_is_refused(backend):
    A, b = operator(backend, benign(0), "float32"), array(backend, 1e-35 * gaussian(0), "float32")
    solution = lg.solve(A, b, x0=array(backend, np.full(N, 1e30), "float32"))
    assert (solution.status, int(solution.products)) == (Status.NONFINITE_INPUT, 0)
    assert not host(backend, solution.x).any()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_tolerance_out_of_reach_stagnates_near_rounding(backend, dtype):
    matrix, b = benign(3), gaussian(3)
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.CG(rtol=1e-3 * EPS[dtype]))
    assert solution.status is Status.STAGNATED
    assert int(solution.steps) < 10 * N
    assert float(solution.residual) <= 10 * EPS[dtype] * np.linalg.norm(b)
    assert "as accurate as this precision allows" in repr(solution)


def big(name, n=1_000_000):
    if name in ("array_api_strict", "poison"):
        pytest.skip("the same arithmetic as NumPy's, slower")
    return np.linspace(1.0, 100.0, n), np.random.default_rng(0).standard_normal(n)


def test_a_million_unknowns_in_single_precision(backend):
    d, b = big(backend.name)
    A = lg.Diagonal(array(backend, d, "float32"))
    solution = lg.solve(A, array(backend, b, "float32"), lg.CG(rtol=1e-5))
    assert solution.status is Status.CONVERGED
    assert int(solution.steps) < 80  # as many as in float64: sqrt(100) ln(2e5) / 2 is 61
    residual = np.linalg.norm(b - d * host(backend, solution.x)) / np.linalg.norm(b)
    assert residual <= 1e-5 + 4 * EPS["float32"]
    assert float(solution.residual) == pytest.approx(residual * np.linalg.norm(b), rel=0.05)


def test_a_million_equal_entries_in_single_precision(backend):
    spare(backend, FULL)
    d, _ = big(backend.name)
    b = np.ones(len(d))
    solution = lg.solve(lg.Diagonal(array(backend, d, "float32")), array(backend, b, "float32"), lg.CG(rtol=1e-6))
    assert solution.status in (Status.CONVERGED, Status.STAGNATED)
    residual = np.linalg.norm(b - d * host(backend, solution.x)) / np.linalg.norm(b)
    assert residual <= 2e-6
    assert float(solution.model) == pytest.approx(-0.5 * np.sum(1 / d), rel=1e-5)


@pytest.mark.parametrize(
    "method", [lg.CG(rtol=1e-7), lg.LSQR(atol=0.0, btol=1e-7, conlim=0), lg.LSMR(atol=0.0, btol=1e-7, conlim=0)]
)
def test_a_run_that_stagnates_returns_the_best_point_that_was_verified(numpy_backend, method):
    """Not the last one, whose residual may be some times as large."""
    returned = 0
    for seed in range(12):
        matrix = with_spectrum(np.logspace(0, 3.6 if isinstance(method, lg.CG) else 2, N), seed).astype("float32")
        A, b = lg.Dense(matrix, symmetric=True), gaussian(seed).astype("float32")
        looks, verified, before = list(lg.steps(A, b, method)), [], None
        for look in looks:
            if before is not None and look.step == before.step:
                verified.append(float(look.rows["residual"][-1]))
            before = look
        assert looks[-1].status == Status.STAGNATED
        end = float(looks[-1].rows["residual"][-1])
        assert end <= (1.1 if len(verified) > 1 else 1.0) * min(verified)
        true = b - matrix.astype(float) @ lg.solve(A, b, method).x.astype(float)
        bound = 4.0 * EPS["float32"] * np.linalg.norm(matrix, 2) * np.linalg.norm(lg.solve(A, b, method).x)
        assert abs(np.linalg.norm(true) - end) <= bound
        returned += bool(look.state.back)
    assert returned  # of some of them it is not the last


def test_a_tighter_tolerance_is_given_up_soon(numpy_backend):
    """The residual is recomputed where the recurrence claims a tenth of the last one, and no longer falls."""
    matrix, b = with_spectrum(np.logspace(0, 3.6, N), 0).astype("float32"), gaussian(0).astype("float32")
    looks = list(lg.steps(lg.Dense(matrix, symmetric=True), b, lg.CG(rtol=1e-12)))
    steps = [look.step for look, after in itertools.pairwise(looks) if after.step == look.step]
    assert looks[-1].status == Status.STAGNATED
    assert looks[-1].step - steps[0] < steps[0] / 2
