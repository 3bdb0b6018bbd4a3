"""Conjugate gradients for many dampings together, against each alone and dense float64 algebra."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import N, benign, calls_of, counted, finished, gaussian, host, operator, spare, tolerable, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, scales, seeds

DAMPINGS = np.array([1.0, 0.0, 1e3, 1e-2])


@given(seed=seeds(), of_matrix=scales(), of_rhs=scales(), exponent=st.floats(-10, -2))
def test_converged_is_a_fact_for_each_damping(backend, seed, of_matrix, of_rhs, exponent):
    matrix, b = of_matrix * benign(seed), of_rhs * gaussian(seed)
    dampings, rtol = of_matrix * DAMPINGS, 10.0**exponent
    method = lg.MultiShiftCG(dampings=dampings, rtol=rtol)
    solution = lg.solve(operator(backend, matrix), array(backend, b), method)
    assert solution.status == [Status.CONVERGED] * 4
    X = host(backend, solution.x)
    for j, sigma in enumerate(dampings):
        damped = matrix + sigma * np.eye(N)
        slack = tolerable(damped, X[:, j], b, "float64")
        residual = np.linalg.norm(b - damped @ X[:, j])
        assert residual <= rtol * np.linalg.norm(b) + slack
        assert float(solution.residual[j]) == pytest.approx(residual, rel=1e-3, abs=slack)
        value = 0.5 * X[:, j] @ damped @ X[:, j] - b @ X[:, j]
        assert float(solution.model[j]) == pytest.approx(value, rel=1e-8)


@given(seed=seeds())
def test_each_takes_the_steps_of_conjugate_gradients_alone(backend, seed):
    matrix, b = benign(seed), gaussian(seed)
    A, B = operator(backend, matrix), array(backend, b)
    together = lg.solve(A, B, lg.MultiShiftCG(dampings=DAMPINGS, steps=4))
    space = lg.krylov(A, B, 4, reorthogonalise="none").solve(DAMPINGS)
    np.testing.assert_allclose(host(backend, together.x), host(backend, space.x), rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.asarray(together.model), np.asarray(space.model), rtol=1e-9)


def test_one_product_a_step_and_one_to_verify_each(backend):
    A, counter = counted(backend, benign(0))
    solution = lg.solve(A, array(backend, gaussian(0)), lg.MultiShiftCG(dampings=DAMPINGS, rtol=1e-6))
    finished(backend)
    steps = np.asarray(solution.steps)
    assert counter.calls == int(solution.products) == steps.max() + len(DAMPINGS)
    assert steps.argmax() == 1
    assert steps[2] < steps[0] <= steps[1]
    assert solution.history["residual"].shape == (steps.max() + 1, 4)
    fixed = lg.solve(A, array(backend, gaussian(0)), lg.MultiShiftCG(dampings=DAMPINGS, steps=3))
    assert fixed.status == [Status.COMPLETED] * 4
    assert int(fixed.products) == 3


def test_trees_get_an_axis_for_the_dampings(backend):
    matrix, b = benign(0), array(backend, gaussian(0))
    tree = {"bias": b[:1], "weight": backend.namespace().reshape(b[1:], (2, 3))}
    A = lg.Dense(array(backend, matrix), symmetric=True, domain=lg.Space.of(tree))
    x = lg.solve(A, tree, lg.MultiShiftCG(dampings=[0.0, 1.0], rtol=1e-9)).x
    assert (tuple(x["bias"].shape), tuple(x["weight"].shape)) == ((1, 2), (2, 3, 2))
    expected = np.linalg.solve(matrix + np.eye(N), gaussian(0))
    np.testing.assert_allclose(host(backend, x["weight"])[:, :, 1].reshape(-1), expected[1:], atol=1e-7)


def test_negative_curvature_and_other_ends(backend):
    matrix, b = benign(0) - 1.2 * np.eye(N), array(backend, gaussian(0))
    A = operator(backend, matrix)
    lost = lg.solve(A, b, lg.MultiShiftCG(dampings=[0.0, 2.0]))
    assert lost.status == [Status.NEGATIVE_CURVATURE, Status.CONVERGED], "each by itself"
    assert np.isfinite(host(backend, lost.x)).all()
    saved = lg.solve(A, b, lg.MultiShiftCG(dampings=[1.5, 2.0], rtol=1e-8))
    assert saved.succeeded
    zero = lg.solve(A, array(backend, np.zeros(N)), lg.MultiShiftCG(dampings=[0.0, 2.0]))
    assert zero.status == [Status.CONVERGED] * 2
    assert int(zero.products) == 0
    bad = lg.solve(A, array(backend, np.full(N, np.inf)), lg.MultiShiftCG(dampings=[0.0, 2.0]))
    assert bad.status == [Status.NONFINITE_INPUT] * 2
    few = lg.solve(operator(backend, benign(0)), b, lg.MultiShiftCG(dampings=[0.0, 2.0], rtol=1e-12, max_steps=2))
    assert few.status == [Status.MAX_STEPS] * 2


def test_shifts_that_spread_over_many_decades(numpy_backend):
    rng = np.random.default_rng(0)
    matrix = with_spectrum(np.logspace(-6, 2, 40), 0)
    b, dampings = rng.standard_normal(40), np.logspace(-6, 12, 10)
    solution = lg.solve(lg.Dense(matrix, symmetric=True), b, lg.MultiShiftCG(dampings=dampings, rtol=1e-6))
    assert np.isfinite(solution.x).all()
    for j, sigma in enumerate(dampings):
        residual = np.linalg.norm(b - matrix @ solution.x[:, j] - sigma * solution.x[:, j])
        assert solution.residual[j] == pytest.approx(residual, rel=1e-2)
        if solution.status[j] is Status.CONVERGED:
            assert residual <= 1.01e-6 * np.linalg.norm(b)
    assert solution.status[3:] == [Status.CONVERGED] * 7


def test_a_million_unknowns_in_single_precision(numpy_backend):
    n = 1_000_000
    values = np.linspace(1.0, 50.0, n).astype("float32")
    b = np.random.default_rng(0).standard_normal(n).astype("float32")
    solution = lg.solve(lg.Diagonal(values), b, lg.MultiShiftCG(dampings=[0.0, 10.0], rtol=1e-4))
    assert solution.status == [Status.CONVERGED] * 2
    residual = np.linalg.norm(b - values.astype(float) * solution.x[:, 0])
    assert residual <= 1.01e-4 * np.linalg.norm(b.astype(float))


def test_one_damping_of_any_type(backend):
    A, b = lg.Diagonal(array(backend, np.array([1.0, 3.0]))), array(backend, np.ones(2))
    of_all_types = 1, np.float32(1.0), np.int64(1), np.array(1.0), array(backend, np.array(1.0))
    for damping in of_all_types[4 if backend.name == "jax" else 0 :]:
        found = backend.to_numpy(lg.solve(A, b, lg.MultiShiftCG(dampings=damping)).x)
        np.testing.assert_allclose(found, [[0.5], [0.25]], rtol=1e-5)


def test_options_that_make_no_sense(numpy_backend):
    for bad in ([], [np.nan], [[1.0]], np.inf, "1e-3", ["1e-3"], np.array(["1"]), b"1", {"a": 1.0}, None):
        with pytest.raises(ValueError, match="dampings"):
            lg.MultiShiftCG(dampings=bad)
    A = lg.Dense(benign(0), symmetric=True)
    with pytest.raises(ValueError, match="one right-hand side"):
        lg.solve(A, gaussian(0, N, 2), lg.MultiShiftCG(dampings=[1.0]))


@pytest.mark.parametrize("b", [(1e-30, 7e-26), (1e-30, 0.7e-30)])
def test_the_residual_of_what_underflows_is_that_of_the_column_returned(backend, b):
    spare(backend, False)
    diagonal, dampings = np.array([1e18, 1e8]), [0.0, 1e18, 1e3]
    A = lg.Dense(array(backend, np.diag(diagonal), "float32"), symmetric=True)
    solution = lg.solve(A, array(backend, b, "float32"), lg.MultiShiftCG(dampings=dampings))
    x = host(backend, solution.x).astype(float)
    true = np.linalg.norm(np.array(b)[:, None] - (diagonal[:, None] + dampings) * x, axis=0)
    np.testing.assert_allclose(np.asarray(solution.residual, float), true, rtol=1e-4)
    assert not any(s.succeeded and r > 1e-3 * np.linalg.norm(b) for s, r in zip(solution.status, true, strict=True))
    assert np.ndim(solution.products) == 0


@pytest.mark.parametrize("steps", [7, 8, 9, 16, 17, 40])
def test_iterates_are_those_of_each_alone_however_often_the_block_was_emptied(backend, steps):
    spare(backend, steps == 17)
    values, b = np.linspace(1.0, 50.0, 60), gaussian(1, 60)
    A, B, dampings = lg.Diagonal(array(backend, values)), array(backend, b), [0.0, 3.0, 1e3]
    together = lg.solve(A, B, lg.MultiShiftCG(dampings=dampings, steps=steps))
    for j, damping in enumerate(dampings):
        alone = lg.solve(lg.Damped(A, damping), B, lg.CG(steps=steps))
        expected = host(backend, alone.x)
        np.testing.assert_allclose(host(backend, together.x)[:, j], expected, rtol=0, atol=1e-11 * abs(expected).max())
    for look in lg.steps(A, B, lg.MultiShiftCG(dampings=dampings, steps=steps)):
        state = look.state
    assert int(state.count) <= max(len(dampings), 8)


def test_all_iterates_are_made_by_one_matrix_product_while_the_block_has_room(monkeypatch):
    ops, made = lg.load("numpy"), []

    def counted(name):
        plain = getattr(type(ops), name)

        def call(self, *args):
            made.extend(name for x in args if getattr(x, "ndim", 0) == 2 and x.shape[0] == 100)
            return plain(self, *args)

        monkeypatch.setattr(type(ops), name, call, raising=False)

    for name in ("combine", "axpy", "axpby", "deflate"):
        counted(name)
    combine, dampings = type(ops).combine, np.logspace(-2, 1, 20)
    monkeypatch.setattr(type(ops), "combine", lambda *args: made.append("combine") or combine(*args))
    lg.solve(lg.Diagonal(np.linspace(1.0, 9.0, 100)), np.ones(100), lg.MultiShiftCG(dampings=dampings, steps=20))
    assert made == ["combine"]


def of_dampings(**options):
    return lg.MultiShiftCG(dampings=np.logspace(-4, -2, 20), **options)


def test_an_ordinary_tick_takes_few_calls(numpy_backend):
    tick, rest = calls_of(of_dampings)
    assert tick <= 80
    assert rest <= 700


@given(seed=seeds(), shift=st.sampled_from([0.0, 0.7, 1.2]), exponent=st.floats(-10, -1), fixed=st.booleans())
def test_an_ordinary_tick_is_the_tick_that_judges(numpy_backend, seed, shift, exponent, fixed):
    """Whether all systems move, or some have ended, met negative curvature or wait for a product."""
    matrix, b = with_spectrum(np.linspace(0.5, 2.0, 30) ** 3, seed) - shift * np.eye(30), gaussian(seed, 30)
    A, limit = lg.Dense(matrix, symmetric=True), {"steps": 25} if fixed else {"rtol": 10.0**exponent}
    method = lg.MultiShiftCG(dampings=DAMPINGS, **limit)
    quick = lg.solve(A, b, method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lg.MultiShiftCG, "step", lg.MultiShiftCG._tick)
        slow = lg.solve(A, b, method)
    assert quick.status == slow.status
    assert quick.products == slow.products
    np.testing.assert_array_equal(quick.steps, slow.steps)
    for name in ("residual", "model"):
        largest = np.max(np.abs(slow.history[name]))
        np.testing.assert_allclose(quick.history[name], slow.history[name], rtol=1e-6, atol=1e-12 * largest)
    np.testing.assert_allclose(quick.x, slow.x, rtol=1e-6, atol=1e-9 * np.max(np.abs(slow.x)))
