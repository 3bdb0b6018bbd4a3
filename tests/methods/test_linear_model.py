"""Least squares by products: against dense oracles, SciPy and NIST's certified values, and what may not be claimed."""

import tracemalloc

import nist
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
from systems import FULL, in_full

import linop_gn as lg
from linop_gn.curvature.gram import root_gradient, root_of
from linop_gn.methods import linear_model

N = 120
TARGET = 1.0 + 0.5 * np.sin(np.linspace(0.0, 20.0, N))


def chain(p):
    """Residuals of a chain of unknowns, each beside its data and its neighbour."""
    return np.concatenate([p + p**3 / 10 - TARGET, p[:-1] * p[1:] - 1.0])


def slope(p):
    own = scipy.sparse.diags_array([1 + 0.3 * p**2], offsets=[0], shape=(N, N))
    pairs = scipy.sparse.diags_array([p[1:], p[:-1]], offsets=[0, 1], shape=(N - 1, N))
    return scipy.sparse.vstack([own, pairs]).tocsr()


def dense(p):
    return slope(p).toarray()


@pytest.fixture(scope="module")
def exact():
    return lg.least_squares(chain, np.ones(N), dense)


def counts(solver, dtype="float64", starts=(0, 1)):
    """Fits of NIST's sets that are right, and false successes."""
    right, false, loose = 0, 0, dtype == "float32"
    for name in nist.MODELS:
        made = nist.problem(name)
        for start in (made.starts[i] for i in starts):
            fit = nist.fit(lg.load("numpy"), made, start, dtype, solver=solver)
            total = nist.sum_at(made, fit.x)
            close = total < 1e-20 if nist.is_exact(made) else abs(total / made.sum_of_squares - 1) < 1e-6
            right += bool((close or loose) and (abs(fit.x / made.certified - 1) < (1e-2 if loose else 1e-4)).all())
            false += nist.is_false(made, fit)
            assert fit.steps <= 500
    return right, false


def test_nist_by_products():
    starts = (0, 1) if FULL else (1,)
    right, false = counts(lg.CG(), starts=starts)
    assert right >= 27 * len(starts) - 2
    assert false == 0


def test_a_column_whose_square_overflows_is_not_left_out():
    """At a rate of 4e-15 its column is 1e19 in single precision: without it the others were called a minimum."""
    made = nist.problem("MGH10")
    fit = nist.fit(lg.load("numpy"), made, made.starts[0], "float32", solver=lg.CG(steps=2))
    assert not nist.is_false(made, fit), fit


@in_full
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", [lg.LSMR(), lg.LSMR(atol=1e-2), lg.CG(rtol=0.1), lg.CG(steps=2)])
def test_no_false_success_whatever_the_inner_solver(solver, dtype):
    right, false = counts(solver, dtype)
    assert false == 0
    if solver == lg.LSMR() and dtype == "float64":
        assert right >= 52


def linear(A, q):
    """[A, -q] by products, and a rounding-free way to ask for it."""
    space = lg.spaces.Space.of(np.zeros(A.shape[1], A.dtype), "x")
    objective = lg.Objective.from_residuals(lambda x: A @ x + q, jacobian=lambda x: A)
    made = objective.at(np.zeros(A.shape[1], A.dtype)).linearized()
    root = root_of(made.pieces, 1.0, space)
    ops = lg.load("numpy")
    np.testing.assert_allclose(root_gradient(root), q)
    return ops, linear_model.matrix_free(ops, root, q, A.T @ q, np.linalg.norm(q))


@pytest.mark.parametrize("solver", [lg.CG(rtol=1e-12), lg.LSMR(atol=1e-13)])
def test_a_step_is_that_of_the_dense_problem(solver):
    rng = np.random.default_rng(0)
    A, q, D = rng.standard_normal((30, 8)), rng.standard_normal(30), np.exp(rng.uniform(-3, 3, 8))
    A[:, 3] = 0
    ops, model = linear(A, q)
    np.testing.assert_allclose(model.squares, (A * A).sum(0), rtol=1e-12)
    model, free = model.over(ops, D, True), np.array([1.0, 1, 0, 1, 1, 1, 0, 1])
    for held in (None, free):
        y, products = model.solving(ops, held, 0.3, solver)(model.offset)
        W = A / D if held is None else A / D * held
        best = np.linalg.lstsq(np.vstack([W, np.sqrt(0.3) * np.eye(8)]), np.concatenate([-q, np.zeros(8)]))[0]
        np.testing.assert_allclose(y, best, atol=1e-9)
        assert products > 0


