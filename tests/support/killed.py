"""A run with checkpoints, to be killed at any moment: ``python killed.py framework path steps``."""

import sys
import time

import numpy as np

import linop_gn as lg


def problem(name):
    """A fit by a smooth model, slow enough that a kill meets it anywhere: objective and start."""
    ops = lg.load(name)
    rng = np.random.default_rng(0)
    x, y = (ops.asarray(rng.standard_normal(shape), "float32") for shape in ((40, 6), 40))

    def residuals(p):
        if name != "jax":
            time.sleep(1e-3)
        return lg.namespace(p).tanh(x @ p) - y

    def jacobian(p):
        return (1 - np.tanh(x @ p) ** 2)[:, None] * x

    supplied = jacobian if ops.calculus is None else None
    start = ops.asarray(rng.standard_normal(6), "float32")
    return lg.Objective.from_residuals(residuals, jacobian=supplied), start


def fit(name, path, steps):
    """The parameters after so many steps, on the host."""
    objective, start = problem(name)
    method = lg.LevenbergMarquardt(damping=10.0, rule=lg.ConstantDamping(), rtol=0.0, ftol=0.0)
    found = lg.minimize(objective, start, method, max_steps=steps, checkpoint=path, every=1)
    return np.asarray(found.params), int(found.steps)


if __name__ == "__main__":
    name, path, steps = sys.argv[1:]
    print("running", flush=True)
    params, taken = fit(name, path, int(steps))
    print(params.tobytes().hex(), taken, flush=True)
