"""Kronecker factors of one's own, at the ends of the numbers' range: against dense float64 matrices."""

import re
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing.strategies import array, dtypes, seeds

IN_CI_ON_JAX = (
    "test_sums_of_half_precision_are_in_single",
    "test_the_heuristic_of_factors_in_other_units",
    "test_what_is_no_damping",
    "test_dampings_of_any_kind",
    "test_a_singular_operator_without_damping_is_told",
    "test_what_is_printed",
)

RANGE = {"float64": 290, "float32": 33}
"""Powers of ten that all numbers of a test stay below."""


def factor(seed, n, diagonal=False):
    """A psd matrix of size about one, or the diagonal of one."""
    A = np.random.default_rng(seed).standard_normal((n, n + 1))
    return np.sum(A * A, axis=1) if diagonal else A @ A.T


def product_of(backend, L, R, dtype="float64"):
    return lg.KroneckerBlocks.of(array(backend, L, dtype), array(backend, R, dtype))


def full(L, R):
    return np.kron(*(np.diag(side) if side.ndim == 1 else side for side in (L, R)))


@given(data=st.data(), seed=seeds())
def test_norms_at_any_scale(backend, data, seed):
    compiled = "compiled" in backend.capabilities
    dtype, diagonal = ("float32", False) if compiled else (data.draw(dtypes(backend)), data.draw(st.booleans()))
    whole = data.draw(st.integers(-RANGE[dtype], RANGE[dtype]))  # the power of ten of the product,
    first = data.draw(st.integers(max(-RANGE[dtype], whole - RANGE[dtype]), min(RANGE[dtype], whole + RANGE[dtype])))
    L, R = factor(seed, 3, diagonal), factor(seed + 1, 2)
    K = product_of(backend, 10.0**first * L, 10.0 ** (whole - first) * R, dtype)
    size, rel = np.linalg.norm(L) * np.linalg.norm(R), 1e-13 if dtype == "float64" else 1e-5
    assert float(lg.frobenius_norm(K).value) / 10.0**whole == pytest.approx(size, rel=rel)
    assert float(lg.frobenius_norm(0.5 * K).value) / 10.0**whole == pytest.approx(0.5 * size, rel=rel)
    damped = np.linalg.norm(full(L, R) + 2.0 * np.eye(6))
    assert float(lg.frobenius_norm(lg.Damped(K, 2.0 * 10.0**whole)).value) / 10.0**whole == pytest.approx(
        damped, rel=rel
    )
    assert float(lg.frobenius_norm(K.spectral()).value) / 10.0**whole == pytest.approx(size, rel=20 * rel)


def test_groups_have_units_of_their_own(backend):
    K = product_of(backend, np.eye(2), np.eye(2), "float32")
    place = K.places[0]._replace(weight=K.places[0].weight._replace(shape=(2, 2, 2), strides=(4, 2, 1)))
    L, R = (
        array(backend, np.array([[1.0, 1.0], [scale, scale]]), "float32") for scale in (1e-30, 1e30)
    )  # each group is I
    two = lg.KroneckerBlocks((type(K.blocks[0])(L, R),), (place,), lg.Space.flat(8, L))
    assert float(two.frobenius_norm()) == pytest.approx(8**0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_half_precision_are_in_single(backend, dtype):
    if backend.name not in ("torch", "jax") and (dtype, backend.name) != ("float16", "numpy"):
        pytest.skip("no such numbers")
    L, R = np.full(300, 1.0), np.full(300, 3.0)
    K = product_of(backend, L, R, dtype)
    assert float(K.trace()) == float(lg.trace(K).value) == 3.0 * 300**2
    assert float(lg.logdet(K).value) == pytest.approx(300**2 * np.log(3), rel=1e-4)
    assert float(lg.frobenius_norm(K).value) == pytest.approx(900, rel=1e-6)
    M = K.inverse(1.0)
    assert M.dtype == dtype
    assert float(M.trace()) == pytest.approx(300**2 / 4)
    assert backend.describe(M @ K.domain.zeros())[1] == dtype


@pytest.mark.parametrize(("left", "right"), [(1e-30, 1e30), (1e30, 1e-30), (1e18, 1e18), (0.0, 1.0), (1.0, 1.0)])
def test_the_heuristic_of_factors_in_other_units(backend, left, right):
    L, R = np.array([1.0, 3.0]), np.array([1.0, 2.0, 6.0])
    found = product_of(backend, left * L, right * R, "float32").inverse(1.0, rule="heuristic")
    pi = np.sqrt(right * 3.0) / np.sqrt(left * 2.0) if left else 1.0
    want = 1 / np.kron(left * L + 1 / pi, right * R + pi)
    np.testing.assert_allclose(np.diag(backend.to_numpy(found.to_dense())), want, rtol=1e-5)


def test_indefinite_factors_are_refused_where_that_is_seen(backend):
    for L in (np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[1.0, 1.001], [1.001, 1.0]])):
        K = product_of(backend, L, np.eye(2))
        for asked in (K.spectral, lambda K=K: K.inverse(1.0), lambda K=K: K.logdet(1.0), lambda K=K: lg.logdet(K)):
            with pytest.raises(ValueError, match=r"eigenvalue -.* not positive semi-definite"):
                asked()
    rounded = product_of(backend, np.ones((3, 3)) - 1e-16 * np.eye(3), np.eye(2))
    assert float(rounded.spectral().trace()) == pytest.approx(float(rounded.trace()))