@pytest.mark.parametrize("solver", [lg.CG(), lg.LSMR()])
@pytest.mark.parametrize("most", [1, 3, 10_000])
def test_a_promise_is_never_below_what_is_to_be_gained(solver, most, monkeypatch):
    """Also where the solve was cut short: condition number 1e4, and q nearly orthogonal to the columns."""
    monkeypatch.setattr(linear_model, "_STEPS", most)
    rng = np.random.default_rng(1)
    U, V = np.linalg.qr(rng.standard_normal((40, 12)))[0], np.linalg.qr(rng.standard_normal((12, 12)))[0]
    A, q = U * np.geomspace(1, 1e-4, 12) @ V.T, rng.standard_normal(40)
    for small in (1.0, 1e-6):
        gained = 0.5 * np.linalg.norm(U.T @ q) ** 2
        ops, model = linear(A, q)
        promise, _, _ = model.promise(ops, None, 1.0, 1e-9 * gained, solver)
        assert promise >= gained * (1 - 1e-9)
        if most == 10_000:
            assert promise <= gained * (1 + 1e-6)
        q = q - (1 - small) * U @ (U.T @ q)


class Sparse(scipy.sparse.csr_array):
    """One that may not be made dense."""

    def toarray(self, *args, **kwargs):
        raise AssertionError("made dense")

    todense = __array__ = toarray


@pytest.mark.parametrize(
    "jac",
    [
        lambda p: Sparse(slope(p)),
        lambda p: lg.Dense(dense(p)),
        lambda p: scipy.sparse.linalg.aslinearoperator(slope(p)),
    ],
)
def test_what_a_jacobian_is_makes_no_difference(jac, exact):
    for solver in (None, lg.LSMR()):
        fit = lg.least_squares(chain, np.ones(N), jac, solver=solver)
        assert fit.success
        assert fit.products > 0
        np.testing.assert_allclose(fit.x, exact.x, rtol=1e-6)


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "huber"])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.7, 1.2)])
def test_bounds_and_losses_as_scipy_has_them(loss, bounds):
    options = {"loss": loss, "f_scale": 1.0, "bounds": bounds}
    ours = lg.least_squares(chain, np.ones(N), slope, **options)
    theirs = scipy.optimize.least_squares(chain, np.ones(N), dense, **options, xtol=1e-12, ftol=1e-12)
    assert ours.success
    assert ours.cost <= theirs.cost * (1 + 1e-9)
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-4)
    assert ((bounds[0] <= ours.x) & (ours.x <= bounds[1])).all()
    np.testing.assert_array_equal(ours.active_mask, (ours.x == bounds[1]).astype(int) - (ours.x == bounds[0]))


def test_differences_of_a_sparse_jacobian_take_an_evaluation_for_each_group(exact):
    calls = []

    def fun(p):
        calls.append(p.copy())
        return chain(p)

    for jac, bounds in (("2-point", (-np.inf, np.inf)), ("3-point", (-np.inf, np.inf)), ("3-point", (0.7, 1.2))):
        calls.clear()
        fit = lg.least_squares(fun, np.ones(N), jac, bounds, jac_sparsity=slope(np.ones(N)))
        assert fit.success
        assert len(calls) <= fit.nfev + fit.njev * (2 * 2 + 1) + 1  # neighbours share a row: two groups
        best = exact if bounds[0] < 0 else lg.least_squares(chain, np.ones(N), slope, bounds)
        np.testing.assert_allclose(fit.x, best.x, rtol=1e-5)
        assert (np.min(calls, axis=0) >= bounds[0]).all()
        assert (np.max(calls, axis=0) <= bounds[1]).all()
    whole = lg.least_squares(chain, np.ones(N), jac_sparsity=np.ones((2 * N - 1, N)))
    np.testing.assert_allclose(whole.x, exact.x, rtol=1e-5)


