r"""SOAP (Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson and Kakade, 2024; arXiv 2409.11321) for optax.

Adam in the eigenbasis of Shampoo's preconditioner. Of a matrix with gradient G,

    L <- b L + (1 - b) G G^T,    R <- b R + (1 - b) G^T G,    b = b2
    G' = U^T G V,    m <- b1 m + (1 - b1) G,    v <- b2 v + (1 - b2) G'^2
    W <- W - rate U (U^T m V / (sqrt(v) + eps)) V^T sqrt(1 - b2^t) / (1 - b1^t),    W <- (1 - rate decay) W

U and V are the eigenvectors of L and R after the first gradient; every so many steps they are made anew by one power
iteration, U <- QR(L U), sorted by the estimates diag(U^T L U), v along with them. The first gradient only makes them:
there is no step. Vectors have U = V = 1. The step divides by sqrt(v) + eps before the correction for bias, as the
authors' code does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["SoapState", "soap"]


class Leaf(NamedTuple):
    """What is kept of one array: m, v, the two preconditioners and their bases (none for a vector)."""

    mean: Any
    square: Any
    products: tuple[Any, ...]
    bases: tuple[Any, ...]


class SoapState(NamedTuple):
    """How many gradients there have been, and what is kept of each leaf."""

    count: Any
    leaves: tuple[Leaf, ...]


def soap(
    learning_rate: float = 3e-3,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    frequency: int = 10,
) -> optax.GradientTransformation:
    """The transformation; its defaults are the authors'. ``frequency``: steps from one basis to the next."""

    def init(params: Any) -> SoapState:
        return SoapState(jnp.zeros((), jnp.int32), tuple(map(_begun, jax.tree.leaves(params))))

    def update(updates: Any, state: SoapState, params: Any = None) -> tuple[Any, SoapState]:
        gradients, structure = jax.tree.flatten(updates)
        steps = [_step(g, leaf, state.count) for g, leaf in zip(gradients, state.leaves, strict=True)]
        made = [d for d, _ in steps]
        if weight_decay:
            share = jnp.where(state.count > 0, learning_rate * weight_decay, 0.0)
            made = [d - share * (w + d) for d, w in zip(made, jax.tree.leaves(params), strict=True)]
        return jax.tree.unflatten(structure, made), SoapState(state.count + 1, tuple(leaf for _, leaf in steps))

    def _step(g: Any, leaf: Leaf, count: Any) -> tuple[Any, Leaf]:
        """The step of a leaf, without decay, and what is kept then. ``count``: the gradients before this one."""
        begun = count > 0
        into, back = _turned(g, leaf.bases), tuple(u.T for u in leaf.bases)
        mean = jnp.where(begun, b1 * leaf.mean + (1 - b1) * g, leaf.mean)
        square = jnp.where(begun, b2 * leaf.square + (1 - b2) * into * into, leaf.square)
        t = jnp.maximum(count, 1).astype(g.dtype)
        rate = learning_rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        d = _turned(_turned(mean, leaf.bases) / (jnp.sqrt(square) + eps), back)
        d = jnp.where(begun, -rate * d, 0.0)
        if not leaf.bases:
            return d, Leaf(mean, square, (), ())
        products = tuple(b2 * p + (1 - b2) * q for p, q in zip(leaf.products, (g @ g.T, g.T @ g), strict=True))
        which = jnp.where(count == 0, 1, jnp.where(count % frequency == 0, 2, 0))
        kept = jax.lax.switch(which, (_as_they_are, _eigenvectors, _iterated), products, leaf.bases, square)
        return d, Leaf(mean, kept[1], products, kept[0])

    return optax.GradientTransformation(init, update)


def _begun(x: Any) -> Leaf:
    sides = x.shape if x.ndim == 2 else ()
    return Leaf(
        jnp.zeros_like(x),
        jnp.zeros_like(x),
        tuple(jnp.zeros((n, n), x.dtype) for n in sides),
        tuple(jnp.eye(n, dtype=x.dtype) for n in sides),
    )


def _turned(g: Any, bases: tuple[Any, ...]) -> Any:
    """U^T g V; g where there are no bases."""
    return bases[0].T @ g @ bases[1] if bases else g


def _as_they_are(products: Any, bases: Any, square: Any) -> Any:
    return bases, square


def _eigenvectors(products: Any, bases: Any, square: Any) -> Any:
    """Largest eigenvalue first."""
    return tuple(jnp.linalg.eigh(p)[1][:, ::-1] for p in products), square


def _iterated(products: Any, bases: Any, square: Any) -> Any:
    """One power iteration for each basis, in the order of the estimates, and v in that order."""
    made = []
    for side, (p, u) in enumerate(zip(products, bases, strict=True)):
        power = p @ u
        order = jnp.argsort(-jnp.sum(u * power, axis=0))
        square = jnp.take(square, order, axis=side)
        made.append(jnp.linalg.qr(power[:, order])[0])
    return tuple(made), square
