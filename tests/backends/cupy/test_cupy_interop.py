"""To cupyx and from it: the same matrix both ways, and nothing that passes through the host."""

import importlib

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.strategies import matrices


@pytest.fixture(scope="module")
def sparse(ops):
    importlib.import_module("cupyx.scipy.sparse.linalg")
    return importlib.import_module("cupyx.scipy.sparse")


def matrix_of(sparse, host):
    return sparse.csr_matrix(scipy.sparse.csr_matrix(host))


def read(counts):
    """How often the host has read from the device, as far as anybody counts."""
    return counts and counts["read"]


def device_array(ops, values, dtype="float64", device="cuda:0"):
    return ops.asarray(np.asarray(values), dtype, device)


@given(data=st.data(), dtype=st.sampled_from(["float64", "float32"]), last=st.booleans())
def test_sparse_matrices_have_products_on_their_device(ops, cupy, sparse, counts, data, dtype, last):
    device = ops.devices()[-1 if last else 0]
    m, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    M = (data.draw(matrices(m, n)) * (np.arange(m * n).reshape(m, n) % 3 > 0)).astype(dtype)
    with cupy.cuda.Device(device[-1]):
        A = lg.from_scipy(matrix_of(sparse, M))
    assert A.backend is ops
    assert (A.dtype, A.domain.device, A.host) == (dtype, device, False)
    v, V, u = (device_array(ops, np.ones(shape), dtype, device) for shape in (n, (n, 2), m))
    before = read(counts)
    results = A @ v, A @ V, A.T @ u
    assert read(counts) == before
    assert {ops.describe(x)[1:] for x in results} == {(dtype, device)}
    scale = 1e-5 * max(1.0, np.abs(M).max())
    np.testing.assert_allclose(dense(A), M, rtol=0, atol=scale)
    np.testing.assert_allclose(dense(A.T), M.T, rtol=0, atol=scale)
    np.testing.assert_allclose(results[1].get(), M @ np.ones((n, 2)), rtol=0, atol=scale)


def test_a_sparse_least_squares_problem_is_solved_on_the_device(ops, sparse):
    rng = np.random.default_rng(0)
    M = rng.standard_normal((30, 8)) * (rng.random((30, 8)) < 0.4)
    J, r = lg.from_scipy(matrix_of(sparse, M)), rng.standard_normal(30)
    R = device_array(ops, r)
    step = lg.solve(lg.Damped(J.T @ J, 0.1), J.T @ R, lg.CG(rtol=1e-12))
    expected = np.linalg.solve(M.T @ M + 0.1 * np.eye(8), M.T @ r)
    np.testing.assert_allclose(step.x.get(), expected, rtol=1e-8)


def test_a_supplied_jacobian_may_be_sparse(ops, sparse):
    rng = np.random.default_rng(1)
    M = rng.standard_normal((12, 4)) * (rng.random((12, 4)) < 0.6)
    y = rng.standard_normal(12)

    def gauss_newton(array, jacobian):
        loss, data = lg.losses.SquaredError(), (array(M), array(y))
        return lg.GGN(lg.Objective(lambda p, x: x @ p, loss, data, jacobian=lambda p, x: jacobian), array(np.zeros(4)))

    G = gauss_newton(lambda values: device_array(ops, values), matrix_of(sparse, M))
    assert G.backend is ops
    np.testing.assert_allclose(dense(G), dense(gauss_newton(np.asarray, M)), atol=1e-12)


def test_symmetry_of_sparse_matrices_is_found_and_claims_are_checked(ops, sparse):
    M = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert lg.from_scipy(matrix_of(sparse, M)).symmetric
    assert lg.from_scipy(matrix_of(sparse, M), psd=True).psd
    wrong = matrix_of(sparse, np.array([[2.0, 1.0], [0.0, 3.0]]))
    assert not lg.from_scipy(wrong).symmetric
    with pytest.raises(ValueError, match="not symmetric: entries"):
        lg.from_scipy(wrong, psd=True)
    with pytest.raises(ValueError, match="holds 1 entries that are NaN"):
        lg.from_scipy(matrix_of(sparse, np.array([[np.nan, 1.0]])))


