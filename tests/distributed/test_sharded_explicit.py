"""Sharded parameters on meshes with explicit axes, and inside of a user's own ``jit``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from systems import in_full

import linop_gn as lg

jax = pytest.importorskip("jax")
jnp = jax.numpy
from jax.sharding import AxisType  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from sharded import Here, close, collectives, laid_out_like, lowered, one, spread  # noqa: E402

pytestmark = [
    pytest.mark.devices,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices: nox -s devices"),
]

# Explicit axes want to be told how what is contracted comes out, and that parameters are gathered where they are used.
SPLIT = {  # of W1 and W2 where they are used, of the outputs
    "split by tensor": (P(None, "model"), P("model"), P(None, None)),
    "fully sharded": (P(), P(), P("data")),
    "data and model": (P(None, "model"), P("model"), P("data")),
}


def explicit(layout: str) -> Here:
    first, second, out = SPLIT[layout]

    def model(p: Any, x: Any) -> Any:
        hidden = jnp.tanh(x @ jax.sharding.reshard(p["W1"], first) + p["b1"])
        return jnp.dot(hidden, jax.sharding.reshard(p["W2"], second), out_sharding=out) + p["b2"]

    here = spread(layout, kind=AxisType.Explicit)
    return here._replace(model=model)


CG = lg.CG(rtol=1e-12)


def solved(objective: Any, params: Any) -> Any:
    return lg.solve(lg.Damped(lg.GGN(objective, params), 0.1), objective.gradient(params), CG).x


@pytest.mark.parametrize("layout", ["split by tensor", pytest.param("data and model", marks=in_full)])
def test_products_solves_and_matrices(layout):
    here, there = explicit(layout), one()
    with jax.set_mesh(here.data[0].sharding.mesh):
        g = here.gradient
        close(g, there.gradient)
        for kind in (lg.Hessian, lambda o, p: lg.BlockGGN(o, p, blocks="leaf")):
            made = kind(here.objective, here.params) @ g
            close(made, kind(there.objective, there.params) @ there.gradient)
            assert laid_out_like(made, here.params)
        x = solved(here.objective, here.params)
        close(x, solved(there.objective, there.params), 1e-9)
        assert laid_out_like(x, here.params)
        if layout == "split by tensor":
            close(lg.Damped(here.ggn, 0.3).to_dense(), lg.Damped(there.ggn, 0.3).to_dense())


@in_full
@pytest.mark.parametrize("layout", ["fully sharded"])
def test_training(layout):
    here, there = explicit(layout), one()
    method = lg.LevenbergMarquardt(solver=CG)
    with jax.set_mesh(here.data[0].sharding.mesh):
        got = lg.minimize(here.objective, here.params, method, max_steps=3)
        close(got.params, lg.minimize(there.objective, there.params, method, max_steps=3).params, 1e-8)
        assert laid_out_like(got.params, here.params)


def test_bases_and_columns_are_told_how_they_lie():
    """What is summed over devices is ambiguous there, and what is written into an array must lie as that does."""
    here, ops = explicit("data and model"), lg.load("jax")
    with jax.set_mesh(here.data[0].sharding.mesh):
        space = here.ggn.domain
        x, Y = space.pack(here.params), space.random(0, 3)
        basis = ops.grow(ops.store(ops.basis(x, 2), 1, 2.0, x), 4, 2)
        found = ops.project(basis, Y, 2), ops.qr(Y), ops.combine(basis, jnp.asarray([0.0, 0.5]), 2)
    assert basis.sharding.spec == P(None, *x.sharding.spec)
    (_, dots), (Q, R), again = jax.tree.map(np.asarray, (found[0][:2], found[1], found[2]))
    np.testing.assert_allclose(dots, 2.0 * np.asarray(x) @ np.asarray(Y), 1e-12)
    np.testing.assert_allclose(Q @ R, Y, atol=1e-12)
    np.testing.assert_array_equal(again, x)
    assert found[1][0].sharding.is_equivalent_to(Y.sharding, 2)


@pytest.mark.parametrize("what", ["GLTR", "Nystrom", "xtrace", "hessian-free"])
def test_what_keeps_vectors_is_valid_where_types_tell_how_they_lie(what):
    """Programs are made, and not run."""
    here = explicit("data and model")

    def made(params: Any, data: Any) -> Any:
        fit = here._replace(data=data).objective
        A = lg.Damped(lg.GGN(fit, params), 0.1)
        if what == "xtrace":
            return lg.trace(A, "xtrace", products=6).value
        if what == "hessian-free":
            return lg.minimize(fit, params, lg.HessianFree(max_steps=4), max_steps=2).params
        sketch = lg.CG(max_steps=3, preconditioner=lg.preconditioners.Nystrom(rank=3))
        return lg.solve(A, fit.gradient(params), sketch if what == "Nystrom" else lg.GLTR(radius=0.1, max_steps=4)).x

    with jax.set_mesh(here.data[0].sharding.mesh):
        jax.eval_shape(made, here.params, here.data)


@pytest.mark.parametrize(
    "solver", [lg.Cholesky(), pytest.param(lg.Eigh(), marks=in_full), pytest.param(lg.LU(double=True), marks=in_full)]
)
def test_direct_solvers_gather_a_matrix_and_spread_out_its_solutions(solver):
    here, there = explicit("data and model"), lg.Damped(one().ggn, 0.1)
    with jax.set_mesh(here.data[0].sharding.mesh):
        found = lg.solve(lg.Damped(here.ggn, 0.1), here.gradient, solver)
    assert found.status == lg.Status.CONVERGED
    wanted = np.linalg.solve(there.to_dense(), there.domain.pack(one().gradient))
    close(found.x, there.domain.unpack(jnp.asarray(wanted)), 1e-9)
    assert laid_out_like(found.x, here.params)


@pytest.mark.parametrize("method", [lg.Newton(), lg.LevenbergMarquardt(solver=lg.Cholesky())])
def test_methods_with_matrices_are_valid(method):
    """Programs are made, and not run."""
    here = explicit("data and model")

    def made(params: Any, data: Any) -> Any:
        return lg.minimize(here._replace(data=data).objective, params, method, max_steps=2).params

    with jax.set_mesh(here.data[0].sharding.mesh):
        jax.eval_shape(made, here.params, here.data)


@pytest.mark.parametrize("solver", [lg.GramSolve(), lg.CG(preconditioner=lg.preconditioners.BlockJacobi())])
def test_what_makes_a_matrix_of_the_examples_or_of_blocks_says_to_gather(solver):
    here = explicit("data and model")
    A = lg.Damped(lg.GGN(here.objective, here.params), 0.1)
    mesh = jax.set_mesh(here.data[0].sharding.mesh)
    with mesh, pytest.raises(ValueError, match=r"devices of an explicit mesh.*Gather the parameters"):
        lg.solve(A, A.domain.zeros(), solver)


@pytest.mark.parametrize("layout", ["data and model"])
def test_inside_jit_the_types_tell_the_layout(layout):
    here, there = explicit(layout), one()

    def whole(params: Any, data: Any) -> Any:
        return solved(here._replace(data=data).objective, params)

    with jax.set_mesh(here.data[0].sharding.mesh):
        program = lowered(whole, here.params, here.data)
        x = program(here.params, here.data)
    close(x, solved(there.objective, there.params), 1e-9)
    assert laid_out_like(x, here.params)
    assert collectives(program, "loops")["scalar"] <= 2


def test_inside_jit_on_an_auto_mesh_points_bring_their_layout():
    """Types tell nothing there; numbers are right all the same, and a point or operator made outside knows."""
    here, there = spread("split by tensor"), one()
    want = solved(there.objective, there.params)

    def whole(params: Any, data: Any) -> Any:
        return solved(here._replace(data=data).objective, params)

    close(jax.jit(whole)(here.params, here.data), want, 1e-9)

    def brought(point: Any) -> Any:
        return lg.solve(lg.Damped(lg.GGN(point), 0.1), point.gradient_tree, CG).x

    point = here.objective.at(here.params)
    program = lowered(brought, point)
    x = program(point)
    close(x, want, 1e-9)
    assert laid_out_like(x, here.params)
    assert collectives(program, "loops")["scalar"] <= 2
