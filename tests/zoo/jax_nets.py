"""Plain functions of JAX: flows, ODEs, implicit layers, physics, graphs, scans."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .cases import Case


def draws(seed: int = 0) -> Callable[..., Any]:
    """Normal numbers of a shape, others at each call."""
    rng = np.random.default_rng(seed)
    return lambda *shape, scale=0.5: jnp.asarray(scale * rng.standard_normal(shape))


def dense(n: Callable[..., Any], *sizes: int) -> list[Any]:
    return [{"w": n(a, b), "b": n(b)} for a, b in pairwise(sizes)]


def mlp(layers: list[Any], x: Any) -> Any:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def real_nvp() -> Case:
    """Affine couplings (Dinh et al., 2017): outputs are z and log |det|, and the loss is the negative log-density."""
    n = draws()
    params = [dense(n, 2, 6, 4) for _ in range(4)]

    def model(params, x):
        a, b, total = x[:, :2], x[:, 2:], 0.0
        for net in params:
            shift, log_scale = jnp.split(mlp(net, a), 2, axis=-1)
            log_scale = jnp.tanh(log_scale)
            a, b, total = b * jnp.exp(log_scale) + shift, a, total + log_scale.sum(-1)
        return jnp.concatenate([a, b, total[:, None]], -1)

    return Case(model, n(6, 4), jnp.zeros(6), lambda z, y: (z[..., :4] ** 2).sum(-1) / 2 - z[..., 4] + y, params)


def maf() -> Case:
    """A masked autoregressive flow (Papamakarios et al., 2017)."""
    n, d, h = draws(1), 3, 8
    degrees = np.arange(h) % (d - 1) + 1
    one = jnp.asarray(degrees[None] >= np.arange(1, d + 1)[:, None], dtype=float)
    two = jnp.asarray(np.arange(1, d + 1)[None] > degrees[:, None], dtype=float)
    params = [{"in": n(d, h), "mu": n(h, d), "alpha": n(h, d), "b": n(h)} for _ in range(2)]

    def model(params, x):
        total = jnp.zeros(len(x))
        for p in params:
            hidden = jax.nn.relu(x @ (p["in"] * one) + p["b"])
            alpha = hidden @ (p["alpha"] * two)
            x, total = ((x - hidden @ (p["mu"] * two)) * jnp.exp(-alpha))[:, ::-1], total - alpha.sum(-1)
        return jnp.concatenate([x, total[:, None]], -1)

    return Case(model, n(6, d), jnp.zeros(6), lambda z, y: (z[..., :3] ** 2).sum(-1) / 2 - z[..., 3] + y, params)


def neural_ode() -> Case:
    """A neural ODE (Chen et al., 2018) by fourth-order Runge-Kutta in a scan."""
    n = draws(2)

    def model(params, x):
        def step(y, _):
            f, h = (lambda y: mlp(params, y)), 0.25
            k1 = f(y)
            k2 = f(y + h / 2 * k1)
            k3 = f(y + h / 2 * k2)
            return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(y + h * k3)), None

        return lax.scan(step, x, None, length=4)[0]

    return Case(model, n(4, 2), n(4, 2), "squares", dense(n, 2, 6, 2))


def fixed_point(root: bool) -> Case:
    """A deep equilibrium (Bai et al., 2019): z = tanh(W z + U x), iterated, or found with an implicit derivative."""
    n = draws(4)

    def solved(f, _):
        return lax.while_loop(lambda s: jnp.abs(s[0] - s[1]).max() > 1e-14, lambda s: (f(s[0]) + 0 * s[0], s[0]), _)

    def model(p, x):
        def f(z):
            return jnp.tanh(z @ p["W"] + x @ p["U"])

        start = jnp.zeros((len(x), 3))
        if not root:
            return lax.fori_loop(0, 60, lambda _, z: f(z), start) @ p["head"]

        def solve(g, z):
            return solved(lambda z: z - g(z), (f(z), z))[0]

        def linear(g, y):
            return jnp.linalg.solve(jax.jacobian(g)(y).reshape(y.size, y.size), y.reshape(-1)).reshape(y.shape)

        return lax.custom_root(lambda z: z - f(z), start, solve, linear) @ p["head"]

    params = {"W": n(3, 3, scale=0.2), "U": n(2, 3), "head": n(3, 2)}
    return Case(model, n(4, 2), jnp.arange(4) % 2, "classes", params)


def pinn() -> Case:
    """Residuals of Burgers' equation, u_t + u u_x = nu u_xx, and of its start (Raissi et al., 2019)."""
    n = draws(5)
    inner, start = jnp.abs(n(8, 2)), jnp.linspace(-1.0, 1.0, 5)

    def residuals(params):
        def u(t, x):
            return mlp(params, jnp.stack([t, x]))[0]

        def equation(t, x):
            u_x = jax.grad(u, 1)
            return jax.grad(u)(t, x) + u(t, x) * u_x(t, x) - 0.1 * jax.grad(u_x, 1)(t, x)

        at_start = jax.vmap(lambda x: u(0.0 * x, x))(start) + jnp.sin(jnp.pi * start)
        return jnp.concatenate([jax.vmap(equation)(inner[:, 0], inner[:, 1]), at_start])

    return Case(None, None, None, params=dense(n, 2, 6, 6, 1), residuals=residuals)


