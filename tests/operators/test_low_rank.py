"""U M U^T for every kind of middle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.strategies import array, matrices, symmetric_matrices

middles = ("none", "positive", "signed", "matrix")


@given(data=st.data(), n=st.integers(1, 8), r=st.integers(0, 4), kind=st.sampled_from(middles))
def test_it_is_the_product_of_its_parts(numpy_backend, data, n, r, kind):
    r = max(1, r) if kind == "matrix" else r
    U = data.draw(matrices(n, r))
    s = np.linspace(-1.0, 2.0, r)
    M = {"none": None, "positive": s**2, "signed": s}.get(kind)
    if kind == "matrix":
        M = data.draw(symmetric_matrices(r, scale=st.just(1.0))).matrix
    A = lg.LowRank(U, M)
    full = np.eye(r) if M is None else np.diag(M) if M.ndim == 1 else M
    scale = max(1.0, np.abs(U).max(initial=0) ** 2)
    np.testing.assert_allclose(dense(A), U @ full @ U.T, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(A.to_dense(), U @ full @ U.T, rtol=0, atol=1e-12 * scale)
    assert A.symmetric
    assert A.psd == (kind in ("none", "positive") or (kind == "signed" and bool((s >= 0).all())))
    assert lg.LowRank(U, M, psd=False).psd is False


def test_a_claim_about_a_matrix_middle_is_taken_where_its_diagonal_allows(backend):
    U = array(backend, np.ones((3, 2)))
    assert lg.LowRank(U, array(backend, np.array([[2.0, 1.0], [1.0, 2.0]])), psd=True).psd
    with pytest.raises(ValueError, match="the middle's diagonal was given with psd=True, but entry 0 is -2"):
        lg.LowRank(U, array(backend, np.array([[-2.0, 1.0], [1.0, 2.0]])), psd=True)
    with pytest.raises(ValueError, match="but entry 1 is -1"):
        lg.LowRank(U, array(backend, np.array([1.0, -1.0])), psd=True)


def test_it_acts_on_trees(backend):
    space = lg.Space.of([array(backend, np.zeros(1)), array(backend, np.zeros(2))])
    A = lg.LowRank(array(backend, np.array([[1.0], [0.0], [2.0]])), domain=space)
    result = A @ [array(backend, [1.0]), array(backend, [0.0, 1.0])]
    assert [backend.to_numpy(x).tolist() for x in result] == [[3.0], [0.0, 6.0]]


def test_parts_that_do_not_fit_are_refused(backend, other):
    U = array(backend, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"the middle has shape \(3,\); expected \(2,\) or \(2, 2\)"):
        lg.LowRank(U, array(backend, np.ones(3)))
    with pytest.raises(ValueError, match=r"the middle has shape \(2, 3\)"):
        lg.LowRank(U, array(backend, np.ones((2, 3))))
    with pytest.raises(ValueError, match=r"the middle was given with .* but it is not symmetric"):
        lg.LowRank(U, array(backend, np.array([[1.0, 2.0], [0.0, 1.0]])))
    with pytest.raises(ValueError, match=r"the factor has shape \(3,\)"):
        lg.LowRank(array(backend, np.ones(3)))
    with pytest.raises(ValueError, match="the factor holds 6 entries that are NaN"):
        lg.LowRank(array(backend, np.full((3, 2), np.nan)))
    with pytest.raises(ValueError, match="the middle holds 2 entries that are NaN"):
        lg.LowRank(U, array(backend, np.full(2, np.nan)))
    with pytest.raises(TypeError, match="the middle has dtype float32, expected float64"):
        lg.LowRank(U, array(backend, np.ones(2), "float32"))
    with pytest.raises(TypeError, match="arrays of several frameworks are mixed"):
        lg.LowRank(U, array(other, np.ones(2)))


@given(data=st.data(), n=st.integers(1, 8), r=st.integers(1, 10), middle=st.booleans(), exponent=st.integers(-6, 3))
def test_the_determinant_is_known(numpy_backend, data, n, r, middle, exponent):
    U, m, damping = data.draw(matrices(n, r)), np.linspace(0.0, 2.0, r) if middle else None, 10.0**exponent
    U = U / max(1e-3, np.abs(U).max())
    found = lg.LowRank(U, m).known_logdet(damping)
    want = np.linalg.slogdet((U if m is None else U * m) @ U.T + damping * np.eye(n))[1]
    assert float(found) == pytest.approx(want, rel=1e-8, abs=1e-8)


def test_determinants_on_every_framework(backend):
    U = np.random.default_rng(0).standard_normal((30, 4))
    A = lg.LowRank(array(backend, U))
    found = lg.logdet(lg.Damped(3.0 * A, 0.1), products=5, steps=5)
    assert (found.exact, int(found.products)) == (True, 0)
    assert float(found.value) == pytest.approx(np.linalg.slogdet(3 * U @ U.T + 0.1 * np.eye(30))[1], rel=1e-12)
    assert lg.logdet(A).status is lg.Status.SINGULAR
    small = lg.LowRank(array(backend, U[:3]))
    assert float(lg.logdet(small).value) == pytest.approx(np.linalg.slogdet(U[:3] @ U[:3].T)[1], rel=1e-12)
    for unknown in (lg.LowRank(array(backend, U), array(backend, np.eye(4)), psd=True), -1.0 * A):
        assert unknown.known_logdet(1.0) is None
