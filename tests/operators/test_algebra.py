"""Random expressions of the algebra against dense NumPy, and what stays known about them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.expressions import expressions
from linop_gn.testing.strategies import array, dtypes, sizes


def draw_expression(data, backend, square=None):
    dtype = data.draw(dtypes(backend))
    rows = data.draw(sizes(backend, 7))
    square = data.draw(st.booleans()) if square is None else square
    cols = rows if square else data.draw(sizes(backend, 7))
    return data.draw(expressions(backend, rows, cols, dtype)), dtype


def vectors(data, shape):
    return np.random.default_rng(data.draw(st.integers(0, 99))).uniform(-1, 1, shape)


def near(backend, result, expected, expression):
    np.testing.assert_allclose(
        np.asarray(backend.to_numpy(result), dtype=float), expected, rtol=0, atol=expression.tolerance
    )


@given(data=st.data())
def test_products_are_those_of_the_matrix(backend, data):
    expression, dtype = draw_expression(data, backend)
    A, matrix = expression.operator, expression.matrix
    m, n = A.shape
    assert matrix.shape == (m, n)
    assert A.dtype == dtype
    for shape in ((n,), (n, 2)):
        v = vectors(data, shape).astype(dtype)
        V = array(backend, v, dtype)
        result = A @ V
        assert backend.describe(result) == ((m, *shape[1:]), dtype, backend.describe(V)[2])
        near(backend, result, matrix @ v.astype(float), expression)
        np.testing.assert_array_equal(backend.to_numpy(V), v)


@given(data=st.data())
def test_adjoint_products_are_those_of_the_transpose(backend, data):
    expression, dtype = draw_expression(data, backend)
    A, matrix = expression.operator, expression.matrix
    adjoint = expression._replace(operator=A.T, matrix=matrix.T, bound=expression.bound.T)
    assert A.T.shape == A.shape[::-1]
    for shape in ((A.shape[0],), (A.shape[0], 2)):
        u = vectors(data, shape).astype(dtype)
        near(backend, A.T @ array(backend, u, dtype), matrix.T @ u.astype(float), adjoint)


@given(data=st.data())
def test_what_is_claimed_holds(numpy_backend, data):
    expression, _ = draw_expression(data, numpy_backend, square=True)
    A, matrix = expression.operator, expression.matrix
    assert A.symmetric or not A.psd
    if A.symmetric:
        assert A.T is A
        assert np.abs(matrix - matrix.T).max() <= expression.tolerance
    if A.psd:
        assert np.linalg.eigvalsh((matrix + matrix.T) / 2).min() >= -10 * expression.tolerance


@given(data=st.data())
def test_columns_are_stacked_products(numpy_backend, data):
    expression, dtype = draw_expression(data, numpy_backend)
    A = expression.operator
    V = vectors(data, (A.shape[1], 3)).astype(dtype)
    stacked = np.stack([A @ V[:, j] for j in range(3)], axis=1)
    near(numpy_backend, A @ V, stacked, expression)
    near(numpy_backend, A.to_dense(), dense(A), expression)


@given(data=st.data())
def test_inputs_may_be_read_only_and_results_are_new(numpy_backend, data):
    expression, dtype = draw_expression(data, numpy_backend)
    A = expression.operator
    for shape in ((A.shape[1],), (A.shape[1], 2)):
        v = vectors(data, shape).astype(dtype)
        v.setflags(write=False)
        result = A @ v
        assert not np.shares_memory(result, v)
        assert result.flags.writeable
        kept = result.copy()
        result[...] = np.nan
        np.testing.assert_array_equal(A @ v, kept)


@given(data=st.data())
def test_products_read_nothing_that_was_consumed(data):
    from linop_gn.testing import poison_backend

    expression, dtype = draw_expression(data, poison_backend)
    A = expression.operator
    v = array(poison_backend, vectors(data, (A.shape[1],)), dtype)
    before = np.array(v)
    first, second = A @ v, A @ v
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(v, before)
    near(poison_backend, first, expression.matrix @ before.astype(float), expression)


# flags


def square(n, seed=0):
    return lg.Dense(np.random.default_rng(seed).standard_normal((n, n)))


def psd(n, seed=0):
    M = square(n, seed).matrix
    return lg.Dense(M @ M.T, psd=True)


def indefinite(n):
    return lg.Diagonal(np.linspace(-1.0, 1.0, n))


def test_flags_survive_the_algebra():
    J, H, S, I = square(3), psd(3), indefinite(3), lg.Identity(lg.Space.flat(3, np.zeros(1)))
    assert (J.T @ H @ J + 1e-2 * I).psd
    assert lg.Damped(J.T @ J, 0.1).psd
    assert (2 * H + H).psd
    assert ((J @ J).T @ H @ (J @ J)).psd
    assert (S @ S).psd
    assert (S @ H @ S).psd
    for symmetric in (J.T @ S @ J, H - S, -H, -2.0 * H, S + H, lg.Damped(S, 1.0)):
        assert symmetric.symmetric
        assert not symmetric.psd
    for unknown in (J, J @ H, H @ S, J @ H @ J, J + H, J.T @ H @ square(3, 1), lg.Damped(J, 1.0)):
        assert not unknown.symmetric
        assert not unknown.psd


def test_adjoints_undo_themselves():
    J, K = square(3), square(3, 1)
    assert J.T.T is J
    assert [factor.matrix is J.matrix for factor in (J @ K).T.T.factors] == [True, False]
    assert (J @ K).T.factors[0].operator is K
    np.testing.assert_allclose(dense((J @ K).T), (J.matrix @ K.matrix).T, atol=1e-14)


def test_sums_start_at_zero():
    A = psd(2)
    np.testing.assert_allclose(dense(sum([A, A, A])), 3 * A.matrix)


@pytest.mark.parametrize("factor", [2, 2.0, np.float32(2.0), np.float64(2.0), np.array(2.0)])
def test_factors_are_numbers_of_any_kind(factor):
    A = psd(2)
    for scaled in (factor * A, A * factor, A / (1 / factor)):
        assert scaled.psd
        np.testing.assert_allclose(dense(scaled), 2 * A.matrix)


def test_factors_may_be_arrays_without_axes(backend):
    A = lg.Diagonal(array(backend, [1.0, 2.0]))
    scaled = A * array(backend, 3.0)
    if backend.name != "array_api_strict":  # whose arrays refuse operands that they don't know
        scaled = array(backend, 3.0) * A
    assert scaled.psd
    np.testing.assert_array_equal(backend.to_numpy(scaled @ array(backend, [1.0, 1.0])), [3.0, 6.0])


# what is refused


def test_operators_of_different_sizes_cannot_be_combined():
    A, B = square(2), square(3)
    with pytest.raises(ValueError, match=r"cannot add .*2 x 2.* and .*3 x 3.*: their domains differ"):
        A + B
    with pytest.raises(ValueError, match=r"cannot compose .*2 x 2.* @ .*3 x 3.*: the left one takes vectors of"):
        A @ B


def test_operators_of_different_dtypes_or_frameworks_cannot_be_combined(backend, other):
    A = lg.Diagonal(array(backend, [1.0, 2.0]))
    for B in (lg.Diagonal(array(backend, [1.0, 2.0], "float32")), lg.Diagonal(array(other, [1.0, 2.0]))):
        with pytest.raises(ValueError, match="cannot add"):
            A + B
        with pytest.raises(ValueError, match="cannot compose"):
            A @ B


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_is_refused(factor):
    with pytest.raises(ValueError, match="an operator cannot be multiplied by"):
        factor * psd(2)


def test_a_factor_with_axes_is_refused():
    with pytest.raises(ValueError, match=r"not by an array of shape \(2,\); use @"):
        psd(2) * np.ones(2)
    with pytest.raises(TypeError):
        psd(2) * "two"
    with pytest.raises(TypeError):
        psd(2) + 1.0