def hamiltonian() -> Case:
    """A Hamiltonian network (Greydanus et al., 2019): the outputs are derivatives of what the network says."""
    n = draws(6)

    def model(params, x):
        q = jax.vmap(jax.grad(lambda x: mlp(params, x)[0]))(x)
        return jnp.concatenate([q[:, 1:], -q[:, :1]], -1)

    return Case(model, n(5, 2), n(5, 2), "squares", dense(n, 2, 8, 1))


def message_passing() -> Case:
    """Messages along edges, summed by segments, a gated update (Gilmer et al., 2017), and a pooled answer."""
    n = draws(7)
    src, dst = jnp.array([0, 1, 1, 2, 3, 4, 4, 5]), jnp.array([1, 0, 2, 1, 4, 3, 5, 4])
    params = {"message": dense(n, 7, 6, 3), "gate": dense(n, 6, 3), "update": dense(n, 6, 3), "head": dense(n, 3, 2)}

    def model(p, x):
        h, edges = x
        for _ in range(2):
            messages = mlp(p["message"], jnp.concatenate([h[src], h[dst], edges], -1))
            both = jnp.concatenate([h, jax.ops.segment_sum(messages, dst, 6)], -1)
            gate = jax.nn.sigmoid(mlp(p["gate"], both))
            h = gate * h + (1 - gate) * jnp.tanh(mlp(p["update"], both))
        return mlp(p["head"], jax.ops.segment_max(h, jnp.array([0, 0, 0, 1, 1, 1]), 2))

    return Case(model, (n(6, 3), n(8, 1)), jnp.array([0, 1]), "classes", params)


def experts() -> Case:
    """Two of four experts for each token, by top_k (Shazeer et al., 2017)."""
    n = draws(8)

    def model(p, x):
        weights, chosen = lax.top_k(x @ p["router"], 2)
        hidden = jnp.einsum("nd,nkdh->nkh", x, p["in"][chosen])
        made = jnp.einsum("nkh,nkho->nko", jax.nn.gelu(hidden), p["out"][chosen])
        return (jax.nn.softmax(weights)[..., None] * made).sum(1)

    params = {"router": n(3, 4), "in": n(4, 3, 5), "out": n(4, 5, 3)}
    return Case(model, n(6, 3), jnp.arange(6) % 3, "classes", params)


