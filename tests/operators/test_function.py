"""Operators from users' functions: what they return is checked, and copied."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.strategies import array


def flat(backend, size, dtype="float64"):
    return lg.Space.flat(size, array(backend, np.zeros(1), dtype))


def test_functions_on_flat_vectors(backend):
    M = array(backend, np.arange(6.0).reshape(2, 3))
    A = lg.FunctionOperator(lambda v, m: m @ v, flat(backend, 3), flat(backend, 2), lambda u, m: m.T @ u, args=(M,))
    np.testing.assert_array_equal(dense(A), np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(dense(A.T), np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(backend.to_numpy(A.to_dense()), np.arange(6.0).reshape(2, 3))


def test_functions_on_trees(backend):
    space = lg.Space.of({"a": array(backend, np.zeros(1)), "b": array(backend, np.zeros((1, 2)))})

    def swap(tree, factor):
        return {"a": factor * tree["b"][0, :1], "b": tree["a"][None, :] * array(backend, np.ones((1, 2)))}

    A = lg.FunctionOperator(swap, space, args=(2.0,), on="tree")
    np.testing.assert_array_equal(dense(A), [[0, 2, 0], [1, 0, 0], [1, 0, 0]])
    result = A @ {"a": array(backend, [5.0]), "b": array(backend, [[1.0, 2.0]])}
    assert backend.to_numpy(result["b"]).tolist() == [[5.0, 5.0]]


def test_results_that_alias_the_input_or_a_buffer_are_copied():
    buffer = np.array([7.0, 8.0])
    for function in (lambda v: v, lambda v: v[:], lambda v: buffer):
        A = lg.FunctionOperator(function, flat(lg.load("numpy"), 2), symmetric=True)
        v = np.array([1.0, 2.0])
        v.setflags(write=False)
        result = (A + A) @ v
        assert not np.shares_memory(result, v)
        assert not np.shares_memory(A @ v, buffer)
    assert buffer.tolist() == [7.0, 8.0]
    tree = lg.FunctionOperator(lambda t: t, lg.Space.of([np.zeros(2)]), psd=True, on="tree")
    v = np.array([1.0, 2.0])
    assert not np.shares_memory(tree @ v, v)


def test_results_that_somebody_keeps_are_copied(numpy_backend):
    """Wherever a function may keep what it returns: another product must not change it."""
    kept, cache = [], {}

    class Keeper:
        def product(self, v):
            self.latest = 2.0 * v
            return self.latest

    keeper, default = Keeper(), np.zeros(2)

    def appended(v):
        kept.append(2.0 * v)
        return kept[-1]

    def cached(v):
        return cache.setdefault("only", 2.0 * v)

    def from_default(v, made=default):
        return np.multiply(v, 2.0, out=made)

    def later():
        made = np.zeros(2)
        while True:
            v = yield made
            made = 2.0 * v

    generator = later()
    next(generator)
    functions = {
        keeper.product: lambda: keeper.latest,
        appended: lambda: kept[-1],
        cached: lambda: cache["only"],
        from_default: lambda: default,
        generator.send: lambda: generator.gi_frame.f_locals["made"],
        lambda v: np.ascontiguousarray((2.0 * v)[None])[0]: lambda: default,
    }
    for function, held in functions.items():
        A = lg.FunctionOperator(function, flat(numpy_backend, 2), symmetric=True)
        result = A @ np.array([1.0, 2.0])
        assert not np.shares_memory(result, held())
        result *= 5.0
        np.testing.assert_array_equal((A @ np.array([1.0, 2.0])), [2.0, 4.0])


def test_results_that_nobody_keeps_are_not_copied(numpy_backend):
    where = []

    def product(v):
        made = 2.0 * v
        where.append(made.ctypes.data)
        return made

    A = lg.FunctionOperator(product, flat(numpy_backend, 1000), symmetric=True)
    result = A.apply(np.ones(1000))
    assert result.ctypes.data == where[-1]


def test_symmetric_functions_are_their_own_adjoint(backend):
    A = lg.FunctionOperator(lambda v: 2.0 * v, flat(backend, 2), psd=True)
    assert A.psd
    assert A.symmetric
    assert A.T is A
    np.testing.assert_array_equal(backend.to_numpy(A.rmatvec(array(backend, np.ones(2)))), [2.0, 2.0])


def test_wrong_results_are_named_after_the_function(backend, other):
    def product(v):
        return wrong

    A = lg.FunctionOperator(product, flat(backend, 3), flat(backend, 2))
    v = array(backend, np.ones(3))
    name = r"the result of test_wrong_results.*product"
    wrong = array(backend, np.ones(3))
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\); expected \(2,\)"):
        A @ v
    wrong = array(backend, np.ones((2, 1)))
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 1\); expected \(2,\). Products are asked for one"):
        A @ v


def test_results_of_another_dtype_or_framework_are_refused(backend, other):
    v = array(backend, np.ones(2))
    A = lg.FunctionOperator(lambda v, w: w, flat(backend, 2), args=(array(backend, np.ones(2), "float32"),))
    with pytest.raises(TypeError, match="has dtype float32, expected float64"):
        A @ v
    B = lg.FunctionOperator(lambda v: [1.0, 2.0], flat(backend, 2))
    with pytest.raises(TypeError, match=f"is a list, not a {backend.name} array"):
        B @ v
    C = lg.FunctionOperator(lambda t: {"b": t["a"]}, lg.Space.of({"a": v}), on="tree")
    with pytest.raises(ValueError, match=r"missing \['a'\], unexpected \['b'\]"):
        C @ {"a": v}


def test_wrong_arguments_are_refused():
    space = lg.Space.flat(2, np.zeros(1))
    with pytest.raises(TypeError, match="function must be callable, got a ndarray"):
        lg.FunctionOperator(np.eye(2), space)
    with pytest.raises(TypeError, match=r"the domain must be a Space, got int: use Space.of"):
        lg.FunctionOperator(lambda v: v, 2)
    with pytest.raises(TypeError, match="adjoint_function must be callable"):
        lg.FunctionOperator(lambda v: v, space, adjoint_function=3)
    with pytest.raises(ValueError, match='on is "flat" or "tree", got'):
        lg.FunctionOperator(lambda v: v, space, on="leaves")
    with pytest.raises(ValueError, match="cannot be symmetric"):
        lg.FunctionOperator(lambda v: v[:1], space, lg.Space.flat(1, np.zeros(1)), symmetric=True)


def test_args_are_data_of_the_program(jax):
    jnp, traced = jax.numpy, []

    def product(v, M, c):
        traced.append(1)
        return M @ v + c * v

    space = lg.Space.flat(2, jnp.zeros(1))
    for c in (0.0, 1.0, 2.0):
        A = lg.FunctionOperator(product, space, args=(jnp.eye(2) * c, c))
        np.testing.assert_array_equal(A @ jnp.ones(2), [2 * c, 2 * c])
    assert len(traced) == 1
