"""Cross-entropy over a large vocabulary: time, and copies of the logits held, beside double backward through torch's.

    OMP_NUM_THREADS=1 python benchmarks/bench_cross_entropy.py [torch | jax] [--tokens N] [--vocabulary N] [--save]

A hidden layer and the weights of a vocabulary, V W^T; 64 hidden units, so that the loss's part shows. Told are bytes at
the peak of what torch allocates (its profiler), in copies of the logits: what is held between products, and what one
product takes beside that. The peer differentiates twice through ``torch.nn.functional.cross_entropy`` and the model:
for J^T H_L J v, and for products with the Hessian. Of JAX's programs the compiler tells the same.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import interleaved, tell
from torch.nn.functional import cross_entropy

import linop_gn as lg
from linop_gn.curvature.losses.parts import in_parts

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.peaks import allocations

HIDDEN = 64


class Problem:
    """Tokens, parameters and a direction."""

    def __init__(self, tokens: int, vocabulary: int) -> None:
        torch.manual_seed(0)
        self.x, self.y = torch.randn(tokens, HIDDEN), torch.randint(vocabulary, (tokens,))
        self.params = {"A": torch.randn(HIDDEN, HIDDEN) / 8, "W": torch.randn(vocabulary, HIDDEN) / 8}
        self.v = {name: torch.randn_like(p) for name, p in self.params.items()}
        self.logits = 4 * tokens * vocabulary

    def model(self, p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ p["A"]) @ p["W"].T

    def ours(self, kind: Any = lg.GGN) -> Callable[[], Any]:
        A = kind(lg.Objective(self.model, lg.losses.CrossEntropy(), (self.x, self.y)), self.params).prepare()
        return lambda: A @ self.v

    def hessian(self) -> Callable[[], Any]:
        return self.ours(lg.Hessian)

    def hessian_by_double_backward(self) -> Callable[[], Any]:
        p = {name: x.clone().requires_grad_() for name, x in self.params.items()}
        g = torch.autograd.grad(cross_entropy(self.model(p, self.x), self.y), list(p.values()), create_graph=True)
        return lambda: torch.autograd.grad(g, list(p.values()), list(self.v.values()), retain_graph=True)

    def double_backward(self) -> Callable[[], Any]:
        p = {name: x.clone().requires_grad_() for name, x in self.params.items()}
        z = self.model(p, self.x)
        at = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(at, self.y), at, create_graph=True)
        u = torch.zeros_like(z, requires_grad=True)
        pulled = torch.autograd.grad(z, list(p.values()), u, create_graph=True)

        def product() -> Any:
            (Jv,) = torch.autograd.grad(pulled, u, list(self.v.values()), retain_graph=True)
            (HJv,) = torch.autograd.grad(g, at, Jv, retain_graph=True)
            return torch.autograd.grad(z, list(p.values()), HJv, retain_graph=True)

        return product

    def losses(self) -> dict[str, Callable[[], Any]]:
        """H v alone, at outputs: from what is kept between products, and from nothing."""
        z, v = self.model(self.params, self.x), torch.randn(len(self.y), len(self.params["W"]))
        xp, loss = lg.namespace(z), in_parts(lg.backend_of(z), lg.losses.CrossEntropy(), z)
        H, at = loss.hessian(xp, z, self.y, None), z.clone().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(at, self.y, reduction="sum"), at, create_graph=True)

        def anew() -> Any:
            (g,) = torch.autograd.grad(cross_entropy(at, self.y, reduction="sum"), at, create_graph=True)
            return torch.autograd.grad(g, at, v)

        return {
            # the graph of the gradient, or the numbers of each token, are kept between products
            "H v": lambda: H.product(xp, v),
            "H v, double backward": lambda: torch.autograd.grad(g, at, v, retain_graph=True),
            "H v from nothing": lambda: loss.hessian(xp, z, self.y, None).product(xp, v),
            "H v from nothing, double backward": anew,
        }


def differentiated_twice() -> dict[str, Callable[..., Any]]:
    """What JAX's own functions make: the model, H_L v at outputs, and products with J^T H_L J and the Hessian."""
    import jax
    import jax.numpy as jnp

    def model(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["A"]) @ p["W"].T

    def loss(z: Any, y: Any) -> Any:
        return (jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, y[:, None], -1)[:, 0]).sum()

    def at_outputs(z: Any, v: Any, y: Any) -> Any:
        return jax.jvp(jax.grad(lambda z: loss(z, y)), (z,), (v,))[1]

    def ggn(p: Any, v: Any, x: Any, y: Any) -> Any:
        z, Jv = jax.jvp(lambda p: model(p, x), (p,), (v,))
        return jax.vjp(lambda p: model(p, x), p)[1](at_outputs(z, Jv, y))[0]

    def hessian(p: Any, v: Any, x: Any, y: Any) -> Any:
        return jax.jvp(jax.grad(lambda p: loss(model(p, x), y)), (p,), (v,))[1]

    return {"model": model, "H v": at_outputs, "GGN": ggn, "Hessian": hessian}


