r"""Fisher operators: sums over examples of outer products of gradients, by products with the linearised model.

=========================  ================================================================================
:class:`EmpiricalFisher`    sum_i w_i g_i g_i^T / sum_i w_i, g_i the gradient of example i at its own target
:class:`Fisher`             the same at targets drawn from the model: its mean is the Gauss-Newton operator
=========================  ================================================================================

g_i = J_i^T s_i with s_i the slope of the loss, so that a product is that of the Gauss-Newton operator with s_i s_i^T
for H_L: one JVP and one VJP, and no gradient of a single example. At an optimum of a model that is right, and with many
data, the empirical Fisher is near the Gauss-Newton operator; away from it, it need not be (Kunstner, Balles and Hennig,
*Limitations of the empirical Fisher approximation*, 2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arguments import whole
from ..draws import check_seed
from ..protocols import Backend, Scalar, Tree
from ..records import fill, record, replace
from .at_point import GGN, as_point
from .batches import Batch, Stream, mark_of
from .losses.base import Loss
from .losses.scores import DrawnScores, Scores
from .objective import Objective
from .point import Point
from .terms import Terms

__all__ = ["EmpiricalFisher", "Fisher"]


@record
class EmpiricalFisher(GGN):
    """The empirical Fisher operator of ``objective`` at ``params``: sum_i w_i g_i g_i^T / sum_i w_i, which is PSD.

    g_i is the gradient of example i, as the loss counts examples: for cross-entropy of a sequence each position, for a
    loss of numbers each number, unless its ``example_axes`` say otherwise. Weights and class weights are w_i;
    ``reduction="sum"`` leaves the division out. An ``l2`` of the objective is added, as in :class:`GGN`.

    >>> import numpy as np, linop_gn as lg
    >>> x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 0.0])
    >>> fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y), jacobian=lambda w, x: x)
    >>> w = np.array([1.0, 0.0])
    >>> gradients = x * (x @ w - y)[:, None]
    >>> F = lg.EmpiricalFisher(fit, w)
    >>> bool(np.allclose(F.to_dense(), gradients.T @ gradients / 2)), F.psd
    (True, True)

    Raises
    ------
    TypeError
        For a loss that only the framework can differentiate: it has no slope of its own.
    """

    def __init__(self, objective: Objective | Point, params: Tree = None) -> None:
        point = as_point(objective, params, "EmpiricalFisher")
        fill(self, point=point.anew(replace(point.objective, loss=Scores(_sloped(point, "EmpiricalFisher")))))


@record
class Fisher(GGN):
    """The Fisher information of ``objective`` at ``params`` by Monte Carlo: gradients at targets drawn from the model.

    For each example ``samples`` targets are drawn from the distribution whose -log the loss is: classes for
    cross-entropy, yes or no for each output of the binary one, normal numbers of variance 1 / (2 scale) for squared
    error. The mean over draws is the GGN, weights, class weights and masks included, and the spread falls with the
    root of ``samples``. PSD. The draws are a function of ``seed`` and of the places of batches and examples; a stream
    must give its batches in one order. As ``curvature=lg.Fisher`` of a method it draws with seed 0 at each step; a
    function ``lambda point: lg.Fisher(point, seed=...)`` draws with another.

    >>> import numpy as np, linop_gn as lg
    >>> x, y = np.ones((2000, 1)), np.zeros(2000)
    >>> fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y), jacobian=lambda w, x: x)
    >>> F, G = lg.Fisher(fit, np.zeros(1)), lg.GGN(fit, np.zeros(1))
    >>> bool(abs(F.to_dense() - G.to_dense())[0, 0] < 0.2)
    True

    Raises
    ------
    TypeError, NotImplementedError
        For a loss without a slope of its own, or that is not known as the -log of a distribution: it may define
        ``drawn_slope``.
    """

    def __init__(
        self, objective: Objective | Point, params: Tree = None, *, samples: int = 1, seed: Scalar = 0
    ) -> None:
        point = as_point(objective, params, "Fisher")
        loss, samples = _sloped(point, "Fisher"), whole("Fisher", "samples", samples, 1)
        check_seed("Fisher", seed)
        if type(loss).drawn_slope is Loss.drawn_slope:
            loss.drawn_slope(None, None, lambda k: None)  # says what there is to do
        terms: Terms = replace(point.objective, loss=DrawnScores(loss, seed, samples))
        if terms.stream is not None:
            terms = replace(terms, stream=InOrder(terms.stream))
        else:
            terms = replace(terms, batches=_numbered(point.space.backend, terms.batches))
        fill(self, point=point.anew(terms))


def _sloped(point: Point, name: str) -> Loss:
    loss = point.objective.loss
    assert loss is not None
    if loss.autodiff:
        raise TypeError(
            f"lg.{name} needs the slopes of examples, and {loss.name} has a value alone: make it a record of "
            "lg.losses.Loss with value, slope and curvature."
        )
    return loss


def _numbered(ops: Backend, batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
    """With their places: of stacked ones an array."""
    made, first = [], 0
    for batch in batches:
        place: Any = first
        if batch.stacked:
            count = ops.flatten((batch.inputs, batch.targets, batch.weights))[1][0].shape[0]
            place = ops.asarray(np.arange(first, first + count, dtype=np.int32), "int32")
            first += count - 1
        made.append(replace(batch, place=place))
        first += 1
    return tuple(made)


class InOrder(Stream):
    """A stream whose batches have places, and must keep them from pass to pass."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.data, stream.change, stream.changing)
        self._marks: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Batch]:
        for i, batch in enumerate(super().__iter__()):
            mark = mark_of(batch)
            if i == len(self._marks):
                self._marks.append(mark)
            elif not self.changing and abs(mark - self._marks[i])[:2].max() > 1e-6 * mark[2]:
                raise ValueError(
                    "lg.Fisher draws for an example by its place, and the stream gave its batches in another order "
                    "than on the pass before: shuffle=False, or hold the batches in a list."
                )
            yield replace(batch, place=i)
