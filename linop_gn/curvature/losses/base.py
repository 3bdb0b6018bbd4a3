"""What a loss is: a sum over examples, its derivatives in the outputs, and who divides by what.

For outputs z, targets y and weights w,

    L(z) = sum_i w_i l(z_i, y_i),

where the index i runs over the *example axes*, the leading axes that each loss
names: all but the classes for cross-entropy (so the positions of a language
model are examples), the first alone for squared error, all of them for the
losses of one number. Weights have the shape of the example axes or one that
broadcasts to it *from the left*: with examples (B, T), weights (B,) or (B, 1)
weigh whole sequences. A mask is a weight that is 0 or 1. What has no weight is
not looked at: its output and its target may be anything, NaN included, and its
value, gradient and Hessian are exactly zero.

Every method here is an *unnormalised sum*. The mean divides by the total
weight over **all** batches, which only the objective sees; dividing batch by
batch is the commonest way of getting a silently wrong curvature, since batches
with few counted examples then weigh too much. :meth:`Loss.weight_sum` is the
number that each batch adds to that total.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from ...protocols import Array, Backend
from ...records import record, static

__all__ = ["Loss"]


@record
class Loss:
    """Base class of losses; subclasses are records.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        What the objective makes of the sum over all examples of all batches:
        divides it by their total weight, or leaves it.

    Notes
    -----
    ``xp`` is an array-API namespace; ``outputs`` are floating; results have the
    dtype and device of ``outputs``, whatever the dtypes of targets and weights.
    Nothing writes into its arguments or looks at values (except :meth:`check`),
    so that a compiler can trace all of it.

    A loss of your own is a record that defines :meth:`total` and
    :meth:`weight_sum` and sets ``autodiff = True``; with ``autodiff = False``
    it also defines :meth:`gradient` and :meth:`hessian_product`.
    :class:`FromFunction` saves most people the trouble.
    """

    name: ClassVar[str] = "loss"
    convex: ClassVar[bool] = False
    """Whether H_L is positive semidefinite at every output."""
    autodiff: ClassVar[bool] = False
    """Whether gradient and Hessian product come from the framework, instead of from closed forms here."""

    reduction: str = static(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(
                f"{type(self).__name__}: reduction must be 'mean' or 'sum', got {self.reduction!r}. "
                "Per-example losses ('none') have no curvature; give weights to weigh the examples."
            )

    def total(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        """The weighted sum over examples, a 0-d array; any automatic differentiation takes it, twice."""
        self._lacks("total")

    def gradient(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        """The derivative of :meth:`total` with respect to ``outputs``."""
        self._lacks("gradient")

    def shared(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Any:
        """What all products with H_L at these outputs have in common: a tree of arrays that is kept, or None.

        Where there is something, :meth:`hessian_product` gets it as the keyword ``shared``.
        """
        return None

    def hessian_product(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array) -> Array:
        """H_L v, for the second derivative H_L of :meth:`total`: one block for each example. ``v`` is like outputs."""
        self._lacks("hessian_product")

    def factor_product(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array) -> Array:
        """S v, where H_L = S S^T. S is square: ``v`` and the result are like outputs."""
        self._lacks("factor_product")

    def factor_transposed_product(
        self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None, v: Array
    ) -> Array:
        """S^T v, where H_L = S S^T."""
        self._lacks("factor_transposed_product")

    def weight_sum(self, xp: Any, outputs: Array, targets: Array | None, weights: Array | None) -> Array:
        """The total weight of the counted examples, a 0-d array in the outputs' dtype: what a mean divides by."""
        self._lacks("weight_sum")

    def check(
        self,
        backend: Backend,
        outputs_shape: tuple[int, ...],
        targets: Array | None,
        weights: Array | None,
        *,
        empty_ok: bool = False,
    ) -> None:
        """Raise TypeError or ValueError, saying what to do, if these arrays are no data for this loss.

        Reads values, so the arrays must be concrete. ``empty_ok`` accepts a
        batch in which no example counts, which is harmless beside others.
        """
        self._lacks("check")

    def _lacks(self, what: str) -> NoReturn:
        name = type(self).__name__
        if self.autodiff and what in ("gradient", "hessian_product"):
            raise NotImplementedError(
                f"{name} has no closed form for {what}: differentiate its total with the backend's calculus, "
                "as lg.Objective does."
            )
        if what.startswith("factor"):
            raise NotImplementedError(
                f"{name} has no closed-form factor S with S S^T = H_L, which solvers in the space of outputs need. "
                "Use one of the losses with closed forms, or a solver that takes products with the operator."
            )
        raise NotImplementedError(f"{name} does not define {what}.")
