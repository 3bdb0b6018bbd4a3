"""Traces against the published formulas on the same probes; what their errors promise; what can go wrong."""

import estimators as published
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import host, in_full, spare, with_spectrum

import linop_gn as lg
from linop_gn.draws import sign_columns, sphere
from linop_gn.testing.strategies import array

SIZE, PRODUCTS = 24, 15
SPECTRA = {
    "flat": np.linspace(3, 1, SIZE),
    "power": np.arange(1.0, SIZE + 1) ** -2,
    "step": np.where(np.arange(SIZE) < 6, 1.0, 1e-3),
}
METHODS = ["hutchinson", "hutch++", "xtrace", "xnystrace"]


def expected(matrix, method, seed, products):
    """(value, standard error) by the published formulas, on the probes of this seed."""
    space, third = lg.Space.flat(len(matrix), np.zeros(1)), products // 3
    if method == "hutchinson":
        values = published.hutchinson(matrix, sign_columns(space, seed, 0, products))
        return values.mean(), published.scatter(values)
    if method == "hutch++":
        S, G = (sign_columns(space, seed, *part) for part in ((0, third), (third, products - 2 * third)))
        values = published.hutch_plus_plus(matrix, S, G)
        Q = np.linalg.qr(matrix @ S)[0]
        G = G - Q @ (Q.T @ G)
        rest = matrix @ G
        rest, inner = rest - Q @ (Q.T @ rest), values.mean() - np.trace(Q.T @ matrix @ Q)
        squares = np.sum(rest**2, axis=0).mean() - inner**2 / len(matrix)
        return values.mean(), max(published.scatter(values), np.sqrt(2 * max(squares, 0) / G.shape[1]))
    probes = sphere(space, seed, 0, products // 2 if method == "xtrace" else products)
    fixed = (published.shift(matrix, probes),) if method == "xnystrace" else ()
    estimator = getattr(published, method)
    return estimator(matrix, probes, *fixed).mean(), published.jackknife(estimator, matrix, probes, *fixed)


def unknown_diagonal(matrix, psd=True):
    """An operator that knows its products only."""
    return lg.FunctionOperator(lambda v: matrix @ v, lg.Space.flat(len(matrix), matrix), psd=psd)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**20), kind=st.sampled_from(sorted(SPECTRA)), scale=st.sampled_from([1e-9, 1.0, 1e9]))
def test_it_is_the_published_formula(backend, method, seed, kind, scale):
    spare(backend, method == "xtrace")
    matrix = scale * with_spectrum(SPECTRA[kind], seed)
    found = lg.trace(lg.Dense(array(backend, matrix), psd=True), method, products=PRODUCTS, seed=seed)
    value, error = expected(matrix, method, seed, PRODUCTS)
    size = np.trace(matrix)
    assert abs(float(found.value) - value) <= 1e-10 * size
    assert abs(float(found.standard_error) - error) <= 1e-8 * size
    assert int(found.products) == (14 if method == "xtrace" else PRODUCTS)
    assert found.succeeded


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("psd", [True, False])
def test_blocks_are_another_order_of_the_same_numbers(method, psd):
    matrix = with_spectrum(0.7 ** np.arange(60), 0) if psd else np.random.default_rng(0).standard_normal((60, 60))
    if not psd and method == "xnystrace":
        return
    A = lg.Dense(matrix, psd=psd)
    record = lg.Recorder()
    whole, blocks = (lg.trace(A, method, products=30, seed=3, watch=watch) for watch in ((), [record]))
    size = np.abs(np.linalg.eigvals(matrix)).sum()
    assert abs(whole.value - blocks.value) <= 1e-12 * size
    assert abs(whole.value - expected(matrix, method, 3, 30)[0]) <= 1e-10 * size
    assert abs(whole.standard_error - blocks.standard_error) <= 1e-12 * size
    assert (int(whole.products), int(blocks.products)) == (30, 30)
    assert whole.steps == 1 < blocks.steps == len(record.steps) - 1
    assert blocks.history["value"][-1] == blocks.value == record.history["value"][-1]


