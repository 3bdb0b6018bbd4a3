"""A step of a method beside the same step written by hand, in torch, NumPy and JAX.

    python benchmarks/bench_methods.py [--only torch numpy jax] [--rounds 15] [--quick] [--save]

A Gauss-Newton step is ten iterations of CG on G + damping I, one trial, Nielsen's rule, and value, gradient and
linearisation at the new point: STEPS of them from the same start, its first point included. An Adam step is a gradient
on the next batch and AdamW's update: BATCHES of them. Ours keeps a history of each step; what is written by hand reads
the loss of each step, and nothing else that it doesn't need.

glibc is told to keep what is freed: with its defaults two programs that alternate give their memory back and fault it
in anew, which takes a fifth of a step of the one with the larger state (JAX in one jit 1.3 in place of 1.0).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from timing import interleaved, save

import linop_gn as lg

STEPS, BATCHES, CG, DAMPING, RATE, DECAY = 10, 50, 10, 0.1, 1e-3, 1e-2
METHOD = lg.SecondOrder(
    lg.GGN, lg.descents.Solve(lg.CG(steps=CG)), lg.Nielsen(), lg.searches.Accept(), level=DAMPING, stopping=None
)
ADAM = lg.FirstOrder(lg.optimisers.Adam(weight_decay=DECAY), rate=RATE)
Cases = dict[str, tuple[dict[str, Callable[[], Any]], str]]
"""By title: what is timed, and which of it is written by hand."""


def nielsen(damping: Any, growth: Any, ratio: Any, where: Any, maximum: Any, minimum: Any) -> tuple[Any, Any]:
    """The next damping and growth."""
    shrink = maximum(1.0 / 3.0, 1.0 - (2.0 * minimum(maximum(ratio, 0.0), 2.0) - 1.0) ** 3)
    return damping * where(ratio > 0, shrink, growth), where(ratio > 0, 2.0, 2.0 * growth)


def by_hand(x: Any, value_of: Any, linearised: Any, axpy: Any, axpby: Any) -> list[float]:
    """The Gauss-Newton steps in an eager framework whose inner product is a number; returns the values."""
    value, g, product = linearised(x)
    damping, growth, values = DAMPING, 2.0, [value]
    for _ in range(STEPS):
        d, r, p = 0.0 * g, 1.0 * g, -1.0 * g  # r = G d + g
        rr = float(r @ r)
        for _ in range(CG):
            q = axpy(damping, p, product(p))
            alpha = rr / float(p @ q)
            d, r = axpy(alpha, p, d), axpy(alpha, q, r)
            before, rr = rr, float(r @ r)
            p = axpby(-1.0, r, rr / before, p)
        predicted = -0.5 * float(d @ g) - 0.5 * float(d @ r) + 0.5 * damping * float(d @ d)
        trial = x + d
        ratio = (value - value_of(trial)) / predicted
        damping, growth = nielsen(damping, growth, ratio, lambda c, a, b: a if c else b, max, min)
        if ratio > 0:
            x = trial
            value, g, product = linearised(x)
        values.append(value)
    return values


def same(ours: list[Any], hand: list[Any], rtol: float) -> None:
    """Raise unless both ways come to the same values: else the comparison would be of two things."""
    np.testing.assert_allclose([float(v) for v in ours], [float(v) for v in hand], rtol=rtol)


def loop(objective: Any, params: Any, method: Any) -> Any:
    """The steps one at a time from Python."""
    state = lg.start(method, objective, params)
    for _ in range(STEPS):
        state = lg.advance(method, objective, state)
    return state


def digits(examples: int) -> tuple[Any, Any]:
    """Inputs and classes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, 784)).astype(np.float32)
    return x, (x @ rng.standard_normal((784, 10))).argmax(1)


