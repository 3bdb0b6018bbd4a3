"""What a Krylov space answers, against dense float64 algebra, and that it takes no product."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from regions import SPECTRA, model, smallest_model
from systems import (
    EPS,
    N,
    benign,
    counted,
    finished,
    gaussian,
    host,
    operator,
    rounded,
    spare,
    tolerable,
    with_spectrum,
)

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, dtypes, scales, seeds, sizes

IN_CI_ON_JAX = (
    "test_residuals_and_models_are_those_of_the_solutions",
    "test_trust_region_steps_are_those_of_dense_algebra",
    "test_another_damping_or_radius_takes_no_product",
    "test_trees_go_in_and_come_out",
    "test_a_zero_right_hand_side",
)

DAMPINGS = [0.0, 1e-3, 1.0, 1e3]


def precisions(backend):
    """Both, where nothing has to be compiled for each."""
    return st.just("float64") if "compiled" in backend.capabilities else dtypes(backend)


def spectrum_of(kind, n, seed):
    return np.asarray(SPECTRA[kind](np.random.default_rng(seed), n))


@pytest.mark.parametrize("kind", ["well conditioned", "clustered", "spread", "singular"])
@given(data=st.data(), seed=seeds(), of_matrix=scales(), of_rhs=scales())
def test_residuals_and_models_are_those_of_the_solutions(backend, kind, data, seed, of_matrix, of_rhs):
    dtype = data.draw(precisions(backend))
    matrix = rounded(of_matrix * with_spectrum(spectrum_of(kind, N, seed), seed), dtype)
    b = rounded(of_rhs * (with_spectrum(spectrum_of(kind, N, seed) != 0, seed) @ gaussian(seed)), dtype)
    dampings = of_matrix * np.array(DAMPINGS)
    K = lg.krylov(operator(backend, matrix, dtype), array(backend, b, dtype), 5)
    answer = K.solve(damping=dampings)
    X = host(backend, answer.x)
    for i, sigma in enumerate(dampings):
        damped, x = matrix + sigma * np.eye(N), X[:, i]
        # Selective reorthogonalisation leaves eps^(3/4) of orthogonality unrestored.
        slack = tolerable(damped, x, b, dtype) + EPS[dtype] ** 0.75 * np.linalg.norm(matrix, 2) * np.linalg.norm(x)
        residual = np.linalg.norm(b - damped @ x)
        assert float(answer.residual[i]) == pytest.approx(residual, rel=1e-2, abs=slack)
        value = model(damped, b, x)
        assert float(answer.model[i]) == pytest.approx(value, rel=1e-4, abs=slack * np.linalg.norm(x))
        assert float(answer.norm[i]) == pytest.approx(np.linalg.norm(x), rel=1e-4)
        if answer.status[i] is Status.CONVERGED:
            assert residual <= 1e-5 * np.linalg.norm(b) + slack
        assert value <= slack * np.linalg.norm(x)
    np.testing.assert_allclose(np.asarray(K.residual(dampings)), np.asarray(answer.residual), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(K.model(dampings)), np.asarray(answer.model), rtol=1e-6)


@given(data=st.data(), seed=seeds())
def test_whole_spaces_give_the_solutions_of_dense_algebra(backend, data, seed):
    compiled = "compiled" in backend.capabilities
    n, dtype = N if compiled else data.draw(sizes(backend, largest=9)), data.draw(precisions(backend))
    matrix, b = rounded(benign(seed, n), dtype), rounded(gaussian(seed, n), dtype)
    K = lg.krylov(operator(backend, matrix, dtype), array(backend, b, dtype), n)
    assert K.status is Status.INVARIANT
    answer = K.solve(damping=DAMPINGS, rtol=100 * EPS[dtype] ** 0.75)
    assert answer.status == [Status.CONVERGED] * len(DAMPINGS)
    for i, sigma in enumerate(DAMPINGS):
        expected = np.linalg.solve(matrix + sigma * np.eye(n), b)
        np.testing.assert_allclose(host(backend, answer.x)[:, i], expected, rtol=0, atol=50 * EPS[dtype] ** 0.75)
    assert backend.describe(answer.x)[1] == dtype


@given(data=st.data(), seed=seeds(), shift=st.floats(0.1, 3.0))
def test_an_indefinite_damped_operator_is_told_and_the_last_sound_iterate_is_kept(backend, data, seed, shift):
    values = spectrum_of("indefinite", N, seed)
    matrix, b = with_spectrum(values, seed), gaussian(seed)
    A, B = operator(backend, matrix), array(backend, b)
    K = lg.krylov(A, B, N, reorthogonalise="full")
    safe = float(max(0.0, -values.min()) + shift)
    answer = K.solve(damping=[0.0, safe])
    theirs = lg.solve(A, B, lg.CG(rtol=0.0, max_steps=N))
    assert answer.status[1] is Status.CONVERGED
    if values.min() < -1e-3:
        assert answer.status[0] is Status.NEGATIVE_CURVATURE
        assert theirs.status is Status.NEGATIVE_CURVATURE
        ours, size = host(backend, answer.x)[:, 0], np.abs(host(backend, theirs.x)).max()
        if int(answer.used[0]) == int(theirs.steps):  # else a pivot was zero to rounding, and x long
            assert np.abs(ours - host(backend, theirs.x)).max() <= 1e-6 * size + 1e-12
        else:
            assert abs(int(answer.used[0]) - int(theirs.steps)) == 1
            assert max(size, np.abs(ours).max()) > 1e6


@pytest.mark.parametrize("kind", SPECTRA)
@given(seed=seeds(), exponent=st.floats(-6, 6))
def test_trust_region_steps_are_those_of_dense_algebra(backend, kind, seed, exponent):
    matrix, b = with_spectrum(spectrum_of(kind, N, seed), seed), gaussian(seed)
    A, B = operator(backend, matrix), array(backend, b)
    K = lg.krylov(A, B, N, reorthogonalise="full")
    if int(K.steps) < N:
        K = K.extend(N - int(K.steps))
    size = np.linalg.norm(b) / np.abs(matrix).max()
    radii = [size * 10.0**exponent, size * 1e-8, size * 1e8]
    answer = K.trust_region(radius=radii)
    for i, radius in enumerate(radii):
        x = host(backend, answer.x)[:, i]
        value, multiplier = smallest_model(matrix, b, radius)
        assert np.linalg.norm(x) <= radius * (1 + 1e-12)
        if kind not in ("singular", "spread") or radius < 1e3 * size:  # where rounding does not decide
            assert model(matrix, b, x) == pytest.approx(value, rel=1e-10)
            assert float(answer.model[i]) == pytest.approx(value, rel=1e-10)
            assert float(answer.damping[i]) == pytest.approx(multiplier, rel=1e-8, abs=1e-8 * np.abs(matrix).max())
        assert answer.status[i] in (Status.BOUNDARY, Status.CONVERGED)


def test_another_damping_or_radius_takes_no_product(backend):
    A, counter = counted(backend, benign(0))
    K = lg.krylov(A, array(backend, gaussian(0)), 5)
    finished(backend)
    assert counter.calls == 5
    for radius in (1.0, 0.5, 0.25):  # refused steps
        assert int(K.trust_region(radius).products) == 0
    K.solve(damping=DAMPINGS), K.residual(0.3), K.model(0.3), K.eigenvalues(), K.eigenvectors([0, -1])
    K.quadratic_form(lambda x: 1 / x, interval=(0.4, 2.1))
    finished(backend)
    assert counter.calls == 5
    more = K.extend(2)
    finished(backend)
    assert counter.calls == int(more.products) == 7
    assert "No product was taken." in repr(K.solve(1.0))


def test_a_second_pass_makes_the_basis_again(backend):
    matrix, b = benign(0), array(backend, gaussian(0))
    A, counter = counted(backend, matrix)
    kept = lg.krylov(A, b, 4, reorthogonalise="none")
    again = lg.krylov(A, b, 4, reorthogonalise="none", keep=False)
    finished(backend)
    counter.calls = 0
    answer = again.solve(damping=DAMPINGS)
    finished(backend)
    assert counter.calls == int(answer.products) == 3
    np.testing.assert_allclose(host(backend, answer.x), host(backend, kept.solve(DAMPINGS).x), atol=1e-13)
    assert "3 products" in repr(answer)
    assert again.state.basis.shape[0] == 2
    if backend.name != "jax":
        longer = again.extend(2).solve(1.0)
        np.testing.assert_allclose(host(backend, longer.x), host(backend, kept.extend(2).solve(1.0).x), atol=1e-12)


@pytest.mark.parametrize("way", ["none", "selective", "full"])
def test_an_extended_space_is_the_longer_one(backend, way):
    spare(backend, way == "selective")
    A, b = operator(backend, benign(1)), array(backend, gaussian(1))
    short, whole = (lg.krylov(A, b, k, reorthogonalise=way) for k in (3, 6))
    before = host(backend, short.solve(DAMPINGS).x)
    longer = short.extend(3)
    np.testing.assert_allclose(host(backend, longer.state.basis), host(backend, whole.state.basis), atol=1e-12)
    np.testing.assert_allclose(np.asarray(longer.state.alphas), np.asarray(whole.state.alphas), atol=1e-12)
    np.testing.assert_array_equal(host(backend, short.solve(DAMPINGS).x), before)
    assert (int(longer.steps), int(longer.products), int(short.steps)) == (6, 6, 3)


@given(data=st.data(), seed=seeds())
def test_ritz_values_have_an_eigenvalue_within_their_bounds(backend, data, seed):
    dtype = data.draw(precisions(backend))
    values = spectrum_of("indefinite", N, seed)
    matrix = rounded(with_spectrum(values, seed), dtype)
    K = lg.krylov(operator(backend, matrix, dtype), array(backend, gaussian(seed), dtype), 4, reorthogonalise="full")
    ritz, slack = K.eigenvalues(), 50 * EPS[dtype]
    exact = np.linalg.eigvalsh(matrix)
    found, bounds = (np.asarray(part, dtype=float) for part in ritz)
    assert (np.diff(found) >= 0).all()
    for value, bound in zip(found, bounds, strict=True):
        assert np.abs(exact - value).min() <= bound + slack
    vectors = host(backend, K.eigenvectors(range(4)))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(4), atol=slack)
    residuals = np.linalg.norm(matrix @ vectors - vectors * found, axis=0)
    np.testing.assert_allclose(residuals, bounds, atol=slack)


FUNCTIONS = {"inverse": lambda x: 1 / x, "root": lambda x: x**-0.5, "exponential": lambda x: 2.0 ** (-x)}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("k", [1, 3, N])
def test_quadratic_forms_lie_between_their_bounds(backend, name, k):
    spare(backend, k == 3)
    function = FUNCTIONS[name]
    for seed in range(5):
        matrix, b = benign(seed), gaussian(seed)
        values, vectors = np.linalg.eigh(matrix)
        exact = (vectors.T @ b) ** 2 @ function(values)
        form = lg.krylov(operator(backend, matrix), array(backend, b), k, reorthogonalise="full").quadratic_form(
            function, interval=(0.45, 2.1)
        )
        assert float(form.lower) <= exact * (1 + 1e-12)
        assert float(form.upper) >= exact * (1 - 1e-12)
        assert float(form.lower) <= float(form.estimate) <= float(form.upper)
        if k == N:
            assert float(form.estimate) == pytest.approx(exact, rel=1e-12)
        elif k == 3:
            assert float(form.upper) - float(form.lower) < 0.1 * exact


def test_trees_go_in_and_come_out(backend):
    matrix, b = benign(0), gaussian(0)

    def tree(v):
        v = array(backend, v)
        return {"bias": v[:1], "layers": [backend.namespace().reshape(v[1:], (2, 3))]}

    A = lg.Dense(array(backend, matrix), symmetric=True, domain=lg.Space.of(tree(b)))
    in_trees, flat = lg.krylov(A, tree(b), 5), lg.krylov(A, array(backend, b), 5)
    one, several = in_trees.solve(1.0), in_trees.solve([1.0, 2.0])
    assert tuple(one.x["layers"][0].shape) == (2, 3)
    assert tuple(several.x["layers"][0].shape) == (2, 3, 2)
    np.testing.assert_array_equal(host(backend, A.domain.pack(one.x)), host(backend, flat.solve(1.0).x))
    assert tuple(flat.solve([1.0, 2.0]).x.shape) == (N, 2)
    assert tuple(in_trees.eigenvectors(0)["bias"].shape) == (1,)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_zero_right_hand_side(backend, dtype):
    spare(backend, dtype == "float64")
    K = lg.krylov(operator(backend, benign(0), dtype), array(backend, np.zeros(N), dtype), 3)
    assert (K.status, int(K.products), int(K.steps)) == (Status.CONVERGED, 0, 0)
    for answer, code in ((K.solve([0.0, 1.0]), "CONVERGED"), (K.trust_region([1.0, np.inf]), "UNEXPLORED")):
        assert [status.name for status in answer.status] == [code] * 2
        assert not host(backend, answer.x).any()
    more = K.extend(2).extend(N)
    assert (more.status, int(more.products), int(more.steps)) == (Status.INVARIANT, N, N)
    near = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(more.eigenvalues().values, np.linalg.eigvalsh(benign(0)), atol=near)
    for answer in (more.solve([0.0, 1.0]), more.trust_region([1.0, np.inf])):
        assert answer.status == [Status.CONVERGED] * 2
        assert not host(backend, answer.x).any()


def test_a_minimum_in_a_region_is_claimed_where_the_curvature_was_explored(backend):
    b, radii = array(backend, np.eye(N)[2]), [0.3, 9.0]
    for low, found in ((0.5, ["BOUNDARY", "CONVERGED"]), (-1.0, ["BOUNDARY", "BOUNDARY"])):
        values = array(backend, [low, *range(1, N)])
        K = lg.krylov(lg.Diagonal(values, psd=False), b, N)
        assert [status.name for status in K.trust_region(radii).status] == ["BOUNDARY", "UNEXPLORED"]
        assert [status.name for status in K.extend(N).trust_region(radii).status] == found
    known = lg.krylov(lg.Diagonal(array(backend, np.arange(1.0, N + 1)), psd=True), b, N)
    assert known.trust_region(9.0).status is Status.CONVERGED


@pytest.mark.parametrize("size", [1e-35, 1e30])
def test_tiny_and_huge_right_hand_sides_in_single_precision(backend, size):
    matrix, b = benign(0), gaussian(0) / 4
    A = operator(backend, matrix, "float32")
    plain, other = (lg.krylov(A, array(backend, c * b, "float32"), 6).solve(0.1) for c in (1.0, size))
    told = {plain.status, Status.STAGNATED} if size < 1 and "compiled" in backend.capabilities else {plain.status}
    assert other.status in told
    lost = 1e-3 + 4 * np.finfo(np.float32).tiny / size  # a compiler may take what is subnormal for zero
    np.testing.assert_allclose(host(backend, other.x) / size, host(backend, plain.x), rtol=1e-3, atol=lost)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "status"), [(1.0, Status.STAGNATED), (-1.0, Status.NONFINITE)])
def test_solutions_out_of_the_dtypes_range_are_told(backend, dtype, size, status):
    """Nothing is claimed of them: x = 0, and its residual."""
    spare(backend, dtype == "float32")
    unit = 10.0 ** (size * (20 if dtype == "float32" else 160))
    K = lg.krylov(operator(backend, unit * benign(0), dtype), array(backend, gaussian(0) / unit, dtype), N)
    for answer in (K.solve([0.0, unit / 2]), K.trust_region([np.inf])):
        assert not answer.succeeded
        assert set(answer.status) == {status}
        assert not host(backend, answer.x).any()
        np.testing.assert_allclose(np.asarray(answer.residual) * unit, np.linalg.norm(gaussian(0)), rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(answer.model), 0.0)
    assert K.solve([0.0, unit / 2], atol=2 * float(answer.residual[0])).succeeded  # a tolerance that zero meets


def test_one_unknown(backend):
    K = lg.krylov(lg.Diagonal(array(backend, [-3.0]), psd=False), array(backend, [2.0]), 5)
    assert (K.status, int(K.steps)) == (Status.INVARIANT, 1)
    assert host(backend, K.trust_region(0.5).x) == pytest.approx([0.5])
    assert host(backend, K.solve(4.0).x) == pytest.approx([2.0])
    assert K.solve(0.0).status is Status.NEGATIVE_CURVATURE


def test_a_space_can_be_copied_and_pickled(numpy_backend):
    K = lg.krylov(lg.Dense(benign(0), symmetric=True), gaussian(0), 4)
    for other in (copy.copy(K), pickle.loads(pickle.dumps(K))):
        np.testing.assert_array_equal(other.solve(1.0).x, K.solve(1.0).x)


def test_questions_that_make_no_sense(numpy_backend):
    K = lg.krylov(lg.Dense(benign(0), symmetric=True), gaussian(0), 4)
    for bad in (np.nan, [1.0, np.inf], [], [[1.0]]):
        with pytest.raises(ValueError, match="damping must be"):
            K.solve(damping=bad)
    for bad in (0.0, -1.0, np.nan, [1.0, 0.0]):
        with pytest.raises(ValueError, match="radius must be"):
            K.trust_region(bad)
    for bad in (4, -5, 0.5):
        with pytest.raises(IndexError, match="4 Ritz vectors"):
            K.eigenvectors(bad)
    with pytest.raises(ValueError, match="whole number"):
        K.extend(0)


@pytest.mark.parametrize("damping", [1e-6, 1e-4])
def test_single_precision_reaches_the_decrease_of_double(numpy_backend, damping):
    """Ten large eigenvalues over a bulk: conjugate gradients spend their later steps on copies of these."""
    values = np.concatenate([np.logspace(-6, -2, 19_990), np.logspace(0, 2, 10)])
    b = np.sqrt(values) * np.random.default_rng(0).standard_normal(len(values))
    exact = float(lg.krylov(lg.Diagonal(values), b, 20, reorthogonalise="full").solve(damping).model)
    A, B = lg.Diagonal(values.astype("float32")), b.astype("float32")

    def share(x):
        x = x.astype(float)
        return (0.5 * x @ ((values + damping) * x) - b @ x) / exact

    assert share(lg.krylov(A, B, 20).solve(damping).x) >= 0.999
    assert share(lg.solve(lg.Damped(A, damping), B, lg.CG(steps=20)).x) < 0.9


@given(seed=seeds(), exponent=st.floats(0, 6), tolerance=st.floats(-7, -1))
def test_converged_counts_rounding_in(numpy_backend, seed, exponent, tolerance):
    """No product is taken to find out: so only what cannot have been lost is claimed."""
    matrix = rounded(with_spectrum(np.logspace(-exponent, 0, 30), seed), "float32")
    b, rtol = rounded(gaussian(seed, 30), "float32"), 10.0**tolerance
    K = lg.krylov(lg.Dense(matrix.astype("float32"), symmetric=True), b.astype("float32"), 30)
    for damping in (0.0, 1e-3):
        step = K.solve(damping, rtol=rtol)
        x = np.asarray(step.x, float)
        assert step.status in (Status.CONVERGED, Status.COMPLETED, Status.STAGNATED, Status.NEGATIVE_CURVATURE)
        if step.status is Status.CONVERGED:
            assert np.linalg.norm(b - matrix @ x - damping * x) <= 1.01 * rtol * np.linalg.norm(b)


def test_an_iterate_that_drowns_in_rounding_is_not_stepped_to(numpy_backend):
    matrix, b = with_spectrum([0.0, *np.linspace(1.0, 3.0, 4)], 1), gaussian(1, 5)
    A = operator(numpy_backend, matrix)
    alone, drawn = lg.solve(A, b, lg.Lanczos(5)), lg.krylov(A, b, 5).solve()
    for x, residual in ((alone.x, alone.residual), (drawn.x, drawn.residual)):
        assert np.linalg.norm(x) < 1e6
        assert float(residual) == pytest.approx(np.linalg.norm(b - matrix @ x), rel=1e-6)


def test_an_interval_holds_the_spectrum():
    K = lg.krylov(lg.Diagonal(np.array([1.0, 1.0, 2.0])), np.ones(3), k=1)
    for interval, says in (((5.0, 3.0), "two finite"), ((np.nan, 3.0), "two finite"), ((1.9, 3.0), "does not hold")):
        with pytest.raises(ValueError, match=says):
            K.quadratic_form(lambda x: 1 / x, interval)
    assert K.quadratic_form(lambda x: 1 / x, (1.0, 2.0)).lower <= 2.5


def test_what_a_krylov_space_is_asked():
    K = lg.krylov(lg.Diagonal(np.array([1.0, 2.0, 4.0]), psd=True), np.ones(3), np.int64(2))
    for ask in (lambda **of: K.solve(0.0, **of), lambda **of: K.trust_region(1.0, **of)):
        for name in ("rtol", "atol"):
            for value in (-1.0, np.nan):
                with pytest.raises(ValueError, match=f"{name} must be a finite number"):
                    ask(**{name: value})
    assert int(K.extend(np.int32(1)).steps) == 3
