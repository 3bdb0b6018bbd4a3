"""CG against dense float64 algebra, on every backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import EPS, N, benign, gaussian, host, operator, rounded, tolerable, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.oracles import conjugate_gradient_errors
from linop_gn.testing.strategies import array, dtypes, scales, seeds, sizes

IN_CI_ON_JAX = (
    "test_converged_is_a_fact",
    "test_solutions_are_those_of_dense_algebra",
    "test_powers_of_two_as_units_change_nothing_at_all",
    "test_trees_go_in_and_come_out",
)

SPECTRA = {
    "well conditioned": lambda rng, n: rng.uniform(0.5, 2.0, n),
    "clustered": lambda rng, n: np.array([0.01, 1.0, 100.0])[np.arange(n) % 3] * (1 + 1e-6 * rng.uniform(size=n)),
    "wide": lambda rng, n: 10.0 ** rng.uniform(0, 8, n),
    "singular": lambda rng, n: rng.uniform(0.5, 2.0, n) * (np.arange(n) % 3 > 0),
}


@pytest.mark.parametrize("kind", SPECTRA)
@given(data=st.data(), seed=seeds(), exponent=st.floats(-11, -1))
def test_converged_is_a_fact(backend, kind, data, seed, exponent):
    n, dtype = data.draw(sizes(backend)), data.draw(dtypes(backend))
    rng = np.random.default_rng(seed)
    matrix = rounded(with_spectrum(SPECTRA[kind](rng, n), seed), dtype)
    b = rounded(matrix @ rng.standard_normal(n), dtype)  # in the range of A where that is singular
    rtol = 10.0**exponent
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.CG(rtol=rtol))
    x = host(backend, solution.x)
    residual = np.linalg.norm(b - matrix @ x)
    slack = tolerable(matrix, x, b, dtype)
    assert np.isfinite(x).all()
    assert float(solution.residual) == pytest.approx(residual, rel=1e-2, abs=slack)
    if solution.status is Status.CONVERGED:
        assert residual <= rtol * np.linalg.norm(b) + slack
        assert int(solution.products) > int(solution.steps) > 0 or not b.any()
    else:
        assert rtol < 1e-4, "within reach of either precision, on any of these"
        assert kind == "wide" or dtype == "float32"
        assert residual > rtol * np.linalg.norm(b) - slack
    if solution.status is Status.STAGNATED:
        assert residual <= 100 * slack, "as accurate as the precision allows"
    elif kind in ("well conditioned", "clustered"):
        assert solution.status is Status.CONVERGED


@given(data=st.data(), seed=seeds())
def test_solutions_are_those_of_dense_algebra(backend, data, seed):
    n, dtype = data.draw(sizes(backend)), data.draw(dtypes(backend))
    matrix, b = rounded(benign(seed, n), dtype), rounded(gaussian(seed, n), dtype)
    solution = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), lg.CG(rtol=20 * EPS[dtype]))
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(matrix, b), rtol=0, atol=1e3 * EPS[dtype])
    assert backend.describe(solution.x) == backend.describe(array(backend, b, dtype))


@given(seed=seeds())
def test_every_iterate_minimises_the_energy_over_its_krylov_space(backend, seed):
    matrix, b = benign(seed), gaussian(seed)
    exact, root = np.linalg.solve(matrix, b), np.linalg.cholesky(matrix).T
    expected = conjugate_gradient_errors(matrix, b, N - 1)
    run = lg.steps(operator(backend, matrix), array(backend, b), lg.CG(steps=N - 1))
    errors = [np.linalg.norm(root @ (scaled(backend, look) - exact)) for look in run]
    np.testing.assert_allclose(errors, expected, rtol=1e-6, atol=1e-12)


def scaled(backend, look):
    """The iterate that belongs to a look."""
    return host(backend, look.state.x) * float(look.state.scale)


@given(data=st.data(), seed=seeds(), warm=st.booleans())
def test_every_row_tells_the_residual_and_the_model_of_its_iterate(backend, data, seed, warm):
    dtype = data.draw(dtypes(backend))
    matrix, b, x0 = (rounded(y, dtype) for y in (benign(seed), gaussian(seed), gaussian(seed + 1)))
    start = array(backend, x0, dtype) if warm else None
    run = lg.steps(operator(backend, matrix, dtype), array(backend, b, dtype), lg.CG(rtol=1e-4), x0=start)
    next(run)  # of a warm start nothing is known before its first product
    looks = 0
    for look in run:
        x = scaled(backend, look)
        slack = tolerable(matrix, x, b, dtype)
        assert look.rows["residual"][-1] == pytest.approx(np.linalg.norm(b - matrix @ x), rel=1e-3, abs=slack)
        model = 0.5 * x @ matrix @ x - b @ x
        assert look.rows["model"][-1] == pytest.approx(model, rel=1e-5, abs=slack * (1 + np.linalg.norm(x)))
        looks += 1
    assert looks >= 2


@pytest.mark.parametrize("distinct", [1, 2, 3])
@given(seed=seeds())
def test_as_many_steps_as_there_are_distinct_eigenvalues(backend, distinct, seed):
    values = np.array([1.0, 3.0, 10.0])[np.arange(N) % distinct]
    b = gaussian(seed)
    solution = lg.solve(operator(backend, with_spectrum(values, seed)), array(backend, b), lg.CG(rtol=1e-9))
    assert solution.status is Status.CONVERGED
    assert int(solution.steps) <= distinct


@given(data=st.data(), seed=seeds(), of_matrix=scales(), of_rhs=scales())
def test_units_change_no_count_of_steps_by_more_than_one(backend, data, seed, of_matrix, of_rhs):
    # Benign matrices: where rounding errors have grown to the size of the residual, which happens after many steps
    # on ill-conditioned ones, any change at all (a factor of 1.1) moves the count by more.
    dtype = data.draw(dtypes(backend))
    matrix, b, method = benign(seed), gaussian(seed), lg.CG(rtol=1e-5)
    plain = lg.solve(operator(backend, matrix, dtype), array(backend, b, dtype), method)
    other = lg.solve(operator(backend, of_matrix * matrix, dtype), array(backend, of_rhs * b, dtype), method)
    assert plain.status is other.status is Status.CONVERGED
    assert abs(int(plain.steps) - int(other.steps)) <= 1
    unscaled = host(backend, other.x) * (of_matrix / of_rhs)
    np.testing.assert_allclose(unscaled, host(backend, plain.x), rtol=0, atol=1e-3)


@given(seed=seeds(), shift=st.integers(-60, 60))
def test_powers_of_two_as_units_change_nothing_at_all(backend, seed, shift):
    matrix, b = benign(seed), gaussian(seed)
    A, unit = operator(backend, matrix, "float32"), 2.0**shift
    plain, other = (lg.solve(A, array(backend, y, "float32"), lg.CG(rtol=1e-4)) for y in (b, unit * b))
    assert int(plain.steps) == int(other.steps)
    np.testing.assert_array_equal(host(backend, other.x), unit * host(backend, plain.x))


@given(seed=seeds())
def test_trees_go_in_and_come_out(backend, seed):
    matrix, b = benign(seed), gaussian(seed)

    def tree(v):
        v = array(backend, v)
        return {"bias": v[:1], "layers": [backend.namespace().reshape(v[1:], (2, 3))]}

    space = lg.Space.of(tree(b))
    A = lg.Dense(array(backend, matrix), symmetric=True, domain=space)
    in_trees = lg.solve(A, tree(b), lg.CG(rtol=1e-8), x0=tree(gaussian(seed + 1)))
    flat = lg.solve(A, array(backend, b), lg.CG(rtol=1e-8), x0=array(backend, gaussian(seed + 1)))
    assert set(in_trees.x) == {"bias", "layers"}
    assert tuple(in_trees.x["layers"][0].shape) == (2, 3)
    np.testing.assert_array_equal(host(backend, space.pack(in_trees.x)), host(backend, flat.x))
    np.testing.assert_allclose(host(backend, flat.x), np.linalg.solve(matrix, b), atol=1e-6)


def test_one_unknown_takes_one_step(backend):
    for dtype in ("float64", "float32"):
        A = lg.Diagonal(array(backend, [3.0], dtype))
        solution = lg.solve(A, array(backend, [2.0], dtype))
        assert (solution.status, int(solution.steps), int(solution.products)) == (Status.CONVERGED, 1, 2)
        assert host(backend, solution.x) == pytest.approx([2 / 3], rel=EPS[dtype])


def test_arguments_are_left_alone(backend):
    matrix, b, x0 = benign(0), gaussian(1), gaussian(2)
    A, B, X0 = operator(backend, matrix), array(backend, b), array(backend, x0)
    M = lg.Diagonal(array(backend, 1 / np.diag(matrix)))
    for method in (lg.CG(rtol=1e-8), lg.CG(rtol=1e-8, preconditioner=M)):
        for start in (None, X0):
            lg.solve(A, B, method, x0=start)
    for given_array, values in ((A.matrix, matrix), (B, b), (X0, x0), (M.values, 1 / np.diag(matrix))):
        np.testing.assert_array_equal(host(backend, given_array), values)


def test_half_precision_converges_or_says_why_not():
    pytest.importorskip("torch")
    torch = lg.load("torch").namespace()
    A = lg.Diagonal(torch.linspace(0.5, 2.0, 300).to(torch.bfloat16))
    b = 1e-3 * torch.ones(300, dtype=torch.bfloat16)
    solution = lg.solve(A, b, lg.CG(rtol=2e-2))
    assert solution.status is Status.CONVERGED
    assert solution.x.dtype is torch.bfloat16
    residual = torch.linalg.norm(A.values.double() * solution.x.double() - b.double())
    assert residual <= 3e-2 * torch.linalg.norm(b.double())
    assert lg.solve(A, b, lg.CG(rtol=1e-9)).status is Status.STAGNATED
