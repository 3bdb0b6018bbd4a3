"""Nets written once for torch and JAX, whose weights are used in every way that Kronecker factors tell apart."""

import numpy as np

import linop_gn as lg

LOSSES = {
    "squares": lambda reduction: lg.losses.SquaredError(reduction=reduction),
    "softmax": lambda reduction: lg.losses.CrossEntropy(reduction=reduction),
    "binary": lambda reduction: lg.losses.BinaryCrossEntropy(reduction=reduction),
}


def targets(rng, loss, shape):
    if loss == "squares":
        return rng.standard_normal(shape)
    return rng.integers(0, shape[-1], shape[:-1]) if loss == "softmax" else rng.integers(0, 2, shape)


def put(ops, x, dtype="float64"):
    if isinstance(x, dict):
        return {name: put(ops, value, dtype) for name, value in x.items()}
    if x.dtype.kind == "i":
        return ops.asarray(x, "int64" if ops.name == "torch" else "int32")
    return ops.asarray(x, dtype)


def dense(A):
    return A.backend.to_numpy(A.to_dense())


def pooled(p, x):
    """One prediction for each example."""
    xp = lg.namespace(p["W1"])
    return xp.mean(xp.tanh(x @ p["W1"].T + p["b1"]), axis=1) @ p["W2"] + p["b2"]


def recurrent(p, x):
    """A cell with the weights W1 (inputs), W2 (state), called at each position."""
    xp = lg.namespace(x)
    state = xp.zeros_like(x[:, 0, :1]) + xp.zeros_like(p["b"])
    for t in range(x.shape[1]):
        state = xp.tanh(x[:, t, :] @ p["W1"] + state @ p["W2"] + p["b"])
    return state @ p["head"]


def tied(p, x):
    """A weight that is used as it is and transposed."""
    xp = lg.namespace(x)
    return xp.tanh(x @ p["W1"].T) @ p["W1"]


def cut(p, x):
    """Three layers in one array, and attention between positions."""
    xp = lg.namespace(x)
    q, k, v = (x @ p["W"][:, i * 3 : (i + 1) * 3] for i in range(3))
    weights = xp.exp(xp.tanh(q @ xp.matrix_transpose(k)))
    return xp.mean((weights / xp.sum(weights, axis=-1, keepdims=True)) @ v, axis=1) @ p["out"]


def normed(p, x):
    """Layer normalisation, with its scale and shift."""
    xp = lg.namespace(x)
    h = x @ p["W1"].T
    h = h - xp.mean(h, axis=-1, keepdims=True)
    h = h / xp.sqrt(xp.mean(h * h, axis=-1, keepdims=True) + 1e-5)
    return xp.mean(xp.tanh(h * p["scale"] + p["shift"]), axis=1) @ p["W2"]


def odd(p, x):
    """A weight that enters something else as well."""
    xp = lg.namespace(x)
    return xp.mean(xp.tanh(x @ p["W1"].T), axis=1) @ (p["W2"] * p["W2"]) + xp.sum(p["W1"] * p["W1"])


MODELS = {
    "two layers": (pooled, {"W1": (4, 3), "W2": (4, 3), "b1": (4,), "b2": (3,)}),
    "recurrent": (recurrent, {"W1": (3, 4), "W2": (4, 4), "b": (4,), "head": (4, 3)}),
    "tied": (lambda p, x: tied(p, x[:, 0, :]), {"W1": (4, 3)}),
    "cut": (cut, {"W": (3, 9), "out": (3, 3)}),
    "normed": (normed, {"W1": (4, 3), "W2": (4, 3), "scale": (4,), "shift": (4,)}),
}


def made(ops, name, seed=0, n=5, loss="softmax", **options):
    net, shapes = MODELS[name]
    rng = np.random.default_rng(seed)
    p = {key: rng.standard_normal(shape) for key, shape in sorted(shapes.items())}
    x, y = rng.standard_normal((n, 4, 3)), targets(rng, loss, (n, 3))
    f = lg.Objective(net, LOSSES[loss]("mean"), (put(ops, x), put(ops, y)), **options)
    return f, put(ops, p)
