"""In JAX each named method is one program for all steps, other data, another start and other numbers."""

import composed
import numpy as np
import published
import pytest

import linop_gn as lg

jax = pytest.importorskip("jax")
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
)


@pytest.mark.parametrize("name", composed.NAMED)
def test_one_program_for_every_step_batch_start_and_level(name):
    ops, method = lg.load("jax"), lg.replace(composed.NAMED[name], stopping=lg.methods.Facts(ftol=0.0, xtol=0.0))
    f, other = published.Tanh(), published.Tanh(seed=1)
    data = ops.asarray(other.x, "float64"), ops.asarray(other.y, "float64")
    objective = f.objective(ops)
    starts = ops.asarray(f.start, "float64"), ops.asarray(other.start, "float64")
    lg.minimize(objective, starts[0], method, max_steps=50).value.block_until_ready()
    once = len(compiled)
    changed = lg.replace(method, level=0.5 * method.level + 1e-3)
    again = lg.minimize(objective.with_data(data), starts[1], changed, max_steps=50)
    assert np.isfinite(again.value.item())
    assert len(compiled) == once
