r"""Fisher operators: sums over examples of outer products of gradients, by products with the linearised model.

=============================  ==========================================================================
:class:`EmpiricalFisher`        sum_i w_i g_i g_i^T / sum_i w_i, g_i the gradient of example i at its own target
=============================  ==========================================================================

g_i = J_i^T s_i with s_i the slope of the loss, so that a product is that of the Gauss-Newton operator with s_i s_i^T
for H_L: one JVP and one VJP, and no gradient of a single example. At an optimum of a model that is right, and with many
data, the empirical Fisher is near the Gauss-Newton operator; away from it, it need not be (Kunstner, Balles and Hennig,
*Limitations of the empirical Fisher approximation*, 2019).
"""

from __future__ import annotations

from ..protocols import Tree
from ..records import fill, record, replace
from .at_point import GGN, as_point
from .losses.scores import Scores
from .objective import Objective
from .point import Point

__all__ = ["EmpiricalFisher"]


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
        loss = point.objective.loss
        assert loss is not None
        if loss.autodiff:
            raise TypeError(
                f"lg.EmpiricalFisher needs the slopes of examples, and {loss.name} has a value alone: make it a record "
                "of lg.losses.Loss with value, slope and curvature."
            )
        fill(self, point=point.anew(replace(point.objective, loss=Scores(loss))))
