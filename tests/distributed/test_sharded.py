"""Sharded parameters on eight devices in JAX: the numbers of one device, with collectives that are counted.

Runs where there are eight devices: ``nox -s devices``, which makes them of one host.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from systems import in_full

import linop_gn as lg
from linop_gn.app.cli import main

jax = pytest.importorskip("jax")
jnp = jax.numpy
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from sharded import (  # noqa: E402
    DATA,
    PARAMS,
    RNG,
    SHAPES,
    SHARDED,
    Here,
    close,
    collectives,
    host,
    laid_out_like,
    lowered,
    one,
    spread,
)

pytestmark = [
    pytest.mark.devices,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices: nox -s devices"),
]


@pytest.mark.parametrize("layout", SHARDED)
def test_products_are_those_of_one_device_and_lie_as_the_parameters(layout):
    here, there = spread(layout), one()
    close(here.objective.value(here.params), there.objective.value(there.params))
    g, wanted = here.gradient, there.gradient
    close(g, wanted)
    assert laid_out_like(g, here.params)
    for kind in (lg.GGN, lg.Hessian, lg.EmpiricalFisher, lambda o, p: lg.BlockGGN(o, p, blocks="leaf")):
        A, B = kind(here.objective, here.params), kind(there.objective, there.params)
        made = A @ g
        close(made, B @ wanted)
        assert laid_out_like(made, here.params)
        flat = A @ A.domain.pack(g)  # in the order of the devices
        close(A.domain.unpack(flat), B @ wanted)
        assert flat.sharding.spec == P(A.domain.layout.axes)
    J, K = (lg.Jacobian(h.objective, h.params) for h in (here, there))
    close(J @ g, K @ wanted)
    close(J.T @ (J @ g), K.T @ (K @ wanted))
    damped = lg.Damped(here.ggn, 0.3)
    close(damped.to_dense(), lg.Damped(there.ggn, 0.3).to_dense())


UNEVEN = PARAMS | {"b2": RNG.standard_normal(3), "W2": RNG.standard_normal((16, 3))}

SOLVERS = {
    "CG": lg.CG(rtol=1e-12),
    "CG from a start": lg.CG(rtol=1e-12),
    "CG, Jacobi": lg.CG(rtol=1e-12, preconditioner=lg.preconditioners.Jacobi(diagonal="estimate")),
    "CG, Nystrom": lg.CG(rtol=1e-12, preconditioner=lg.preconditioners.Nystrom(rank=10)),
    "CG, blocks": lg.CG(rtol=1e-12, preconditioner=lg.preconditioners.BlockJacobi()),
    "MINRES": lg.MINRES(rtol=1e-12),
    "GLTR": lg.GLTR(radius=0.1),
    "Steihaug": lg.Steihaug(radius=0.1),
    "Cholesky": lg.Cholesky(),
}


SOLVED = [*zip(SOLVERS, SHARDED * 3, strict=True)]
LATER = {"CG from a start", "CG, Nystrom", "GLTR", "Steihaug"}


@pytest.mark.parametrize(
    ("solver", "layout"), [pytest.param(*both, marks=in_full if both[0] in LATER else ()) for both in SOLVED]
)
def test_solvers(solver, layout):
    def solved(h: Here) -> lg.Solution:
        start = h.gradient if solver == "CG from a start" else None
        return lg.solve(lg.Damped(h.ggn, 0.1), h.gradient, SOLVERS[solver], x0=start)

    here, there = spread(layout), one()
    got, want = solved(here), solved(there)
    close(got.x, want.x, 1e-9)
    assert laid_out_like(got.x, here.params)
    assert got.status == want.status
    assert abs(int(got.steps) - int(want.steps)) <= 1 + int(want.steps) // 20  # to twelve digits rounding tells


def test_vectors_of_the_host_are_in_the_order_of_the_leaves():
    here, there = spread("fully sharded", UNEVEN), one(UNEVEN)
    A, B = lg.Damped(here.ggn, 0.3), lg.Damped(there.ggn, 0.3)
    space, v = A.domain, np.arange(1.0, 164.0)
    close(lg.to_scipy(A) @ v, lg.to_scipy(B) @ v)
    close(space.ordered(space.from_order(v, "float64")), v)
    tree = space.tree_of(jnp.asarray(v))
    close(tree, B.domain.unpack(jnp.asarray(v)))
    assert laid_out_like(tree, here.params)
    pairs = lg.eigsh(A, 1, basis_on="host", start=here.gradient)
    close(A @ pairs.vector(0), jax.tree.map(lambda leaf: leaf * pairs.values[0], pairs.vector(0)), 1e-6)
    for refused, words in {
        (lambda: lg.FunctionOperator(lambda v: v, space)): 'give functions of trees, and on="tree"',
        (lambda: lg.Submatrix(A, np.arange(10))): "Submatrix: the place of an entry is not known where parameters are",
        (lambda: lg.KFAC(here.objective, here.params)): "lg.KFAC has no blocks where parameters are sharded",
        (lambda: lg.validate(A)): "validate compares no entries where parameters are sharded",
        (lambda: lg.solve(A, here.gradient, lg.Blockwise(lg.CG()))): "needs an operator with blocks, and .* of none",
    }.items():
        with pytest.raises(ValueError, match=words):
            refused()


def test_leaves_that_were_put_nowhere_are_whole_on_each_device_and_others_are_named():
    here = spread("fully sharded")
    params = {**here.params, "b2": jnp.asarray(PARAMS["b2"])}
    g = here.objective.gradient(params)
    close(g, one().gradient)
    assert all(laid_out_like(g[name], here.params[name]) for name in ("W1", "b1", "W2"))
    with pytest.raises(ValueError, match=r"'W1' is sharded over Mesh\('data': 8\), but leaf 'b1' lies on .*:1: put"):
        here.objective.gradient({**here.params, "b1": jax.device_put(PARAMS["b1"], jax.devices()[1])})
    first = jax.device_put(DATA, jax.devices()[0])
    with pytest.raises(ValueError, match=r"inputs \(float64\[24,6\]\) on \[0\], leaf 0 of the parameters .*7\]"):
        here.objective.with_data(first).gradient(here.params)
    close(here.ggn @ jax.device_put(PARAMS, jax.devices()[2]), one().ggn @ one().params)  # a vector is brought over


ASKED = {
    "LSMR": lambda J, G, g: lg.solve(J, J @ g, lg.LSMR(damping=0.1, atol=1e-12, btol=1e-12)).x,
    "krylov": lambda J, G, g: lg.krylov(G, g, k=12).solve(damping=0.5).x,
    "region": lambda J, G, g: lg.krylov(G, g, k=12).trust_region(radius=0.05).x,
    "eigenvalues": lambda J, G, g: lg.eigsh(G, 3).values,
    "eigenvector": lambda J, G, g: jax.tree.map(abs, lg.eigsh(G, 1).vectors),
    "trace": lambda J, G, g: lg.trace(G, products=30).value,
    "signs": lambda J, G, g: lg.trace(G, method="hutchinson", products=7).value,
    "diagonal": lambda J, G, g: G.domain.unpack(lg.diagonal(G, "xnysdiag", products=30).value),
}
FIRST = {"LSMR", "region", "trace"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FIRST else in_full) for name in ASKED])
def test_least_squares_krylov_spaces_and_estimates(name):
    here, there = spread("fully sharded"), one()
    got, want = (ASKED[name](lg.Jacobian(h.objective, h.params), h.ggn, h.gradient) for h in (here, there))
    close(got, want, 1e-8)
    if name == "region":
        assert laid_out_like(got, here.params)


METHODS = {
    "LM": lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-12)),
    "SGN": lg.SGN(steps=10),
    "trust region": lg.TrustRegion(descent=lg.descents.Steihaug()),
    "Adam": lg.FirstOrder(rate=0.01),
}


FEW = {"Adam"}
"""By LM the demo trains below, on the same layouts."""
TRAINED = [*zip(METHODS, [*SHARDED, "fully sharded"], strict=True)]


@pytest.mark.parametrize(
    ("method", "layout"), [pytest.param(*both, marks=() if both[0] in FEW else in_full) for both in TRAINED]
)
def test_training_takes_the_steps_of_one_device(method, layout):
    here, there = spread(layout), one()
    got, want = (lg.minimize(h.objective, h.params, METHODS[method], max_steps=10) for h in (here, there))
    close(got.params, want.params, 1e-8)
    assert laid_out_like(got.params, here.params)


@in_full
def test_what_least_squares_tells_of_a_parameter_is_told_of_that_one():
    x, y = RNG.standard_normal((40, 16)), RNG.standard_normal(40)
    line = {"W": np.arange(16.0).reshape(2, 8)}

    def fitted(params: Any) -> Any:
        return lg.least_squares(lambda p: jnp.asarray(x) @ p["W"].ravel() - jnp.asarray(y), params)

    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    here = fitted({"W": jax.device_put(line["W"], NamedSharding(mesh, P(None, "d")))})
    there = fitted(jax.tree.map(jnp.asarray, line))
    names = [row.split()[0:2] for row in here.summary().splitlines() if row.startswith("W")]
    assert names == [row.split()[0:2] for row in there.summary().splitlines() if row.startswith("W")]
    close(here.standard_errors(), there.standard_errors(), 1e-9)
    close(here.covariance(), there.covariance(), 1e-9)
    assert laid_out_like(here.standard_errors(), here.x)


def test_what_the_devices_cannot_share_evenly_has_zeros_that_stay_zero():
    """Three numbers on eight devices: five zeros, which no norm, probe or eigenvalue sees."""
    here, there = spread("split by tensor", UNEVEN), one(UNEVEN)
    space = here.ggn.domain
    assert (space.size, space.width) == (163, 168)
    g, wanted = here.gradient, there.gradient
    close(g, wanted)
    matrix = np.asarray(lg.Damped(there.ggn, 0.3).to_dense())
    close(lg.Damped(here.ggn, 0.3).to_dense(), matrix)
    traces = [lg.trace(lg.Damped(h.ggn, 0.3), method="hutchinson", products=5).value for h in (here, there)]
    close(*traces)  # without the damping of what is no entry
    close(lg.eigsh(lg.Damped(here.ggn, 0.3), 1, which="SA").values, [0.3], 1e-9)
    found, undamped = lg.solve(lg.Damped(here.ggn, 0.3), g, lg.CG(rtol=1e-12)).x, matrix - 0.3 * np.eye(163)
    on_host = np.concatenate([leaf.ravel() for leaf in host(wanted)])
    close(np.concatenate([leaf.ravel() for leaf in host(found)]), np.linalg.solve(matrix, on_host), 1e-9)
    junk = here.ggn @ (space.pack(g) + 1.0)  # a user's own flat vector: what is no entry does not count
    close(np.concatenate([leaf.ravel() for leaf in host(space.unpack(junk))]), undamped @ (on_host + 1.0))
    with pytest.raises(ValueError, match="the 8 devices can share evenly: vectors of these 163 entries have 5 zeros"):
        lg.solve(lg.Damped(here.ggn, 0.1), g, lg.Cholesky())


def test_what_a_layout_does_not_know_is_said():
    here = spread("fully sharded")
    with pytest.raises(ValueError, match=r"not known where parameters are sharded \(8 parts along data\)"):
        _ = here.ggn.domain.slices
    with pytest.raises(ValueError, match="in whose order its entries would be read: give a tree like the parameters"):
        here.ggn @ jnp.ones(here.ggn.domain.width)
    for door in (lambda v: here.ggn @ v, lambda v: lg.solve(here.ggn, v).x):  # read in the wrong order, until now
        for traced in (lambda v, door=door: jax.eval_shape(door, v), lambda v, door=door: jax.vmap(door)(v[None])):
            with pytest.raises(ValueError, match="a traced program does not know that it lies over the devices"):
                traced(jnp.ones(here.ggn.domain.width))


def test_a_product_of_data_parallel_parameters_is_one_all_reduce_and_a_step_of_cg_none_more():
    here = spread("data-parallel")
    A = lg.Damped(here.ggn, 0.1).prepare()
    v = A.domain.pack(here.gradient)
    assert collectives(lowered(lambda A, v: A.apply(v), A, v)) == {"all-reduce": 1}
    assert collectives(lowered(lambda A, v: lg.solve(A, v).x, A, v), "loops") == {"all-reduce": 1}


@pytest.mark.parametrize("layout", SHARDED)
def test_sharded_parameters_add_two_sums_of_numbers_to_a_step_of_cg(layout):
    here = spread(layout)
    A = lg.Damped(here.ggn, 0.1).prepare()
    v = A.domain.pack(here.gradient)
    product = lowered(lambda A, v: A.apply(v), A, v)
    assert collectives(product)["scalar"] == 0
    for sums in (1, 2) if layout == "fully sharded" else (2,):
        method = lg.CG(reductions=sums)
        cg = lowered(lambda A, g, m=method: lg.solve(A, g, m).x, A, here.gradient)
        assert collectives(cg, "loops")["scalar"] == sums
    largest = max(np.prod(shape) for shape in SHAPES.values())
    gathered = re.findall(r"= f64\[([\d,]+)\]\S* all-gather\(", product.as_text())
    assert all(np.prod([int(n) for n in sizes.split(",")]) <= max(largest, DATA[0].size) for sizes in gathered)
    packing = lowered(lambda g: A.domain.pack(g), here.gradient)
    assert not collectives(packing)


def test_numbers_are_those_of_any_number_of_devices_and_the_same_bit_for_bit_on_one_layout():
    found = []
    for devices in (1, 2, 8, 8):
        here = spread("fully sharded", devices=devices)
        made = lg.solve(lg.Damped(here.ggn, 0.1), here.gradient, lg.CG(rtol=1e-12))
        found.append((made.x, int(made.steps)))
    for x, steps in found[1:]:
        close(x, found[0][0], 1e-10)
        assert abs(steps - found[0][1]) <= 1
    for x, y in zip(host(found[-1][0]), host(found[-2][0]), strict=True):
        assert (x == y).all()


@pytest.mark.parametrize("method", [METHODS["Adam"], pytest.param(lg.HessianFree(max_steps=6), marks=in_full)])
def test_a_run_on_eight_devices_goes_on_on_two_and_on_one(method, tmp_path):
    """Files hold vectors in the order of the leaves, whatever that of the devices is."""
    here = spread("fully sharded")
    want = lg.minimize(one().objective, one().params, method, max_steps=6).params
    for there, file in ((here, "of eight"), (one(), "of one")):
        lg.minimize(there.objective, there.params, method, max_steps=3, checkpoint=tmp_path / file)
    for there, file in ((one(), "of eight"), (spread("fully sharded", devices=2), "of eight"), (here, "of one")):
        path = tmp_path / "copy"
        path.write_bytes((tmp_path / file).read_bytes())
        got = lg.minimize(there.objective, there.params, method, max_steps=6, checkpoint=path)
        close(got.params, want, 1e-9)
        assert laid_out_like(got.params, there.params)


@in_full
def test_a_basis_in_a_file_is_in_the_order_of_the_leaves(tmp_path):
    """That of a trust region, (k, n) with n along the devices, was in their order, which is another one elsewhere."""
    method = lg.TrustRegion(descent=lg.descents.TrustRegion(lg.GLTR(max_steps=6)))
    here, there = spread("fully sharded", UNEVEN), one(UNEVEN)
    begun = [lg.start(method, h.objective, h.params) for h in (here, there)]
    lg.save_state(tmp_path / "of eight", begun[0])
    got = lg.load_state(tmp_path / "of eight", method, there.objective, there.params)
    assert got.own.kept.run.lanczos.basis.shape == (7, 163)
    close(got.own.kept.run.lanczos.basis, begun[1].own.kept.run.lanczos.basis)
    lg.save_state(tmp_path / "of one", got)
    again = lg.load_state(tmp_path / "of one", method, here.objective, here.params)
    np.testing.assert_array_equal(again.own.kept.run.lanczos.basis, begun[0].own.kept.run.lanczos.basis)


LAYERS, WIDTH = 8, 64


def layers(params: Any, x: Any) -> Any:
    """Layer after layer, each gathered where it is used."""
    return jax.lax.scan(lambda x, W: (jnp.tanh(x[:, : W.shape[0]] @ W), None), x, params)[0]


def test_memory_of_a_device_is_that_of_its_share_and_one_gathered_layer():
    """CG on eight devices takes what CG on one takes for an eighth of the parameters."""

    def taken(params: Any, data: Any) -> tuple[int, Any]:
        fit = lg.Objective(layers, lg.losses.SquaredError(), data)
        A = lg.Damped(lg.GGN(fit, params), 0.1).prepare()
        g = fit.gradient(params)
        cg = lowered(lambda A, g: lg.solve(A, g).x, A, g).memory_analysis().temp_size_in_bytes
        return cg, lowered(lambda A, b: A.apply(b), A, A.domain.pack(g))

    W, x = RNG.standard_normal((LAYERS, WIDTH, WIDTH)) / 8, RNG.standard_normal((16, WIDTH))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = jax.device_put(W, NamedSharding(mesh, P(None, "data")))
    cg, product = taken(params, tuple(jax.device_put(x, NamedSharding(mesh, P("data"))) for _ in range(2)))
    share, _ = taken(jnp.asarray(W[:, : WIDTH // 8]), (jnp.asarray(x[:2]), jnp.asarray(x[:2])))
    layer, vector, activations = W[0].nbytes, W.nbytes / 8, LAYERS * x[:2].nbytes
    assert cg <= 1.2 * share + layer + activations
    assert cg <= 1.2 * (5 * vector + activations) + layer
    assert product.memory_analysis().temp_size_in_bytes <= 1.2 * (vector + 2 * layer + 2 * activations)
    sent = re.findall(r"= f64\[([\d,]+)\]\S* (all-gather|all-reduce)\(", product.as_text())  # of one layer, in loops
    sizes = sorted((kind, math.prod(map(int, shape.split(",")))) for shape, kind in sent)
    assert sizes == [("all-gather", W[0].size)] * 3 + [("all-reduce", W[0].size)]  # as docs/many_devices.md counts


def test_data_parallel_products_send_one_number_for_each_parameter():
    here = spread("data-parallel")
    text = lowered(lambda A, v: A.apply(v), here.ggn.prepare(), here.ggn.domain.pack(here.gradient)).as_text()
    (shapes,) = re.findall(r" = (\S.*?) all-reduce\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"f64\[([\d,]+)\]", shapes)]
    assert sum(sizes) == here.ggn.domain.size


def test_the_demo_runs_alike_however_its_arrays_lie(capsys):
    pytest.importorskip("sklearn")
    assert main(["demo", "--quick", "--devices", "8"]) == 0
    printed = capsys.readouterr().out
    for words in ("one device", "parameters too", "81", "one all-reduce of 644 numbers"):
        assert words in printed
