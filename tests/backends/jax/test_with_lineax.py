"""Operators of lineax in our solvers and ours in lineax's, and both ways back."""

import numpy as np
import pytest

import linop_gn as lg

jax, lx = pytest.importorskip("jax"), pytest.importorskip("lineax")
jnp = jax.numpy


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


rng = np.random.default_rng(0)
R = rng.standard_normal((5, 3))
S = R.T @ R + np.eye(3)


def tree_function(v):
    return {"a": 2.0 * v["a"], "b": 3.0 * v["b"] + v["a"].sum()}


def theirs():
    structure = {"a": jax.ShapeDtypeStruct((2,), jnp.float64), "b": jax.ShapeDtypeStruct((), jnp.float64)}
    matrix = lx.MatrixLinearOperator(jnp.asarray(R))
    psd = lx.MatrixLinearOperator(jnp.asarray(S), lx.positive_semidefinite_tag)
    vector = jnp.asarray([1.0, 2.0, 3.0])
    return {
        "matrix": (matrix, "Dense"),
        "psd": (psd, "Dense"),
        "tagged": (lx.TaggedLinearOperator(lx.MatrixLinearOperator(jnp.asarray(S)), lx.symmetric_tag), "Dense"),
        "diagonal": (lx.DiagonalLinearOperator(vector), "Diagonal"),
        "identity": (lx.IdentityLinearOperator(jax.ShapeDtypeStruct((3,), jnp.float64)), "Identity"),
        "function": (lx.FunctionLinearOperator(tree_function, structure), "FunctionOperator"),
        "jacobian": (lx.JacobianLinearOperator(lambda x, _: jnp.sin(x) * x[0], vector), "FunctionOperator"),
        "sum": (2.0 * psd + lx.DiagonalLinearOperator(vector), "FunctionOperator"),
        "product": (matrix.T @ matrix, "FunctionOperator"),
    }


@pytest.mark.parametrize("name", theirs())
def test_theirs_come_in_with_products_adjoints_and_what_is_known(name):
    theirs_, kind = theirs()[name]
    A = lg.from_lineax(theirs_)
    assert type(A).__name__ == kind
    assert A.symmetric == (lx.is_symmetric(theirs_) or lx.is_positive_semidefinite(theirs_))
    assert A.psd == (lx.is_positive_semidefinite(theirs_) or name in ("diagonal", "identity"))
    np.testing.assert_allclose(A.to_dense(), theirs_.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(A.T.to_dense(), theirs_.as_matrix().T, atol=1e-14)


def test_theirs_are_data():
    def solved(matrix, b):
        operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        A = lg.from_lineax(operator + lx.IdentityLinearOperator(operator.in_structure()))
        return lg.solve(A, b, lg.CG(rtol=1e-12)).x

    program = jax.jit(solved)
    for scale in (1.0, 2.0):
        found = program(jnp.asarray(scale * S), jnp.ones(3))
        np.testing.assert_allclose(found, np.linalg.solve(scale * S + np.eye(3), np.ones(3)), rtol=1e-9)
    assert program._cache_size() == 1


def test_ours_in_their_solvers_as_one_program():
    def model(p, x):
        return jnp.tanh(x @ p["w"]) + p["b"]

    objective = lg.Objective(model, lg.losses.SquaredError(), (jnp.asarray(R), jnp.ones(5)))
    program = jax.jit(lambda A, b: lx.linear_solve(A, b, lx.CG(rtol=1e-10, atol=1e-12)).value)
    for scale in (0.1, 0.3):
        params = {"w": jnp.asarray([scale, 0.2, 0.3]), "b": jnp.zeros(())}
        A, b = lg.Damped(lg.GGN(objective, params), 0.1), objective.gradient(params)
        wanted = np.linalg.solve(np.asarray(A.to_dense()), np.asarray(A.domain.pack(b)))
        for found in (program(lg.to_lineax(A), b), lx.linear_solve(lg.to_lineax(A), b).value):
            np.testing.assert_allclose(A.domain.pack(found), wanted, rtol=1e-7)
    assert program._cache_size() == 1


OURS = {
    "general": lambda: lg.Dense(jnp.asarray(R)),
    "psd": lambda: lg.Dense(jnp.asarray(S), psd=True),
    "diagonal": lambda: lg.Diagonal(jnp.asarray([1.0, 2.0, 3.0])),
}


@pytest.mark.parametrize("name", OURS)
def test_ours_answer_what_lineax_asks(name):
    A = OURS[name]()
    made, matrix = lg.to_lineax(A), np.asarray(A.to_dense())
    np.testing.assert_allclose(made.as_matrix(), matrix)
    np.testing.assert_allclose(made.T.as_matrix(), matrix.T)
    assert (made.out_size(), made.in_size()) == matrix.shape
    assert lx.is_symmetric(made) == A.symmetric
    assert lx.is_positive_semidefinite(made) == A.psd
    assert lx.is_diagonal(made) == lx.is_tridiagonal(made) == (name == "diagonal")
    assert not lx.is_negative_semidefinite(made)
    assert lx.linearise(made) is made
    assert lx.conj(made) is made
    assert isinstance(lx.materialise(made), lx.MatrixLinearOperator)
    if name != "general":
        np.testing.assert_allclose(lx.diagonal(made), np.diag(matrix))
        np.testing.assert_allclose(lx.tridiagonal(made)[1], np.diag(matrix, -1))
        twice = lx.linear_solve(made + made, jnp.ones(3)).value
        np.testing.assert_allclose(twice, np.linalg.solve(2 * matrix, np.ones(3)), rtol=1e-9)
    else:
        found = lx.linear_solve(made, jnp.ones(5), lx.AutoLinearSolver(well_posed=False)).value
        np.testing.assert_allclose(found, np.linalg.lstsq(R, np.ones(5), rcond=None)[0], rtol=1e-9)


def test_there_and_back():
    A = lg.Dense(jnp.asarray(S), psd=True)
    again = lg.from_lineax(lg.to_lineax(A))
    assert again.psd
    np.testing.assert_allclose(again.to_dense(), S)
    back = lg.to_lineax(lg.from_lineax(lx.DiagonalLinearOperator(jnp.ones(3))))
    assert lx.is_diagonal(back)


def test_what_cannot_be_used_is_refused():
    with pytest.raises(TypeError, match=r"lg\.as_real"):
        lg.from_lineax(lx.MatrixLinearOperator(1j * jnp.eye(2)))
    with pytest.raises(TypeError, match=r"lg\.Dense\(x\)"):
        lg.from_lineax(np.eye(2))
    with pytest.raises(TypeError, match="has vectors of numpy"):
        lg.to_lineax(lg.Dense(np.eye(2)))
    with pytest.raises(TypeError, match=r"takes an lg\.LinearOperator"):
        lg.to_lineax(np.eye(2))
    with pytest.raises(TypeError, match="computed on the host"):
        lg.to_lineax(lg.from_scipy(lg.to_scipy(lg.Dense(np.eye(2))), like=jnp.ones(2)))
