"""Spaces: trees to flat vectors and back, and what is refused on the way."""

import pickle
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linop_gn import Space, backend_of
from linop_gn.testing.strategies import array, layouts, seeds, tree


def host(backend, leaves):
    return [np.array(backend.to_numpy(leaf)) for leaf in leaves]


def two_leaves(backend, dtype="float64"):
    return {"bias": array(backend, np.arange(2.0), dtype), "weight": array(backend, np.ones((2, 3)), dtype)}


@given(layout=layouts(), seed=seeds(), k=st.integers(1, 3))
def test_columns_unpack_to_leaves_with_a_trailing_axis(numpy_backend, layout, seed, k):
    space = Space.of(tree(numpy_backend, layout, seed))
    columns = np.random.default_rng(seed).standard_normal((space.size, k))
    whole = numpy_backend.flatten(space.unpack(columns))[1]
    for j in range(k):
        for leaf, part in zip(numpy_backend.flatten(space.unpack(columns[:, j]))[1], whole, strict=True):
            np.testing.assert_array_equal(part[..., j], leaf)


def test_read_only_arrays_can_be_packed_and_unpacked():
    leaf = np.arange(6.0).reshape(2, 3)
    leaf.setflags(write=False)
    space = Space.of([leaf])
    flat = space.pack([leaf])
    assert flat.flags.writeable
    flat.setflags(write=False)
    assert space.unpack(flat)[0].tolist() == leaf.tolist()


def test_a_mixed_tree_is_packed_in_the_wider_dtype_and_unpacked_in_its_own(backend):
    mixed = {"a": array(backend, [1.0], "float32"), "b": array(backend, [2.0], "float64")}
    space = Space.of(mixed)
    assert space.dtype == "float64"
    back = space.unpack(space.pack(mixed))
    assert [backend.describe(leaf)[1] for leaf in back.values()] == ["float32", "float64"]


def test_half_precisions_that_do_not_hold_each_other_are_packed_in_float32(torch):
    space = Space.of([torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.bfloat16)])
    assert space.dtype == "float32"


def test_equal_trees_have_equal_spaces(backend):
    one, two = Space.of(two_leaves(backend)), Space.of(two_leaves(backend))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Space.of(two_leaves(backend, "float32"))


def test_names_that_read_alike_are_told_apart():
    inner = {"a.b": np.zeros(1), "a": {"b": np.ones(2)}}
    space = Space.of(inner)
    assert len(space.slices) == 2
    assert space.size == 3
    np.testing.assert_array_equal(np.sort(space.pack(inner)), [0.0, 1.0, 1.0])


class Pair(NamedTuple):
    first: object
    second: object


def test_leaves_are_matched_by_name_where_containers_differ():
    space = Space.of({"first": np.zeros(1), "second": np.zeros(2)})
    vector = OrderedDict([("second", np.array([2.0, 3.0])), ("first", np.array([1.0]))])
    assert space.pack(vector).tolist() == [1.0, 2.0, 3.0]


def test_named_tuples_are_trees(backend):
    pair = Pair(array(backend, [1.0]), array(backend, [[2.0, 3.0]]))
    back = Space.of(pair).unpack(Space.of(pair).pack(pair))
    assert isinstance(back, Pair)
    assert backend.to_numpy(back.second).tolist() == [[2.0, 3.0]]


def test_random_vectors_are_the_same_numbers_on_every_backend(backend, numpy_backend):
    here, there = Space.flat(5, array(backend, np.zeros(1))), Space.flat(5, np.zeros(1))
    np.testing.assert_array_equal(backend.to_numpy(here.random(3)), there.random(3))
    np.testing.assert_array_equal(backend.to_numpy(here.random(3, columns=2)), there.random(3, columns=2))
    assert not np.array_equal(there.random(3), there.random(4))
    np.testing.assert_array_equal(backend.to_numpy(here.zeros(2)), np.zeros((5, 2)))


# entering


@pytest.mark.parametrize("form", ["tree", "flat", "columns"])
def test_what_enters_leaves_in_the_same_form(backend, form):
    space = Space.of(two_leaves(backend))
    v = {"tree": two_leaves(backend), "flat": space.random(0), "columns": space.random(0, 3)}[form]
    flat, leave = space.enter(v)
    assert backend.describe(flat)[0] == ((8, 3) if form == "columns" else (8,))
    assert isinstance(leave(flat, space), dict) == (form == "tree")


def test_a_single_array_of_two_axes_is_a_tree_of_one_leaf(backend):
    leaf = array(backend, np.arange(6.0).reshape(2, 3))
    space = Space.of(leaf)
    flat, leave = space.enter(leaf)
    assert backend.describe(flat)[0] == (6,)
    assert backend.describe(leave(flat, space))[0] == (2, 3)
    assert backend.describe(space.enter(space.random(0, 4))[0])[0] == (6, 4)


# what is refused


def test_a_leaf_that_is_no_real_number_is_named(backend):
    with pytest.raises(TypeError, match=r"leaf 'n' of the parameters has dtype int64; vectors are real"):
        Space.of({"n": array(backend, np.arange(3), "int64"), "w": array(backend, np.ones(2))})
    with pytest.raises(TypeError, match="the array has dtype bool"):
        Space.flat(2, array(backend, np.array([True, False]), "bool"))