def with_numpy() -> Cases:
    """Residuals with a supplied Jacobian."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 50))
    y, start = np.tanh(X @ rng.standard_normal(50) / 4) + 0.1 * rng.standard_normal(500), np.zeros(50)

    def residuals(p: Any) -> Any:
        return np.tanh(X @ p) - y

    def jacobian(p: Any) -> Any:
        return (1.0 - np.tanh(X @ p) ** 2)[:, None] * X

    def linearised(p: Any) -> tuple[float, Any, Any]:
        r, J = residuals(p), jacobian(p)
        return 0.5 * float(r @ r), J.T @ r, lambda v: J.T @ (J @ v)

    def value_of(p: Any) -> float:
        r = residuals(p)
        return 0.5 * float(r @ r)

    def hand() -> list[float]:
        return by_hand(start, value_of, linearised, lambda a, p, y: y + a * p, lambda a, x, b, y: a * x + b * y)

    objective = lg.Objective.from_residuals(residuals, jacobian=jacobian)
    ours = lg.minimize(objective, start, METHOD, max_steps=STEPS)
    same(ours.history["value"], hand(), 1e-6)
    return {
        "NumPy: Gauss-Newton, 500 residuals, 50 parameters": (
            {
                "by hand": hand,
                "lg.minimize": lambda: lg.minimize(objective, start, METHOD, max_steps=STEPS),
                "lg.advance": lambda: loop(objective, start, METHOD),
            },
            "by hand",
        )
    }


def with_torch() -> Cases:
    """Networks in torch, eager."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, y = map(torch.as_tensor, digits(500))
    net, loss = nn.Sequential(nn.Linear(784, 100), nn.Tanh(), nn.Linear(100, 10)), nn.CrossEntropyLoss()
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    shapes, sizes = [p.shape for p in params.values()], [p.numel() for p in params.values()]
    start = torch.cat([p.reshape(-1) for p in params.values()])

    def split(flat: Any) -> list[Any]:
        return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]

    def model(leaves: list[Any]) -> Any:
        return torch.func.functional_call(net, dict(zip(params, leaves, strict=True)), (x,))

    def linearised(flat: Any) -> tuple[float, Any, Any]:
        leaves = [p.detach().requires_grad_() for p in split(flat)]
        z = model(leaves)
        value = loss(z, y)
        probabilities = z.detach().softmax(1)
        u = (probabilities - nn.functional.one_hot(y, 10)).div_(500).requires_grad_()
        recorded = torch.autograd.grad(z, leaves, u, create_graph=True)

        def product(v: Any) -> Any:
            (t,) = torch.autograd.grad(recorded, u, split(v), retain_graph=True)
            bent = probabilities * t
            bent = (bent - probabilities * bent.sum(1, keepdim=True)).div_(500)
            return torch.cat([p.reshape(-1) for p in torch.autograd.grad(z, leaves, bent, retain_graph=True)])

        return value.item(), torch.cat([p.detach().reshape(-1) for p in recorded]), product

    def value_of(flat: Any) -> float:
        with torch.no_grad():
            return loss(model(split(flat)), y).item()

    def axpby(a: float, x: Any, b: float, y: Any) -> Any:
        return y.mul_(b).add_(x, alpha=a)

    def hand() -> list[float]:
        return by_hand(start, value_of, linearised, lambda a, x, y: y.add_(x, alpha=a), axpby)

    objective = lg.Objective(net, lg.losses.CrossEntropy(), (x, y))
    ours = lg.minimize(objective, params, METHOD, max_steps=STEPS)
    same(ours.history["value"], hand(), 1e-2)

    small = nn.Sequential(nn.Linear(784, 35), nn.Tanh(), nn.Linear(35, 10))
    inputs, classes = map(torch.as_tensor, digits(128 * BATCHES))
    batches = list(zip(inputs.split(128), classes.split(128), strict=True))
    begun = {name: p.detach().clone() for name, p in small.named_parameters()}

    def trained() -> list[float]:
        values = []
        with torch.no_grad():
            for name, p in small.named_parameters():
                p.copy_(begun[name])
        optimiser = torch.optim.AdamW(small.parameters(), lr=RATE, weight_decay=DECAY)
        for a, b in batches:
            optimiser.zero_grad()
            value = loss(small(a), b)
            value.backward()
            optimiser.step()
            values.append(value.item())
        return values

    stream = lg.Objective(small, lg.losses.CrossEntropy(), batches[0])
    same(lg.minimize(stream, begun, ADAM, batches=batches).history["value"][1:], trained(), 1e-3)
    return {
        "torch: Gauss-Newton, MLP 784-100-10, 500 examples": (
            {
                "by hand": hand,
                "lg.minimize": lambda: lg.minimize(objective, params, METHOD, max_steps=STEPS),
                "lg.advance": lambda: loop(objective, params, METHOD),
            },
            "by hand",
        ),
        "torch: Adam, 28,000 parameters, batches of 128": (
            {"by hand": trained, "lg.minimize": lambda: lg.minimize(stream, begun, ADAM, batches=batches)},
            "by hand",
        ),
    }


