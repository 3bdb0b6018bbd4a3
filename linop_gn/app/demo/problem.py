"""The data and the starting point, the same for everybody: NumPy arrays from one seed.

1797 handwritten digits of 8 x 8 pixels (scikit-learn ships them; nothing is
downloaded), 1440 to train on and the rest to test on, and a perceptron with two
hidden tanh layers in float64.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..files import MissingDataError

__all__ = ["Problem", "load", "one_thread"]

Weights = dict[str, dict[str, "np.ndarray[Any, Any]"]]
Batch = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]


def one_thread() -> AbstractContextManager[Any]:
    """One thread for BLAS and OpenMP: on matrices this small more of them cost time, a lot of it on a busy machine."""
    from threadpoolctl import threadpool_limits  # scikit-learn needs it, so that it is there

    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


@dataclass(frozen=True)
class Problem:
    """Digits and a network's first weights."""

    train: Batch
    test: Batch
    check: Batch
    """A few training examples, on which the dense matrices are assembled."""
    start: Weights
    widths: tuple[int, ...]
    batch: int
    """Examples in a mini-batch of the first-order methods; divides the training set."""

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(leaf.size for layer in self.start.values() for leaf in layer.values())

    @property
    def described(self) -> str:
        """The problem in a sentence."""
        return (
            f"{len(self.train[1])} handwritten digits to train on, {len(self.test[1])} to test on; a tanh perceptron "
            f"of widths {' - '.join(map(str, self.widths))} with {self.parameters} parameters, float64."
        )


def load(quick: bool = False) -> Problem:
    """The problem; ``quick`` is a fifth of the data and a smaller network.

    Raises
    ------
    MissingDataError
        Without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDataError(
            "the demo runs on the digits that ship inside scikit-learn, which is not installed.\n"
            "Get it, with the plots and the first-order methods, by:  pip install 'linop-gn[studies]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    pixels, labels = pixels[order] / 16.0, labels[order].astype(np.int64)
    count, checked, widths = (280, 16, (64, 8, 6, 10)) if quick else (1440, 64, (64, 24, 16, 10))
    start = {
        f"layer{i + 1}": {"weight": rng.standard_normal((m, n)) * np.sqrt(1.0 / m), "bias": np.zeros(n)}
        for i, (m, n) in enumerate(pairwise(widths))
    }
    return Problem(
        train=(pixels[:count], labels[:count]),
        test=(pixels[1440:], labels[1440:]),
        check=(pixels[:checked], labels[:checked]),
        start=start,
        widths=widths,
        batch=count // 10,
    )
