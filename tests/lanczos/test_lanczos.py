"""The Lanczos process: its recurrence, its orthogonality, and how it ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from regions import SPECTRA
from systems import EPS, N, benign, counted, finished, gaussian, host, operator, rounded, spare, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.lanczos.process import WAYS, BasisProblem
from linop_gn.testing.strategies import array, dtypes, scales, seeds

IN_CI_ON_JAX = ("test_the_recurrence_holds", "test_a_restart_finds_the_rest", "test_products_are_counted")


def run(backend, matrix, b, method, dtype="float64"):
    """The final state of a run for its basis."""
    problem = BasisProblem(operator(backend, matrix, dtype), array(backend, b, dtype))
    return backend.run(method, problem, method.limit(problem)).state


def basis_of(backend, state, count):
    """The first vectors, as columns, and T with the coupling to the next one below it, in units of b and A."""
    Q = host(backend, state.basis)[:count].T
    alphas, betas = (
        np.asarray(part, dtype=float)[:count] * float(state.ascale) for part in (state.alphas, state.betas)
    )
    T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    return Q, T, betas[-1]


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("way", WAYS)
@given(data=st.data(), seed=seeds(), of_matrix=scales())
def test_the_recurrence_holds(backend, kind, way, data, seed, of_matrix):
    dtype = "float64" if backend.name == "jax" else data.draw(dtypes(backend))
    matrix = rounded(of_matrix * with_spectrum(SPECTRA[kind](np.random.default_rng(seed), N), seed), dtype)
    b = rounded(gaussian(seed), dtype)
    state = run(backend, matrix, b, lg.Lanczos(steps=5, reorthogonalise=way), dtype)
    count = int(state.steps)
    assert Status(int(state.status)) in (Status.COMPLETED, Status.INVARIANT)
    assert count == int(state.products)
    Q, T, beta = basis_of(backend, state, count)
    following = host(backend, state.basis)[count]
    defect = matrix @ Q - Q @ T - beta * np.outer(following, np.eye(count)[-1])
    eps, size = EPS[dtype], np.linalg.norm(matrix, 2)
    # What is orthogonalised away is missing in the recurrence: up to eps^(3/4) of w where that is done selectively.
    assert np.abs(defect).max() <= (100 * eps + (eps**0.75 if way == "selective" else 0)) * size
    np.testing.assert_allclose(np.linalg.norm(Q, axis=0), 1, atol=10 * eps)
    np.testing.assert_allclose(Q[:, 0] * np.linalg.norm(b), b, atol=10 * eps * np.linalg.norm(b))
    if way != "none":
        level = 100 * eps if way == "full" else 10 * eps**0.75
        assert np.abs(Q.T @ Q - np.eye(count)).max() <= level


def outliers(n, dtype):
    """Ten large eigenvalues above a bulk: they converge soon, and take orthogonality with them."""
    return np.concatenate([np.logspace(-4, -2, n - 10), np.logspace(0, 2, 10)]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_orthogonality_is_kept_where_it_would_be_lost(backend, dtype):
    spare(backend, dtype == "float32")
    n, k, eps = 300, 40, EPS[dtype]
    A = lg.Diagonal(array(backend, outliers(n, dtype), dtype))
    losses, many = {}, {}
    for way in WAYS:
        method = lg.Lanczos(steps=k, reorthogonalise=way)
        state = backend.run(method, lg.LinearProblem(A, array(backend, gaussian(1, n), dtype)), k).state
        Q = host(backend, state.basis)[:k]
        losses[way], many[way] = np.abs(Q @ Q.T - np.eye(k)).max(), int(state.reorthogonalised)
    assert losses["none"] > 0.5
    assert losses["selective"] <= 2 * eps**0.75  # what was estimated, and what has been lost
    assert losses["full"] <= 20 * eps
    assert many["none"] == 0 < many["selective"] < many["full"] == k


def test_nothing_is_orthogonalised_where_nothing_is_lost(numpy_backend):
    A = lg.Diagonal(np.linspace(0.5, 1.0, 1000))
    state = numpy_backend.run(lg.Lanczos(steps=12), lg.LinearProblem(A, gaussian(0, 1000)), 12).state
    assert state.reorthogonalised == 0
    assert np.abs(state.basis @ state.basis.T - np.eye(13)).max() < 1e-12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("distinct", range(1, N + 1))
def test_an_invariant_space_ends_the_run_at_every_step(backend, way, distinct):
    values = np.linspace(1.0, 2.0, distinct)[np.arange(N) % distinct]
    state = run(backend, np.diag(values), np.ones(N), lg.Lanczos(steps=N, reorthogonalise=way))
    assert int(state.steps) == distinct
    if way != "none" or distinct < N:
        assert Status(int(state.status)) is Status.INVARIANT
    _, T, _ = basis_of(backend, state, distinct)
    np.testing.assert_allclose(np.linalg.eigvalsh(T), np.unique(values), atol=1e-13)


@pytest.mark.parametrize("distinct", range(1, N))
def test_a_restart_finds_the_rest(backend, distinct):
    values = np.linspace(1.0, 2.0, N)
    b = np.where(np.arange(N) < distinct, 1.0, 0.0)
    state = run(backend, np.diag(values), b, lg.Lanczos(steps=N, reorthogonalise="full", restart=True))
    assert (int(state.steps), int(state.first), int(state.restarts)) == (N, distinct, 1)
    assert Status(int(state.status)) is Status.INVARIANT
    Q, T, _ = basis_of(backend, state, N)
    np.testing.assert_allclose(np.linalg.eigvalsh(T), values, atol=1e-13)
    np.testing.assert_allclose(Q.T @ Q, np.eye(N), atol=1e-13)
    assert T[distinct, distinct - 1] == 0.0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_product_that_is_not_finite_ends_the_run(numpy_backend, way, at, bad):
    matrix, calls = benign(0), []

    def product(v):
        calls.append(v)
        return matrix @ v + (bad if len(calls) == at else 0.0)

    A = lg.FunctionOperator(product, lg.Space.flat(N, gaussian(0)), symmetric=True)
    K = lg.krylov(A, gaussian(0), N, reorthogonalise=way)
    assert (K.status, K.steps, K.products) == (Status.NONFINITE, at - 1, at)
    for answer in (K.solve([0.0, 1.0]), K.trust_region([0.1, np.inf])):
        assert answer.status == [Status.NONFINITE] * 2
        assert np.isfinite(answer.x).all()
    if at > 1:
        assert K.solve().used == at - 1


@pytest.mark.parametrize("way", WAYS)
def test_an_operator_that_is_not_symmetric_is_found_out(backend, way):
    spare(backend, way == "none")
    A, _ = counted(backend, benign(0) + np.triu(gaussian(1, N, N), 1))  # declares what it cannot check
    K = lg.krylov(A, array(backend, gaussian(0)), N, reorthogonalise=way)
    assert K.status is Status.NOT_SYMMETRIC
    assert int(K.products) == 2
    assert K.solve().status is Status.NOT_SYMMETRIC
    assert "lg.validate" in repr(K)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rounding_is_not_taken_for_asymmetry(numpy_backend, dtype):
    rng = np.random.default_rng(0)
    for seed in range(20):
        matrix = with_spectrum(10.0 ** rng.uniform(-6, 6, 50), seed).astype(dtype)
        for way in WAYS:
            K = lg.krylov(lg.Dense(matrix, symmetric=True), gaussian(seed, 50).astype(dtype), 30, reorthogonalise=way)
            assert K.status in (Status.COMPLETED, Status.INVARIANT)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_right_hand_side_that_is_not_finite(backend, bad):
    b = gaussian(0)
    b[2] = bad
    K = lg.krylov(operator(backend, benign(0)), array(backend, b), 3)
    assert (K.status, int(K.products)) == (Status.NONFINITE_INPUT, 0)
    for answer in (K.solve(), K.trust_region(1.0)):
        assert answer.status is Status.NONFINITE_INPUT
        assert not host(backend, answer.x).any()


@given(seed=seeds(), shift=st.integers(-60, 60))
def test_powers_of_two_as_units_of_b_change_nothing_at_all(backend, seed, shift):
    matrix, b = benign(seed), gaussian(seed)
    one, two = (run(backend, matrix, c * b, lg.Lanczos(steps=4), "float32") for c in (1.0, 2.0**shift))
    np.testing.assert_array_equal(host(backend, one.basis), host(backend, two.basis))
    for name in ("alphas", "betas"):
        np.testing.assert_array_equal(np.asarray(getattr(one, name)), np.asarray(getattr(two, name)))
    assert float(one.norm) * float(one.scale) * 2.0**shift == float(two.norm) * float(two.scale)


@pytest.mark.parametrize("unit", [1e-30, 1e-25, 1e-6, 1e6, 1e25, 1e34])
def test_products_of_any_size_in_single_precision(backend, unit):
    matrix, b = benign(3), gaussian(3)
    plain = lg.krylov(operator(backend, matrix, "float32"), array(backend, b, "float32"), 5)
    other = lg.krylov(operator(backend, unit * matrix, "float32"), array(backend, b, "float32"), 5)
    assert plain.status is other.status is Status.COMPLETED
    values, scaled = (np.asarray(K.eigenvalues().values, dtype=float) for K in (plain, other))
    np.testing.assert_allclose(scaled / unit, values, rtol=1e-4)


def test_products_are_counted(backend):
    A, counter = counted(backend, benign(0))
    K = lg.krylov(A, array(backend, gaussian(0)), 4)
    finished(backend)
    assert counter.calls == int(K.products) == int(K.steps) == 4


def stepper(way):
    """One more step, as a function of data."""
    return lambda problem, state: lg.Lanczos(3, reorthogonalise=way).step(problem.operator.backend, problem, state)


STEPS = {way: stepper(way) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_steps_are_total(backend, way):
    spare(backend, way == "selective")
    problem = lg.LinearProblem(operator(backend, benign(0)), array(backend, gaussian(0)))
    carry = backend.run(lg.Lanczos(steps=3, reorthogonalise=way), problem, 3)
    before = host(backend, carry.state.basis), np.array(carry.state.alphas), np.array(carry.state.betas)
    after = backend.call(STEPS[way], problem, carry.state)
    assert (int(after.steps), int(after.products), int(after.status)) == (3, 3, int(Status.COMPLETED))
    np.testing.assert_array_equal(host(backend, after.basis), before[0])
    np.testing.assert_array_equal(np.asarray(after.alphas), before[1])
    np.testing.assert_array_equal(np.asarray(after.betas), before[2])


@given(data=st.data(), seed=seeds())
def test_a_solve_is_conjugate_gradients(backend, data, seed):
    dtype = "float64" if backend.name == "jax" else data.draw(dtypes(backend))
    matrix, b = rounded(benign(seed), dtype), rounded(gaussian(seed), dtype)
    A, B = operator(backend, matrix, dtype), array(backend, b, dtype)
    ours, theirs = lg.solve(A, B, lg.Lanczos(steps=4)), lg.solve(A, B, lg.CG(steps=4))
    atol = 1e3 * EPS[dtype] * np.abs(b).max()
    np.testing.assert_allclose(host(backend, ours.x), host(backend, theirs.x), atol=atol)
    np.testing.assert_allclose(ours.history["residual"], theirs.history["residual"], atol=10 * atol)
    np.testing.assert_allclose(ours.history["model"], theirs.history["model"], atol=10 * atol)


@pytest.mark.parametrize("way", ["none", "selective"])
def test_a_million_unknowns_in_single_precision(numpy_backend, way):
    n = 1_000_000
    values = np.linspace(1.0, 50.0, n).astype("float32")
    b = np.random.default_rng(0).standard_normal(n).astype("float32")
    K = lg.krylov(lg.Diagonal(values), b, 30, reorthogonalise=way)
    answer = K.solve(damping=[0.0, 1.0], rtol=1e-3)
    assert answer.status == [Status.CONVERGED] * 2
    for i, sigma in enumerate((0.0, 1.0)):
        residual = b.astype(float) - (values.astype(float) + sigma) * answer.x[:, i]
        assert np.linalg.norm(residual) == pytest.approx(answer.residual[i], rel=1e-2)
    Q = K.state.basis[[0, 10, 29]].astype(float)
    np.testing.assert_allclose(Q @ Q.T, np.eye(3), atol=1e-5)


def test_what_is_being_recorded_stays_out(torch):
    matrix = torch.tensor(benign(0), requires_grad=True)
    b = torch.tensor(gaussian(0), requires_grad=True)
    for way in WAYS:
        K = lg.krylov(lg.Dense(matrix, symmetric=True), b, N, reorthogonalise=way)
        x = K.solve().x
        assert not x.requires_grad
        assert not K.state.basis.requires_grad
        np.testing.assert_allclose(x.numpy(), np.linalg.solve(benign(0), gaussian(0)), atol=1e-10)


def test_arguments_are_left_alone(backend):
    spare(backend, False)
    matrix, b = benign(0), gaussian(1)
    A, B = operator(backend, matrix), array(backend, b)
    lg.krylov(A, B, 5).extend(1).solve([0.0, 1.0])
    np.testing.assert_array_equal(host(backend, A.matrix), matrix)
    np.testing.assert_array_equal(host(backend, B), b)


def test_options_that_make_no_sense(numpy_backend):
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
        lg.Lanczos(steps=0)
    with pytest.raises(ValueError, match="one of"):
        lg.Lanczos(steps=3, reorthogonalise="partial")
    with pytest.raises(ValueError, match="keep=False keeps no vectors"):
        lg.Lanczos(steps=3, keep=False)
    A = lg.Dense(benign(0), symmetric=True)
    with pytest.raises(ValueError, match="one column at a time"):
        lg.krylov(A, gaussian(0, N, 2), 3)
    with pytest.raises(ValueError, match="give no x0"):
        lg.solve(A, gaussian(0), lg.Lanczos(steps=3), x0=gaussian(1))
    with pytest.raises(ValueError, match="symmetric"):
        lg.krylov(lg.Dense(gaussian(0, N, N)), gaussian(0), 3)
    with pytest.raises(TypeError, match=r"lg\.Dense"):
        lg.krylov(benign(0), gaussian(0), 3)
    with pytest.raises(ValueError, match="krylov"):
        lg.solve(A, gaussian(0), lg.Lanczos(steps=3, reorthogonalise="none", keep=False))
