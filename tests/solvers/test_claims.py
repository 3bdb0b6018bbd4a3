"""What solvers may claim, and what they refuse, where it is tempting to do otherwise."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import EPS, FULL, host, operator, orthogonal, spare, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, seeds


def singular(backend, n=5):
    """A positive semi-definite system without a solution."""
    Q = orthogonal(n, 1)
    M = (Q * np.r_[0.0, np.linspace(1.0, 3.0, n - 1)]) @ Q.T
    return operator(backend, (M + M.T) / 2), np.random.default_rng(1).standard_normal(n)


SINGULAR_SOLVERS = {
    "CG": lg.CG(),
    "CG, fixed steps": lg.CG(steps=5),
    "CG, more steps than there are": lg.CG(steps=12),
    "CG, preconditioned": lg.CG(preconditioner=lg.preconditioners.Jacobi()),
    "CG, preconditioned, more steps than there are": lg.CG(steps=12, preconditioner=lg.preconditioners.Jacobi()),
    "Lanczos": lg.Lanczos(5),
    "Lanczos, full": lg.Lanczos(5, reorthogonalise="full"),
    "Lanczos, none": lg.Lanczos(7, reorthogonalise="none"),
    "MINRES": lg.MINRES(),
    "MINRES, fixed steps": lg.MINRES(steps=5),
    "Steihaug": lg.Steihaug(radius=np.inf),
    "Steihaug, a region": lg.Steihaug(radius=1e6),
    "Steihaug, more steps than there are": lg.Steihaug(radius=1e18, steps=12),
    "MultiShiftCG": lg.MultiShiftCG([1.0, 0.0, 1e-3]),
    "MultiShiftCG, more steps than there are": lg.MultiShiftCG([1.0, 0.0, 1e-3], steps=12),
    "Blockwise CG": lg.Blockwise(lg.CG()),
}
"""One entry for each method that takes singular systems."""

MANY = {"numpy": 150 if FULL else 50, "poison": 15, "torch": 5, "jax": 2}


def systems_of(backend, matrix, b, method):
    """Each (matrix, b, x, residual, status) of a solve: for MultiShiftCG one a damping, for Blockwise one a block."""
    A, rhs, matrices = operator(backend, matrix), array(backend, b), [matrix]
    if isinstance(method, lg.Blockwise):
        matrices, rhs = [matrix, 2.0 * matrix], array(backend, np.r_[b, b])
        A = lg.BlockDiagonal(tuple(operator(backend, block) for block in matrices))
    elif isinstance(method, lg.MultiShiftCG):
        matrices = [matrix + damping * np.eye(len(b)) for damping in method.dampings]
    solution = lg.solve(A, rhs, method)
    x = host(backend, solution.x)
    columns = x.T if x.ndim == 2 else x.reshape(-1, len(b))
    status = solution.status if isinstance(solution.status, list) else [solution.status]
    yield from zip(matrices, [b] * len(matrices), columns, np.atleast_1d(solution.residual), status, strict=True)


@pytest.mark.parametrize("kind", ["in range", "out of range", "random"])
@pytest.mark.parametrize("name", SINGULAR_SOLVERS)
def test_of_a_singular_system_the_truth_is_told(backend, name, kind):
    """p.Ap is rounding, of either sign, along the null vector; a step there makes x as long as 1/eps."""
    spare(backend, name in ("CG", "Lanczos"))
    values = np.array([0.0, 1.0, 1.6, 2.3, 3.0])
    for seed in range(MANY.get(backend.name, 3)):
        Q, rhs = orthogonal(5, seed), np.random.default_rng(seed).standard_normal(5)
        matrix = with_spectrum(values, seed)
        if kind != "random":
            rhs = matrix @ rhs + (kind == "out of range") * Q[:, 0]
        for damped, b, x, told, status in systems_of(backend, matrix, rhs, SINGULAR_SOLVERS[name]):
            size, true = np.linalg.norm(b), np.linalg.norm(b - damped @ x)
            rounding = 64 * EPS["float64"] * (np.linalg.norm(damped, 2) * np.linalg.norm(x) + size)
            assert abs(told - true) <= rounding + 2 * EPS["float64"] ** 0.5 * max(true, size)
            if status in (Status.CONVERGED, Status.UNEXPLORED):
                assert true <= 1.001e-5 * size + rounding
            if status in (Status.CONVERGED, Status.INVARIANT, Status.LEAST_SQUARES):
                assert true <= size
            if kind == "in range" or np.linalg.eigvalsh(damped)[0] > 1e-4:
                assert true <= 1e-5 * size
                assert status.succeeded or "steps" in name


def exactly(matrix, x, b):
    """||b - A x|| and the model at x, in rational arithmetic."""
    A, x, b = (np.vectorize(Fraction, otypes=[object])(given) for given in (matrix, x, b))
    product = A @ x
    return np.linalg.norm((b - product).astype(float)), float(x @ product / 2 - b @ x)


@pytest.mark.parametrize(
    "method", [lg.Steihaug(radius=np.inf), lg.Steihaug(radius=1e18), lg.Steihaug(radius=1e12), lg.MultiShiftCG([0.0])]
)
def test_no_step_is_taken_for_what_rounding_makes_of_it(numpy_backend, method):
    """However far the path leads along a null vector: the model at its end is below that at zero, and told."""
    for seed in range(30):
        matrix, b = with_spectrum([0.0, 1.0, 1.6, 2.3, 3.0], seed), np.random.default_rng(seed).standard_normal(5)
        solution = lg.solve(operator(numpy_backend, matrix), b, method)
        x = solution.x.reshape(-1)
        true, model = exactly(matrix, x, b)
        far = 64 * EPS["float64"] * (3.0 * np.linalg.norm(x) + np.linalg.norm(b))
        assert model < 0
        assert abs(np.max(solution.model) - model) <= far * np.linalg.norm(x)
        assert abs(np.max(solution.residual) - true) <= far + 1e-7 * true
        assert solution.status not in (Status.CONVERGED, [Status.CONVERGED])


def test_how_far_a_path_leads_that_turns_to_a_null_vector(numpy_backend):
    """To the boundary, if that is not so far that the rounding of A x exceeds b; there, only by negative curvature."""
    A, b = lg.Diagonal(np.array([0.0, 1.0, 2.0])), np.ones(3)
    near = lg.solve(A, b, lg.Steihaug(radius=1e12))
    assert (near.status, np.linalg.norm(near.x)) == (Status.BOUNDARY, pytest.approx(1e12))
    for radius in (1e20, np.inf):
        far = lg.solve(A, b, lg.Steihaug(radius=radius))
        assert (far.status, float(far.model)) == (Status.NEGATIVE_CURVATURE, pytest.approx(-4.5))
    down = lg.solve(lg.Diagonal(np.array([1.0, -1.0])), np.array([1.0, 0.5]), lg.Steihaug(radius=1e18))
    assert (down.status, np.linalg.norm(down.x)) == (Status.BOUNDARY, pytest.approx(1e18))
    assert int(down.products) == int(down.steps) + 1


@pytest.mark.parametrize("exponent", [2, 10, 14])
@pytest.mark.parametrize(
    "method",
    [
        lg.CG(steps=40),
        lg.CG(max_steps=40, rtol=1e-12),
        lg.Lanczos(25),
        lg.Steihaug(radius=np.inf, steps=40),
        lg.Steihaug(radius=1e9, max_steps=40, rtol=1e-12),
        lg.MultiShiftCG([0.0], steps=40),
        lg.MultiShiftCG([0.0], max_steps=40, rtol=1e-12),
    ],
    ids=repr,
)
def test_a_residual_that_has_drifted_is_recomputed(numpy_backend, method, exponent):
    """And where cond(A) shows that it has not, the fixed steps take no product more."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        matrix, b = with_spectrum(np.r_[1.0, 10.0 ** rng.uniform(-exponent, 0, 29)], seed), rng.standard_normal(30)
        solution = lg.solve(operator(numpy_backend, matrix), b, method)
        x = solution.x.reshape(-1)
        true = np.linalg.norm(b - matrix @ x)
        rounding = 64 * EPS["float64"] * np.linalg.norm(x)
        slack = rounding + 2 * EPS["float64"] ** 0.5 * max(true, np.linalg.norm(b))
        assert abs(np.max(solution.residual) - true) <= slack
        if exponent == 2 and method.steps is not None:
            assert int(solution.products) == int(np.max(solution.steps))


