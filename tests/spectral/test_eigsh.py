"""Eigenpairs against dense float64 algebra: bounds hold, copies are there, products are SciPy's or fewer."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn import Status
from linop_gn.spectral.thick_restart import _refined
from linop_gn.testing.strategies import array, seeds

ENDS = ("LA", "SA", "BE", "LM")
ROUNDING = {"float32": 1e-4, "float64": 1e-12}


def spectrum(kind, n, rng):
    """Eigenvalues, and how often one occurs at most."""
    if kind == "copies":
        times = min(int(rng.integers(2, 6)), n)
        return np.repeat(rng.standard_normal(-(-n // times)), times)[:n], times
    if kind == "clusters":
        times = min(int(rng.integers(2, 6)), n)
        d = np.repeat(rng.standard_normal(-(-n // times)), times)[:n]
        return d + 1e-10 * rng.standard_normal(n), times
    if kind == "spread":
        return np.exp(rng.uniform(-14, 14, n)) * rng.choice([-1, 1], n), 1
    return rng.standard_normal(n), 1


def dense(d, rng):
    Q, _ = np.linalg.qr(rng.standard_normal((len(d), len(d))))
    M = Q * d @ Q.T
    return (M + M.T) / 2


def wanted(s, k, which):
    """Of ascending eigenvalues, those asked for, best first."""
    if which == "BE":
        ends = [s[i // 2] if i % 2 else s[::-1][i // 2] for i in range(k)]
        return np.array(ends)
    return {"LA": s[::-1], "SA": s, "LM": s[np.argsort(-abs(s), kind="stable")]}[which][:k]


def kept_promises(found, M, exact, which, dtype="float64"):
    """Bounds hold against the matrix, vectors are orthonormal, and where it says so all is there."""
    size, slack = abs(exact).max(), ROUNDING[dtype]
    theta, V = np.asarray(found.values, float), np.asarray(found.space.backend.to_numpy(found.columns), float)
    k = len(theta)
    assert abs(V.T @ V - np.eye(k)).max() < slack
    residuals = np.linalg.norm(M @ V - V * theta, axis=0)
    assert (residuals <= np.asarray(found.bounds) + 0.1 * slack * size).all()
    if found.succeeded:
        right, mine = wanted(exact, k, which), theta
        if which == "LM":  # two of one size may change places
            right, mine = abs(right), abs(mine)
        np.testing.assert_allclose(np.sort(mine), np.sort(right), atol=max(1e-6, slack) * size, rtol=0)


@given(
    kind=st.sampled_from(["simple", "copies", "clusters", "spread"]),
    n=st.integers(1, 60),
    which=st.sampled_from(ENDS),
    scale=st.sampled_from([1e-120, 1e-3, 1.0, 1e120]),
    seed=seeds(),
    data=st.data(),
)
def test_every_success_is_one(numpy_backend, kind, n, which, scale, seed, data):
    rng = np.random.default_rng(seed)
    d, times = spectrum(kind, n, rng)
    M, k = dense(scale * d, rng), data.draw(st.integers(1, min(n, 6)))
    found = lg.eigsh(lg.Dense(M, symmetric=True), k, which, block=times, rtol=1e-9)
    assert found.status in (Status.CONVERGED, Status.MAX_STEPS)
    kept_promises(found, M, np.linalg.eigvalsh(M), which)


def test_frameworks_agree(backend):
    rng = np.random.default_rng(1)
    M = dense(np.concatenate([[3.0, 3.0], rng.uniform(-2, 2, 46)]), rng)
    there = lg.eigsh(lg.Dense(array(backend, M, "float64"), symmetric=True), 3, block=2)
    here = lg.eigsh(lg.Dense(M, symmetric=True), 3, block=2)
    assert there.succeeded
    assert int(there.products) == int(here.products)
    np.testing.assert_allclose(np.asarray(there.values), here.values, rtol=1e-10)
    kept_promises(there, M, np.linalg.eigvalsh(M), "LA")


def test_single_precision_knows_what_it_can(torch):
    rng = np.random.default_rng(2)
    M = dense(rng.standard_normal(50), rng).astype("float32")
    A = lg.Dense(array(lg.load("torch"), M, "float32"), symmetric=True)
    exact = np.linalg.eigvalsh(M.astype("float64"))
    kept_promises(lg.eigsh(A, 4), M.astype("float64"), exact, "LA", "float32")
    beyond = lg.eigsh(A, 4, rtol=1e-9)
    assert beyond.status is Status.STAGNATED
    assert "float64" in beyond.sentence
    kept_promises(beyond, M.astype("float64"), exact, "LA", "float32")


@pytest.mark.parametrize("seed", [28, 79, 99, 103, 105, 144, 146, 151])  # of 200, where rtol=eps^.5 misnames one
def test_single_precision_names_the_largest_of_two_that_are_close(seed):
    for draw in (lambda rng: rng.uniform(-0.99, 0.99, 300), lambda rng: 0.99 * np.exp(-rng.uniform(0, 8, 300))):
        d = np.append(draw(np.random.default_rng(seed)), [0.999, 1.0]).astype(np.float32)
        found = lg.eigsh(lg.Diagonal(d, psd=False), 1, seed=seed)
        assert found.succeeded
        np.testing.assert_allclose(found.values, 1.0, atol=1e-6)
        assert 0 < found.bounds[0] < 3e-5


def test_small_eigenproblems_in_single_precision_are_refined():
    errors = []
    for seed in range(20):
        T = np.random.default_rng(seed).standard_normal((20, 20)).astype(np.float32)
        T = T + T.T
        exact = np.linalg.eigvalsh(T.astype(float))
        values, S = scipy.linalg.eigh(T)  # NumPy's works in double
        for w, Y in ((values, S), _refined(np, T, values, S)):
            assert w.dtype == Y.dtype == np.float32
            errors.append([abs(w - exact).max(), abs(Y.astype(float).T @ Y - np.eye(20)).max()])
    before, after = np.median(errors[::2], axis=0), np.median(errors[1::2], axis=0)
    assert after[0] < before[0]
    assert after[1] < 0.3 * before[1]


def test_the_default_tolerance_is_within_reach_after_many_restarts():
    d = (np.linspace(0.0, 1.0, 400) ** 2).astype(np.float32)
    found = lg.eigsh(lg.Diagonal(d), 2, "SA", basis=6)
    assert found.succeeded
    assert found.restarts > 100
    assert found.bounds.max() < 1e-4


SIMPLE = {
    "equidistant": np.arange(1.0, 501.0),
    "geometric": 0.9 ** np.arange(500),
    "indefinite": np.linspace(-1.0, 2.0, 700),
    "powers": 1.0 / np.arange(1.0, 1001.0) ** 2,
    "outliers": np.concatenate([np.arange(6.0, 11.0), np.random.default_rng(0).random(800)]),
}


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize(("k", "which"), [(1, "LA"), (6, "LA"), (10, "LM"), (6, "BE"), (3, "SA")])
def test_products_are_at_most_a_fifth_more_than_scipys(name, k, which):
    d = SIMPLE[name]
    if name in ("geometric", "powers") and which in ("BE", "SA"):
        pytest.skip("the lower end is nothing but a cluster at zero")
    start, count = np.random.default_rng(3).standard_normal(len(d)), [0]

    def product(v):
        count[0] += 1
        return d * v.ravel()

    theirs = scipy.sparse.linalg.LinearOperator((len(d),) * 2, matvec=product, dtype=float)
    options = {"k": k, "which": which, "tol": 1e-8, "ncv": max(2 * k + 1, 20), "v0": start}
    scipy.sparse.linalg.eigsh(theirs, return_eigenvectors=False, **options)
    found = lg.eigsh(lg.Diagonal(d, psd=False), k, which, rtol=1e-8, start=start)
    assert found.succeeded
    assert int(found.products) <= 1.2 * count[0]


def test_one_copy_is_looked_for_unless_more_are_asked_for():
    rng = np.random.default_rng(4)
    d = np.concatenate([np.full(5, 2.0), rng.uniform(-1, 1, 195)])
    A = lg.Diagonal(d, psd=False)
    assert "one copy was looked for" in lg.eigsh(A, 1).sentence
    found = lg.eigsh(A, 6, block=5)
    assert found.succeeded
    np.testing.assert_allclose(found.values[:5], 2.0, rtol=1e-12)
    assert found.values[5] < 1.0


def test_the_basis_stays_orthonormal_over_many_restarts():
    d = np.linspace(0.0, 1.0, 2000) ** 2
    found = lg.eigsh(lg.Diagonal(d), 3, "SA", rtol=1e-12, basis=12, max_products=1500)
    assert int(found.restarts) > 100
    V = found.columns
    assert abs(V.T @ V - np.eye(3)).max() < 1e-12


def test_eigenvectors_have_the_format_of_parameters():
    fit = lg.Objective(
        lambda p, x: x @ p["w"] + p["b"],
        lg.losses.SquaredError(),
        (np.eye(3), np.ones((3, 2))),
        jacobian=lambda p, x: {"b": np.tile(np.eye(2), (3, 1, 1)), "w": np.einsum("ni,jk->njik", x, np.eye(2))},
    )
    p = {"b": np.zeros(2), "w": np.zeros((3, 2))}
    G = lg.GGN(fit, p)
    top = lg.eigsh(G, 2, block=2)
    y = top.vector(0)
    product = G @ y
    for name in p:
        assert y[name].shape == p[name].shape
        np.testing.assert_allclose(product[name], top.values[0] * y[name], atol=1e-7)
        assert top.vectors[name].shape == (*p[name].shape, 2)


def flat(n):
    return lg.Space.flat(n, np.zeros(1))


def test_what_goes_wrong_is_told():
    rng = np.random.default_rng(5)
    N = rng.standard_normal((30, 30))
    crooked = lg.eigsh(lg.FunctionOperator(lambda v: N @ v, flat(30), symmetric=True), 2)
    assert crooked.status is Status.NOT_SYMMETRIC
    lost = lg.eigsh(lg.FunctionOperator(lambda v: np.nan * v, flat(30), symmetric=True), 2)
    assert lost.status is Status.NONFINITE
    assert np.isnan(lost.values).all()
    assert not lost.met.any()
    few = lg.eigsh(lg.Diagonal(np.linspace(0, 1, 500)), 4, "SA", max_products=30)
    assert few.status is Status.MAX_STEPS
    assert "max_products" in few.sentence
    kept_promises(few, np.diag(np.linspace(0, 1, 500)), np.linspace(0, 1, 500), "SA")
    bad = lg.eigsh(lg.Diagonal(np.ones(4)), 1, start=np.array([1.0, np.nan, 0.0, 0.0]))
    assert bad.status is Status.NONFINITE_INPUT
    stopped = lg.eigsh(lg.Diagonal(np.arange(50.0)), 2, watch=[lambda look: look.step >= 7])
    assert stopped.status is Status.STOPPED
    assert int(stopped.products) == 7


@pytest.mark.parametrize("A", [np.zeros((9, 9)), np.eye(9), np.ones((1, 1)), np.ones((30, 30))], ids=str)
def test_invariant_spaces_from_the_first_product_on(A):
    k = min(2, len(A))
    kept_promises(lg.eigsh(lg.Dense(A, symmetric=True), k), A, np.linalg.eigvalsh(A), "LA")


def test_a_start_that_is_an_eigenvector_finds_others_too():
    d = np.arange(1.0, 41.0)
    found = lg.eigsh(lg.Diagonal(d), 3, start=np.eye(40)[4])
    np.testing.assert_allclose(found.values, [40, 39, 38], rtol=1e-9)


def test_refusals_say_what_to_do():
    A = lg.Diagonal(np.arange(9.0))
    with pytest.raises(TypeError, match=r"lg\.Dense"):
        lg.eigsh(np.eye(3), 1)
    with pytest.raises(ValueError, match="not known to be"):
        lg.eigsh(lg.Dense(np.triu(np.ones((3, 3)))), 1)
    with pytest.raises(ValueError, match="singular values"):
        lg.eigsh(lg.Dense(np.ones((3, 2))), 1)
    with pytest.raises(ValueError, match="has 9"):
        lg.eigsh(A, 10)
    with pytest.raises(ValueError, match="inverse of A - sigma I"):
        lg.eigsh(A, 1, "SM")
    with pytest.raises(ValueError, match="at least 5 vectors"):
        lg.eigsh(A, 3, basis=4)
    with pytest.raises(ValueError, match="rtol"):
        lg.eigsh(A, 1, rtol=0.0)


def test_a_failure_of_the_operator_leaves_what_there_is():
    calls = []

    def product(v):
        calls.append(0)
        if len(calls) > 25:
            raise RuntimeError("gone")
        return np.arange(60.0) * v

    with pytest.raises(RuntimeError, match="gone") as caught:
        lg.eigsh(lg.FunctionOperator(product, flat(60), symmetric=True), 2)
    assert int(caught.value.result.products) == 25


def test_bounds_hold_after_hundreds_of_restarts():
    rng = np.random.default_rng(5)
    for seed in range(3):
        M = rng.standard_normal((60, 60))
        M = M + M.T
        found = lg.eigsh(lg.Dense(M, symmetric=True), 2, "BE", basis=4, seed=seed, max_products=1500)
        residuals = np.linalg.norm(M @ found.columns - found.columns * found.values, axis=0)
        assert (residuals <= found.bounds * (1 + 1e-6)).all()
        assert found.restarts > 30


def test_by_default_there_are_six_or_all():
    assert lg.eigsh(lg.Diagonal(np.arange(4.0))).values.shape == (4,)
    assert lg.eigsh(lg.Diagonal(np.arange(9.0))).values.shape == (6,)


def test_what_has_singular_values_is_told_who_finds_them():
    for A in (lg.Dense(np.ones((3, 2))), lg.Dense(np.triu(np.ones((3, 3))))):
        for door in (lg.eigsh, lg.logdet, lg.spectral_density):
            with pytest.raises(ValueError, match=r"lg\.svds\(A\)"):
                door(A)
    for door in (lg.trace, lg.diagonal):
        with pytest.raises(ValueError, match=r"lg\.svds\(A\)"):
            door(lg.Dense(np.ones((3, 2))))


def test_one_restart_is_one():
    runs = [lg.eigsh(lg.Diagonal(np.linspace(0, 1, 200)), 1, max_products=n) for n in (10, 30)]
    assert ["1 restart\n" in repr(run) for run in runs] == [run.restarts == 1 for run in runs]
