"""Complex systems, models and residuals as pairs, against NumPy's complex arithmetic."""

from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sparse
import scipy.sparse.linalg as splinalg
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg

IN_CI_ON_JAX = (
    "test_trees_are_made_and_unmade",
    "test_the_real_operator_is_the_complex_one",
    "test_systems_of_a_matrix",
)

rng = np.random.default_rng(0)


def complexes(*shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


R = complexes(9, 5)
HPD = R.conj().T @ R + np.eye(5)
INDEFINITE = HPD - 8.0 * np.eye(5)
B, WIDE_B = complexes(5), complexes(9)


@pytest.fixture(params=["numpy", "torch", "jax"])
def array(request):
    if request.param == "numpy":
        return np.array
    if request.param == "torch":
        return pytest.importorskip("torch").tensor
    return pytest.importorskip("jax").numpy.asarray


class Two(NamedTuple):
    a: object
    b: object


def test_trees_are_made_and_unmade(array):
    tree = {"z": array(B), "x": array(np.ones(2)), "more": [array(B[0]), (array(R),)], "two": Two(array(B), None)}
    real = lg.as_real(tree)
    assert "complex" not in str([leaf.dtype for leaf in lg.load("numpy").flatten(real)[1] if hasattr(leaf, "dtype")])
    assert isinstance(real["two"], Two)
    assert real["x"] is tree["x"]
    back = lg.as_complex(real)
    for ours, theirs in ((back["z"], B), (back["more"][0], B[0]), (back["more"][1][0], R), (back["two"].a, B)):
        np.testing.assert_array_equal(np.asarray(ours), theirs)
        assert type(ours) is type(tree["z"])
    np.testing.assert_array_equal(np.asarray(lg.as_real(array(R), stacked=True)), np.stack([R.real, R.imag], axis=-1))
    assert lg.as_real(tree["x"]) is tree["x"]


def test_python_numbers():
    np.testing.assert_array_equal(lg.as_complex(lg.as_real([1, 2j])), [1, 2j])
    assert lg.as_complex(lg.as_real({"a": 1 + 2j, "b": 3.0})) == {"a": 1 + 2j, "b": 3.0}


def test_the_real_operator_is_the_complex_one(array):
    A = lg.complex_operator(array(R))
    assert not A.symmetric
    blocks = np.block([[R.real, -R.imag], [R.imag, R.real]])
    np.testing.assert_allclose(np.asarray(A.to_dense()), blocks)
    np.testing.assert_allclose(np.asarray(A.T.to_dense()), blocks.T)
    np.testing.assert_allclose(np.asarray(lg.as_complex(A @ lg.as_real(array(B)))), R @ B)
    np.testing.assert_allclose(np.asarray(lg.as_complex(A.T @ lg.as_real(array(WIDE_B)))), R.conj().T @ WIDE_B)
    assert lg.complex_operator(array(HPD)).symmetric == bool((HPD == HPD.conj().T).all())
    assert lg.complex_operator(array(HPD), psd=True).psd


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 6), n=st.integers(1, 6), wide=st.booleans())
def test_products_adjoints_and_inner_products_are_those_of_complex_numbers(seed, m, n, wide):
    draw, dtype = np.random.default_rng(seed), np.complex128 if wide else np.complex64
    M, z, w = ((draw.standard_normal(s) + 1j * draw.standard_normal(s)).astype(dtype) for s in ((m, n), n, m))
    A, size = lg.complex_operator(M), 1.0 + np.linalg.norm(M) ** 2 + np.linalg.norm(z) ** 2 + np.linalg.norm(w) ** 2
    close = {"rtol": 0, "atol": 20 * np.finfo(dtype).eps * size**1.5}  # each is of degree 3 at most
    product = lg.as_complex(A @ lg.as_real(z))
    assert product.dtype == dtype
    np.testing.assert_allclose(product, M @ z, **close)
    np.testing.assert_allclose(lg.as_complex(A.T @ lg.as_real(w)), M.conj().T @ w, **close)
    flat = [A.domain.pack(lg.as_real(z)), A.T.domain.pack(lg.as_real(w)), A.codomain.pack(lg.as_real(product))]
    np.testing.assert_allclose(flat[1] @ flat[2], np.vdot(w, M @ z).real, **close)
    H = M.conj().T @ M
    H = (H + H.conj().T) / 2
    assert lg.complex_operator(H).symmetric
    np.testing.assert_allclose(
        np.linalg.eigvalsh(lg.complex_operator(H).to_dense())[::2], np.linalg.eigvalsh(H), **close
    )


