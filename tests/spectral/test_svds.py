"""Singular triplets against dense float64 algebra."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import FULL

import linop_gn as lg
from linop_gn import Status
from linop_gn.spectral.svds import _verified
from linop_gn.testing.strategies import array, seeds


@given(
    m=st.integers(1, 40), n=st.integers(1, 40), scale=st.sampled_from([1e-50, 1.0, 1e50]), seed=seeds(), data=st.data()
)
def test_every_triplet_is_one_and_every_bound_holds(numpy_backend, m, n, scale, seed, data):
    rng = np.random.default_rng(seed)
    M, k = scale * rng.standard_normal((m, n)), data.draw(st.integers(1, min(m, n, 5)))
    found, exact = lg.svds(lg.Dense(M), k, rtol=1e-10), np.linalg.svd(M)[1]
    assert found.succeeded
    np.testing.assert_allclose(found.values, exact[:k], rtol=1e-7)
    assert (abs(found.values - exact[:k]) <= found.bounds + 1e-14 * exact[0]).all()
    np.testing.assert_allclose(M @ found.right, found.left * found.values, atol=1e-7 * exact[0])
    for V in (found.left, found.right):
        np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-5)


def test_of_a_jacobian_on_every_framework(backend):
    if backend.calculus is None:
        pytest.skip("it has no derivatives")
    if "compiled" in backend.capabilities and not FULL:
        pytest.skip("it takes seconds to compile: run by tests_full")
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((7, 3)), rng.standard_normal((3, 2))
    xp = backend.namespace()
    fit = lg.Objective(
        lambda p, x: xp.tanh(x @ p["w"]),
        lg.losses.SquaredError(),
        (array(backend, x), array(backend, np.zeros((7, 2)))),
    )
    J = lg.Jacobian(fit, {"w": array(backend, w)})
    slope = 1 - np.tanh(x @ w) ** 2
    dense = np.einsum("ij,ik,jl->ijkl", slope, x, np.eye(2)).reshape(14, 6)
    found = lg.svds(J, 2, rtol=1e-10)
    np.testing.assert_allclose(np.asarray(found.values), np.linalg.svd(dense)[1][:2], rtol=1e-9)
    assert tuple(found.right_vector(0)["w"].shape) == (3, 2)
    assert tuple(found.left_vector(0).shape) in {(7, 2), (14,)}
    found = lg.svds(J, 2, "smallest")
    assert found.succeeded
    np.testing.assert_allclose(np.asarray(found.values), np.linalg.svd(dense)[1][::-1][:2], rtol=1e-9)
    assert tuple(found.right_vector(0)["w"].shape) == (3, 2)


def test_small_values_have_bounds_that_say_so():
    A = lg.Dense(np.diag([1.0, 1e-3, 1e-9, 0.0]))
    found = lg.svds(A, 4)
    assert (abs(found.values - [1.0, 1e-3, 1e-9, 0.0]) <= found.bounds).all()
    assert (found.bounds < 1e-14).all()
    assert "one copy was looked for" in found.sentence
    assert "1 of 4 are upper limits" in found.sentence
    assert "singular value" in repr(found)


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    kind=st.sampled_from(["decades", "gap", "cluster", "zeros"]),
    scale=st.sampled_from([1e-100, 1.0, 1e100]),
    seed=seeds(),
)
def test_where_all_are_asked_for_the_small_ones_have_the_digits_that_there_are(numpy_backend, m, n, kind, scale, seed):
    rng, p = np.random.default_rng(seed), min(m, n)
    small = {
        "decades": 10.0 ** rng.uniform(-14, 0, p),
        "gap": np.where(np.arange(p) % 2, 10.0 ** rng.uniform(-12, -8, p), rng.uniform(0.1, 1, p)),
        "cluster": 1e-9 * (1 + 1e-6 * rng.standard_normal(p)),
        "zeros": np.where(np.arange(p) % 2, 0.0, rng.uniform(0.1, 1, p)),
    }[kind]
    M = scale * matrix(m, n, np.append(small[1:], 1.0), rng)
    found, exact = lg.svds(lg.Dense(M), p, seed=seed % 1000), np.linalg.svd(M)[1]
    assert found.succeeded
    np.testing.assert_allclose(found.values, exact, rtol=0, atol=1e-13 * exact[0])
    assert (abs(found.values - exact) <= found.bounds + 1e-14 * exact[0]).all()
    assert (found.bounds <= 1e-12 * exact[0]).all()
    assert (np.linalg.norm(M @ found.right - found.left * found.values, axis=0) <= found.bounds).all()
    assert (np.linalg.norm(M.T @ found.left - found.right * found.values, axis=0) <= found.bounds).all()


def test_of_some_the_bounds_say_what_the_square_hides():
    rng = np.random.default_rng(0)
    M = matrix(60, 40, np.geomspace(1, 1e-12, 40), rng)
    found, exact = lg.svds(lg.Dense(M), 35), np.linalg.svd(M)[1]
    assert (abs(found.values[:, None] - exact).min(axis=1) <= found.bounds).all()
    good = found.bounds < 1e-3 * found.values
    assert good[:20].all()  # down to 1e-6
    np.testing.assert_allclose(found.values[good], exact[:35][good], rtol=1e-3)
    assert "upper limits" in found.sentence


def test_a_matrix_of_zeros_and_refusals():
    assert (lg.svds(lg.Dense(np.zeros((4, 3))), 2).values == 0).all()
    with pytest.raises(TypeError, match=r"lg\.Dense"):
        lg.svds(np.eye(2), 1)
    with pytest.raises(ValueError, match="has 2"):
        lg.svds(lg.Dense(np.ones((2, 5))), 3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_an_operator_whose_square_is_out_of_range(scale):
    M = (scale * np.random.default_rng(0).standard_normal((12, 30))).astype(np.float32)
    found, true = lg.svds(lg.Dense(M), 3), np.linalg.svd(M.astype(float))[1][:3]
    assert found.succeeded
    assert (abs(found.values - true) <= found.bounds).all()
    assert (found.bounds < 1e-3 * true).all()
    np.testing.assert_allclose(found.left.T @ M @ found.right / true[0], np.diag(true / true[0]), atol=1e-3)


def matrix(m, n, sigma, rng):
    """m x n, with these singular values, min(m, n) of them."""
    U, V = (np.linalg.qr(rng.standard_normal((size, len(sigma))))[0] for size in (m, n))
    return U * sigma @ V.T


def kept_promises(M, found, slack=1e-14):
    """Values are upper limits, within their bounds of one that there is, and both equations hold to these."""
    exact = np.sort(np.linalg.svd(M)[1])
    there = np.isfinite(found.values)
    k, size = int(there.sum()), exact[-1]
    values, bounds, left, right = found.values[:k], found.bounds[:k], found.left[:, :k], found.right[:, :k]
    assert (np.diff(values) >= 0).all()
    assert (values >= exact[:k] - slack * size).all()
    assert (abs(values[:, None] - exact).min(axis=1) <= bounds + slack * size).all()
    assert (np.linalg.norm(M @ right - left * values, axis=0) <= bounds + slack * size).all()
    assert (np.linalg.norm(M.T @ left - right * values, axis=0) <= bounds + slack * size).all()
    long, short = (left, right) if len(left) >= len(right) else (right, left)
    np.testing.assert_allclose(short.T @ short, np.eye(k), atol=1e-12)
    known = long.any(axis=0)
    np.testing.assert_allclose(long.T @ long, np.diag(1.0 * known), atol=1e-8)
    assert (bounds >= values)[~known].all()
    assert not found.met[~there].any()
    return exact


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    nothing=st.integers(0, 3),
    scale=st.sampled_from([1e-100, 1.0, 1e100]),
    seed=seeds(),
    data=st.data(),
)
def test_the_smallest_are_found_of_any_shape_and_rank(numpy_backend, m, n, nothing, scale, seed, data):
    rng, p = np.random.default_rng(seed), min(m, n)
    sigma = rng.uniform(0.05, 1.0, p)
    sigma[: min(nothing, p - 1)] = 0.0
    M, k = scale * matrix(m, n, sigma, rng), data.draw(st.integers(1, min(p, 5)))
    found = lg.svds(lg.Dense(M), k, "smallest", block=max(1, nothing))
    exact = kept_promises(M, found)
    assert found.succeeded
    assert found.met.all()
    assert (found.bounds <= 2e-7 * exact[-1]).all()
    np.testing.assert_allclose(found.values, exact[:k], atol=1e-12 * exact[-1])


@given(
    m=st.integers(2, 40),
    n=st.integers(2, 40),
    low=st.sampled_from([-3, -6, -10, -20]),
    rtol=st.sampled_from([None, 1e-4, 1e-12]),
    limit=st.sampled_from([2, 40, None]),
    seed=seeds(),
)
def test_no_success_of_the_smallest_is_false(numpy_backend, m, n, low, rtol, limit, seed):
    rng, k = np.random.default_rng(seed), min(m, n, 3)
    M = matrix(m, n, 10.0 ** rng.uniform(low, 0, min(m, n)), rng)
    found = lg.svds(lg.Dense(M), k, "smallest", rtol=rtol, max_products=limit, seed=seed % 1000)
    exact = kept_promises(M, found)
    assert found.status in (Status.CONVERGED, Status.MAX_STEPS, Status.STAGNATED)
    assert bool(found.succeeded) == bool(found.met.all())
    tolerance = (rtol or 3e-7) * exact[-1]
    assert (found.bounds[found.met] <= tolerance).all()
    assert (found.bounds >= found.values)[found.values < 1e-15 * exact[-1]].all()
    assert found.sentence


def test_what_the_square_hides_is_said():
    rng = np.random.default_rng(0)
    M = matrix(50, 30, np.concatenate([[1e-9], np.linspace(0.1, 1, 29)]), rng)
    found = lg.svds(lg.Dense(M), 2, "smallest")
    assert found.succeeded
    assert not found.left[:, 0].any()
    assert "1 of 2 are upper limits" in found.sentence
    beyond = lg.svds(lg.Dense(M), 2, "smallest", rtol=1e-10)
    assert beyond.status is Status.STAGNATED
    assert beyond.met.tolist() == [False, True]
    assert "lg.inverse" in beyond.sentence
    np.testing.assert_allclose(found.values[1], 0.1, rtol=1e-12)


def test_an_inverse_has_all_digits():
    M = matrix(40, 40, np.geomspace(1e-6, 1, 40), np.random.default_rng(0))
    found = lg.svds(lg.inverse(lg.Dense(M), lg.LU()), 3)
    np.testing.assert_allclose(1 / found.values, np.geomspace(1e-6, 1, 40)[:3], rtol=1e-8)


def test_triplets_are_verified_on_every_framework(backend):
    rng = np.random.default_rng(1)
    M = matrix(9, 6, np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), rng)
    V = np.linalg.svd(M)[2][::-1][:3].T @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    theta, xp = np.array([0.0, 0.04, 0.16]), backend.small_namespace()
    B, columns = lg.Dense(array(backend, M)), array(backend, V)
    values, left, right, bounds = backend.call(_verified, B, columns, xp.asarray(theta), xp.asarray(1.0))
    np.testing.assert_allclose(np.asarray(values), [0.0, 0.2, 0.4], atol=1e-14)
    assert (np.asarray(bounds) < 1e-13).all()
    left, right = backend.to_numpy(left), backend.to_numpy(right)
    np.testing.assert_allclose(M.T @ left, right * np.asarray(values), atol=1e-13)
    np.testing.assert_allclose(left.T @ left, np.diag([0.0, 1.0, 1.0]), atol=1e-12)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_with_the_basis_on_the_host(torch, which):
    M = matrix(30, 20, np.linspace(0.1, 1, 20), np.random.default_rng(2))
    A = lg.Dense(torch.as_tensor(M))
    here, there = lg.svds(A, 3, which), lg.svds(A, 3, which, basis_on="host")
    np.testing.assert_allclose(there.values, here.values, rtol=1e-12)
    assert isinstance(there.left, np.ndarray)
    assert isinstance(there.right_vector(0), torch.Tensor)
    assert there.products == here.products
    np.testing.assert_allclose(M @ there.right, there.left * there.values, atol=1e-6)


def test_an_end_that_there_is_not():
    with pytest.raises(ValueError, match="'smallest'"):
        lg.svds(lg.Dense(np.eye(3)), 1, "SM")


WRONG = {
    "negated": lambda M, u: -(M.T @ u),
    "nothing": lambda M, u: 0 * u[: len(M.T)],
    "scaled": lambda M, u: 1.001 * (M.T @ u),
    "another": lambda M, u: M[::-1].T @ u,
}


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("wrong", sorted(WRONG))
@given(n=st.integers(2, 12), more=st.integers(0, 5), seed=seeds(), data=st.data())
def test_an_adjoint_that_is_none_is_no_success(numpy_backend, which, wrong, n, more, seed, data):
    rng = np.random.default_rng(seed)
    M, k = matrix(n + more, n, rng.uniform(0.5, 1.0, n), rng), data.draw(st.integers(1, n))
    spaces = lg.Space.flat(n, M), lg.Space.flat(n + more, M)
    A = lg.FunctionOperator(lambda v: M @ v, *spaces, lambda u: WRONG[wrong](M, u))
    found = lg.svds(A, k, which, seed=seed % 1000)
    assert found.status is Status.NOT_SYMMETRIC
    assert not found.met.any()
    assert "don't fit each other" in found.sentence
    assert "declared" not in repr(found)


@given(
    m=st.integers(1, 60),
    n=st.integers(1, 60),
    kind=st.sampled_from(["decades", "cluster", "copies", "zeros"]),
    dtype=st.sampled_from(["float32", "float64"]),
    rtol=st.sampled_from([None, 1e-2, 1e-4]),
    scale=st.sampled_from([1e-10, 1.0, 1e10]),
    seed=seeds(),
    data=st.data(),
)
def test_the_largest_of_an_honest_operator_are_a_success(numpy_backend, m, n, kind, dtype, rtol, scale, seed, data):
    rng, p = np.random.default_rng(seed), min(m, n)
    sigma = {
        "decades": 10.0 ** rng.uniform(-12, 0, p),
        "cluster": 1 + 1e-9 * rng.standard_normal(p),
        "copies": np.round(rng.uniform(0, 3, p)),
        "zeros": np.zeros(p),
    }[kind]
    M = (scale * matrix(m, n, sigma, rng)).astype(dtype)
    found = lg.svds(lg.Dense(M), data.draw(st.integers(1, min(p, 6))), rtol=rtol, seed=seed % 1000)
    assert found.status is Status.CONVERGED
    assert found.met.all()


def test_an_adjoint_that_is_none_on_every_framework(backend):
    if "compiled" in backend.capabilities and not FULL:
        pytest.skip("it takes seconds to compile: run by tests_full")
    M, space = array(backend, np.diag([3.0, 2.0, 1.0])), lg.Space.flat(3, array(backend, np.zeros(3)))
    A = lg.FunctionOperator(
        lambda v, M: M @ v, space, adjoint_function=lambda u, M: -(M @ u), args=(M,), codomain=space
    )
    assert lg.svds(A, 1).status is Status.NOT_SYMMETRIC


def test_of_a_small_space_all_is_taken_for_the_smallest():
    rng = np.random.default_rng(0)
    M = matrix(120, 111, np.append(np.linspace(0.1, 1.0, 100), np.zeros(11)), rng)
    found = lg.svds(lg.Dense(M), 3, "smallest")
    assert found.succeeded
    assert (found.values < 1e-13).all()
    assert found.products == 111 + 3
    large = lg.svds(lg.Dense(matrix(200, 200, np.geomspace(1e-5, 1, 200), rng)), 3, "smallest", max_products=400)
    assert large.status is Status.MAX_STEPS
    assert "The whole space, basis=200, has all of them after 200 products." in large.sentence


def test_errors_name_it_and_so_does_what_is_given_by_default():
    A = lg.Dense(np.arange(35.0).reshape(7, 5))
    assert lg.svds(A).values.shape == (5,)
    for options in (
        {"k": 9},
        {"k": 0},
        {"rtol": -1.0},
        {"basis": 1},
        {"block": 0},
        {"basis_on": []},
        {"which": ["LM"]},
    ):
        with pytest.raises(ValueError, match=r"^svds: "):
            lg.svds(A, **options)
    with pytest.raises(ValueError, match="'LM' is 'largest' here"):
        lg.svds(A, 1, "LM")