@pytest.mark.parametrize("method", ["auto", "exact", *METHODS])
def test_it_is_exact_where_the_products_cover_the_space(method):
    matrix = with_spectrum(SPECTRA["power"], 1)
    A = unknown_diagonal(matrix)
    found = lg.trace(A, method, products=SIZE, rtol=1e-3)
    assert abs(found.value - np.trace(matrix)) <= 1e-14
    assert (found.standard_error, int(found.products), found.exact, found.succeeded) == (0.0, SIZE, True, True)
    assert "Exact" in repr(found)


def test_what_is_known_costs_nothing():
    found = lg.trace(lg.Diagonal(np.array([1.0, 2.0])))
    assert (found.value, found.standard_error, found.products) == (3.0, 0.0, 0)
    assert "knows its diagonal" in repr(found)


def test_a_known_diagonal_may_overflow():
    A = 1e200 * (1e200 * lg.Diagonal(np.ones(3)))
    with np.errstate(over="ignore"):
        assert lg.trace(A).status is lg.Status.NONFINITE
        assert lg.diagonal(A).status is lg.Status.NONFINITE


def test_the_method_left_open_follows_what_is_known():
    matrix = with_spectrum(SPECTRA["power"], 1)
    titles = [
        lg.trace(unknown_diagonal(matrix, psd), products=m).method for psd, m in ((True, 9), (False, 9), (True, 2))
    ]
    general = lg.FunctionOperator(lambda v: matrix @ v, lg.Space.flat(SIZE, matrix), symmetric=True)
    assert titles == ["XNysTrace", "XTrace", "Hutchinson"]
    assert lg.trace(general, products=9).method == "XTrace"


@pytest.mark.parametrize("method", METHODS)
def test_it_stops_at_the_error_asked_for_and_says_where_it_did_not(method):
    matrix = with_spectrum(np.linspace(3, 1, 120), 0)
    A = lg.Dense(matrix, psd=True)
    early = lg.trace(A, method, products=96, rtol=0.03)
    assert early.status is lg.Status.CONVERGED
    assert early.products < 96
    assert early.samples >= 10
    assert early.standard_error <= 0.03 * early.value
    late = lg.trace(A, method, products=48, rtol=1e-9)
    assert late.status is lg.Status.MAX_STEPS
    assert not late.succeeded
    assert "products=" in late.sentence


def traceless(n=120, size=1.0):
    """A symmetric matrix of trace zero, whose relative error no probes make small."""
    return size * with_spectrum(np.linspace(-1, 1, n), 0)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
def test_of_a_value_near_zero_an_absolute_error_is_met(method, size):
    A = lg.Dense(traceless(size=size), symmetric=True)
    found = lg.trace(A, method, products=96, rtol=1e-2, atol=4.0 * size)
    assert found.status is lg.Status.CONVERGED
    assert found.samples >= 10
    assert found.products < 96
    assert found.standard_error <= 4.0 * size
    assert abs(found.value) < 4 * found.standard_error
    for rtol, atol in ((1e-2, 0.0), (1e-2, 1e-9 * size), (0.0, 1e-9 * size)):
        short = lg.trace(A, method, products=48, rtol=rtol, atol=atol)
        assert short.status is lg.Status.MAX_STEPS
    assert "atol" in short.sentence
    assert lg.trace(A, method, products=48).status is lg.Status.COMPLETED


def test_either_tolerance_is_enough():
    A = lg.Dense(with_spectrum(np.linspace(3, 1, 120), 0), psd=True)
    alone = lg.trace(A, "hutchinson", products=96, rtol=0.03)
    for rtol, atol in ((0.03, 1e-9), (0.0, 0.03 * 240), (1e-9, 0.03 * 240)):
        found = lg.trace(A, "hutchinson", products=96, rtol=rtol, atol=atol)
        assert (found.status, found.products) == (lg.Status.CONVERGED, alone.products)
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match="atol"):
            lg.trace(A, "hutchinson", products=9, atol=bad)


def test_an_absolute_error_under_jit(jax):
    """Tolerances are data there: another one is the same program."""
    M = jax.numpy.asarray(traceless())

    @jax.jit
    def products(atol):
        return lg.trace(lg.Dense(M, symmetric=True), "hutchinson", products=96, atol=atol).products

    assert int(products(4.0)) < int(products(1e-9)) == 96


