"""Sharded parameters on eight devices in JAX: the numbers of one device, with collectives that are counted.

Runs where there are eight devices: ``nox -s devices``, which makes them of one host.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest

import linop_gn as lg

jax = pytest.importorskip("jax")
jnp = jax.numpy
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

pytestmark = [
    pytest.mark.devices,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices: nox -s devices"),
]


class Here(NamedTuple):
    """A problem on some devices."""

    params: Any
    data: tuple[Any, Any]

    @property
    def objective(self) -> lg.Objective:
        return lg.Objective(model, lg.losses.SquaredError(), self.data)

    @property
    def ggn(self) -> Any:
        return lg.GGN(self.objective, self.params)

    @property
    def gradient(self) -> Any:
        return self.objective.gradient(self.params)


def model(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]


RNG = np.random.default_rng(0)
SHAPES = {"W1": (6, 16), "W2": (16, 8), "b1": (16,), "b2": (8,)}
PARAMS = {name: RNG.standard_normal(shape) / 2 for name, shape in SHAPES.items()}
DATA = RNG.standard_normal((24, 6)), RNG.standard_normal((24, 8))
LAYOUTS = {
    "split by tensor": ((8,), ("model",), {"W1": P(None, "model"), "b1": P("model"), "W2": P("model"), "b2": P()}, P()),
    "fully sharded": ((8,), ("data",), {"W1": P(None, "data"), "b1": P(), "W2": P("data"), "b2": P()}, P("data")),
    "data and model": (
        (4, 2),
        ("data", "model"),
        {"W1": P(None, ("data", "model")), "b1": P("model"), "W2": P("model", "data"), "b2": P()},
        P("data"),
    ),
}


def data_of(params: Any) -> tuple[np.ndarray, np.ndarray]:
    return DATA[0], DATA[1][:, : params["b2"].size]


def one(params: Any = PARAMS) -> Here:
    return Here(jax.tree.map(jnp.asarray, params), tuple(map(jnp.asarray, data_of(params))))


def spread(layout: str, params: Any = PARAMS) -> Here:
    shape, names, specs, batch = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
    put = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in params.items()}
    return Here(put, tuple(jax.device_put(x, NamedSharding(mesh, batch)) for x in data_of(params)))


def host(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def close(got: Any, want: Any, rtol: float = 1e-12) -> None:
    for a, b in zip(host(got), host(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1e-300, np.abs(b).max()))


def laid_out_like(tree: Any, params: Any) -> bool:
    """Whether nothing came back more replicated than the parameters."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    return all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
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


@pytest.mark.parametrize(("solver", "layout"), [*zip(SOLVERS, [*LAYOUTS] * 3, strict=True)])
def test_solvers(solver, layout):
    def solved(h: Here) -> lg.Solution:
        start = h.gradient if solver == "CG from a start" else None
        return lg.solve(lg.Damped(h.ggn, 0.1), h.gradient, SOLVERS[solver], x0=start)

    here, there = spread(layout), one()
    got, want = solved(here), solved(there)
    close(got.x, want.x, 1e-9)
    assert laid_out_like(got.x, here.params)
    assert got.status == want.status
    assert abs(int(got.steps) - int(want.steps)) <= 1


@pytest.mark.parametrize("layout", ["fully sharded"])
def test_least_squares_krylov_spaces_and_estimates(layout):
    here, there = spread(layout), one()

    def everything(h: Here) -> dict[str, Any]:
        J, G, g = lg.Jacobian(h.objective, h.params), h.ggn, h.gradient
        K = lg.krylov(G, g, k=12)
        return {
            "LSMR": lg.solve(J, J @ g, lg.LSMR(damping=0.1, atol=1e-12, btol=1e-12)).x,
            "krylov": K.solve(damping=0.5).x,
            "region": K.trust_region(radius=0.05).x,
            "eigenvalues": lg.eigsh(G, 3).values,
            "eigenvector": jax.tree.map(abs, lg.eigsh(G, 1).vectors),
            "trace": lg.trace(G, products=30).value,
            "signs": lg.trace(G, method="hutchinson", products=7).value,
            "diagonal": G.domain.unpack(lg.diagonal(G, products=30).value),
        }

    got, want = everything(here), everything(there)
    for name, value in want.items():
        close(got[name], value, 1e-8)
    assert laid_out_like(got["region"], here.params)


METHODS = {
    "LM": lg.LevenbergMarquardt(solver=lg.CG(rtol=1e-12)),
    "SGN": lg.SGN(steps=10),
    "trust region": lg.TrustRegion(),
    "Adam": lg.FirstOrder(rate=0.01),
}