def linear_recurrence() -> Case:
    """A linear recurrent unit (Orvieto et al., 2023): complex, diagonal, by an associative scan."""
    n = draws(9)

    def model(p, u):
        A = jnp.exp(-jnp.exp(p["nu"]) + 1j * jnp.exp(p["theta"]))
        B = (p["B"][0] + 1j * p["B"][1]) * jnp.sqrt(1 - jnp.abs(A) ** 2)[None]

        def joined(a, b):
            return a[0] * b[0], b[0] * a[1] + b[1]

        states = lax.associative_scan(joined, (jnp.broadcast_to(A, (*u.shape[:2], 4)), u @ B), axis=1)[1]
        return (states @ (p["C"][0] + 1j * p["C"][1])).real + u * p["D"]

    params = {"nu": n(4), "theta": n(4), "B": n(2, 3, 4), "C": n(2, 4, 3), "D": n(3)}
    return Case(model, n(2, 6, 3), n(2, 6, 3), "squares", params)


def gp() -> Case:
    """A Gaussian process's negative log-likelihood in whitened residuals and a determinant, by Cholesky."""
    n = draws(10)
    x, y = jnp.linspace(0.0, 1.0, 7), n(7)

    def residuals(p):
        distance = (x[:, None] - x[None]) / jnp.exp(p["length"])
        K = jnp.exp(p["size"]) * jnp.exp(-(distance**2) / 2) + jnp.exp(p["noise"]) * jnp.eye(7)
        L = jnp.linalg.cholesky(K)
        return jnp.concatenate([jax.scipy.linalg.solve_triangular(L, y, lower=True), 1.0 + jnp.log(jnp.diag(L))])

    return Case(None, None, None, params={"length": n(), "size": n(), "noise": n()}, residuals=residuals)


def remat_transformer() -> Case:
    """Causal attention in a scan over layers, each rematerialised."""
    n = draws(11)
    params = {"embed": n(7, 4), "layers": {"qkv": n(3, 4, 12), "out": n(3, 4, 4), "mlp": n(3, 4, 4)}}

    def model(p, tokens):
        def layer(x, w):
            z = jax.nn.standardize(x, epsilon=1e-5)
            q, k, v = jnp.split(z @ w["qkv"], 3, -1)
            split = [a.reshape(*a.shape[:2], 2, 2) for a in (q, k, v)]
            x = x + jax.nn.dot_product_attention(*split, is_causal=True).reshape(x.shape) @ w["out"]
            return x + jax.nn.gelu(x @ w["mlp"]), None

        return lax.scan(jax.checkpoint(layer), p["embed"][tokens], p["layers"])[0] @ p["embed"].T

    tokens = jnp.arange(8).reshape(2, 4)
    return Case(model, tokens % 7, tokens % 5, "classes", params, eps=2.0**-23)  # its scores are float32


def convolutional() -> Case:
    """Strided and dilated convolutions, max pooling, batch statistics."""
    n = draws(12)
    params = {"one": n(3, 3, 2, 4), "two": n(3, 3, 4, 4), "head": n(4, 3), "scale": 1 + n(4), "shift": n(4)}

    def model(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, p["one"], (2, 2), "SAME", dimension_numbers=dims)
        x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) * p["scale"] + p["shift"]
        x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
        x = lax.conv_general_dilated(x, p["two"], (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=dims)
        return jnp.tanh(x).mean((1, 2)) @ p["head"]

    return Case(model, n(3, 8, 8, 2), jnp.arange(3), "classes", params)


CASES = {
    "RealNVP": real_nvp,
    "Masked autoregressive flow": maf,
    "Neural ODE, Runge-Kutta": neural_ode,
    "Deep equilibrium, iterated": lambda: fixed_point(False),
    "Deep equilibrium, custom_root": lambda: fixed_point(True),
    "PINN of Burgers' equation": pinn,
    "Hamiltonian network": hamiltonian,
    "Message passing": message_passing,
    "Mixture of experts, top_k": experts,
    "Linear recurrent unit": linear_recurrence,
    "Gaussian process": gp,
    "Transformer in a scan, rematerialised": remat_transformer,
    "Convolutions with statistics of the batch": convolutional,
}
