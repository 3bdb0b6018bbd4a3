"""One training run: what was asked for, and what came of it.

Work is counted in *passes*: one pass is one gradient over the training set. A
Gauss-Newton product costs 1.2 of them (its count of floating-point operations
for a perceptron: a linearised forward and a backward), a loss alone a third.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["LOSS", "PRODUCT", "Plan", "Run", "diverged", "orders", "timed"]

PRODUCT = 1.2
LOSS = 1 / 3


@dataclass(frozen=True)
class Plan:
    """What a first-order run is to do."""

    optimizer: str
    rate: float
    batch: int | None
    """Examples in a mini-batch; None for the whole training set."""
    passes: int

    @property
    def setting(self) -> str:
        """The plan in words."""
        return f"rate {self.rate:g}, {f'batches of {self.batch}' if self.batch else 'full batch'}"


@dataclass(frozen=True)
class Run:
    """A curve of the training loss, with what it cost; entry 0 is the starting point."""

    method: str
    setting: str
    losses: list[float]
    passes: list[float]
    seconds: list[float]
    steps: int
    params: Any
    products: int = 0

    @property
    def final(self) -> float:
        """The last loss; infinite for a run that diverged."""
        return float("inf") if diverged(self.losses) else self.losses[-1]

    def reach(self, loss: float) -> float | None:
        """The passes it took to come to ``loss`` for the first time, or None if it never did.

        >>> run = Run("SGD", "", [1.0, 0.5, 0.1], [0, 1, 2], [0.0, 0.2, 0.4], 2, None)
        >>> run.reach(0.5), run.reach(0.01)
        (1, None)
        """
        return next((cost for cost, at in zip(self.passes, self.losses, strict=True) if at <= loss), None)


def diverged(losses: list[float]) -> bool:
    """Whether a run is not worth going on with: a loss that is no number, or ten times that of the start.

    >>> diverged([1.0, 2.0]), diverged([1.0, 20.0]), diverged([1.0, float("nan")])
    (False, True, True)
    """
    return not losses[-1] <= 10 * losses[0]


def orders(count: int, batch: int, passes: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """The order in which mini-batches are drawn, the same for all frameworks: (passes, batches, batch).

    >>> orders(6, 2, 5).shape, sorted(orders(6, 2, 5)[3].ravel().tolist())
    ((5, 3, 2), [0, 1, 2, 3, 4, 5])
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(count).reshape(-1, batch) for _ in range(passes)])


def timed(
    plan: Plan, count: int, go: Callable[[int], None], loss: Callable[[], float], params: Callable[[], Any]
) -> Run:
    """A first-order run on ``count`` examples: ``go(i)``, timed, makes pass i; ``loss`` and ``params`` are read."""
    losses, seconds = [loss()], [0.0]
    while len(losses) <= plan.passes and not diverged(losses):
        begin = time.perf_counter()
        go(len(losses) - 1)
        seconds.append(seconds[-1] + time.perf_counter() - begin)
        losses.append(loss())
    passes = len(losses) - 1
    steps = passes * (count // plan.batch if plan.batch else 1)
    return Run(plan.optimizer, plan.setting, losses, [float(i) for i in range(passes + 1)], seconds, steps, params())
