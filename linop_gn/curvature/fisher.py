r"""Fisher operators: sums over examples of outer products of gradients, by products with the linearised model.

=========================  ================================================================================
:class:`EmpiricalFisher`    sum_i w_i g_i g_i^T / sum_i w_i, g_i the gradient of example i at its own target
:class:`Fisher`             the same at targets drawn from the model: its mean is the Gauss-Newton operator
=========================  ================================================================================

g_i = J_i^T s_i with s_i the slope of the loss, so that a product is that of the Gauss-Newton operator with s_i s_i^T
for H_L: one JVP and one VJP, and no gradient of a single example. At an optimum of a model that is right, and with many
data, the empirical Fisher is near the Gauss-Newton operator; away from it, it need not be (Kunstner, Balles and Hennig,
*Limitations of the empirical Fisher approximation*, 2019).

Of m examples the rank is m at most: with U = (g_1 ... g_m) it is U diag(w) U^T / sum_i w_i. ``low_rank()`` makes that
by m products with J^T, and no product after it asks the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arguments import whole
from ..distributed.reduction import Reduction
from ..draws import check_seed
from ..operators.base import LinearOperator
from ..operators.low_rank import LowRank
from ..protocols import Array, Backend, Scalar, Tree, Vector
from ..records import Partial, fill, record, replace
from .at_point import GGN, as_point, with_l2
from .batches import Batch, Stream, mark_of
from .checks import require_one_process
from .losses.base import Loss
from .losses.scores import DrawnScores, Scores, masses_of, slopes_of
from .objective import Objective
from .pieces import Piece, flat_outputs, kept, together, vjp
from .point import Point
from .terms import Terms

__all__ = ["EmpiricalFisher", "Fisher", "OfGradients"]


@record
class OfGradients(GGN):
    """A sum of outer products of the examples' gradients."""

    def low_rank(self) -> LinearOperator:
        """The same operator as U M U^T: the columns of U (n, m) are the gradients, M their weights over the sum of all.

        U and M are ``factor`` and ``middle`` of an :class:`lg.LowRank`; an l2 of the objective stands around it, as
        damping. Without a weight a gradient is zero. It takes m products with J^T, for m examples of all batches (of
        :class:`Fisher` times ``samples``; those of equal batches may stand together), and room for m n numbers.
        Afterwards a product takes 4 m n flops and no pass through the model. So it pays where m is below the number of
        products that are asked for, as by solves at many right-hand sides or dampings.

        >>> import numpy as np, linop_gn as lg
        >>> x, y = np.array([[1.0, 2.0, 2.0], [3.0, 4.0, 1.0]]), np.array([1.0, 0.0])
        >>> fit = lg.Objective(lambda w, x: x @ w, lg.losses.SquaredError(), (x, y), jacobian=lambda w, x: x)
        >>> F = lg.EmpiricalFisher(fit, np.array([1.0, 1.0, 0.0]))
        >>> U = F.low_rank().factor
        >>> U.T, bool(np.allclose(U @ U.T / 2, F.to_dense()))
        (array([[ 2.,  4.,  4.],
               [21., 28.,  7.]]), True)
        >>> b = np.array([1.0, 2.0, 3.0])
        >>> for damping in (0.1, 1.0):
        ...     print(lg.solve(lg.Damped(F.low_rank(), damping), b, lg.CG(rtol=1e-10)).succeeded)
        True
        True

        Raises
        ------
        ValueError
            For data that are streamed.
        """
        if self.point.host:
            raise ValueError(
                f"{type(self).__name__}.low_rank holds a gradient of each example, and the data are streamed: hold "
                "them in a list."
            )
        require_one_process(self.point.objective, f"{type(self).__name__}.low_rank", "holds a gradient of each example")
        space, made = self.domain, self.point.linearized()
        gradients, masses = space.backend.call(_gradients_and_masses, made.pieces, made.scale)
        return with_l2(LowRank(gradients, masses, psd=True, domain=space), self._l2)