def test_a_leaf_that_is_no_array_is_named(backend):
    with pytest.raises(TypeError, match=f"leaf 'rate' of the parameters is a float, not a {backend.name} array"):
        Space.of({"rate": 0.5, "w": array(backend, np.ones(2))})


def test_an_empty_tree_is_refused(backend):
    with pytest.raises(TypeError, match="no array of a known framework was found"):
        Space.of({})
    with pytest.raises(ValueError, match="the parameters hold no entries"):
        Space.of([array(backend, np.zeros((0, 3)))])


def test_mixed_frameworks_are_refused(backend, other):
    with pytest.raises(TypeError, match=rf"arrays of several frameworks are mixed \(.*{other.name}"):
        Space.of([array(backend, np.ones(2)), array(other, np.ones(2))])


def test_missing_and_unexpected_leaves_are_listed(backend):
    space = Space.of(two_leaves(backend))
    with pytest.raises(ValueError, match=r"missing \['weight'\], unexpected \['width'\]"):
        space.pack({"bias": array(backend, np.zeros(2)), "width": array(backend, np.ones((2, 3)))})


def test_a_leaf_of_another_shape_dtype_or_kind_is_named(backend, other):
    space, good = Space.of(two_leaves(backend)), two_leaves(backend)
    with pytest.raises(ValueError, match=r"leaf 'bias' of the vector has shape \(3,\), expected \(2,\)"):
        space.pack({**good, "bias": array(backend, np.zeros(3))})
    with pytest.raises(TypeError, match=r"leaf 'bias' of the vector has dtype float32, expected float64; cast it"):
        space.pack({**good, "bias": array(backend, np.zeros(2), "float32")})
    with pytest.raises(TypeError, match=rf"leaf 'bias' of the vector is a .*, not a {backend.name} array"):
        space.pack({**good, "bias": array(other, np.zeros(2))})


def test_vectors_of_another_framework_are_refused(backend, other):
    space = Space.of(two_leaves(backend))
    for v in (array(other, np.zeros(8)), two_leaves(other)):
        with pytest.raises(TypeError, match=f"belongs to {other.name} but the operator to {backend.name}"):
            space.enter(v)


def test_flat_vectors_of_another_shape_or_dtype_are_refused(backend):
    space = Space.of(two_leaves(backend))
    for shape in ((7,), (7, 2), (8, 2, 2), ()):
        with pytest.raises(ValueError, match=r"has shape .*; expected"):
            space.enter(array(backend, np.zeros(shape)))
        with pytest.raises(ValueError, match=r"has shape .*; expected \(8,\) or \(8, k\)"):
            space.check(array(backend, np.zeros(shape)))
    with pytest.raises(TypeError, match="has dtype float32, expected float64"):
        space.enter(array(backend, np.zeros(8), "float32"))


@pytest.mark.strict
def test_arrays_on_another_device_are_refused():
    strict = pytest.importorskip("linop_gn.testing.strict")
    here = strict.strict_backend.asarray(np.ones(2), "float64", strict.HOST)
    there = strict.strict_backend.asarray(np.ones(2), "float64", strict.DEVICE)
    with pytest.raises(ValueError, match=r"the parameters lie on several devices \('a' on .*'b' on"):
        Space.of({"a": here, "b": there})
    with pytest.raises(ValueError, match=r"is on .*device1.*, expected .*CPU_DEVICE.*; move it first"):
        Space.of({"a": here}).pack({"a": there})
    assert not Space.of(here).agrees(Space.of(there))


def test_a_space_reads_as_its_size_and_kind(backend):
    assert repr(Space.of(two_leaves(backend))).startswith(f"Space(8 in 2 leaves, {backend.name} float64")
    assert backend_of(two_leaves(backend)) is backend


def test_a_loop_that_asks_at_every_step_gets_one_space(backend):
    assert Space.of(two_leaves(backend)) is Space.of(two_leaves(backend))


def test_a_tree_is_known_again_or_looked_at_in_full(backend, torch):
    first, other = two_leaves(backend), np if backend.name == "torch" else torch
    space = Space.of(first)
    assert [a is b for a, b in zip(space.again(first), backend.flatten(first)[1], strict=True)] == [True, True]
    unlike = [
        None,
        1.0,
        first["bias"],
        list(first.values()),
        first | {"more": first["bias"]},
        two_leaves(backend, "float32"),
    ]
    unlike += [first | {"bias": part} for part in (first["weight"], 2.0, other.ones(2), {"a": first["bias"]})]
    unlike += [first | {3: first["bias"]}, {"bias": other.ones(2), "weight": other.ones((2, 3))}]
    assert [space.again(tree) for tree in unlike] == [None] * len(unlike)


def test_a_hash_stays_in_its_process(numpy_backend):
    """Strings hash differently in another one, and an equal space made there must be found."""
    space = Space.of(two_leaves(numpy_backend))
    hash(space)
    assert "_hash" not in space.__getstate__()
    there = pickle.loads(pickle.dumps(space))
    assert there == space
    assert hash(there) == hash(space)