def test_indefinite_factors_are_nan_in_a_trace(jax):
    K = product_of(lg.load("jax"), np.array([[1.0, 2.0], [2.0, 1.0]]), np.eye(2))
    assert np.isnan(jax.jit(lambda K: K.inverse(1.0).to_dense())(K)).all()


@pytest.mark.parametrize(
    ("damping", "message"),
    [
        ("a", "damping must be one number, got 'a'"),
        (None, "one number"),
        (True, "one number"),
        (np.ones(4), "one number"),
        (1j, "one number"),
        (-0.1, "finite number >= 0"),
        (np.inf, "finite number >= 0"),
        ({"x": 1.0}, r"damping names \['x'\]; expected one for each of the blocks \[''\]: .*default"),
        ({"": -1.0}, "finite number >= 0"),
    ],
)
def test_what_is_no_damping(backend, damping, message):
    K = product_of(backend, np.eye(2), np.eye(2))
    for asked in (K.inverse, K.logdet):
        with pytest.raises((TypeError, ValueError), match=message):
            asked(damping)


def test_dampings_of_any_kind(backend):
    K = product_of(backend, np.diag([1.0, 2.0]), np.eye(2), "float32")
    for damping in (1, 1.0, np.float64(1.0), np.ones(()), array(backend, 1.0, "float32")):
        for given_as in (damping, {"": damping}, MappingProxyType({"": damping})):
            M = K.inverse(given_as)
            assert float(M.trace()) == pytest.approx(2 * (1 / 2 + 1 / 3))
            assert float(K.logdet(given_as)) == pytest.approx(2 * np.log(6))
            assert M.dtype == "float32"


def test_a_damping_of_another_framework_is_refused(torch):
    K = product_of(lg.load("numpy"), np.eye(2), np.eye(2))
    with pytest.raises(TypeError, match=r"torch.Tensor, and the operator one of numpy: write float"):
        K.inverse(torch.tensor(1.0))


def test_a_singular_operator_without_damping_is_told(backend, recwarn):
    L, R = np.array([[1.0, 1.0], [1.0, 1.0]]), np.diag([1.0, 2.0, 0.0])
    K = product_of(backend, L, R)
    with pytest.warns(RuntimeWarning, match=r"eigenvalues of zero, the only one \(4 of 6\)"):
        M = K.inverse()
    np.testing.assert_allclose(backend.to_numpy(M.to_dense()), np.linalg.pinv(np.kron(L, R)), atol=1e-14)
    recwarn.clear()
    K.inverse(1e-30)
    assert np.isneginf(float(K.logdet()))
    product_of(backend, np.eye(2), R + np.eye(3)).inverse()
    assert not recwarn.list


def test_multiples_and_blocks_keep_their_determinants(backend):
    L, R = factor(0, 3), factor(1, 2)
    K, M = product_of(backend, L, R), np.kron(L, R)
    twice = np.kron(np.eye(2), M)
    blocks = lg.BlockDiagonal((K, 2.0 * K))
    twice[6:, 6:] *= 2
    for A, matrix in (
        (40 * K, 40 * M),
        (40 * lg.Damped(K, 0.1), 40 * (M + 0.1 * np.eye(6))),
        (0.5 * (40 * K), 20 * M),
        (blocks, twice),
        (3.0 * blocks, 3 * twice),
    ):
        for damping in (0.0, 0.3):
            found = lg.logdet(lg.Damped(A, damping), products=30)
            want = np.linalg.slogdet(matrix + damping * np.eye(len(matrix)))[1]
            assert (int(found.products), found.exact) == (0, True)
            assert float(found.value) == pytest.approx(want, rel=1e-10)
    for A in (-1.0 * K, 0.0 * K, lg.BlockDiagonal((K, lg.Dense(array(backend, M))))):
        assert A.known_logdet(1.0) is None


def test_the_determinant_of_a_multiple_in_a_program(jax):
    K = product_of(lg.load("jax"), factor(0, 2), factor(1, 2))
    found = jax.jit(lambda A, d: lg.logdet(lg.Damped(A, d)).value)(40 * K, 0.1)
    matrix = 40 * np.kron(factor(0, 2), factor(1, 2)) + 0.1 * np.eye(4)
    assert float(found) == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-10)


def test_the_root_of_an_inverse_draws_from_it(backend):
    L, R = factor(0, 3), factor(1, 2)
    K, M = product_of(backend, L, R), np.kron(L, R)
    for A, matrix in ((K.inverse(0.3), np.linalg.inv(M + 0.3 * np.eye(6))), (K, M)):
        root = backend.to_numpy(A.root().to_dense())
        np.testing.assert_allclose(root @ root.T, matrix, atol=1e-12 * np.abs(matrix).max())
        assert A.root().psd
        assert np.linalg.eigvalsh(root).min() > 0


def test_what_is_printed(backend):
    K = product_of(backend, np.eye(3), np.eye(2))
    known = re.escape(f"KroneckerBlocks(6 x 6, psd, {backend.name} float64; 1 block")
    assert re.fullmatch(known + r"\)", repr(K))
    assert re.fullmatch(known + r", inverse at damping 0.1\)", repr(K.inverse(0.1)))
    assert re.fullmatch(known + r"\)", repr(K.inverse(0.1).root()))


def test_what_is_printed_of_several_inverses(jax):
    K = product_of(lg.load("jax"), np.eye(3), np.eye(2))
    many = jax.vmap(K.inverse)(np.array([0.1, 0.2]))
    assert "inverse)" in repr(many)