@record
class EmpiricalFisher(OfGradients):
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
class Fisher(OfGradients):
    """The Fisher information of ``objective`` at ``params`` by Monte Carlo: gradients at targets drawn from the model.

    For each example ``samples`` targets are drawn from the distribution whose -log the loss is: classes for
    cross-entropy, yes or no for each output of the binary one, counts for Poisson's, normal numbers of variance
    1 / (2 scale) for squared error. The mean over draws is the GGN, weights, class weights and masks included, and the
    spread falls with the root of ``samples``. PSD. The draws are a function of ``seed`` and of the places of batches
    and examples, whatever the ``microbatch``; a stream must give its batches in one order. As ``curvature=lg.Fisher``
    of a method it draws with seed 0 at each step; a function ``lambda point: lg.Fisher(point, seed=...)`` draws with
    another.

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
            terms = replace(terms, stream=InOrder(point.space.backend, terms.stream, terms.reduce))
        else:
            terms = replace(terms, batches=_numbered(point.space.backend, terms.batches, terms.reduce))
        fill(self, point=point.anew(terms))


def _gradients_and_masses(pieces: tuple[Any, ...], scale: Scalar) -> tuple[Array, Vector]:
    """The examples' gradients (n, m), and what each of their outer products counts (m,)."""
    space = pieces[0].space
    ops = space.backend
    xp, gradients, masses = ops.namespace(), [], []
    for piece in pieces:
        if piece.stacked:
            each = ops.scan_over(Partial(kept, _gradients), piece)[1]
            gradients.append(xp.reshape(xp.permute_dims(each, (1, 0, 2)), (space.size, -1)))
            masses.append(xp.reshape(ops.scan_over(Partial(kept, _masses), piece)[1], (-1,)))
        else:
            gradients.append(piece.apply(_gradients))
            masses.append(piece.apply(_masses))
    U, m = (part[0] if len(part) == 1 else xp.concat(part, axis=-1) for part in (gradients, masses))
    return ops.cast(U, space.dtype), ops.cast(scale * m, space.dtype)


def _gradients(piece: Piece) -> Array:
    """J_i^T s_i of all examples of a batch side by side: a product with J^T for each."""
    ops = piece.space.backend
    xp, found = ops.namespace(), []
    for slopes in slopes_of(xp, piece.hessian):

        def pulled(unit: Vector, slopes: Array = slopes) -> Vector:
            return vjp(piece, xp.reshape(unit[:, None] * slopes, (-1,)))

        units = ops.identity(slopes.shape[0], flat_outputs(piece, piece.outputs))
        found.append(ops.over_columns(pulled, units, together((piece,), piece.space)))
    return found[0] if len(found) == 1 else xp.concat(found, axis=1)


def _masses(piece: Piece) -> Vector:
    return masses_of(piece.space.backend.namespace(), piece.hessian)


def _sloped(point: Point, name: str) -> Loss:
    loss = point.objective.loss
    assert loss is not None
    if loss.autodiff:
        raise TypeError(
            f"lg.{name} needs the slopes of examples, and {loss.name} has a value alone: make it a record of "
            "lg.losses.Loss with value, slope and curvature."
        )
    return loss


def _numbered(ops: Backend, batches: tuple[Batch, ...], reduction: Reduction | None) -> tuple[Batch, ...]:
    """With their places, among the batches of all processes: of stacked ones an array."""
    made, first = [], 0
    for batch in batches:
        place: Any = (first, 0) if batch.place is None else batch.place
        if batch.stacked and batch.place is None:
            count = ops.flatten((batch.inputs, batch.targets, batch.weights))[1][0].shape[0]
            numbers = np.stack([np.arange(first, first + count), np.zeros(count)], axis=1)
            place = ops.asarray(numbers.astype(np.int32), "int32")
            first += count - 1
        made.append(replace(batch, place=_among_all(ops, place, reduction)))
        first += 1
    return tuple(made)


def _among_all(ops: Backend, place: Any, reduction: Reduction | None) -> Any:
    """The place among those of all processes."""
    if reduction is None:
        return place
    if isinstance(place, tuple):
        return reduction.place(place[0]), place[1]
    return ops.namespace().stack([reduction.place(place[:, 0]), place[:, 1]], axis=1)


class InOrder(Stream):
    """A stream whose batches have places, and must keep them from pass to pass."""

    def __init__(self, ops: Backend, stream: Stream, reduction: Reduction | None) -> None:
        self._reduction, self._ops = reduction, ops
        super().__init__(stream.data, stream.change, stream.changing, stream.microbatch)
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
            place = (i, 0) if batch.place is None else batch.place
            yield replace(batch, place=_among_all(self._ops, place, self._reduction))