def test_a_space_that_is_invariant_solves_nothing_that_is_singular(numpy_backend):
    A, b = singular(numpy_backend)
    step = lg.solve(A, b, lg.GLTR(radius=np.inf))
    assert not step.succeeded
    K = lg.krylov(A, b, 5)
    assert Status(int(K.solve().code)) is Status.STAGNATED
    assert not Status(int(K.trust_region(np.inf).code)).succeeded
    bounded = K.trust_region(1.0)
    assert Status(int(bounded.code)) is Status.BOUNDARY
    assert np.linalg.norm(bounded.x) == pytest.approx(1.0)
    assert lg.solve(A, b, lg.GLTR(radius=1.0)).status is Status.BOUNDARY


def test_neighbouring_vectors_are_kept_orthogonal_after_a_small_beta(numpy_backend):
    Q = orthogonal(40, 3)
    M = (Q * np.r_[-1.0, np.linspace(1.0, 3.0, 3)].repeat(10)) @ Q.T
    M = (M + M.T) / 2
    b = Q[:, 15] + 1e-11 * np.random.default_rng(3).standard_normal(40)
    step = lg.solve(operator(numpy_backend, M), b, lg.GLTR(radius=2.0, steps=6))
    multiplier = step.history["multiplier"][-1]
    assert np.linalg.norm(step.x) == pytest.approx(2.0, rel=1e-14)
    assert np.linalg.norm(b - M @ step.x - multiplier * step.x) < 1e-12


