"""Data over a mesh whose axes are explicit, and models inside ``shard_map``: what one device gives, on four."""

import os
import subprocess
import sys

from systems import FULL, in_full

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import linop_gn as lg
from linop_gn_jax import backend

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((8, 3)), rng.integers(0, 3, 8)
W = {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal((4, 3))}
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))

def model(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]

def on(spec):
    return lambda a: jax.device_put(a, NamedSharding(mesh, P(*spec)))

def near(got, want):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)

def curved(kind):
    return lambda p, x, y: kind(objective(x, y), p) @ p

def objective(x, y):
    return lg.Objective(model, lg.losses.CrossEntropy(), (x, y))

def gradient(p, x, y):
    return objective(x, y).gradient(p)

def batches(p, x, y):
    return lg.Hessian(lg.Objective(model, lg.losses.CrossEntropy(), [(x, y), (x, y)]), p) @ p

def solved(method):
    return lambda p, x, y: lg.solve(lg.Damped(lg.GGN(objective(x, y), p), 0.1), gradient(p, x, y), method).x

def residuals(p, x, y):
    return lg.least_squares(lambda p: jnp.tanh(x @ p["w"])[:, 0] - 0.1 * x[:, 0], {"w": p["w"]}).cost

here = jax.tree.map(jnp.asarray, W), jnp.asarray(X), jnp.asarray(Y)
there = jax.tree.map(on(()), W), on("d")(X), on("d")(Y)
def diagonal(p, x, y):
    values, rhs = 1.0 + p["v"][:, 0] ** 2, p["w"][0] * x.sum()
    return rhs / values if isinstance(x, np.ndarray) else lg.solve(lg.Diagonal(values), rhs, lg.CG(rtol=1e-10)).x

def pulled(p, x, y):  # what enters the products with parameters, and the cotangents at these
    found = backend.calculus.uses(lambda p: model(dict(zip("vw", p)), x), [p["v"], p["w"]])
    return found.inputs, found.pull(found.outputs)[0]

parts = [gradient, curved(lg.GGN), curved(lg.Hessian), jax.jit(pulled)]
if "full" in sys.argv:
    parts += [curved(lg.BlockGGN), batches, solved(lg.CG(rtol=1e-10)), solved(lg.GramSolve()), residuals]
    parts += [lambda p, x, y: lg.minimize(objective(x, y), p, max_steps=3).params]
for part in parts:
    near(part(*there), part(*here))
near(diagonal(*there), diagonal(W, X, Y))
cut = {"w": on((None, "d"))(W["w"]), "v": on(())(W["v"])}
near(gradient(cut, here[1], here[2]), gradient(*here))  # gathered

def local(p, x, y):
    return jax.tree.map(lambda a: jax.lax.pmean(a, "d"), curved(lg.GGN)(p, x, y))  # of the device's own objective

def apart(p, x, y):  # the same vector on every device, the parameters the device's own
    v, p = p, jax.tree.map(lambda a: jax.lax.pcast(a, "d", to="varying"), p)
    return jax.tree.map(lambda a: jax.lax.pmean(a, "d"), lg.GGN(objective(x, y), p) @ v)

def alone(part):  # each device has parameters and data of its own
    def run(p, x, y):
        made = part(jax.tree.map(lambda a: jax.lax.pcast(a, "d", to="varying"), p), x, y)
        return jax.tree.map(lambda a: a[None], made)
    return jax.jit(jax.shard_map(run, **{**specs, "out_specs": P("d")}))

def together(p, x, y):  # one objective for all devices, each with its part of it
    def total(p, data):
        return jax.lax.psum(objective(*data).value(p), "d") / 4
    return lg.minimize(lg.Objective.from_function(total, (x, y)), p, lg.Newton(damping=0.1), max_steps=3).params

specs = dict(mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P())
for part in (local, apart):
    near(jax.jit(jax.shard_map(part, **specs))(*there), curved(lg.GGN)(*here))
parts = [diagonal, pulled]
if "full" in sys.argv:
    whole = lg.Objective.from_function(lambda p: objective(*here[1:]).value(p))
    wanted = lg.minimize(whole, here[0], lg.Newton(damping=0.1), max_steps=3).params
    near(jax.jit(jax.shard_map(together, **specs))(*there), wanted)
    parts += [solved(lg.CG(steps=3)), solved(lg.LSMR()), solved(lg.MINRES(rtol=1e-10)), solved(lg.Cholesky())]
    parts += [residuals, batches]
    parts += [lambda p, x, y: lg.minimize(objective(x, y), p, max_steps=3).params]
    parts += [lambda p, x, y: lg.minimize(objective(x, y), p, lg.TrustRegion(), max_steps=3).params]
for part in parts:
    found = jax.device_get(alone(part)(*there))
    for i in range(4):
        p, *data = (W, X, Y) if part is diagonal else here
        near(jax.tree.map(lambda a: a[i], found), part(p, *(a[2 * i : 2 * i + 2] for a in data)))
if "full" in sys.argv:
    try:
        jax.jit(jax.shard_map(lambda p, x, y: lg.minimize(objective(x, y), p, max_steps=3).params, **specs))(*there)
    except ValueError as error:
        assert "replication" in str(error), error  # each device's own result
    else:
        raise AssertionError
"""


@in_full
def test_four_devices_give_what_one_gives():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, *["full"] * FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
