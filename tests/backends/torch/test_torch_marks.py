"""A mark is another one when an array that a model reads holds other bits, and is found quickly where it does not."""

import gc

import numpy as np
import pytest
from linop_gn_torch import marks
from linop_gn_torch.marks import mark


def reading(table):
    return lambda x: x + table.sum()


@pytest.mark.parametrize("dtype", ["float64", "float32", "int8", "complex64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (70_001,), (3, 5)])
def test_every_change_is_seen(dtype, shape):
    table = np.ones(shape, dtype)
    function = reading(table)
    before = mark(function)
    assert mark(function) == before
    assert hash(mark(function)) == hash(before)
    if table.size:
        table.reshape(-1)[-1] = 0
        after = mark(function)
        assert after != before
        table.reshape(-1)[-1] = 1
        assert mark(function) == before != after


def test_bits_and_not_values():
    table = np.array([0.0, np.nan])
    function = reading(table)
    before = mark(function)
    assert mark(function) == before  # though NaN is not equal to itself
    table[0] = -0.0
    assert mark(function) != before


def test_views_are_compared_as_they_are():
    whole = np.arange(12.0).reshape(3, 4)
    function = reading(whole.T[::2])
    before = mark(function)
    whole[0, 1] = -1.0  # which the view leaves out
    assert mark(function) == before
    whole[0, 2] = -1.0
    assert mark(function) != before


def test_nothing_is_copied_again_and_copies_go_with_their_arrays():
    table = np.arange(4.0)
    function = reading(table)
    (first,) = (x for x in mark(function) if isinstance(x, marks._Bits))
    (again,) = (x for x in mark(function) if isinstance(x, marks._Bits))
    assert again is first
    key = id(table)
    del function, table
    gc.collect()
    assert key not in marks._latest
