"""Problems on several devices in JAX, and what is compared and counted there."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linop_gn as lg


class Here(NamedTuple):
    """A problem on some devices."""

    params: Any
    data: tuple[Any, Any]
    model: Any = None

    @property
    def objective(self) -> lg.Objective:
        return lg.Objective(self.model or model, lg.losses.SquaredError(), self.data)

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
REPLICATED = dict.fromkeys(SHAPES, P())
LAYOUTS = {
    "split by tensor": ((8,), ("model",), {"W1": P(None, "model"), "b1": P("model"), "W2": P("model"), "b2": P()}, P()),
    "data-parallel": ((8,), ("data",), REPLICATED, P("data")),
    "fully sharded": ((8,), ("data",), {"W1": P(None, "data"), "b1": P(), "W2": P("data"), "b2": P()}, P("data")),
    "data and model": (
        (4, 2),
        ("data", "model"),
        {"W1": P(None, ("data", "model")), "b1": P("model"), "W2": P("model", "data"), "b2": P()},
        P("data"),
    ),
}
SHARDED = [name for name in LAYOUTS if name != "data-parallel"]


def data_of(params: Any) -> tuple[np.ndarray, np.ndarray]:
    return DATA[0], DATA[1][:, : params["b2"].size]


def one(params: Any = PARAMS) -> Here:
    return Here(jax.tree.map(jnp.asarray, params), tuple(map(jnp.asarray, data_of(params))))


def spread(layout: str, params: Any = PARAMS, kind: AxisType = AxisType.Auto, devices: int = 8) -> Here:
    shape, names, specs, batch = LAYOUTS[layout]
    shape = shape if devices == 8 else (devices,)
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=jax.devices()[:devices])
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


def loops(program: Any) -> str:
    """The bodies of the loops of a compiled program, but for loops of one round or none."""
    lines = program.as_text().splitlines()
    text = "\n".join(line for line in lines if "at_most_once" not in line or line[-1] == "{")
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    blocks = re.split(r"\n(?=%|ENTRY)", text)
    return "\n".join(block for block in blocks if block.split(" ")[0].lstrip("%") in bodies)


def collectives(program: Any, part: str = "") -> Counter[str]:
    """The collectives in a compiled program, or in its :func:`loops`."""
    text = loops(program) if part == "loops" else program.as_text()
    found: Counter[str] = Counter()
    for made, kind in re.findall(
        r" = (\S.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text
    ):
        found["scalar" if re.fullmatch(r"\(?f64\[\](, f64\[\])*\)?", made) else kind] += 1
    return found


def lowered(function: Any, *arguments: Any) -> Any:
    return jax.jit(function).lower(*arguments).compile()