SYSTEMS = {
    "CG": (HPD, B, {"psd": True}, lg.CG(rtol=1e-12)),
    "MINRES": (INDEFINITE, B, {"hermitian": True}, lg.MINRES(rtol=1e-12)),
    "LSMR": (R, WIDE_B, {}, lg.LSMR(atol=1e-12, btol=1e-12)),
    "LSQR": (R, WIDE_B, {}, lg.LSQR(atol=1e-12, btol=1e-12)),
    "Cholesky": (HPD, B, {"psd": True}, lg.Cholesky()),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_of_a_matrix(array, name):
    A, b, known, solver = SYSTEMS[name]
    solved = lg.solve(lg.complex_operator(array(A), **known), lg.as_real(array(b)), solver)
    assert solved.succeeded
    np.testing.assert_allclose(np.asarray(lg.as_complex(solved.x)), np.linalg.lstsq(A, b, rcond=None)[0], rtol=1e-8)


def test_cg_takes_the_steps_of_complex_cg():
    seen = []
    splinalg.cg(HPD, B, rtol=1e-10, callback=lambda x: seen.append(np.copy(x)))
    A, b = lg.complex_operator(HPD, psd=True), lg.as_real(B)
    for k in (1, 2, 4):
        x = lg.as_complex(lg.solve(A, b, lg.CG(steps=k)).x)
        np.testing.assert_allclose(x, seen[k - 1], rtol=1e-8)
    assert abs(int(lg.solve(A, b, lg.CG(rtol=1e-10)).steps) - len(seen)) <= 1


WAYS = {
    "sparse": lambda A: (sparse.csr_array(A), {}),
    "LinearOperator": lambda A: (splinalg.aslinearoperator(A), {}),
    "function": lambda A: (lambda z, A: A @ z, {"like": A[0], "codomain": A[:, 0], "args": (A,), "adjoint": _across}),
}


def _across(u, A):
    return A.conj().T @ u


@pytest.mark.parametrize("way", WAYS)
def test_systems_of_what_is_no_array(way):
    for name in ("CG", "MINRES", "LSMR"):
        A, b, known, solver = SYSTEMS[name]
        A = (A + A.conj().T) / 2 if known else A
        given, more = WAYS[way](A)
        operator = lg.complex_operator(given, **known, **more)
        x = lg.as_complex(lg.solve(operator, lg.as_real(b), solver).x)
        np.testing.assert_allclose(x, np.linalg.lstsq(A, b, rcond=None)[0], rtol=1e-8)
        np.testing.assert_allclose(operator.T.to_dense(), operator.to_dense().T, atol=1e-12)
    assert lg.complex_operator(sparse.csr_array((HPD + HPD.conj().T) / 2)).symmetric


def test_validation_holds_the_real_operator():
    assert lg.validate(lg.complex_operator(HPD, psd=True)).passed


# models and residuals


def signal(p, t):
    """A damped oscillation: complex parameters, a real one, complex outputs."""
    xp = lg.namespace(t)
    return p["amplitude"] * xp.exp(p["pole"] * t) + p["offset"]


T = np.linspace(0.0, 3.0, 24)
TRUE = {"amplitude": np.array(1.5 - 0.5j), "pole": np.array(-0.3 + 2.0j), "offset": np.array(0.25)}
Y = TRUE["amplitude"] * np.exp(TRUE["pole"] * T) + TRUE["offset"]
START = {"amplitude": np.array(1.0 + 0.0j), "pole": np.array(-0.1 + 1.8j), "offset": np.array(0.0)}


def close(params, tolerance):
    for name, value in TRUE.items():
        np.testing.assert_allclose(np.asarray(params[name]), value, atol=tolerance)


def test_least_squares_of_complex_residuals(array):
    start = lg.as_real({name: array(value) for name, value in START.items()})
    t, y = array(T), array(Y)
    fit = lg.least_squares(lg.as_real(lambda p: signal(p, t) - y), start)
    assert fit.success
    assert tuple(fit.fun.shape) == (24, 2)
    close(lg.as_complex(fit.x), 1e-6)


def test_a_complex_jacobian_saves_the_differences():
    def jac(p):
        wave = np.exp(p["pole"] * T)
        return {"amplitude": wave, "pole": p["amplitude"] * T * wave, "offset": np.ones(24)}

    calls = []

    def residuals(p):
        calls.append(p)
        return signal(p, T) - Y

    given = lg.as_real(jac, jacobian=True)
    fit = lg.least_squares(lg.as_real(residuals), lg.as_real(START), given)
    assert fit.success
    close(lg.as_complex(fit.x), 1e-8)
    assert len(calls) <= 3 * fit.steps + 5
    J = given(lg.as_real(START))
    assert J["pole"].re.shape == J["pole"].im.shape == J["offset"].shape == (24, 2)
    # At a matrix of parameters, against the real Jacobian by differences.
    Z, h = complexes(2, 3), 1e-6

    def r(Z):
        return (Z @ np.array([1.0, 2j, 3.0])) ** 2

    def dr(Z):
        return 2 * (Z @ np.array([1.0, 2j, 3.0]))[:, None, None] * np.eye(2)[:, :, None] * np.array([1.0, 2j, 3.0])

    pair, real = lg.as_real(Z), lg.as_real(r)
    made = lg.as_real(dr, jacobian=True)(pair)
    for part in ("re", "im"):
        step = np.zeros((2, 3))
        step[1, 2] = h
        moved = [real(pair._replace(**{part: getattr(pair, part) + s * step})) for s in (1, -1)]
        np.testing.assert_allclose(getattr(made, part)[..., 1, 2], (moved[0] - moved[1]) / (2 * h), atol=1e-7)


@pytest.mark.parametrize("array", ["torch", "jax"], indirect=True)
def test_models_and_their_curvature(array):
    params = lg.as_real({name: array(value) for name, value in START.items()})
    data = array(T), lg.as_real(array(Y), stacked=True)
    objective = lg.Objective(lg.as_real(signal), lg.losses.SquaredError(), data)
    z, mean = START["amplitude"] * np.exp(START["pole"] * T), np.mean
    r = z + START["offset"] - Y
    np.testing.assert_allclose(float(objective.value(params)), mean(abs(r) ** 2) / 2)
    gradient = lg.as_complex(objective.gradient(params))
    slopes = {"amplitude": np.exp(START["pole"] * T), "pole": T * z}
    for name, slope in slopes.items():  # dL/d re + i dL/d im = mean(conj(dz/dp) r) of a holomorphic function
        np.testing.assert_allclose(np.asarray(gradient[name]), mean(slope.conj() * r))
    J = np.stack([slopes["amplitude"], 1j * slopes["amplitude"], np.ones(24), slopes["pole"], 1j * slopes["pole"]], 1)
    names = ["amplitude.re", "amplitude.im", "offset", "pole.re", "pole.im"]
    G, space = np.asarray(lg.GGN(objective, params).to_dense()), lg.Space.of(params)
    order = [space.names.index(name) for name in names]
    np.testing.assert_allclose(G[np.ix_(order, order)], (J.conj().T @ J).real / 24, atol=1e-12)
    run = lg.minimize(objective, params, lg.LevenbergMarquardt(), max_steps=100)
    assert run.succeeded
    close(lg.as_complex(run.params), 1e-5)


def test_models_by_autograd():
    pytest.importorskip("autograd")
    data = T, lg.as_real(Y, stacked=True)
    objective = lg.Objective(lg.as_real(signal), lg.losses.SquaredError(), data, derivatives="autograd")
    run = lg.minimize(objective, lg.as_real(START), lg.LevenbergMarquardt(), max_steps=100)
    close(lg.as_complex(run.params), 1e-5)


def test_functions_that_are_not_holomorphic():
    jnp = pytest.importorskip("jax").numpy
    target = jnp.asarray(abs(B))
    fit = lg.least_squares(lg.as_real(lambda z: abs(z) - target), lg.as_real(jnp.asarray(B + 0.3j)))
    np.testing.assert_allclose(abs(lg.as_complex(fit.x)), abs(B), rtol=1e-6)
    value = lg.Objective.from_function(lg.as_real(lambda z: (abs(z - target) ** 2).sum()))
    np.testing.assert_allclose(lg.Hessian(value, lg.as_real(jnp.asarray(B))).to_dense(), 2 * np.eye(10), atol=1e-12)


def test_equal_functions_are_one_program():
    assert lg.as_real(signal) == lg.as_real(signal)
    assert hash(lg.as_real(signal)) == hash(lg.as_real(signal))


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="not Hermitian, by"):
        lg.complex_operator(R[:5], hermitian=True)
    with pytest.raises(ValueError, match=r"shape \(9, 5\) is not Hermitian"):
        lg.complex_operator(R, psd=True)
    with pytest.raises(TypeError, match="like= is a complex tree"):
        lg.complex_operator(lambda z: z)
    with pytest.raises(TypeError, match="are for functions"):
        lg.complex_operator(R, args=(1,))
    with pytest.raises(TypeError, match=r"of shape \(5,\)"):
        lg.complex_operator(B)
    with pytest.raises(TypeError, match=r"lg\.complex_operator"):
        lg.as_real(lg.Dense(np.eye(2)))
    with pytest.raises(TypeError, match="take its arrays out"):
        lg.as_real({"a": object()})
    with pytest.raises(TypeError, match=r"pairs of real ones by lg\.as_real"):
        lg.Space.of(B)
    with pytest.raises(TypeError, match=r"lg\.complex_operator"):
        lg.from_scipy(sparse.csr_array(HPD))


def test_what_is_not_known_to_be_hermitian_is_told_in_its_own_words():
    b = np.array([1.0, 1j])
    A = lg.complex_operator(lambda z: 2.0 * z, b)
    with pytest.raises(ValueError, match=r"of lg.complex_operator hermitian=True"):
        lg.solve(A, lg.as_real(b), lg.CG())
    with pytest.raises(ValueError, match=r"of lg.complex_operator hermitian=True"):
        lg.eigsh(A, 1)
    A = lg.complex_operator(lambda z: 2.0 * z, b, hermitian=True, psd=True)
    np.testing.assert_allclose(lg.as_complex(lg.solve(A, lg.as_real(b), lg.CG()).x), b / 2)
