"""Data-parallel objectives inside ``shard_map``: summed once, with and without ``check_vma``, in any batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from systems import FULL, in_full

import linop_gn as lg

jax = pytest.importorskip("jax")
jnp = jax.numpy
from jax.sharding import PartitionSpec as P  # noqa: E402
from sharded import DATA, PARAMS, close, collectives, model, one  # noqa: E402

pytestmark = [
    pytest.mark.devices,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices: nox -s devices"),
]


def everywhere(work: Any, *data: Any, batches: int = 1, vma: bool = True) -> Any:
    """work(objective, params) on eight devices, each with its rows in batches; and the compiled program."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def mapped(params: Any, data: Any) -> Any:
        parts = list(zip(*(jnp.split(x, batches) for x in data), strict=True))
        own = lg.Objective(model, lg.losses.SquaredError(), parts if batches > 1 else parts[0])
        return work(lg.distributed.DataParallel(own, "d"), params)

    program = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=vma))
    given = jax.tree.map(jnp.asarray, (PARAMS, data))
    return program(*given), program.lower(*given).compile


def products(fit: Any, p: Any) -> Any:
    g = fit.gradient(p)
    kinds = lg.GGN, lg.Hessian, lg.EmpiricalFisher, lambda o, p: lg.BlockGGN(o, p, blocks="leaf")
    return fit.value(p), g, [kind(fit, p) @ g for kind in kinds]


@pytest.mark.parametrize(
    ("vma", "batches"), [(True, 3), (False, 3), *(pytest.param(v, 1, marks=in_full) for v in (True, False))]
)
def test_products_are_summed_once_whatever_the_batches_of_a_device(vma, batches):
    """netket's case, #2228: batches smaller than the three rows of a device scaled products by the number of these."""
    got, compiled = everywhere(products, *DATA, batches=batches, vma=vma)
    close(got, products(one().objective, one().params))
    assert collectives(compiled())["all-reduce"] <= 7  # value and gradient, once linearised each way; four products


@pytest.mark.parametrize("vma", [True, False])
def test_a_step_of_cg_is_one_all_reduce_and_training_takes_the_steps_of_one_device(vma):
    def solved(fit: Any, p: Any) -> Any:
        return lg.solve(lg.Damped(lg.GGN(fit, p), 0.1), fit.gradient(p), lg.CG(rtol=1e-12)).x

    def trained(fit: Any, p: Any) -> Any:
        return lg.minimize(fit, p, lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-12)), max_steps=3).params

    here = one()
    got, compiled = everywhere(solved, *DATA, vma=vma)
    close(got, solved(here.objective, here.params), 1e-9)
    assert collectives(compiled(), "loops") == {"all-reduce": 1}
    if vma and FULL:
        close(everywhere(trained, *DATA)[0], trained(here.objective, here.params), 1e-8)


def test_the_weight_is_that_of_all_devices():
    """kfac-jax's case: a normaliser of each device is wrong where they have unlike weights, and one has none."""
    weights = np.random.default_rng(1).uniform(0.5, 2.0, 24)
    weights[:5] = 0.0  # all of the first device's
    whole = lg.Objective(model, lg.losses.SquaredError(), tuple(map(jnp.asarray, (*DATA, weights))))
    for vma in (True, False):
        close(everywhere(products, *DATA, weights, vma=vma)[0], products(whole, one().params))


def test_thirteen_rows_on_eight_devices():
    """Rows that make shares even have no weight; what is in their targets does not count, and be it NaN."""
    x, y, w = np.zeros((16, 6)), np.full((16, 8), np.nan), np.zeros(16)
    x[:13], y[:13], w[:13] = DATA[0][:13], DATA[1][:13], 1.0
    whole = lg.Objective(model, lg.losses.SquaredError(), (jnp.asarray(x[:13]), jnp.asarray(y[:13])))
    close(everywhere(products, x, y, w)[0], products(whole, one().params))


def test_devices_draw_other_targets_for_their_examples():
    """kfac-jax's other case: what was drawn on one device was drawn on others."""
    x, y = (np.tile(part[:1], (8, 1)) for part in DATA)  # the same example everywhere

    def drawn(fit: Any, p: Any) -> Any:
        return lg.Fisher(fit, p, samples=1) @ p

    def of(place: int) -> Any:  # as the batch of that place in one process draws
        data = [(jnp.asarray(x[:1]), jnp.asarray(y[:1]), jnp.full(1, float(i == place))) for i in range(8)]
        return drawn(lg.Objective(model, lg.losses.SquaredError(), data), one().params)

    close(everywhere(drawn, x, y)[0], jax.tree.map(lambda *parts: sum(parts) / 8, *map(of, range(8))))