def test_few_probes_are_no_evidence():
    """One pair off the diagonal: z.A z takes two values, and a few probes may well see one of them only."""
    matrix = np.eye(30)
    matrix[0, 1] = matrix[1, 0] = 1.0
    for seed in range(20):
        found = lg.trace(lg.Dense(matrix, psd=True), "hutchinson", products=9, rtol=0.5, seed=seed)
        assert found.status is lg.Status.MAX_STEPS


def test_watchers_stop_it():
    A = unknown_diagonal(with_spectrum(np.linspace(3, 1, 200), 0))
    found = lg.trace(A, products=160, watch=[lg.Budget(products=20), lg.ProgressBar(disable=True)])
    assert found.status is lg.Status.STOPPED
    assert found.products == 24
    assert found.standard_error < 0.1 * found.value

    def fail(look):
        if look.step == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        lg.trace(A, products=160, watch=[fail])
    assert caught.value.result.samples == 16


def test_what_is_not_an_operator_for_it_is_refused():
    wide, indefinite = lg.Dense(np.ones((2, 3))), lg.Dense(np.diag([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match=r"square operator.*frobenius_norm"):
        lg.trace(wide)
    with pytest.raises(TypeError, match=r"wrap a matrix in lg\.Dense"):
        lg.trace(np.eye(3))
    with pytest.raises(ValueError, match=r"'xnystrace' needs a positive semi-definite.*method='xtrace'"):
        lg.trace(indefinite, "xnystrace", products=2)
    with pytest.raises(ValueError, match="method must be one of"):
        lg.trace(indefinite, "lanczos")
    with pytest.raises(ValueError, match="products must be a whole number >= 1"):
        lg.trace(indefinite, products=0)
    with pytest.raises(ValueError, match=r"'hutch\+\+' takes 3 products at least, got 2"):
        lg.trace(indefinite, "hutch++", products=2)


@pytest.mark.parametrize("products", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_few_and_odd_products(method, products):
    A = unknown_diagonal(with_spectrum(SPECTRA["power"], 1))
    if products < {"xtrace": 2, "hutch++": 3}.get(method, 1):
        return
    found = lg.trace(A, method, products=products)
    assert np.isfinite(found.value)
    assert found.standard_error > 0
    assert found.products <= products
    assert found.succeeded
    if found.samples == 1 and method != "hutch++":
        assert np.isinf(found.standard_error)


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_low_rank_operators(method):
    zero = lg.trace(unknown_diagonal(np.zeros((SIZE, SIZE))), method, products=12)
    assert (zero.value, zero.standard_error, zero.succeeded) == (0.0, 0.0, True)
    if method != "hutchinson":
        low = with_spectrum(np.where(np.arange(60) < 4, 1.0, 0.0), 2)
        for watch in ((), [lambda look: False]):
            found = lg.trace(unknown_diagonal(low), method, products=30, watch=watch)
            assert abs(found.value - 4.0) < 1e-12
            assert found.standard_error < 1e-12


def test_one_unknown():
    for psd in (True, False):
        found = lg.trace(lg.FunctionOperator(lambda v: 3.0 * v, lg.Space.flat(1, np.zeros(1)), psd=psd))
        assert (found.value, found.exact) == (3.0, True)


@pytest.mark.parametrize("method", ["exact", *METHODS])
def test_no_nan_passes_as_success(method):
    calls = []

    def product(v):
        calls.append(1)
        return v if len(calls) < 20 else v * np.nan

    A = lg.FunctionOperator(product, lg.Space.flat(60, np.zeros(1)), psd=True)
    found = lg.trace(A, method, products=40, watch=[lambda look: False])
    assert found.status is lg.Status.NONFINITE
    assert not found.succeeded
    assert np.isnan(found.value) or abs(found.value - 60.0) < 1e-9 or method == "exact"


def test_a_false_claim_is_found_out():
    matrix = with_spectrum(np.linspace(-1.0, 2.0, SIZE), 0)
    found = lg.trace(unknown_diagonal(matrix), "xnystrace", products=12)
    assert found.status is lg.Status.NEGATIVE_CURVATURE
    assert not found.succeeded
    assert "declared positive semi-definite" in repr(found)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_low_precision(name, dtype):
    from systems import load

    backend = load(name)
    matrix = with_spectrum(np.linspace(3, 1, SIZE), 0).astype(dtype)
    A = lg.Dense(array(backend, matrix, dtype), psd=True)
    for method in METHODS:
        found = lg.trace(A, method, products=PRODUCTS)
        value, error = expected(matrix.astype(float), method, 0, PRODUCTS)
        assert abs(found.value - value) <= {"float32": 1e-5, "float16": 2e-2}[dtype] * np.trace(matrix.astype(float))
        assert found.standard_error <= 2 * error + 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rounded_products_of_a_definite_operator_are_no_fault(torch, dtype):
    matrix = with_spectrum(0.5 ** np.arange(60), 0)
    M = torch.tensor(matrix).to(getattr(torch, dtype))
    A = lg.FunctionOperator(lambda v, M: M @ v, lg.Space.flat(60, M), args=(M,), psd=True)
    for method in ("auto", "xnystrace"):
        found = lg.trace(A, method, products=40)
        assert found.succeeded
        assert abs(found.value - 2.0) <= 4 * found.standard_error
    assert lg.diagonal(A, "xnysdiag", products=40).succeeded
    assert lg.trace(A, products=40).method == ("XNysTrace" if dtype == "float32" else "XTrace")


def test_inside_a_compiled_program(jax):
    matrix = with_spectrum(SPECTRA["power"], 3)
    traces = []

    @jax.jit
    def run(M, seed):
        traces.append(1)
        found = lg.trace(lg.Dense(M, psd=True), "xnystrace", products=PRODUCTS, seed=seed)
        return found.value, found.succeeded

    for seed in (3, 4):
        value, succeeded = run(jax.numpy.asarray(matrix), seed)
        assert abs(float(value) - expected(matrix, "xnystrace", seed, PRODUCTS)[0]) <= 1e-10
        assert bool(succeeded)
    assert len(traces) == 1


def test_curvature_of_a_model_and_data_on_the_host():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((6, 5, 30))
    whole = lg.Objective.from_residuals(lambda w: X.reshape(30, 30) @ w, jacobian=lambda w: X.reshape(30, 30))
    G = lg.GGN(whole, np.zeros(30))
    found = lg.trace(G, products=20)
    exact = host(G.backend, G.to_dense()).trace()
    assert abs(found.value - exact) < 5 * found.standard_error


TABLE = {
    "flat": {60: (1.3e-3, 2.3e-3, 1.6e-3, 1.3e-3)},
    "power": {60: (9e-2, 1.5e-3, 8e-4, 5.5e-4)},
    "decay": {30: (8e-2, 1e-2, 1.5e-3, 1e-4), 60: (6e-2, 1.7e-4, 6e-6, 5e-9)},
    "step": {60: (2e-2, 3e-2, 3e-2, 5e-3)},
}


@in_full
@pytest.mark.parametrize("kind", sorted(TABLE))
def test_mean_errors_and_coverage(kind):
    """500 runs at n = 1000. The table is one of 50 runs with a digit or two: 40 % are allowed for."""
    n, i = 1000, np.arange(1000)
    spectrum = {"flat": np.linspace(3, 1, n), "power": (i + 1.0) ** -2, "decay": 0.7**i}.get(kind)
    spectrum = np.where(i < 50, 1.0, 1e-3) if spectrum is None else spectrum
    matrix = with_spectrum(spectrum, 0)
    A, size = lg.Dense(matrix, psd=True), np.trace(matrix)
    for products, row in TABLE[kind].items():
        for method, wanted in zip(METHODS, row, strict=True):
            found = [lg.trace(A, method, products=products, seed=seed) for seed in range(500)]
            errors = np.array([abs(one.value - size) for one in found])
            bars = np.array([one.standard_error for one in found])
            covered = np.mean(errors <= 1.96 * bars + 1e-14 * size)
            assert errors.mean() <= (1.4 * wanted + 1e-14) * size
            assert covered >= 0.9
            assert covered <= 0.99 or method != "hutchinson"


@pytest.mark.parametrize("rtol", [0.0, 1e-9])
def test_an_operator_that_is_not_symmetric_is_not_positive_semi_definite_either(rtol):
    M = np.triu(np.ones((300, 300)))
    A = lg.FunctionOperator(lambda v: M @ v, lg.Space.flat(300, M), psd=True)
    for found in (lg.trace(A, products=40, rtol=rtol), lg.diagonal(A, products=40, rtol=rtol)):
        assert found.status == lg.Status.NEGATIVE_CURVATURE