@pytest.mark.parametrize(("method", "layout"), [*zip(METHODS, [*LAYOUTS, "fully sharded"], strict=True)])
def test_training_takes_the_steps_of_one_device(method, layout):
    here, there = spread(layout), one()
    got, want = (lg.minimize(h.objective, h.params, METHODS[method], max_steps=10) for h in (here, there))
    close(got.params, want.params, 1e-8)
    assert laid_out_like(got.params, here.params)


UNEVEN = PARAMS | {"b2": RNG.standard_normal(3), "W2": RNG.standard_normal((16, 3))}


def test_what_the_devices_cannot_share_evenly_has_zeros_that_stay_zero():
    """Three numbers on eight devices: five zeros, which no norm, probe or eigenvalue sees."""
    here, there = spread("split by tensor", UNEVEN), one(UNEVEN)
    space = here.ggn.domain
    assert (space.size, space.width) == (163, 168)
    g, wanted = here.gradient, there.gradient
    close(g, wanted)
    close(lg.Damped(here.ggn, 0.3).to_dense(), lg.Damped(there.ggn, 0.3).to_dense())
    for A, B in ((here.ggn, there.ggn), (lg.Damped(here.ggn, 0.3), lg.Damped(there.ggn, 0.3))):
        close(lg.trace(A, method="hutchinson", products=5).value, lg.trace(B, method="hutchinson", products=5).value)
    close(lg.eigsh(lg.Damped(here.ggn, 0.3), 1, which="SA").values, [0.3], 1e-9)
    solver = lg.CG(rtol=1e-12)
    close(lg.solve(lg.Damped(here.ggn, 0.1), g, solver).x, lg.solve(lg.Damped(there.ggn, 0.1), wanted, solver).x, 1e-9)
    junk = space.pack(g) + 1.0  # a user's own flat vector: what is no entry does not count
    close(space.unpack(here.ggn @ junk), there.ggn @ jax.tree.map(lambda leaf: leaf + 1.0, wanted))
    with pytest.raises(ValueError, match="the 8 devices can share evenly: vectors of these 163 entries have 5 zeros"):
        lg.solve(lg.Damped(here.ggn, 0.1), g, lg.Cholesky())


def test_what_a_layout_does_not_know_is_said():
    here = spread("fully sharded")
    with pytest.raises(ValueError, match=r"not known where parameters are sharded \(8 parts along data\)"):
        _ = here.ggn.domain.slices
    with pytest.raises(ValueError, match="in whose order its entries would be read: give a tree like the parameters"):
        here.ggn @ jnp.ones(here.ggn.domain.width)


def collectives(program: Any, part: str = "") -> Counter[str]:
    """The collectives in a compiled program, or in the bodies of its loops."""
    text = program.as_text()
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    found: Counter[str] = Counter()
    for block in re.split(r"\n(?=%|ENTRY)", text):
        if part == "loops" and block.split(" ")[0].lstrip("%") not in bodies:
            continue
        for made, kind in re.findall(
            r" = (\S.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", block
        ):
            found["scalar" if re.fullmatch(r"\(?f64\[\](, f64\[\])*\)?", made) else kind] += 1
    return found


def lowered(function: Any, *arguments: Any) -> Any:
    return jax.jit(function).lower(*arguments).compile()


def test_a_product_of_data_parallel_parameters_is_one_all_reduce_and_a_step_of_cg_none_more():
    shape, names, _, batch = LAYOUTS["fully sharded"]
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,))
    here = Here(
        jax.device_put(PARAMS, NamedSharding(mesh, P())),
        tuple(jax.device_put(x, NamedSharding(mesh, batch)) for x in DATA),
    )
    A = lg.Damped(here.ggn, 0.1).prepare()
    v = A.domain.pack(here.gradient)
    assert collectives(lowered(lambda A, v: A.apply(v), A, v)) == {"all-reduce": 1}
    assert collectives(lowered(lambda A, v: lg.solve(A, v).x, A, v), "loops") == {"all-reduce": 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_parameters_add_two_sums_of_numbers_to_a_step_of_cg(layout):
    here = spread(layout)
    A = lg.Damped(here.ggn, 0.1).prepare()
    v = A.domain.pack(here.gradient)
    product = lowered(lambda A, v: A.apply(v), A, v)
    assert collectives(product)["scalar"] == 0
    assert collectives(lowered(lambda A, v: lg.solve(A, v).x, A, v), "loops")["scalar"] <= 2
    largest = max(np.prod(shape) for shape in SHAPES.values())
    gathered = re.findall(r"= f64\[([\d,]+)\]\S* all-gather\(", product.as_text())
    assert all(np.prod([int(n) for n in sizes.split(",")]) <= max(largest, DATA[0].size) for sizes in gathered)
    packing = lowered(lambda g: A.domain.pack(g), here.gradient)
    assert not collectives(packing)
