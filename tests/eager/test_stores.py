"""Tables of scalars and shelves of vectors, on every backend, plain and with an index for each column."""

import numpy as np
import pytest

from linop_gn.testing.strategies import array


def plain(backend, x):
    return np.asarray(backend.read(x), dtype=float)


def test_scalars_become_one(backend):
    b = array(backend, np.ones(3))
    whole = backend.stack([backend.dot(b, b), backend.max_abs(b)])
    np.testing.assert_array_equal(plain(backend, whole), [3.0, 1.0])


@pytest.mark.parametrize("columns", [None, 2])
def test_a_table_holds_what_was_written(backend, columns):
    like = backend.scalar(0.0, array(backend, np.ones((3,) if columns is None else (3, columns))))
    table = backend.table(4, like)
    index = backend.scalar(0, array(backend, np.ones((3,) if columns is None else (3, columns))))
    shift = np.arange(columns or 1) if columns else 0
    for i in range(6):
        table = backend.write(table, (index + i + shift) % 4, like + 10.0 * i)
    for i in range(2, 6):
        np.testing.assert_array_equal(plain(backend, backend.lookup(table, (index + i + shift) % 4)), 10.0 * i)


def test_a_constant_table_is_looked_up(backend):
    constant = np.array([3, 1, 4, 1, 5])
    for shape in ((2,), (2, 3)):
        index = backend.scalar(2, array(backend, np.ones(shape)))
        np.testing.assert_array_equal(plain(backend, backend.lookup(constant, index)), np.full(shape[1:], 4.0))
        np.testing.assert_array_equal(plain(backend, backend.lookup(constant > 2, index)), np.full(shape[1:], 1.0))


def test_a_shelf_holds_copies(backend):
    x, y = np.arange(3.0), np.ones(3)
    X = array(backend, x)
    shelf = backend.shelf(3, X)
    index = backend.scalar(0, X)
    shelf = backend.put(shelf, index + 2, X, True)
    backend.scale(2.0, X)
    shelf = backend.put(shelf, index, array(backend, y), index == 0)
    np.testing.assert_array_equal(plain(backend, backend.get(shelf, 2)), x)
    np.testing.assert_array_equal(plain(backend, backend.get(shelf, 0)), y)
    assert not plain(backend, backend.get(shelf, 1)).any()


def test_each_column_has_its_own_place(backend):
    x = np.arange(6.0).reshape(3, 2)
    X = array(backend, x)
    shelf, index = backend.shelf(3, X), backend.scalar(0, X)
    shelf = backend.put(shelf, index + np.array([0, 2]), X, index == 0)
    shelf = backend.put(shelf, index + np.array([1, 0]), array(backend, -x), index == 0)
    expected = np.stack([np.stack([x[:, 0], -x[:, 1]], 1), np.stack([-x[:, 0], 0 * x[:, 1]], 1)])
    np.testing.assert_array_equal([plain(backend, backend.get(shelf, i)) for i in range(2)], expected)
    np.testing.assert_array_equal(plain(backend, backend.get(shelf, 2)), np.stack([0 * x[:, 0], x[:, 1]], 1))
