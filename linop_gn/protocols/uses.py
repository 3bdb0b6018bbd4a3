"""How parameters enter a model: the operations that are linear in one, and what they are given.

A layer computes z = W a (+ b) from its input a, wherever the model calls it: the gradient of an example is the sum over
its positions and calls of g a^T, g the derivative in z. That is all that Kronecker factors need
(:mod:`linop_gn.curvature.kfac`), and a framework can tell it of any model by looking at what is called with a
parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .types import Array

__all__ = ["Use", "Uses", "View"]


class View(NamedTuple):
    """Entries of a leaf as an array: entry (i, j, ...) is at ``offset + i strides[0] + j strides[1] + ...`` of it.

    Leaves are read in C order. An axis of length one may have any stride.
    """

    leaf: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Use(NamedTuple):
    """One operation that is linear in (part of) a leaf.

    ============ ====================================================== ==============================
    kind         result                                                 inputs
    ============ ====================================================== ==============================
    ``linear``   z[r] = W[group] a[group, r] (+ b[group])               a (groups, *rows, inputs)
    ``lookup``   z[r] = W[:, i[r]], i[r] < 0: nothing                   i (*rows), integers
    ``scale``    z[r] = w x[r], elementwise                             x (1, *rows, size)
    ``shift``    z[r] = b + ...                                         None
    ============ ====================================================== ==============================

    ``rows`` are examples, positions, patches: the first axis is that of the examples where the model has kept one.
    """

    kind: str
    weight: View
    """(groups, *outputs, *inputs); for scale and shift (1, *size)."""
    outputs: int
    """How many axes of ``weight`` are those of the outputs; for scale and shift all but the first."""
    bias: View | None
    """(groups, *outputs)."""
    rows: tuple[int, ...]


class Uses(Protocol):
    """A function evaluated, with the operations that its parameters entered."""

    outputs: Array
    uses: tuple[Use, ...]
    inputs: Sequence[Array | None]
    """Of each use; they may be made at each access."""
    otherwise: tuple[int, ...]
    """The leaves that entered something else as well, whatever it was."""
    mixes: str
    """What makes examples depend on each other, in words; empty where nothing is known to."""
    apart: bool
    """Whether it is known that entries along the outputs' first axis depend on the same entries of all rows alone."""

    def pull(self, cotangent: Array, leaves: tuple[int, ...] = ()) -> tuple[list[Array], list[Array]]:
        """J^T u for the results of all uses, (groups, *rows, outputs) each, and for some of the parameters.

        Padding of an embedding, and whatever else the operation's own derivative leaves out, has the cotangent zero.
        """
