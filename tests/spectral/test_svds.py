"""Singular triplets against dense float64 algebra."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import FULL

import linop_gn as lg
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


def test_small_values_have_bounds_that_say_so():
    A = lg.Dense(np.diag([1.0, 1e-3, 1e-9, 0.0]))
    found = lg.svds(A, 4)
    assert (abs(found.values - [1.0, 1e-3, 1e-9, 0.0]) <= found.bounds).all()
    assert found.bounds[2] > 1e-9
    assert "one copy was looked for" in found.sentence
    assert "singular value" in repr(found)


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
