"""Parameters, data and vectors on several devices, without an accelerator: torch's ``meta``, and two CPUs in JAX."""

import os
import subprocess
import sys
import textwrap

import pytest

import linop_gn as lg


def test_torch(torch):
    x, y, w = (torch.ones(shape, dtype=torch.float64) for shape in ((4, 3), (4,), (3,)))
    made = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y))
    z = y.to("meta")
    for data, what in (((x.to("meta"), y), "inputs"), ((x, z), "targets"), ((x, y, z), "weights")):
        for batches in (data, [data, (x, y)]):
            wrong = made.with_data(batches)
            for ask in (wrong.value, wrong.gradient, lambda w, wrong=wrong: lg.GGN(wrong, w)):
                with pytest.raises(ValueError, match=f"the {what} are on meta but the parameters on cpu; move one"):
                    ask(w)
    with pytest.raises(ValueError, match=r"parameters lie on several devices \('a' on cpu, 'b' on meta\); move them"):
        made.value({"a": w, "b": w.to("meta")})
    with pytest.raises(ValueError, match="is on meta, expected cpu; move it"):
        lg.GGN(made, w) @ w.to("meta")


PROGRAM = """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import linop_gn as lg

    here, there = jax.devices()
    x, y, w = np.random.default_rng(0).standard_normal((4, 3)), np.ones(4), np.ones(3)

    def made(place):
        return lg.Objective(lambda w, x: jnp.tanh(x @ w), lg.losses.SquaredError(), (place(x), place(y)))

    def everything(objective, w):
        G = lg.GGN(objective, w)
        return objective.value(w), objective.gradient(w), G @ w, lg.solve(lg.Damped(G, 1.0), w).x

    want = everything(made(jnp.asarray), jnp.asarray(w))
    at = jax.device_put(w, there)
    for place in (lambda a: jax.device_put(a, there), jnp.asarray):
        for got, expected in zip(everything(made(place), at), want, strict=True):
            assert got.devices() == {there}
            np.testing.assert_allclose(got, expected, rtol=1e-12)
    try:
        made(lambda a: jax.device_put(a, here)).gradient(at)
    except ValueError as error:
        assert f"the inputs are on {here} but the parameters on {there}; move one of them" in str(error)
    else:
        raise AssertionError("no error")

    mesh = Mesh(np.array([here, there]), ("batch",))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    for got, expected in zip(everything(made(lambda a: jax.device_put(a, split)), jnp.asarray(w)), want, strict=True):
        assert got.devices() == {here, there}
        np.testing.assert_allclose(got, expected, rtol=1e-12)
"""


def test_jax(jax):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
