"""Which loss with a closed form a function computes: advice, since numbers at some outputs prove nothing of others.

The function is asked once, of three examples with their own targets, at outputs of three sizes: what is cut off at a
width, or has a small number added below a logarithm, is told from what is not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from ...protocols import Backend
from .base import Loss
from .binary_cross_entropy import BinaryCrossEntropy
from .cross_entropy import CrossEntropy
from .poisson import Poisson
from .robust import Huber
from .squared_error import SquaredError

__all__ = ["computed"]

_EXAMPLES, _MOST = 3, 2**20
_SIZES = 1e-2, 1.0, 1e3
_RTOL = 1e-4
"""Of sums in single precision."""


def computed(
    backend: Backend, fn: Callable[[Any, Any], Any], shape: tuple[int, ...], targets: Any, reduction: str
) -> tuple[str, bool]:
    """The loss that ``fn(outputs, targets)`` computes as it is written, as ``"CrossEntropy()"``; "" if none is known.

    ``fn`` returns a loss for each example, of which ``reduction`` is made, or one number, their mean or their sum:
    whether it does is the other answer, where one is known.
    """
    fits = shape and shape[0] >= _EXAMPLES and math.prod(shape[1:]) <= _MOST
    if not fits or not backend.is_array(targets) or targets.shape[:1] != shape[:1]:
        return "", False
    draws = np.random.default_rng(0).standard_normal((_EXAMPLES, *shape[1:]))
    with suppress(Exception), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        y, (_, dtype, device) = targets[:_EXAMPLES], backend.describe(targets)
        there, own = np.asarray(backend.to_numpy(y)), []
        for size in _SIZES:
            z = backend.asarray(size * draws, dtype if "float" in dtype else "float32", device)
            own.append(
                (np.asarray(backend.to_numpy(z), float), np.asarray(backend.to_numpy(backend.call(fn, z, y)), float))
            )
        one = own[0][1].ndim == 0
        for tried in ("mean", "sum") if one else (reduction,):
            for loss, written in _candidates(shape, tried):
                if all(_same(loss, z, there, numbers) for z, numbers in own):
                    return written, one
    return "", False


def _candidates(shape: tuple[int, ...], reduction: str) -> Iterator[tuple[Loss, str]]:
    """Losses with this reduction, and how they are written."""
    more: dict[str, Any] = {} if reduction == "mean" else {"reduction": reduction}
    told = [f"{name}={value!r}" for name, value in more.items()]
    for kind in (SquaredError, CrossEntropy, BinaryCrossEntropy, Poisson, Huber):
        yield kind(**more), f"{kind.__name__}({', '.join(told)})"
    each = math.prod(shape[1:])
    for scale, written in (1.0, "1.0"), (1.0 / each, f"1 / {each}"), (0.5 / each, f"1 / {2 * each}"):
        yield SquaredError(scale=scale, **more), f"SquaredError({', '.join([f'scale={written}', *told])})"


def _same(loss: Loss, z: Any, y: Any, numbers: Any) -> bool:
    """Whether the loss has these numbers: one for each example, or for all of them."""
    mean = loss.reduction == "mean"
    number = float(numbers.mean() if mean else numbers.sum())
    with suppress(TypeError, ValueError):  # targets of another kind than this loss takes
        total = float(loss.total(np, z, y, None))
        return math.isclose(number, total / float(loss.weight_sum(np, z, y, None)) if mean else total, rel_tol=_RTOL)
    return False