def with_jax() -> Cases:
    """Networks in JAX: all steps in one compiled program, and from Python."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.flatten_util import ravel_pytree

    def initial(width: int) -> dict[str, Any]:
        a, b = jax.random.split(jax.random.key(0))
        first, second = jax.random.normal(a, (784, width)) / 28, jax.random.normal(b, (width, 10)) / width**0.5
        return {"a": first, "b": jnp.zeros(width), "c": second, "d": jnp.zeros(10)}

    def model(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["a"] + p["b"]) @ p["c"] + p["d"]

    def mean_loss(z: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    x, y = map(jnp.asarray, digits(500))
    params = initial(100)
    flat, unravel = ravel_pytree(params)

    def linearised(v: Any, x: Any, y: Any) -> tuple[Any, ...]:
        z, jvp = jax.linearize(lambda v: model(unravel(v), x), v)
        vjp = jax.linear_transpose(jvp, v)
        probabilities = jax.nn.softmax(z)
        value, u = jax.value_and_grad(mean_loss)(z, y)
        return value, vjp(u)[0], probabilities, jvp

    def hand_step(carry: Any, x: Any, y: Any) -> Any:
        v, damping, growth = carry[:3]
        value, g, probabilities, jvp = linearised(v, x, y)
        vjp = jax.linear_transpose(jvp, v)

        def product(p: Any) -> Any:
            t = probabilities * jvp(p)
            return vjp((t - probabilities * t.sum(1, keepdims=True)) / len(x))[0] + damping * p

        def iteration(_: Any, s: Any) -> Any:
            d, r, p, rr = s
            q = product(p)
            alpha = rr / (p @ q)
            d, r = d + alpha * p, r + alpha * q
            new = r @ r
            return d, r, new / rr * p - r, new

        d, r, _, _ = jax.lax.fori_loop(0, CG, iteration, (jnp.zeros_like(g), g, -g, g @ g))
        predicted = -0.5 * (d @ g) - 0.5 * (d @ r) + 0.5 * damping * (d @ d)
        trial = v + d
        found = mean_loss(model(unravel(trial), x), y)
        ratio = (value - found) / predicted
        damping, growth = nielsen(damping, growth, ratio, jnp.where, jnp.maximum, jnp.minimum)
        return jnp.where(ratio > 0, trial, v), damping, growth, jnp.where(ratio > 0, found, value)

    def begun(v: Any, x: Any, y: Any) -> Any:
        return v, jnp.asarray(DAMPING), jnp.asarray(2.0), mean_loss(model(unravel(v), x), y)

    @jax.jit
    def hand(v: Any, x: Any, y: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            carry = hand_step(carry, x, y)
            return carry, carry[-1]

        carry, values = jax.lax.scan(step, begun(v, x, y), None, STEPS)
        return carry[0], values

    first, next_one = jax.jit(begun), jax.jit(hand_step)

    def hand_from_python() -> list[float]:
        carry = first(flat, x, y)
        values = [float(carry[-1])]
        for _ in range(STEPS):
            carry = next_one(carry, x, y)
            values.append(float(carry[-1]))
        return values

    @jax.jit
    def ours(params: Any, x: Any, y: Any) -> Any:
        objective = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))

        def step(state: Any, _: Any) -> Any:
            state = lg.advance(METHOD, objective, state, fresh=False)
            return state, state.value

        state, values = jax.lax.scan(step, lg.start(METHOD, objective, params), None, STEPS)
        return state.params, values

    objective = lg.Objective(model, lg.losses.CrossEntropy(), (x, y))
    same(ours(params, x, y)[1], hand(flat, x, y)[1], 1e-2)
    same(lg.minimize(objective, params, METHOD, max_steps=STEPS).history["value"], hand_from_python(), 1e-2)

    weights, inputs, classes = initial(35), *map(jnp.asarray, digits(128 * BATCHES))
    inputs, classes = inputs.reshape(BATCHES, 128, 784), classes.reshape(BATCHES, 128)
    optimiser = optax.adamw(RATE, weight_decay=DECAY)

    @jax.jit
    def trained(p: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            p, kept = carry
            value, g = jax.value_and_grad(lambda p: mean_loss(model(p, batch[0]), batch[1]))(p)
            updates, kept = optimiser.update(g, kept, p)
            return (optax.apply_updates(p, updates), kept), value

        (p, _), values = jax.lax.scan(step, (p, optimiser.init(p)), batches)
        return p, values

    @jax.jit
    def ours_trained(p: Any, batches: Any) -> Any:
        stream = lg.Objective(model, lg.losses.CrossEntropy(), (batches[0][0], batches[1][0]))

        def step(state: Any, batch: Any) -> Any:
            state = lg.advance(ADAM, stream.with_data(batch), state)
            return state, state.value

        state, values = jax.lax.scan(step, lg.start(ADAM, stream, p), batches)
        return state.params, values

    batches = (inputs, classes)
    same(ours_trained(weights, batches)[1], trained(weights, batches)[1], 1e-3)

    def ready(function: Any, *given: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(function(*given))

    return {
        "JAX, one jit: Gauss-Newton, MLP 784-100-10, 500 examples": (
            {"by hand": ready(hand, flat, x, y), "lg.advance": ready(ours, params, x, y)},
            "by hand",
        ),
        "JAX, from Python: Gauss-Newton, MLP 784-100-10, 500 examples": (
            {
                "by hand, a jit for each step": hand_from_python,
                "lg.minimize": lambda: lg.minimize(objective, params, METHOD, max_steps=STEPS),
                "lg.advance": lambda: jax.block_until_ready(loop(objective, params, METHOD).own),
            },
            "by hand, a jit for each step",
        ),
        "JAX, one jit: Adam, 28,000 parameters, batches of 128": (
            {"optax": ready(trained, weights, batches), "lg.advance": ready(ours_trained, weights, batches)},
            "optax",
        ),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=["torch", "numpy", "jax"], default=["numpy", "torch", "jax"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/methods.json")
    options = parser.parse_args()
    console, results = Console(), {"load": [list(os.getloadavg())]}
    for framework in options.only:
        for title, (cases, hand) in globals()[f"with_{framework}"]().items():
            timings = interleaved(cases, 3 if options.quick else options.rounds)
            table = Table("", "ratio", "quartiles", "ms a step", title=title)
            results[title] = {}
            for case in timings:
                ratio, low, high = timings.ratio(case, hand)
                seconds = timings.median(case) / (BATCHES if "Adam" in title else STEPS)
                table.add_row(case, f"{ratio:.2f}", f"{low:.2f} .. {high:.2f}", f"{1e3 * seconds:.3f}")
                results[title][case] = {"ratio": ratio, "quartiles": [low, high], "seconds": seconds}
            console.print(table)
    results["load"].append(list(os.getloadavg()))
    console.print(f"load at start and end: {results['load']}")
    if options.save:
        console.print(f"saved to {save('methods', results)}")


KEEP = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}

if __name__ == "__main__":
    if KEEP.items() - os.environ.items():  # read when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    main()
