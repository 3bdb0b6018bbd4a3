"""What every operator does with the vectors that it is given, and inside compiled programs."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing.strategies import array


def two_leaves(backend, dtype="float64"):
    return {"bias": array(backend, np.arange(2.0), dtype), "weight": array(backend, np.ones((2, 3)), dtype)}


@pytest.fixture
def operator(backend):
    """The diagonal 1 .. 8 on a tree of two leaves."""
    space = lg.Space.of(two_leaves(backend))
    return lg.Diagonal(array(backend, np.arange(1.0, 9.0)), domain=space)


def test_the_format_given_is_the_format_returned(backend, operator):
    tree = operator @ two_leaves(backend)
    np.testing.assert_array_equal(backend.to_numpy(tree["bias"]), [0.0, 2.0])
    np.testing.assert_array_equal(backend.to_numpy(tree["weight"]), np.arange(3.0, 9.0).reshape(2, 3))
    flat = array(backend, np.ones(8))
    np.testing.assert_array_equal(backend.to_numpy(operator @ flat), np.arange(1.0, 9.0))
    np.testing.assert_array_equal(backend.to_numpy(operator(flat)), np.arange(1.0, 9.0))
    columns = backend.to_numpy(operator @ array(backend, np.ones((8, 2))))
    np.testing.assert_array_equal(columns, np.arange(1.0, 9.0)[:, None] * np.ones(2))


def test_a_tree_maps_to_the_tree_of_the_codomain(backend):
    domain = lg.Space.of(two_leaves(backend))
    codomain = lg.Space.of([array(backend, np.zeros((1, 2)))])
    A = lg.Dense(array(backend, np.ones((2, 8))), domain=domain, codomain=codomain)
    assert backend.to_numpy((A @ two_leaves(backend))[0]).tolist() == [[7.0, 7.0]]
    back = A.T @ [array(backend, np.ones((1, 2)))]
    assert backend.to_numpy(back["weight"]).tolist() == [[2.0] * 3] * 2
    assert backend.describe(A @ array(backend, np.ones(8)))[0] == (2,)


def test_the_matrix_is_that_of_the_products(backend, operator):
    np.testing.assert_array_equal(backend.to_numpy(operator.to_dense()), np.diag(np.arange(1.0, 9.0)))


def test_operators_read_as_shape_and_knowledge(backend, operator):
    assert repr(operator) == f"Diagonal(8 x 8, psd, {backend.name} float64)"
    assert repr(-operator) == f"Scaled(8 x 8, symmetric, {backend.name} float64)"
    assert repr(lg.Dense(array(backend, np.ones((1, 2))))) == f"Dense(1 x 2, general, {backend.name} float64)"


# what is refused


def test_wrong_vectors_are_refused_with_what_was_expected(backend, other, operator):
    with pytest.raises(ValueError, match=r"has shape \(7,\); expected a tree with leaves .*, a flat array \(8,\) or"):
        operator @ array(backend, np.ones(7))
    with pytest.raises(TypeError, match="has dtype float32, expected float64; cast it first"):
        operator @ array(backend, np.ones(8), "float32")
    with pytest.raises(TypeError, match=f"belongs to {other.name} but the operator to {backend.name}"):
        operator @ array(other, np.ones(8))
    with pytest.raises(ValueError, match=r"missing \['bias'\], unexpected nothing"):
        operator @ {"weight": array(backend, np.ones((2, 3)))}
    with pytest.raises(TypeError, match="no array of a known framework"):
        operator @ [1.0, 2.0]


def test_an_operator_without_an_adjoint_says_how_to_give_one(backend):
    space, target = lg.Space.flat(2, array(backend, np.zeros(1))), lg.Space.flat(1, array(backend, np.zeros(1)))
    A = lg.FunctionOperator(lambda v: v[:1], space, target)
    with pytest.raises(NotImplementedError, match="pass adjoint_function="):
        A.T @ array(backend, np.ones(1))


def test_a_class_that_lacks_a_method_is_named():
    class Mine(lg.LinearOperator):
        domain = lg.Space.flat(2, np.zeros(1))

    with pytest.raises(NotImplementedError, match="Mine does not define matvec"):
        Mine() @ np.ones(2)
    with pytest.raises(NotImplementedError, match="Mine has no adjoint product; give it rmatvec"):
        Mine().T @ np.ones(2)


# work done once


def test_preparing_is_done_once_and_reaches_the_parts():
    calls = []

    @lg.record
    class Lazy(lg.LinearOperator):
        values: object
        ready: bool = lg.static(default=False)

        @property
        def domain(self):
            return lg.Space.flat(3, self.values)

        def _prepare(self):
            calls.append(self)
            return lg.replace(self, ready=True)

        def prepare(self):
            return self if self.ready else super().prepare()

        def matvec(self, v):
            assert self.ready
            return self.values * v

        rmatvec = matvec

    lazy = Lazy(np.arange(3.0))
    A = lg.Damped(lazy.T @ lazy + lg.BlockDiagonal((lazy,), domain=lazy.domain), 1.0)
    for _ in range(3):
        assert (A @ np.ones(3)).tolist() == [1.0, 3.0, 7.0]
    assert len(calls) == 1


# compiled programs


def test_operators_are_arguments_of_compiled_programs(jax):
    jnp, traced = jax.numpy, []

    @jax.jit
    def product(A, v):
        traced.append(A)
        return A @ v

    for seed in range(3):
        rng = np.random.default_rng(seed)
        M, d, U = rng.standard_normal((3, 3)), rng.standard_normal(3) ** 2, rng.standard_normal((3, 1))
        J = lg.Dense(jnp.asarray(M), symmetric=False)
        A = lg.Damped(J.T @ lg.Diagonal(jnp.asarray(d)) @ J + lg.LowRank(jnp.asarray(U)), 0.1 * seed)
        v = rng.standard_normal(3)
        expected = M.T @ (d * (M @ v)) + U @ (U.T @ v) + 0.1 * seed * v
        np.testing.assert_allclose(product(A, jnp.asarray(v)), expected, rtol=1e-12)
    assert len(traced) == 1


def test_operators_can_be_made_inside_compiled_programs(jax):
    jnp = jax.numpy

    @jax.jit
    def run(M, d, v):
        known = lg.Dense(jnp.eye(2)), lg.Diagonal(jnp.ones(2))  # constants of the program
        A = lg.Dense(M, psd=True) + lg.Diagonal(d) + lg.LowRank(M, d) + sum(known)
        assert not A.psd
        return lg.Damped(A, d[0]) @ v, (d[1] * A).to_dense()

    M, d, v = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([0.5, -0.25]), np.array([1.0, 2.0])
    A = M + np.diag(d) + (M * d) @ M.T + 2 * np.eye(2)
    product, matrix = run(M, d, v)
    np.testing.assert_allclose(product, A @ v + 0.5 * v, rtol=1e-12)
    np.testing.assert_allclose(matrix, -0.25 * A, rtol=1e-12)


def test_operators_can_be_batched_and_differentiated(jax):
    jnp = jax.numpy
    d = jnp.asarray(np.arange(6.0).reshape(2, 3))
    products = jax.vmap(lambda row: lg.Diagonal(row) @ jnp.ones(3))(d)
    np.testing.assert_array_equal(products, d)
    gradient = jax.grad(lambda c: (lg.Damped(lg.Diagonal(d[1]), c) @ jnp.ones(3)).sum())(0.5)
    assert float(gradient) == 3.0


def test_what_is_no_operator_is_told_how_to_become_one():
    objective = lg.Objective.from_residuals(lambda p: p, jacobian=lambda p: np.eye(2))
    for given in (objective, objective.at(np.ones(2))):
        for ask in (lg.trace, lg.validate, lg.cost, lg.inverse, lambda A: lg.solve(A, np.ones(2))):
            with pytest.raises(TypeError, match=r"needs a linear operator.*lg\.GGN\(objective, params\)"):
                ask(given)
    with pytest.raises(TypeError, match=r"solve needs a linear operator, got ndarray; wrap a matrix in lg\.Dense"):
        lg.solve(np.eye(2), np.ones(2))
