"""A mark is another one when an array that a model reads holds other bits, and is found quickly where it does not."""

import gc
from array import array
from collections import deque
from dataclasses import dataclass

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


def finding(held):
    return lambda x: (x, held)


@dataclass(slots=True)
class Slotted:
    scale: float


def put(place, value):
    return lambda held: held.__setitem__(place, value)


@pytest.mark.parametrize(
    ("held", "change"),
    [
        ([0.0], put(0, -0.0)),
        ([0j], put(0, complex(-0.0, 0.0))),
        (np.array([1.0, 2.0], dtype=object), put(0, 5.0)),
        (np.ma.array([1.0, 2.0]), put(0, np.ma.masked)),
        (np.zeros(5, np.dtype([("a", "i1"), ("b", "f8")], align=True)), put(0, (1, 2.0))),
        (deque([1.0]), put(0, 2.0)),
        (bytearray(b"ab"), put(0, 1)),
        (array("d", [0.0]), put(0, -0.0)),
        (Slotted(1.0), lambda held: setattr(held, "scale", 2.0)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_change_in_place_is_seen_wherever_numbers_are(held, change):
    function = finding(held)
    before = mark(function)
    assert mark(function) == before
    change(held)
    assert mark(function) != before


def test_a_nan_is_one():
    held = [float("nan")]
    function = finding(held)
    before = mark(function)
    held[0] = float("nan") + 0.0
    assert mark(function) == before


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
