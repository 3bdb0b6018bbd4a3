"""A batch that is linearised anew for each product, where memory is short.

A :class:`~linop_gn.curvature.pieces.Piece` keeps the model's activations for as long
as its operator lives. :class:`Anew` keeps the batch and the parameters: each product
linearises, multiplies and forgets. That is what products with streamed data do as
well; both go through the term's ``once``, where a framework may take a way that
serves one product only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..protocols import Array
from ..records import Everywhere, memo, record, replace, static
from ..spaces import Space
from .batches import Batch
from .losses import Loss
from .pieces import OfOneBatch
from .term import outputs_of

__all__ = ["Anew"]


@record
class Anew(OfOneBatch):
    """In place of a piece, or of a curve where ``curved``: a term and the parameters, which are all it holds."""

    of: Any
    """(term, x); of a stack :class:`~linop_gn.records.Everywhere` of them, the term without its batch."""
    batch: Batch | None
    """Of a stack; None: the term's own."""
    curved: bool = static(default=False)
    with_root: bool = static(default=False)
    """Whether functions are to be given the root of H_L."""

    recomputes: ClassVar[bool] = True
    root: ClassVar[None] = None
    linearization: ClassVar[None] = None

    @classmethod
    def made(cls, term: Any, x: Any, curved: bool) -> Anew:
        """Of a term at the parameters x, or their leaves."""
        if not term.batch.stacked:
            return cls((term, x), None, curved)
        return cls(Everywhere((replace(term, batch=Batch(stacked=True)), x)), term.batch, curved)

    @property
    def stacked(self) -> bool:
        """Whether it is a stack of several."""
        return isinstance(self.of, Everywhere)

    @property
    def term(self) -> Any:
        """The term; of a stack without its data."""
        return (self.of.array if self.stacked else self.of)[0]

    @property
    def space(self) -> Space:
        """The space of the parameters."""
        return self.term.space  # type: ignore[no-any-return]

    @property
    def loss(self) -> Loss:
        """The loss."""
        return self.term.loss  # type: ignore[no-any-return]

    @property
    def leafwise(self) -> bool:  # type: ignore[override]
        return bool(self.term.leafwise)

    @property
    def outputs(self) -> Array:
        """The model's outputs: evaluated once, since those who ask need to know their shape again and again."""
        ops, slots = self.space.backend, memo(self)
        if slots.outputs is None:
            made = ops.scan_over(_outputs, self)[1] if self.stacked else ops.call(outputs_of, *self.of)
            if not ops.is_concrete(made):
                return made
            slots.outputs = made
        return slots.outputs

    def rooted(self) -> Anew:
        """The piece with the root of H_L."""
        return replace(self, with_root=True)

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(piece, *arguments)`` of the batch, linearised for it and dropped."""
        term, x = self._whole()
        x, arguments = self.space.backend.afresh(x, arguments)
        made = term.linearize_gradient(x) if self.curved else term.once(x)
        return (made.rooted() if self.with_root else made).apply(function, *arguments)

    def _whole(self) -> tuple[Any, Any]:
        term, x = self.of
        return (term if self.batch is None else replace(term, batch=self.batch)), x


def _outputs(piece: Anew) -> tuple[tuple[()], Array]:
    return (), outputs_of(*piece._whole())