def test_a_longer_space_answers_after_an_invariant_one(numpy_backend):
    A = lg.Diagonal(np.array([1.0, 2.0, 4.0]), psd=True)
    K = lg.krylov(A, np.eye(3)[0], 3).extend(2)
    np.testing.assert_allclose(K.solve(1.0).x, [0.5, 0.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(K.solve([0.0, 1.0]).x[0], [1.0, 0.5])


METHODS = [
    lg.GLTR(radius=np.inf),
    lg.CG(steps=2),
    lg.CG(max_steps=1),
    lg.MINRES(steps=2),
    lg.Lanczos(2),
    lg.LSMR(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{type(method).__name__}")
def test_an_answer_out_of_range_is_no_answer(backend, method):
    if backend.name == "jax" and type(method) is not lg.CG:
        pytest.skip("a program for each; CG's has all of it")
    A = lg.Diagonal(array(backend, np.array([1e-26, 1e-20]), "float32"), psd=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = lg.solve(A, array(backend, np.array([1e15, 0.0]), "float32"), method)
    assert solution.status is Status.NONFINITE
    assert np.isfinite(backend.to_numpy(solution.x)).all()


@pytest.mark.parametrize("radius", [np.float32(-1), np.array(np.nan), np.int64(-3), np.float32(0), None, "1"])
@pytest.mark.parametrize("method", [lg.GLTR, lg.Steihaug])
def test_a_radius_of_any_type_is_looked_at(method, radius):
    with pytest.raises((ValueError, TypeError), match="radius must be"):
        method(radius=radius)


def test_tolerances_of_any_type_are_looked_at():
    for build in (
        lambda: lg.CG(rtol=np.float32(-1)),
        lambda: lg.MINRES(rtol=np.array(np.nan)),
        lambda: lg.LSMR(damping=np.array(-1.0)),
        lambda: lg.CG(rtol="1e-3"),
    ):
        with pytest.raises((ValueError, TypeError), match="must be a"):
            build()


@pytest.mark.parametrize("method", [lg.Eigh(), lg.Cholesky(), lg.GLTR(), lg.Lanczos(2), lg.Blockwise()])
def test_what_has_no_scalar_for_each_block_is_refused_side_by_side(method):
    D = lg.Diagonal(np.array([1.0, 2.0]), psd=True)
    with pytest.raises(TypeError, match="side by side"):
        lg.solve(lg.BlockDiagonal((D, D)), np.ones(4), lg.Blockwise(method))


@pytest.mark.parametrize("solver", [lg.LSMR(), lg.MultiShiftCG(dampings=[1.0]), "CG", lg.CG, None])
def test_what_levenberg_marquardt_cannot_step_by_is_refused(solver):
    with pytest.raises(TypeError, match="solver must be one for square systems"):
        lg.LevenbergMarquardt(solver=solver)


def test_a_limit_of_zero_is_a_limit():
    D = lg.Diagonal(np.ones(10), psd=True)
    assert lg.cost(D, lg.CG(steps=0))[0].products == 0
    assert lg.cost(D, lg.GLTR(max_steps=0))[0].products == 1


@pytest.mark.parametrize("seed", range(10))
def test_steps_past_the_end_of_a_singular_system_are_no_success(numpy_backend, seed):
    n = 7
    A = lg.Diagonal(np.r_[0.0, np.linspace(1.0, 3.0, n - 1)])
    b = np.random.default_rng(seed).standard_normal(n)
    solution = lg.solve(A, b, lg.MINRES(steps=n))
    assert np.linalg.norm(b - A @ solution.x) <= 1.01 * np.linalg.norm(b)
    assert float(solution.residual) == pytest.approx(np.linalg.norm(b - A @ solution.x), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_rounding_within_the_tolerance_is_no_stagnation(numpy_backend, seed):
    d = np.logspace(-5, 0, 200).astype(np.float32)
    b = np.random.default_rng(seed).standard_normal(200).astype(np.float32)
    A = lg.Diagonal(d, psd=True)
    step = lg.solve(A, b, lg.GLTR(radius=np.inf, rtol=0.1, max_steps=200))
    answer = lg.krylov(A, b, 150).solve(rtol=0.1)
    for code, x in ((step.code, step.x), (answer.code, answer.x)):
        if np.linalg.norm(b - d * x.astype(float)) <= 0.09 * np.linalg.norm(b):
            assert Status(int(code)) is Status.CONVERGED


def test_a_verification_that_is_not_finite_leaves_the_residual_known(numpy_backend):
    calls = []

    def product(v):
        calls.append(1)
        return v * np.nan if len(calls) == 4 else np.array([1.0, 2.0, 4.0]) * v

    A = lg.FunctionOperator(product, lg.Space.flat(3, np.ones(3)), psd=True)
    many = lg.solve(A, np.ones(3), lg.MultiShiftCG(dampings=[0.0], rtol=1e-10))
    assert Status.NONFINITE in np.atleast_1d(many.status)
    assert np.isfinite(many.residual).all()
    assert np.isfinite(many.x).all()


@pytest.mark.parametrize("method", [lg.CG(), lg.MINRES(), lg.LSMR(), lg.LSQR()], ids=lambda m: type(m).__name__)
def test_a_start_of_which_nothing_can_be_known_is_given_up_for_zero(backend, method):
    A, b = operator(backend, 1e308 * np.eye(7)), array(backend, np.ones(7))
    solution = lg.solve(A, b, method, x0=array(backend, np.full(7, 1e5)))
    assert solution.status is Status.NONFINITE
    assert not backend.to_numpy(solution.x).any()
    assert float(solution.residual) == pytest.approx(7**0.5)


@pytest.mark.parametrize("limits", [{}, {"steps": 60}], ids=str)
def test_conjugate_gradients_stop_where_no_definite_operator_could_have_led(numpy_backend, limits):
    """A singular operator, and a part of b that no x reaches: the residual grows without end."""
    W, b = np.random.default_rng(0).standard_normal((50, 20)), np.random.default_rng(1).standard_normal(50)
    for A in (lg.LowRank(W), lg.Diagonal(np.r_[0.0, np.arange(1.0, 50)], psd=True)):
        solution = lg.solve(A, b, lg.CG(**limits))
        assert solution.status is Status.NEGATIVE_CURVATURE
        assert float(solution.residual) < 1e17 * np.linalg.norm(b)
        assert lg.solve(A, b, lg.MINRES()).status is Status.INCONSISTENT


def test_a_krylov_space_of_nothing_answers_nothing(numpy_backend):
    A = lg.Diagonal(np.ones(2), psd=True)
    for keep in (True, False):
        step = lg.krylov(A, np.zeros(2), k=2, reorthogonalise="none", keep=keep).solve([0.0, 1.0])
        assert step.succeeded
        assert not step.x.any()


def test_a_start_that_is_given_up_leaves_a_model_that_is_known(numpy_backend):
    A = lg.Dense(np.zeros((1, 1)), symmetric=True)
    solution = lg.solve(A, np.array([-0.26]), lg.CG(rtol=1e-3), x0=np.array([np.finfo(float).max / 4]))
    assert (float(solution.x[0]), float(solution.model)) == (0.0, 0.0)


def test_rounding_does_not_make_a_known_semi_definite_operator_indefinite(numpy_backend):
    v = np.concatenate([np.logspace(-4, -1, 390), np.logspace(0, 4, 10)])
    b = (np.sqrt(v) * np.random.default_rng(3).standard_normal(400)).astype("float32")
    A = lg.Damped(lg.Diagonal(v.astype("float32"), psd=True), 1e-4)
    for radius in (np.inf, 1e9):
        step = lg.solve(A, b, lg.GLTR(radius=radius, max_steps=400))
        residual = np.linalg.norm(b - (v + 1e-4) * step.x)
        assert step.status in (Status.STAGNATED, Status.CONVERGED)
        assert float(step.residual) == pytest.approx(residual, rel=1e-2)
        assert residual < 1e-2 * np.linalg.norm(b)


@pytest.mark.parametrize("tiny", [1e-14, 1e-12, 1e-9])
def test_a_boundary_is_not_passed_by_what_newtons_method_has_left(numpy_backend, tiny):
    A = lg.Dense(np.diag([1.0, tiny]), symmetric=True)
    step = lg.solve(A, np.array([1.0, tiny]), lg.GLTR(radius=1.0, steps=2, explore=False))
    assert np.linalg.norm(step.x) <= 1.0 + 1e-15


@pytest.mark.parametrize(
    ("values", "b", "dtype"),
    [((1e13, 1.0), (3e-7, 1.0), "float32"), ((1e26, 1.0), (1e-13, 1.0), "float64")],
)
def test_a_residual_that_grows_is_no_sign_of_a_singular_operator_yet(numpy_backend, values, b, dtype):
    A = lg.Diagonal(np.array(values, dtype), psd=True)
    for start in (None, np.array([0.0, 0.5], dtype)):
        assert lg.solve(A, np.array(b, dtype), lg.CG(rtol=1e-3), x0=start).status is Status.CONVERGED


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", [lg.CG(rtol=0.0), lg.Steihaug(radius=1e6, rtol=0.0)], ids=lambda m: type(m).__name__)
def test_squares_that_underflow_are_no_negative_curvature(backend, method, dtype):
    """Without a tolerance the residual of the recurrence goes on falling until p.Ap is zero."""
    if backend.name == "jax" and dtype == "float32":
        pytest.skip("a program for each")
    for d in (1e-3 * (1 + 1e-3 * np.arange(4)), np.full(4, 1e-3), np.array([1e-3, 2e-3, 3e-3, 4e-3])):
        b = np.linspace(1.0, 0.3, 4)
        solution = lg.solve(lg.Diagonal(array(backend, d, dtype), psd=True), array(backend, b, dtype), method)
        assert solution.status in (Status.CONVERGED, Status.STAGNATED)
        np.testing.assert_allclose(backend.to_numpy(solution.x), b / d, rtol=1e-4 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("size", [1e6, 1e20])
@pytest.mark.parametrize("method", [lg.LSQR(steps=20), lg.LSMR(steps=20), lg.LSQR(atol=0.0, btol=0.0, conlim=1.5)])
def test_least_squares_look_at_x_before_they_end_early(numpy_backend, method, size):
    A, b = np.diag([1.0, 2.0, 5.0]), np.ones(3)
    solution = lg.solve(lg.Dense(A), b, method, x0=size * np.array([0.3, -0.7, 0.5]))
    true = np.linalg.norm(b - A @ solution.x)
    assert float(solution.residual) == pytest.approx(true, rel=1e-6)
    if method.steps is not None:
        assert true < 1e-14


@pytest.mark.parametrize(
    "method", [lg.Steihaug(radius=2.3e-22), lg.GLTR(radius=2.3e-22)], ids=lambda m: type(m).__name__
)
def test_a_step_whose_squares_underflow_is_not_shortened(numpy_backend, method):
    step = lg.solve(lg.Diagonal(np.ones(1, "float32"), psd=True), np.ones(1, "float32"), method)
    assert float(step.x[0]) == pytest.approx(2.3e-22, rel=1e-6)


@pytest.mark.parametrize("seed", [48, 281, 348, 358])
def test_what_reorthogonalisation_removed_is_part_of_the_residual_told(numpy_backend, seed):
    """Of a space that is exhausted T leaves no residual; x has that by which A Q = Q T fails."""
    rng = np.random.default_rng(seed)
    for spread in (3.0, 6.0):
        Q, _ = np.linalg.qr(rng.standard_normal((2, 2)))
        matrix = (Q * np.array([1.0, 10.0**-spread])) @ Q.T
        matrix, b = (matrix + matrix.T) / 2, rng.standard_normal(2)
        found = lg.solve(lg.Dense(matrix, symmetric=True, psd=True), b, lg.Lanczos(steps=5))
        true = np.linalg.norm(b - matrix @ found.x)
        near = 32 * np.finfo(float).eps * (np.linalg.norm(found.x) + np.linalg.norm(b))
        assert float(found.residual) >= 0.999 * true - near


UNDERFLOWING = {
    "CG": lg.CG(),
    "MINRES": lg.MINRES(),
    "Steihaug": lg.Steihaug(radius=np.inf),
    "GLTR": lg.GLTR(radius=1e30),
    "Lanczos": lg.Lanczos(2),
    "LSMR": lg.LSMR(),
    "LSQR": lg.LSQR(),
    "Cholesky": lg.Cholesky(),
    "LU": lg.LU(),
    "Eigh": lg.Eigh(rcond=1e-30),
    "CG, preconditioned": lg.CG(preconditioner=lg.preconditioners.Jacobi()),
}


@pytest.mark.parametrize("name", UNDERFLOWING)
@pytest.mark.parametrize(
    ("diagonal", "b"),
    [((1e18, 2e18), 1e-29), ((1e18, 2e18), 1.3e-26), ((1.0, 1e20), 1e-30)],
    ids=["all", "digits", "part"],
)
def test_the_residual_of_what_underflows_is_that_of_the_x_returned(backend, name, diagonal, b):
    """Entries of x below the smallest number are lost beside those that are not, and no success is claimed for them."""
    spare(backend, (name == "CG" and b == 1e-29) or (name == "LU" and b == 1e-30))
    matrix, rhs = np.diag(diagonal), np.array([1.0, 0.7]) * b
    A = lg.Dense(array(backend, matrix, "float32"), symmetric=True)
    solution = lg.solve(A, array(backend, rhs, "float32"), UNDERFLOWING[name])
    true = np.linalg.norm(rhs - matrix @ host(backend, solution.x).astype(float))
    assert float(solution.residual) == pytest.approx(true, rel=1e-4)
    assert not (solution.status.succeeded and true > 1e-3 * np.linalg.norm(rhs))


@pytest.mark.parametrize("name", UNDERFLOWING)
@pytest.mark.parametrize("diagonal", [(1e150, 1.0), (1e-150, 1e150), (1e75, 1e-75)])
def test_spreads_of_hundreds_of_decades_are_no_false_success(numpy_backend, name, diagonal):
    """Scalars are squares of what they measure: a claim is of b - A x, whatever is out of range on the way."""
    for b in ((1.0, 0.7), (1e-150, 0.7e-150), (1e-150, 0.7), (1e150, 0.7), (0.7, 1e150), (1.0, 1e-150)):
        b = np.array(b)
        solution = lg.solve(lg.Dense(np.diag(diagonal), psd=True), b, UNDERFLOWING[name])
        assert np.isfinite(solution.x).all()
        true = b - diagonal * solution.x.astype(np.longdouble)
        size, left = np.abs(b).max(), np.abs(true).max()
        largest = np.longdouble(np.abs(solution.x).max())  # the product of the two may be out of range
        rounding = 1e-14 * (max(diagonal) * largest + size)
        if name not in ("GLTR", "Eigh"):  # up to the radius, and without what rcond leaves out
            norm = float(np.hypot(*(true / (left or 1.0))) * left)
            assert float(solution.residual) == pytest.approx(norm, rel=1e-4, abs=float(min(rounding, 1e300)))
        if solution.status is Status.CONVERGED:
            assert left <= 1.01e-5 * size + rounding


@given(
    seed=seeds(),
    exponent=st.floats(0, 8),
    steps=st.integers(1, 40),
    dtype=st.sampled_from(["float64", "float32"]),
    method=st.sampled_from([lg.CG, lg.LSMR, lg.LSQR]),
    preconditioned=st.booleans(),
)
def test_an_ordinary_tick_and_end_are_those_that_judge(
    numpy_backend, seed, exponent, steps, dtype, method, preconditioned
):
    """Bit for bit: whether the residual at the end may have drifted, so that it is recomputed, or not."""
    rng = np.random.default_rng(seed)
    values, b = np.logspace(-exponent, 0, 60).astype(dtype), rng.standard_normal(60).astype(dtype)
    inner = lg.Diagonal(values**-0.5, psd=True) if preconditioned and method is lg.CG else None
    options = {"preconditioner": inner} if inner is not None else {}
    found = []
    for judging in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if judging:
                patch.setattr(method, "step", method._tick)
            found.append(lg.solve(lg.Diagonal(values, psd=True), b, method(steps=steps, **options)))
    quick, slow = found
    assert (quick.status, quick.steps, quick.products) == (slow.status, slow.steps, slow.products)
    assert (quick.residual, quick.model) == (slow.residual, slow.model)
    np.testing.assert_array_equal(quick.x, slow.x)
