"""Records go through JAX's transformations as trees of data."""

from typing import Any

import jax
import jax.numpy as jnp
import linop_gn_jax  # noqa: F401  (registers records)
import numpy as np
import pytest
from jax import tree_util

from linop_gn.records import memo, record, replace, static


@record
class Inner:
    scale: Any
    name: str = static(default="inner")


@record
class Outer:
    matrix: Any
    children: tuple[Any, ...] = ()
    missing: Any = None
    function: Any = static(default=jnp.sin)

    def __post_init__(self):
        if np.ndim(self.matrix) != 2:
            raise ValueError("a matrix is needed")


@pytest.fixture
def outer():
    return Outer(jnp.arange(6.0).reshape(2, 3), (Inner(2.0), {"x": Inner(jnp.ones(3), "other")}))


def test_data_are_leaves_and_static_fields_are_structure(outer):
    leaves, structure = tree_util.tree_flatten(outer)
    assert [np.shape(leaf) for leaf in leaves] == [(2, 3), (), (3,)]
    again = tree_util.tree_unflatten(structure, leaves)
    assert again.function is jnp.sin
    assert again.missing is None
    assert again.children[1]["x"].name == "other"
    np.testing.assert_array_equal(again.matrix, outer.matrix)


def test_unflatten_runs_no_initialiser_and_drops_what_was_cached(outer):
    memo(outer).prepared = "a cache"
    emptied = tree_util.tree_map(lambda leaf: object(), outer)  # no matrix in sight, and no complaint
    assert type(emptied) is Outer
    assert memo(emptied).prepared is None


def test_leaves_are_named_by_field(outer):
    paths = [tree_util.keystr(path) for path, _ in tree_util.tree_flatten_with_path(outer)[0]]
    assert paths == [".matrix", ".children[0].scale", ".children[1]['x'].scale"]


def test_numbers_in_data_fields_do_not_recompile(outer):
    traces = []

    @jax.jit
    def apply(o, v):
        traces.append(1)
        return o.children[0].scale * o.function(o.matrix @ v)

    for scale in (1.0, 2.0, 3.0):
        changed = replace(outer, children=(Inner(scale), outer.children[1]))
        np.testing.assert_allclose(apply(changed, jnp.ones(3)), scale * np.sin([3.0, 12.0]), rtol=1e-6)
    assert len(traces) == 1
    apply(replace(outer, function=jnp.cos), jnp.ones(3))
    assert len(traces) == 2


def test_grad_and_vmap_go_through_a_record(outer):
    gradient = jax.grad(lambda o: jnp.sum(o.matrix**2) * o.children[0].scale)(outer)
    np.testing.assert_allclose(gradient.matrix, 4.0 * outer.matrix)
    np.testing.assert_allclose(gradient.children[0].scale, 55.0)
    stacked = tree_util.tree_map(lambda leaf: jnp.stack([jnp.asarray(leaf), 2 * jnp.asarray(leaf)]), outer)
    np.testing.assert_allclose(jax.vmap(lambda o: o.matrix @ jnp.ones(3))(stacked), [[3.0, 12.0], [6.0, 24.0]])


def test_a_record_type_made_later_is_registered_too():
    @record
    class Late:
        value: Any

    assert tree_util.tree_leaves(Late(jnp.ones(2)))[0].shape == (2,)


def test_a_static_field_that_cannot_be_hashed_is_named():
    @record
    class Wrong:
        data: Any
        settings: Any = static(default=None)

    with pytest.raises(TypeError, match=r"static field 'settings' of .*Wrong holds a ndarray.*data field"):
        jax.jit(lambda w: w.data)(Wrong(1.0, np.ones(3)))