def test_linear_operators_of_cupyx(ops, cupy, sparse, counts):
    M = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5]])
    D, E = device_array(ops, M), device_array(ops, M.T)
    theirs = sparse.linalg.LinearOperator((2, 3), D.__matmul__, rmatvec=E.__matmul__, dtype=np.dtype("float64"))
    A = lg.from_scipy(theirs)
    v = device_array(ops, np.ones(3))
    before = read(counts)
    product = A @ v
    assert read(counts) == before
    np.testing.assert_allclose(product.get(), M.sum(axis=1))
    np.testing.assert_allclose(dense(A), M)
    np.testing.assert_allclose(dense(A.T @ A), M.T @ M)
    single = lg.from_scipy(theirs, like=device_array(ops, [0.0], "float32"))
    narrow = single @ device_array(ops, np.ones(3), "float32")
    assert str(narrow.dtype) == single.dtype == "float32"
    np.testing.assert_allclose(narrow.get(), M.sum(axis=1), rtol=1e-6)
    identity = sparse.linalg.LinearOperator((3, 3), lambda x: x, dtype=np.dtype("float64"))
    assert (lg.from_scipy(identity, psd=True) @ v) is not v


def test_what_is_not_of_cupyx_goes_the_way_of_scipy(ops):
    A = lg.from_scipy(scipy.sparse.eye_array(3))
    assert A.host
    assert A.backend.name == "numpy"
    over_the_host = lg.from_scipy(scipy.sparse.eye_array(3), like=device_array(ops, [0.0]))
    assert over_the_host.host
    assert ops.is_array(over_the_host @ device_array(ops, np.ones(3)))


def test_like_of_another_framework_is_refused(ops, sparse):
    with pytest.raises(TypeError, match="has products on cupy arrays, but like= belongs to numpy"):
        lg.from_scipy(matrix_of(sparse, np.eye(2)), like=np.zeros(1))


def test_cupyx_sees_the_same_matrix(ops, counts):
    from linop_gn_cupy import to_cupyx

    M = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5]])
    theirs = to_cupyx(lg.Dense(device_array(ops, M)))
    assert (theirs.shape, theirs.dtype) == ((2, 3), np.float64)
    eyes = device_array(ops, np.eye(3)), device_array(ops, np.eye(2))
    before = read(counts)
    forward, backward = theirs.matmat(eyes[0]), theirs.rmatmat(eyes[1])
    column = theirs.matvec(device_array(ops, np.ones((3, 1))))
    assert read(counts) == before
    np.testing.assert_allclose(forward.get(), M)
    np.testing.assert_allclose(backward.get(), M.T)
    np.testing.assert_allclose(column.get(), M.sum(axis=1, keepdims=True))
    converted = to_cupyx(lg.Diagonal(device_array(ops, [1.0, 2.0], "float32"))).matvec(device_array(ops, [1.0, 1.0]))
    assert converted.dtype == np.float32
    again = lg.from_scipy(to_cupyx(lg.Dense(device_array(ops, M))))
    np.testing.assert_allclose(dense(again), M)


def test_products_are_arrays_of_their_own(ops):
    from linop_gn_cupy import to_cupyx

    x = device_array(ops, np.ones(3))
    result = to_cupyx(lg.Identity(lg.Space.flat(3, x))).matvec(x)
    result += 1.0
    assert x.get().tolist() == [1.0] * 3


def test_trees_are_flat_vectors_to_cupyx(ops):
    from linop_gn_cupy import to_cupyx

    A = to_cupyx(lg.Diagonal({"a": device_array(ops, [1.0]), "b": device_array(ops, [[2.0, 3.0]])}))
    np.testing.assert_allclose(A.matmat(device_array(ops, np.eye(3))).get(), np.diag([1.0, 2.0, 3.0]))


def test_what_cupyx_cannot_take_is_refused(ops):
    from linop_gn_cupy import to_cupyx

    with pytest.raises(TypeError, match="the operator belongs to numpy"):
        to_cupyx(lg.Diagonal(np.ones(2)))
    with pytest.raises(TypeError, match="a real operator was applied to a complex vector"):
        to_cupyx(lg.Diagonal(device_array(ops, np.ones(2)))).matvec(ops.asarray(np.ones(2), "complex128"))