def test_columns_of_zeros_and_more_parameters_than_residuals():
    """A parameter without effect stays and is named; of many minima one is found."""
    rng = np.random.default_rng(2)
    A = scipy.sparse.random_array((200, 100), density=0.1, rng=rng).tolil()
    A[:, [7]] = 0
    A = A.tocsr()
    b = A @ np.linspace(1, 2, 100) + 0.01 * rng.standard_normal(200)
    fit = lg.least_squares(lambda x: A @ x - b, np.ones(100), lambda x: A)
    best = np.linalg.lstsq(A.toarray(), b)[0]
    assert fit.success
    assert fit.x[7] == 1
    assert "Without effect on the residuals: x[7]" in fit.message
    assert fit.cost == pytest.approx(0.5 * np.sum((A @ best - b) ** 2), rel=1e-9)
    wide, c = A.T.tocsr(), np.ones(100)
    c[7] = 2.0  # nothing moves this residual
    fit = lg.least_squares(lambda x: wide @ x - c, np.zeros(200), lambda x: wide)
    assert fit.success
    assert fit.cost == pytest.approx(2.0, rel=1e-9)


def test_single_precision_stays_and_promises_what_it_knows(exact):
    fit = lg.least_squares(
        lambda p: chain(p).astype(np.float32), np.ones(N, np.float32), lambda p: slope(p).astype(np.float32)
    )
    assert fit.x.dtype == np.float32
    S = lg.Status
    assert fit.status in (S.AT_PRECISION, S.DECREASE_SMALL, S.GRADIENT_SMALL, S.STAGNATED)
    np.testing.assert_allclose(fit.x, exact.x, rtol=2e-4)


def test_an_end_that_a_truncated_solve_does_not_know_is_no_success():
    """Two steps of CG for 120 unknowns leave the fit where it is; no status says that this is the bottom."""
    start = np.random.default_rng(3).uniform(-3, 3, N)
    fit = lg.least_squares(chain, start, slope, solver=lg.CG(steps=1), max_steps=20)
    if fit.success:  # a fact all the same
        assert fit.cost <= lg.least_squares(chain, fit.x, dense).cost * (1 + 1e-4)
    wrong = lg.least_squares(chain, np.ones(N), lambda p: -slope(p))
    assert wrong.status is lg.Status.NO_DECREASE


def test_errors_are_advice():
    ones = np.ones(N)
    with pytest.raises(ValueError, match=r"csr_array of shape \(239, 119\); expected an array of shape \(239, 120\)"):
        lg.least_squares(chain, ones, lambda p: slope(p)[:, :-1])
    with pytest.raises(ValueError, match="a row for each residual"):
        lg.least_squares(chain, ones, jac_sparsity=np.ones((2 * N - 1, N + 1)))
    with pytest.raises(ValueError, match="10 rows for 239 residuals"):
        lg.least_squares(chain, ones, jac_sparsity=np.ones((10, N)))
    with pytest.raises(TypeError, match=r"lg\.CG\(\) or lg\.LSMR"):
        lg.least_squares(chain, ones, slope, solver="lsmr")


def test_covariance_is_that_of_the_dense_fit(exact, monkeypatch):
    fit = lg.least_squares(chain, np.ones(N), slope)
    np.testing.assert_allclose(fit.covariance(), exact.covariance(), rtol=1e-5, atol=1e-9)
    monkeypatch.setattr(linear_model, "_MOST", 10)
    with pytest.raises(ValueError, match="Solve for the columns that you want"):
        fit.covariance()


def test_memory_is_linear_in_the_parameters():
    def peak(n):
        data = 1.0 + 0.5 * np.sin(np.linspace(0.0, 20.0, n))
        tracemalloc.start()
        fit = lg.least_squares(
            lambda p: p + p**3 / 10 - data,
            np.ones(n),
            lambda p: scipy.sparse.diags_array([1 + 0.3 * p**2], offsets=[0]).tocsr(),
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert fit.success
        return found

    assert peak(20_000) <= 2.2 * peak(10_000)


def test_torch_and_jax_take_products_without_a_jacobian(exact):
    for name in ("torch", "jax") if FULL else ("torch",):
        pytest.importorskip(name)
        ops = lg.load(name)
        xp, target = ops.namespace(), ops.asarray(TARGET, "float64")
        fit = lg.least_squares(
            lambda p, target, xp=xp: xp.concat([p + p**3 / 10 - target, p[:-1] * p[1:] - 1.0]),
            ops.asarray(np.ones(N), "float64"),
            args=(target,),
            solver=lg.CG(rtol=1e-3),
        )
        assert fit.success
        np.testing.assert_allclose(ops.to_numpy(fit.x), exact.x, rtol=1e-6)