@pytest.mark.parametrize("vma", [True, False])
def test_without_data_parallel_an_objective_is_that_of_the_device(vma):
    """JAX sums what comes back to parameters that are the same on all devices: 8 times the gradient, silently."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def own(params: Any, data: Any) -> Any:
        fit = lg.Objective(model, lg.losses.SquaredError(), data)
        closed = lg.Objective.from_function(lambda p: jnp.sum((model(p, data[0]) - data[1]) ** 2))
        x = lg.solve(lg.Damped(lg.GGN(fit, params), 0.1), fit.gradient(params), lg.CG(rtol=1e-12)).x
        return fit.gradient(params), lg.GGN(fit, params) @ params, lg.Hessian(closed, params) @ params, x

    def mapped(params: Any, data: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], own(params, data))

    program = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"), check_vma=vma))
    params, data = jax.tree.map(jnp.asarray, (PARAMS, DATA))
    made = program(params, data)
    for place in (0, 7):
        rows = tuple(x[3 * place : 3 * place + 3] for x in data)
        close(jax.tree.map(lambda leaf: leaf[place], made), own(params, rows), 1e-9)  # noqa: B023


SPLIT = {"W1": P(None, "t"), "b1": P("t"), "W2": P("t"), "b2": P()}


def split_by_tensor(p: Any, x: Any) -> Any:
    return jax.lax.psum(jnp.tanh(x @ p["W1"] + p["b1"]) @ p["W2"], "t") + p["b2"]


def gathered(p: Any, to: str = "varying") -> Any:
    """ZeRO by hand: whole parameters of the parts of each device."""
    axes = {name: [*spec].index("t") for name, spec in SPLIT.items() if "t" in spec}
    return p | {k: jax.lax.all_gather(p[k], "t", axis=a, tiled=True, to=to) for k, a in axes.items()}


def layer_by_layer(p: Any, x: Any) -> Any:
    """Gathered in a loop, and in single precision."""

    def layer(x: Any, W: Any) -> Any:
        whole = jax.lax.all_gather(W.astype(jnp.float32), "t", axis=1, tiled=True, to="invarying")
        return x + jnp.tanh(x @ whole)[:, :6], None

    return jnp.pad(jax.lax.scan(jax.checkpoint(layer), x, p["W1"][None])[0], ((0, 0), (0, 2)))


def columns(p: Any, x: Any) -> Any:
    """Parameters that are whole on all devices, of each of which a device multiplies its columns of the inputs."""
    W = jax.lax.dynamic_slice_in_dim(p["W1"], 3 * jax.lax.axis_index("t"), 3)
    return jnp.tanh(jax.lax.psum(x @ W, "t") + p["b1"]) @ p["W2"] + p["b2"]


def centred(p: Any, x: Any) -> Any:
    """Outputs without half of their mean over the examples of all devices."""
    z = model(p, x)
    return z - (jax.lax.pmean(z.mean(0), "d") if jax.sharding.get_abstract_mesh().manual_axes else z.mean(0)) / 2


def over_two(work: Any, params: Any, data: Any, vma: bool = True) -> Any:
    """work(params, data) on 4 by 2 devices."""
    mesh = jax.make_mesh((4, 2), ("d", "t"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.shard_map(work, mesh=mesh, in_specs=(params, data), out_specs=P(), check_vma=vma)


def asked(net: Any, axes: Any) -> Any:
    def work(params: Any, data: Any) -> Any:
        own = lg.Objective(net, lg.losses.SquaredError(), data)
        fit = own if axes is None else lg.distributed.DataParallel(own, axes)
        g = fit.gradient(params)
        return fit.value(params), g, lg.GGN(fit, params) @ g, lg.Hessian(fit, params) @ g

    return work


PARTS, OWN = "t .* takes those of other devices .* parts of one vector", "over t .* is each device's own"
BOTH = ["d", "t"]


@pytest.mark.parametrize(
    ("net", "axes", "typed", "untyped"),
    [
        (split_by_tensor, "d", PARTS, OWN),
        (split_by_tensor, BOTH, "DataParallel sums over t, along which the parameters differ", None),
        (lambda p, x: model(gathered(p), x), "d", PARTS, PARTS),
        (lambda p, x: model(gathered(p), x), BOTH, "DataParallel sums over t", PARTS),
        (lambda p, x: model(gathered(p, "invarying"), x), None, PARTS, PARTS),
        (layer_by_layer, None, PARTS, PARTS),
    ],
    ids=["by tensor", "by tensor, all summed", "ZeRO", "ZeRO, all summed", "ZeRO, alone", "ZeRO in a loop"],
)
def test_parameters_that_are_split_inside_of_a_map_are_refused(net, axes, typed, untyped):
    """Inner products would be those of a shard: devices took different numbers of steps, and waited for each other."""
    for vma, error in ((True, typed), (False, untyped)):
        if error is not None:  # of sums of what parameters and data have made nothing but types tells
            with pytest.raises(ValueError, match=error):
                jax.eval_shape(over_two(asked(net, axes), SPLIT, P("d"), vma), PARAMS, DATA)


@pytest.mark.parametrize(("net", "along"), [(columns, "t"), (centred, "d")], ids=["columns", "centred"])
def test_derivatives_that_would_be_those_of_other_devices_too_are_refused(net, along):
    """A sum in the model is summed on the way back: right for the sum of the objectives, not for one's own."""
    rows = (P("d", "t"), P("d")) if net is columns else P("d")
    refused = (True, False) if net is centred else (False,)  # else the value is that of all along t, and JAX right
    for vma in refused:
        with pytest.raises(ValueError, match=rf"over {along} .* each device's own.*objective, \['{along}'\]\)"):
            jax.eval_shape(over_two(asked(net, None), P(), rows, vma), PARAMS, DATA)


