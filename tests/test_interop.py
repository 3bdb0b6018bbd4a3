"""SciPy's solvers on our operators, and SciPy's operators in our algebra."""

import numpy as np
import pytest
import scipy.sparse as sparse
import scipy.sparse.linalg as splinalg
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.expressions import expressions
from linop_gn.testing.strategies import array, matrices, seeds, sizes, symmetric_matrices


class Steps:
    """What a PyLops operator looks like from outside: a shape, products, nothing of SciPy."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype

    def matvec(self, x):
        assert x.ndim == 1
        return self.matrix @ x

    def rmatvec(self, x):
        assert x.ndim == 1
        return self.matrix.T @ x


class OnlyAt:
    """A shape and ``@``."""

    def __init__(self, matrix):
        self.matrix, self.shape = matrix, matrix.shape

    def __matmul__(self, x):
        return self.matrix @ x


# to SciPy


@given(data=st.data())
def test_scipy_sees_the_same_matrix(backend, data):
    expression = data.draw(expressions(backend, data.draw(sizes(backend, 5)), data.draw(sizes(backend, 5))))
    A, matrix, tolerance = expression.operator, expression.matrix, expression.tolerance
    theirs = lg.to_scipy(A)
    assert theirs.shape == A.shape
    assert theirs.dtype == np.float64
    np.testing.assert_allclose(theirs @ np.eye(A.shape[1]), matrix, rtol=0, atol=tolerance)
    one_column = theirs.matvec(np.ones((A.shape[1], 1)))
    np.testing.assert_allclose(one_column, matrix.sum(axis=1, keepdims=True), rtol=0, atol=tolerance)
    adjoint = expression._replace(bound=expression.bound.T).tolerance
    np.testing.assert_allclose(theirs.H @ np.eye(A.shape[0]), matrix.T, rtol=0, atol=adjoint)
    np.testing.assert_allclose(theirs.T.matvec(np.ones(A.shape[0])), matrix.sum(axis=0), rtol=0, atol=adjoint)


def test_scipys_solvers_take_it(backend):
    rng = np.random.default_rng(0)
    M = rng.standard_normal((12, 12))
    M = M @ M.T + np.eye(12)
    A, b = lg.to_scipy(lg.Dense(array(backend, M), psd=True)), rng.standard_normal(12)
    x, failed = splinalg.cg(A, b, rtol=1e-12)
    assert failed == 0
    np.testing.assert_allclose(x, np.linalg.solve(M, b), rtol=1e-8)
    np.testing.assert_allclose(splinalg.eigsh(A, k=2)[0], np.linalg.eigvalsh(M)[-2:], rtol=1e-10)
    least_squares = splinalg.lsmr(A, b, atol=1e-14, btol=1e-14, maxiter=200)[0]
    np.testing.assert_allclose(least_squares, np.linalg.solve(M, b), rtol=1e-6)


def test_vectors_are_converted_to_the_operators_dtype(backend):
    A = lg.to_scipy(lg.Diagonal(array(backend, [1.0, 2.0], "float32")))
    result = A @ np.array([1, 3])
    assert isinstance(result, np.ndarray)
    assert type(result) is np.ndarray
    assert result.dtype == A.dtype == np.float32
    assert result.tolist() == [1.0, 6.0]


def test_trees_are_flat_vectors_to_scipy(backend):
    A = lg.to_scipy(lg.Diagonal({"a": array(backend, [1.0]), "b": array(backend, [[2.0, 3.0]])}))
    np.testing.assert_array_equal(A @ np.eye(3), np.diag([1.0, 2.0, 3.0]))


def test_operators_from_flat_vectors_to_trees_give_scipy_flat_vectors(backend):
    tree = lg.Space.of((array(backend, np.zeros(1)), array(backend, np.zeros(1))))
    A = lg.Dense(array(backend, np.eye(2)), domain=lg.Space.flat(2, array(backend, np.zeros(1))), codomain=tree)
    assert isinstance(A @ array(backend, [1.0, 2.0]), tuple)
    np.testing.assert_array_equal(lg.to_scipy(A) @ np.array([1.0, 2.0]), [1.0, 2.0])
    np.testing.assert_array_equal(dense(A), np.eye(2))


def test_scipys_results_are_arrays_of_their_own_and_inputs_are_left_alone():
    A = lg.to_scipy(lg.Identity(lg.Space.flat(3, np.zeros(1))))
    x = np.arange(3.0)
    x.setflags(write=False)
    result = A @ x
    assert not np.shares_memory(result, x)
    result += 1.0
    assert x.tolist() == [0.0, 1.0, 2.0]


def test_complex_vectors_are_refused():
    A = lg.to_scipy(lg.Diagonal(np.ones(2)))
    with pytest.raises(TypeError, match="a real operator was applied to a complex vector"):
        A @ np.ones(2, dtype=complex)


# from SciPy


@given(data=st.data(), seed=seeds(), form=st.sampled_from(["sparse", "matrix", "operator", "steps", "at", "nested"]))
def test_operators_from_scipy_and_the_like(data, seed, form):
    m, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    M = data.draw(matrices(m, n)) * (np.random.default_rng(seed).random((m, n)) < 0.5)
    theirs = {
        "sparse": lambda: sparse.coo_array(M),
        "matrix": lambda: sparse.csc_matrix(M),
        "operator": lambda: splinalg.aslinearoperator(M),
        "steps": lambda: Steps(M),
        "at": lambda: OnlyAt(M),
        "nested": lambda: splinalg.aslinearoperator(M) + splinalg.aslinearoperator(sparse.csr_array(M)),
    }[form]()
    expected = 2 * M if form == "nested" else M
    scale = max(1e-300, np.abs(expected).max())
    A = lg.from_scipy(theirs)
    np.testing.assert_allclose(dense(A), expected, rtol=0, atol=1e-14 * scale)
    np.testing.assert_allclose(A @ np.eye(n), expected, rtol=0, atol=1e-14 * scale)
    if form != "at":
        np.testing.assert_allclose(dense(A.T), expected.T, rtol=0, atol=1e-14 * scale)
        np.testing.assert_allclose(A.T @ np.eye(m), expected.T, rtol=0, atol=1e-14 * scale)
    assert A.host
    assert (A.T @ A).host if form != "at" else True


def test_vectors_belong_to_the_framework_asked_for(backend):
    M = np.array([[2.0, 1.0], [1.0, 3.0]])
    A = lg.from_scipy(sparse.csr_array(M), like=array(backend, np.zeros(1)), psd=True)
    assert A.backend is backend
    v = array(backend, [1.0, 2.0])
    assert backend.describe(A @ v) == backend.describe(v)
    np.testing.assert_array_equal(backend.to_numpy(A @ v), M @ [1.0, 2.0])
    shifted = lg.Damped(A, 1.0)
    assert shifted.psd
    assert shifted.host
    np.testing.assert_array_equal(backend.to_numpy(shifted @ v), (M + np.eye(2)) @ [1.0, 2.0])
    solution = lg.solve(shifted, v, lg.CG(rtol=1e-12)).x
    np.testing.assert_allclose(backend.to_numpy(solution), np.linalg.solve(M + np.eye(2), [1.0, 2.0]), rtol=1e-10)


def test_single_precision_is_kept():
    A = lg.from_scipy(sparse.csr_array(np.eye(2, dtype="float32")))
    assert A.dtype == "float32"
    assert (A @ np.ones(2, dtype="float32")).dtype == np.float32
    assert lg.from_scipy(sparse.csr_array(np.eye(2, dtype=int))).dtype == "float64"


def test_our_own_operators_come_back_as_they_are():
    A = lg.Diagonal(np.ones(2))
    assert lg.from_scipy(A) is A
    np.testing.assert_array_equal(dense(lg.from_scipy(lg.to_scipy(A))), np.eye(2))


@given(drawn=st.integers(2, 8).flatmap(lambda n: symmetric_matrices(n, ("spd", "indefinite"))))
def test_symmetry_of_sparse_matrices_is_found_and_claims_are_checked(drawn):
    M = sparse.csr_array(drawn.matrix)
    assert lg.from_scipy(M).symmetric
    assert not lg.from_scipy(M, symmetric=False).symmetric
    assert lg.from_scipy(M, psd=True).psd
    wrong = sparse.csr_array(np.triu(drawn.matrix) + np.triu(drawn.matrix, 1))
    assert not lg.from_scipy(wrong).symmetric
    for claim in ({"symmetric": True}, {"psd": True}):
        with pytest.raises(ValueError, match=r"not symmetric: entries \(\d+, \d+\) and \(\d+, \d+\) differ by"):
            lg.from_scipy(wrong, **claim)
    assert lg.from_scipy(M.multiply(1 + 1e-15).tocsr(), symmetric=True).symmetric


def test_claims_about_operators_are_taken():
    A = lg.from_scipy(splinalg.aslinearoperator(np.eye(2)), psd=True)
    assert A.psd
    assert A.symmetric
    assert A.T is A
    assert not lg.from_scipy(splinalg.aslinearoperator(np.eye(2))).symmetric


def test_what_cannot_be_an_operator_is_refused():
    with pytest.raises(TypeError, match=r"an object with a shape \(m, n\) and products; got builtins.float"):
        lg.from_scipy(3.0)
    with pytest.raises(TypeError, match="the operator is complex"):
        lg.from_scipy(sparse.csr_array(np.eye(2, dtype=complex)))
    with pytest.raises(ValueError, match="the sparse matrix holds 1 entries that are NaN"):
        lg.from_scipy(sparse.csr_array(np.array([[np.nan, 0.0]])))
    with pytest.raises(ValueError, match=r"shape \(1, 2\) cannot be symmetric"):
        lg.from_scipy(sparse.csr_array(np.ones((1, 2))), symmetric=True)

    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"layout torch.sparse_coo, not a torch array: x.to_dense\(\) is one, and lg"):
        lg.from_scipy(torch.eye(2).to_sparse())
    with pytest.raises(TypeError, match=r"a dense array of torch: write lg.Dense\(x\)"):
        lg.from_scipy(torch.eye(2))

    class Shaped:
        shape = (2, 2)

    with pytest.raises(TypeError, match=r"Shaped has neither matvec nor @"):
        lg.from_scipy(Shaped())
    with pytest.raises(NotImplementedError, match="has no adjoint product"):
        lg.from_scipy(OnlyAt(np.ones((1, 2)))).T @ np.ones(1)


def test_results_of_the_wrong_shape_or_kind_are_refused():
    wrong = Steps(np.ones((3, 2)))
    wrong.shape = (2, 2)
    with pytest.raises(ValueError, match=r"a product computed on the host has shape \(3,\); expected \(2,\)"):
        lg.from_scipy(wrong) @ np.ones(2)
    surprising = Steps(np.ones((2, 2)))
    surprising.matrix = np.ones((2, 2), dtype=complex)
    with pytest.raises(TypeError, match="a product computed on the host is complex"):
        lg.from_scipy(surprising) @ np.ones(2)


def test_a_product_that_returns_its_input_is_copied():
    A = lg.from_scipy(splinalg.LinearOperator((2, 2), matvec=lambda x: x, dtype=float), symmetric=True)
    v = np.ones(2)
    v.setflags(write=False)
    assert not np.shares_memory(A @ v, v)
    assert (lg.Damped(A, 1.0) @ v).tolist() == [2.0, 2.0]


def test_products_on_the_host_cannot_be_compiled(jax):
    A = lg.from_scipy(sparse.eye_array(2), like=jax.numpy.zeros(1))
    with pytest.raises(TypeError, match="cannot be part of a compiled program"):
        jax.jit(lambda v: A @ v)(jax.numpy.ones(2))
