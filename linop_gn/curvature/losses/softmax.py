"""The softmax, and how to keep its small numbers in float32.

A trained classifier is sure of most examples: p_k = 1 - d for the likeliest
class k, with d tiny, and loss, gradient and Hessian are all of size d. Computed
as they are usually written they are differences of numbers near 1, with errors
near 1e-7 in float32 however small d is. They are sums of small terms instead
when everything is referred to class k:

* log p_y = (z_y - z_k) - log1p(sum_(j != k) e^(z_j - z_k)), two terms of one sign;
* what sums to zero over the classes (p - e_y, S v) has in component k minus the sum of the others;
* what does not see a constant (H v, S^T v) may take v - v_k: p (u - <p, u>), where u_k = 0.

The function is the same and smooth whatever k is, so automatic differentiation
of it is right, twice, also where classes tie: these share the place of k then.
Only a first derivative of the value that a framework takes itself, ``jax.grad(objective.value)``,
has the component k as a difference of numbers near 1; ``objective.gradient`` has it in full.
"""

from __future__ import annotations

from typing import Any

from ...dispatch import owner_of_type
from ...protocols import Array
from .weighting import class_mask

__all__ = ["centred", "closed", "largest", "likeliest", "log_parts", "numbers", "over_classes", "softmax"]

_NEAR = 0.618
"""Logits within that of the largest are told apart from the others: none is as near to it as to differ by rounding."""


def over_classes(xp: Any, x: Array) -> Array:
    """The sum over the last axis, which stays with length one."""
    return xp.sum(x, axis=-1, keepdims=True)


def likeliest(xp: Any, z: Array) -> Array:
    """The index (..., 1) of the largest logit."""
    return xp.argmax(z, axis=-1, keepdims=True)


def largest(xp: Any, z: Array) -> Array:
    """The largest logit (..., 1)."""
    owner = owner_of_type(type(z))
    return xp.max(z, axis=-1, keepdims=True) if owner is None else owner.largest(z)


def log_parts(xp: Any, z: Array) -> tuple[Array, Array]:
    """The largest logit k (..., 1), and r (..., 1) with log p = z - k - r, where z - k <= 0 <= r."""
    k = largest(xp, z)
    e = xp.exp(z - k)
    # Not z == k: a compiler may make z twice, with other roundings, and find none.
    near = z - k > -_NEAR
    count = xp.astype(over_classes(xp, xp.astype(near, xp.int32)), z.dtype)
    # Of m near classes each gives e - 1/m: together all e, but 1. An index of the largest takes XLA twice the time.
    return k, xp.log1p(over_classes(xp, xp.where(near, xp.where(count > 1, e - 1 / count, 0), e)))


def softmax(xp: Any, z: Array, known: tuple[Array, ...] = ()) -> tuple[Array, Array]:
    """Probabilities, and the index (..., 1) of the largest. ``known`` are the :func:`numbers` of these logits."""
    if known:
        top, k, total = known
        return xp.exp(z - k) / total, top
    e = xp.exp(z - largest(xp, z))
    # Of e: XLA would make one of the largest of z and its index, and not see that a softmax without is the same.
    return e / over_classes(xp, e), likeliest(xp, e)


def numbers(xp: Any, z: Array) -> tuple[Array, Array, Array]:
    """The index k of the largest logit, that logit, and sum_j e^(z_j - z_k): (..., 1) each."""
    k = largest(xp, z)
    return likeliest(xp, z), k, over_classes(xp, xp.exp(z - k))


def closed(xp: Any, index: Array, x: Array) -> Array:
    """``x`` with its component ``index`` replaced by minus the sum of the others."""
    here = class_mask(xp, index, x)
    others = xp.where(here, 0, x)
    return xp.where(here, -over_classes(xp, others), others)


def centred(xp: Any, p: Array, top: Array, v: Array) -> Array:
    """v - <p, v>, taken relative to the component of the largest probability."""
    u = v - xp.take_along_axis(v, top, axis=-1)
    return u - over_classes(xp, p * u)