@pytest.mark.parametrize("vma", [True, pytest.param(False, marks=in_full)])
def test_what_a_model_combines_over_devices_is_differentiated_once(vma):
    """Whole parameters in a model with collectives, and parts that were gathered before."""

    def work(params: Any, parts: Any, data: Any, slices: Any) -> Any:
        whole = gathered(parts, "invarying") if vma else params
        plain = asked(model, "d")(whole, data)
        return plain, asked(columns, BOTH)(params, slices), asked(centred, "d")(params, data)

    mesh = jax.make_mesh((4, 2), ("d", "t"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = P(), SPLIT, P("d"), (P("d", "t"), P("d"))
    program = jax.jit(jax.shard_map(work, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=vma))
    params, data = one().params, one().data
    want = [asked(net, None)(params, data) for net in (model, centred)]
    close(program(params, params, data, data), (want[0], want[0], want[1]))


def test_combined_numbers_are_found_in_loops_and_branches():
    """What is not differentiated, and what the place of a device had a part in, is no parameter of another device."""
    from linop_gn_jax.combining import OTHER, combined

    def program(p: Any, x: Any) -> Any:
        def psum(y: Any) -> Any:
            return jax.lax.psum(y, "t")

        found = jax.lax.cond(x > 0, lambda p: psum(2 * p), lambda p: p, p)
        found += jax.lax.while_loop(lambda c: c[1] < x, lambda c: (psum(c[0]), c[0]), (x, p))[
            0
        ]  # p at its second round
        found += jax.lax.scan(lambda c, _: (c + jax.lax.axis_index("t") * p, psum(c)), x, None, length=3)[0]
        found += jax.lax.pmin(p > 0, "t") + jax.lax.pmax(jax.lax.stop_gradient(p), "t")
        return found + jax.lax.ppermute(jnp.sin(p), "t", [(0, 1)])

    def here(p: Any, x: Any) -> Any:
        closed = jax.make_jaxpr(program)(p, x)
        seen.extend(combined(closed, [frozenset("t"), frozenset([OTHER])]))
        return p

    seen: list[Any] = []
    jax.eval_shape(over_two(here, P(), P(), vma=False), 1.0, 2.0)
    assert {(f.name, f.alone) for f in seen} == {("psum", True), ("psum", False), ("ppermute", True)}


def test_what_is_no_axis_is_said():
    fit = one().objective
    with pytest.raises(ValueError, match=r"sums over d, which no jax.shard_map around it maps"):
        lg.distributed.DataParallel(fit, "d")
    with pytest.raises(TypeError, match="in JAX the group is the axis of the mesh"):
        lg.distributed.DataParallel(fit)
    with pytest.raises(TypeError, match=r"or inside jax.shard_map by lg.distributed.DataParallel"):
        lg.Objective(model, lg.losses.SquaredError(), one().data, reduce=lambda x: x).value(one().params)
    with pytest.raises(ValueError, match="shared out over processes"):
        everywhere(lambda fit, p: lg.Jacobian(fit, p) @ p, *DATA)
