"""Blocks side by side on sharded parameters: their numbers are those of one device, by one collective for all."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from systems import in_full

import linop_gn as lg

jax = pytest.importorskip("jax")
jnp = jax.numpy
from sharded import (  # noqa: E402
    PARAMS,
    RNG,
    SHAPES,
    SHARDED,
    Here,
    close,
    laid_out_like,
    loops,
    lowered,
    one,
    spread,
)

pytestmark = [
    pytest.mark.devices,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices: nox -s devices"),
]

UNEVEN = PARAMS | {"b2": RNG.standard_normal(3), "W2": RNG.standard_normal((16, 3))}
TWO = {"odd": ["W1", "b2"], "even": ["W2", "b1"]}
LEAVES = ((0, 3), (1,), (2,))


def by_leaves(function: Any, params: Any, *others: Any) -> list[Any]:
    """Of the leaves of each block, together."""
    trees = [[np.ravel(leaf) for leaf in jax.tree.leaves(tree)] for tree in (params, *others)]
    return [function(*(np.concatenate([tree[i] for i in block]) for tree in trees)) for block in LEAVES]


@pytest.mark.parametrize(
    ("layout", "params"),
    [
        ("split by tensor", UNEVEN),
        pytest.param("data and model", PARAMS, marks=in_full),
        pytest.param("fully sharded", PARAMS, marks=in_full),
    ],
)
def test_numbers_of_blocks_are_those_of_their_leaves(layout, params):
    here = spread(layout, params)
    space, v = here.ggn.domain, here.gradient
    x, y = space.pack(here.params), space.pack(v)
    np.testing.assert_allclose(space.layout.by_block("dot", LEAVES, x, y), by_leaves(np.dot, here.params, v), 1e-13)
    largest = space.layout.by_block("max_abs", LEAVES, x)
    np.testing.assert_array_equal(largest, by_leaves(lambda x: abs(x).max(), here.params))
    numbers = space.layout.of_blocks(jnp.asarray([3.0, jnp.nan, 5.0]), LEAVES, x)
    for leaf, wanted in zip(jax.tree.leaves(space.unpack(numbers)), (3.0, np.nan, 5.0, 3.0), strict=True):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, wanted))
    assert space.width == space.size or float(numbers[-1]) == 0.0  # at the ends of parts nothing comes of a block


def test_what_is_not_finite_on_one_device_is_seen_on_all():
    """The largest of several devices leaves out a NaN that one of them has."""
    ops, here = lg.load("jax"), spread("split by tensor")
    space = here.ggn.domain
    for i, bad in ((0, np.nan), (7, np.nan), (3, -np.inf)):
        v = space.pack({**here.params, "b2": here.params["b2"].at[i].set(bad)})
        found = space.layout.by_block("max_abs", LEAVES, v)
        assert np.isfinite(found).tolist() == [False, True, True]
        np.testing.assert_array_equal(ops.max_abs(v), abs(bad))
        np.testing.assert_array_equal(ops.max_abs(jnp.stack([v, 0 * v + 1], axis=1))[0], abs(bad))


def test_many_entries_in_single_precision_are_added_up_as_safely_as_those_of_a_vector():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    tree = [jax.device_put(jnp.full(n, 0.1, jnp.float32), s) for n, s in ((2**20, cut), (2**17, cut.update(spec=())))]
    space = lg.Space.of(tree)
    found = space.layout.by_block("dot", ((0,), (1,)), space.pack(tree), space.pack(tree))
    np.testing.assert_allclose(found, np.float64(np.float32(0.1)) ** 2 * np.array([2**20, 2**17]), 1e-6)


def test_a_leaf_without_entries_is_in_no_block():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    tree = [jnp.ones((0, 2)), jax.device_put(jnp.arange(16.0), cut)]
    space = lg.Space.of(tree)
    numbers = space.layout.by_block("max_abs", ((1,),), space.pack(tree))
    np.testing.assert_array_equal(numbers, [15.0])
    np.testing.assert_array_equal(space.unpack(space.layout.of_blocks(numbers, ((1,),), None))[1], np.full(16, 15.0))


def test_groups_of_leaves_move_as_on_one_device():
    ops, o = lg.load("jax"), lg.optimisers
    each = o.Groups({"still": "b*", "moved": "*"}, {"still": o.SGD(), "moved": o.Clip(o.SGD(), 1.0)})
    found = []
    for here in (spread("split by tensor", UNEVEN), one(UNEVEN)):
        space = lg.Space.of(here.params)
        x = space.pack(here.params)
        step, _ = each.update(ops, space, 2.0 * x, each.init(ops, space, x), x, ops.scalar(0.1, x))
        found.append(space.unpack(step))
    close(*found)


def test_parameters_that_are_not_finite_are_named():
    here = spread("split by tensor", UNEVEN)
    bad = here.params | {"b2": here.params["b2"].at[1].set(np.nan)}
    with pytest.raises(ValueError, match=r"hold NaN or infinity in \['b2'\]"):
        here.objective.at(bad)


METHODS = {
    "CG": lg.CG(rtol=1e-10),
    "MINRES": lg.MINRES(rtol=1e-10),
    "CG, kept": lg.CG(steps=9, keep=1.3),
    "CG, Jacobi": lg.CG(rtol=1e-10, preconditioner=lg.preconditioners.Jacobi(diagonal="estimate")),
    "CG, blocks": lg.CG(rtol=1e-10, preconditioner=lg.preconditioners.BlockJacobi(blocks="leaf")),
    "Neumann": lg.Neumann(max_steps=20),
}
SOME = {("CG", "split by tensor"): "leaf", ("CG", "fully sharded"): "leaf", ("MINRES", "data and model"): TWO}
SOME |= {(name, "fully sharded"): TWO for name in METHODS if name != "CG"}


def operator(here: Here, blocks: Any = "leaf") -> Any:
    return lg.Damped(lg.BlockGGN(here.objective, here.params, blocks=blocks), 0.1)


@in_full
@pytest.mark.parametrize(("case", "blocks"), SOME.items())
def test_blocks_are_solved_as_on_one_device(case, blocks):
    name, layout = case
    here, there = spread(layout), one()
    got, want = (lg.solve(operator(h, blocks), h.gradient, lg.Blockwise(METHODS[name])) for h in (here, there))
    close(got.x, want.x, 1e-8)
    assert laid_out_like(got.x, here.params)
    assert (got.blocks, got.status) == (want.blocks, want.status)
    assert max(abs(np.asarray(got.steps) - np.asarray(want.steps))) <= 1
    if got.iterates is not None:
        close(got.iterates[2], want.iterates[2], 1e-8)


@pytest.mark.parametrize("layout", ["fully sharded", pytest.param("data and model", marks=in_full)])
def test_each_block_is_solved_by_itself_and_a_step_sends_two_sums_of_a_number_for_each(layout):
    here = spread(layout)
    A, g, k = operator(here).prepare(), here.gradient, len(SHAPES)
    program = lowered(lambda A, g: lg.solve(A, g, lg.Blockwise(lg.CG(rtol=1e-10))), A, g)
    sent = re.findall(r" = (\S.*?) all-reduce\(", loops(program))
    assert sum(made.startswith(f"f64[{k}]") for made in sent) == 2
    assert not any(made.startswith("f64[]") for made in sent)  # the others are the product's
    spoiled = {name: jax.device_put(x * (np.nan if name == "b1" else 1), x.sharding) for name, x in g.items()}
    whole, rest = program(A, g), program(A, spoiled)
    left = jax.tree.map(jnp.subtract, g, A @ whole.x)
    for name, code, steps, other in zip(whole.blocks, rest.code, whole.steps, rest.steps, strict=True):
        assert np.linalg.norm(left[name]) <= 1e-10 * np.linalg.norm(g[name])
        assert lg.Status(int(code)).name == ("NONFINITE_INPUT" if name == "b1" else "CONVERGED")
        assert int(other) == (0 if name == "b1" else int(steps))
    close({**rest.x, "b1": whole.x["b1"]}, whole.x, 1e-12)
    assert whole.succeeded
    assert laid_out_like(whole.x, here.params)


@in_full
@pytest.mark.parametrize("layout", SHARDED)
def test_layerwise_training_takes_the_steps_of_one_device(layout):
    method = lg.LayerwiseGaussNewton(0.1, lg.Blockwise(lg.CG(rtol=1e-12)))
    here, there = spread(layout), one()
    got, want = (lg.minimize(h.objective, h.params, method, max_steps=5) for h in (here, there))
    close(got.params, want.params, 1e-8)
    assert laid_out_like(got.params, here.params)