def in_jax(tokens: int, vocabulary: int) -> dict[str, Callable[[], Any]]:
    """A product and H v alone, by one program each, beside forward over reverse through JAX's functions."""
    import jax
    import jax.numpy as jnp

    rng, plain = np.random.default_rng(0), differentiated_twice()

    def drawn(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, y = drawn(tokens, HIDDEN), jnp.asarray(rng.integers(0, vocabulary, tokens))
    params = {"A": drawn(HIDDEN, HIDDEN) / 8, "W": drawn(vocabulary, HIDDEN) / 8}
    v, along = {name: drawn(*p.shape) for name, p in params.items()}, drawn(tokens, vocabulary)
    G = lg.GGN(lg.Objective(plain["model"], lg.losses.CrossEntropy(), (x, y)), params).prepare()
    z = plain["model"](params, x)
    H = in_parts(lg.backend_of(z), lg.losses.CrossEntropy(), z).hessian(jnp, z, y, None)
    ours, theirs = jax.jit(lambda G, v: G @ v), jax.jit(plain["GGN"])
    own, other = jax.jit(lambda H, v: H.product(jnp, v)), jax.jit(plain["H v"])
    ready = jax.block_until_ready
    return {
        "product": lambda: ready(ours(G, v)),
        "product, differentiated twice": lambda: ready(theirs(params, v, x, y)),
        "H v": lambda: ready(own(H, along)),
        "H v, differentiated twice": lambda: ready(other(z, along, y)),
    }


def jax_copies(tokens: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Copies of the logits that a program for products is given, and takes with them; nothing is run."""
    import jax

    def like(*shape: int, dtype: str = "float32") -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    def copies(kept: int, program: Any) -> dict[str, float]:
        taken = program.compile().memory_analysis()
        size = kept + taken.temp_size_in_bytes + taken.output_size_in_bytes
        made = {"kept": kept, "a product, with what is kept": size}
        return {what: round(size / (4 * tokens * vocabulary), 2) for what, size in made.items()}

    p, plain = {"A": like(HIDDEN, HIDDEN), "W": like(vocabulary, HIDDEN)}, differentiated_twice()
    data, told = (like(tokens, HIDDEN), like(tokens, dtype="int32")), {}
    for kind in (lg.GGN, lg.Hessian):

        def prepared(p: Any, x: Any, y: Any, kind: Any = kind) -> Any:
            return kind(lg.Objective(plain["model"], lg.losses.CrossEntropy(), (x, y)), p).prepare()

        A = jax.eval_shape(prepared, p, *data)
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(A))
        told[kind.__name__] = copies(kept, jax.jit(lambda A, v: A @ v).lower(A, p))
        told[f"{kind.__name__}, differentiated twice"] = copies(0, jax.jit(plain[kind.__name__]).lower(p, p, *data))
    return told


def measure(tokens: int, vocabulary: int) -> dict[str, Any]:
    """Seconds, and copies of the logits. The loss alone is timed on a sixteenth of the tokens."""
    problem, told = Problem(tokens, vocabulary), dict[str, Any]()
    cases: dict[str, Callable[[], Any]] = {
        "linop_gn": problem.ours,
        "double backward": problem.double_backward,
        "linop_gn, Hessian": problem.hessian,
        "double backward, Hessian": problem.hessian_by_double_backward,
    }
    for name, make in cases.items():
        first, kept, product = allocations(make)
        product()  # the first one looks for NaN
        start = time.perf_counter()
        more, _, _ = allocations(product)
        seconds = time.perf_counter() - start
        copies = {"preparing": first, "kept": kept, "a product, with what is kept": kept + more}
        told[name] = {what: round(size / problem.logits, 2) for what, size in copies.items()}
        told[name]["seconds of a product"] = round(seconds, 3)
        del product
        gc.collect()
    few = max(1, tokens // 16)
    times = interleaved(Problem(few, vocabulary).losses(), rounds=3)
    told["the loss, seconds"] = {"tokens": few} | {name: round(times.median(name), 4) for name in times}
    for name in ("H v", "H v from nothing"):
        told[f"{name}, of double backward's time"] = round(times.ratio(name, f"{name}, double backward")[0], 3)
    return {"tokens": tokens, "vocabulary": vocabulary} | told


def measure_jax(tokens: int, vocabulary: int) -> dict[str, Any]:
    """Copies of the logits, seconds, and ratios of these."""
    told: dict[str, Any] = dict(jax_copies(tokens, vocabulary))
    times = interleaved(in_jax(tokens, vocabulary), rounds=3)
    told["seconds"] = {name: round(times.median(name), 4) for name in times}
    for name in ("product", "H v"):
        told[f"{name}, of the time twice"] = round(times.ratio(name, f"{name}, differentiated twice")[0], 3)
    return {"tokens": tokens, "vocabulary": vocabulary} | told


def main() -> None:
    """Measure, print, and save where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", nargs="?", choices=("torch", "jax"))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    if asked.framework != "jax":
        tell("cross_entropy", measure(asked.tokens, asked.vocabulary), asked.save)
    if asked.framework != "torch":
        tell("cross_entropy_jax", measure_jax(asked.tokens, asked.vocabulary), asked.save)


if __name__ == "__main__":
    main()
