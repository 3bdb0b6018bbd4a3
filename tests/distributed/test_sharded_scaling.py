"""Strong and weak scaling from 1 to 8 devices, in FLOPs and numbers sent that compiled programs count.

XLA counts the FLOPs of the program that each device runs, bodies of loops once, and what is sent stands in it. Timings
of devices that one host makes would tell nothing.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from systems import in_full

import linop_gn as lg

jax = pytest.importorskip("jax")
jnp = jax.numpy
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from sharded import collectives, lowered  # noqa: E402

pytestmark = [
    pytest.mark.devices,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices: nox -s devices"),
]

WIDTH, LAYERS, ROWS = 64, 3, 512
N = LAYERS * WIDTH * WIDTH
PLACED = {"data-parallel": P(), "fully sharded": P(None, "data")}


class Counted(NamedTuple):
    """On each device."""

    product: float
    """FLOPs of a product."""
    beside: float
    """FLOPs of a solve by CG with one step, without the product."""
    sent: Counter[str]
    """Numbers that a product sends, by the kind of collective: what is gathered, or summed, in all."""
    numbers: int
    """Scalars that a step of CG sends."""


def network(params: Any, x: Any) -> Any:
    for W in params:
        x = jnp.tanh(x @ W)
    return x


@functools.cache
def counted(placed: P, devices: int, rows: int) -> Counted:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    params = [jax.device_put(np.eye(WIDTH), NamedSharding(mesh, placed))] * LAYERS
    data = (jax.device_put(np.ones((rows, WIDTH)), NamedSharding(mesh, P("data"))),) * 2
    A = lg.Damped(lg.GGN(lg.Objective(network, lg.losses.SquaredError(), data), params), 0.1).prepare()
    product = lowered(lambda A, v: A.apply(v), A, A.domain.pack(params))
    cg = lowered(lambda A, g: lg.solve(A, g).x, A, params)
    sent: Counter[str] = Counter()
    for shapes, kind in re.findall(r" = (\S.*?) (all-reduce|all-gather|reduce-scatter)\(", product.as_text()):
        sent[kind] += sum(math.prod(map(int, s.split(","))) for s in re.findall(r"f64\[([\d,]+)\]", shapes))
    flops = product.cost_analysis()["flops"]
    return Counted(flops, cg.cost_analysis()["flops"] - flops, sent, collectives(cg, "loops")["scalar"])


EVERY = [(name, devices) for name in PLACED for devices in (2, 4, 8)]
ONE = "fully sharded", 8


@pytest.mark.parametrize(("layout", "devices"), [pytest.param(*x, marks=() if x == ONE else in_full) for x in EVERY])
def test_a_device_computes_its_share_and_sends_as_much_as_on_paper(layout, devices):
    here = counted(PLACED[layout], devices, ROWS)
    # x_W v and v_x W in J v, and the transposes of both in J^T; the inputs of the first layer have no derivative.
    paper = 2 * (2 * LAYERS - 1) * (2 * (ROWS / devices) * WIDTH * WIDTH)
    assert paper <= here.product <= 1.03 * paper  # and what is done entry by entry
    if layout == "data-parallel":
        assert (here.sent, here.numbers) == ({"all-reduce": N}, 0)
    else:  # of the parameters those of all layers but the first, which is not transposed through; and all of v
        assert (here.sent, here.numbers) == ({"all-gather": N + N * (LAYERS - 1) // LAYERS, "all-reduce": N}, 2)


@in_full
@pytest.mark.parametrize(("layout", "devices"), EVERY)
def test_flops_of_a_device_are_flat_from_one_to_eight(layout, devices):
    one, share = counted(P(), 1, ROWS), counted(P(), 1, ROWS // devices)
    here = counted(PLACED[layout], devices, ROWS)
    assert devices * here.product == pytest.approx(one.product, rel=0.01)  # strong scaling: one problem
    assert here.product == pytest.approx(share.product, rel=0.01)  # weak scaling: as many examples on each device
    cut = devices if layout == "fully sharded" else 1
    assert cut * here.beside == pytest.approx(one.beside, rel=0.01)
