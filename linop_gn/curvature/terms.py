"""A model and a loss over batches: what an objective is made of, and all that points and operators need of it.

Points hold these, with the model as a plain function of what it was then. The
:class:`~linop_gn.Objective` itself, which remembers its latest point, would be a
cycle of references that keeps a recorded graph alive long after its last use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dispatch import how_to_bring, load, owner_of
from ..distributed.reduction import Reduction
from ..given import as_tree
from ..protocols import Array, Backend, Vector
from ..records import Partial, data_fields, map_arrays, memo, record, replace, static
from ..spaces import Space
from .batches import Batch, Stream
from .bridge import BridgedTerm, Crossing, on_leaves
from .checks import require_fitting
from .losses import Loss
from .supplied import Supplied
from .term import Term

__all__ = ["Terms"]


@record
class Terms:
    """Model, loss and batches: one :class:`Term` for each batch. Without a loss the model is a scalar function."""

    loss: Loss | None
    batches: tuple[Batch, ...]
    stream: Stream | None
    model: Any = static()
    supplied: Supplied | None = static(default=None)
    whole: bool = static(default=False)
    """Whether the function takes the data as they are, rather than inputs beside targets."""
    derivatives: str | None = static(default=None)
    """The framework that differentiates, where that is not the arrays' own."""
    l2: Any = None
    """lambda of 1/2 sum lambda p^2, which is added to all of it: a number, one for each entry, or a tree of them."""
    reduce: Reduction | None = static(default=None)
    """What sums over processes, of which each has a share of the data."""
    memory: str = static(default="kept")
    """Whether operators keep what was linearised, or linearise for each product: "low"."""
    microbatch: int | None = static(default=None)
    """How many examples go through the model at a time; None: a batch."""
    programs: Any = static(default=None)
    """What linearises by compiled programs, a :class:`~linop_gn.protocols.Compiled`, where that was asked for."""

    @property
    def low(self) -> bool:
        """Whether batches in memory are linearised anew for each product, as streamed ones are."""
        return self.memory == "low" and not self.host

    def l2_in(self, space: Space) -> Any:
        """``l2`` as a number or a flat vector of ``space``; None where there is none."""
        l2, ops = self.l2, space.backend
        if l2 is None or isinstance(l2, (int, float)):
            return l2

        def own(x: Any, dtype: str) -> Array:
            if not ops.is_array(x) and owner_of(x) is not None and not isinstance(x, (np.ndarray, np.generic)):
                got = type(x).__qualname__
                raise TypeError(f"l2 holds a {got}, and the parameters are of {ops.name}; {how_to_bring(ops)}.")
            return ops.cast(x, dtype) if ops.is_array(x) else ops.asarray(x, dtype, space.device)

        if tuple(getattr(l2, "shape", (1,))) in ((), (space.size,)):
            return l2 if ops.is_array(l2) else own(l2, space.dtype)
        names, leaves, _ = ops.flatten(as_tree(l2))
        if set(names) != set(space.names):
            raise ValueError(f"l2 has leaves {names}; expected a number, or a tree with leaves {list(space.names)}.")
        given, xp, made = dict(zip(names, leaves, strict=True)), ops.namespace(), []
        for name, shape, dtype in zip(space.names, space.shapes, space.dtypes, strict=True):
            made.append(xp.broadcast_to(own(given[name], dtype), shape))
        return space.join(made)

    @property
    def host(self) -> bool:
        """Whether data are streamed from the host."""
        return self.stream is not None

    def in_memory(self, space: Space) -> list[Any]:
        """The terms of batches in memory: the same ones each time, so that their data are checked once."""
        made = memo(self).parts
        if space not in made:
            made[space] = self._in_memory(space)
        return made[space]  # type: ignore[no-any-return]

    def told_linear(self, space: Space, made: Any) -> list[Any]:
        """The terms in memory, each with its piece of ``made``, if there is one: a graph need not be made again."""
        terms = self.in_memory(space)
        if made is None or self.low:
            return terms
        told = [replace(term) for term in terms]
        for old, new, piece in zip(terms, told, made.pieces, strict=True):
            memo(new).checked = memo(old).checked
            linear = not piece.stacked and getattr(piece, "linearization", None) is not None  # bridged ones have none
            memo(new).linear = piece if linear else None
        return told

    def require_fitting(self, space: Space) -> None:
        """Raise for data of another framework or device than the parameters'."""
        for batch in self.batches:
            require_fitting(space, batch)

    def passed(self, space: Space) -> None:
        """Take the data in memory for checked."""
        memo(self).checked = space
        for term in memo(self).parts.get(space, ()):
            memo(term).checked = True

    def _in_memory(self, space: Space) -> list[Any]:
        self.require_fitting(space)
        if not self.batches and not self.host and self.reduce is None:
            raise ValueError(
                "the data hold no batch: an empty list. Give at least one (inputs, targets); only one of several "
                "processes, whose shares are summed, may have none."
            )
        if not self.is_bridged(space):
            return [self._term(space, batch) for batch in self.batches]
        there, crossing = self.abroad(space)
        inner = there.in_memory(crossing.away)
        return [BridgedTerm(t, batch, self.loss, crossing) for t, batch in zip(inner, self.batches, strict=True)]

    def _term(self, space: Space, batch: Batch) -> Term:
        inputs, targets, weights = space.backend.detach((batch.inputs, batch.targets, batch.weights))
        bare = Batch(inputs, targets, weights, stacked=batch.stacked, place=batch.place)
        alone = not self.host and len(self.batches) == 1 and not batch.stacked and self.reduce is None
        term = Term(self.loss, bare, self.model, space, self.supplied, alone, self.programs)
        memo(term).checked = memo(self).checked == space
        return term

    # in another framework

    def is_bridged(self, space: Space) -> bool:
        """Whether another framework than that of the parameters differentiates."""
        return self.derivatives not in (None, space.backend.name)

    def differentiating(self, home: Backend) -> Backend:
        """The backend that differentiates for arrays of ``home``."""
        name = self.derivatives
        if name in (None, home.name):
            return home
        try:
            guest = load(name)
        except ImportError as error:
            raise ImportError(
                f"derivatives={name!r} needs {name}, which cannot be imported ({error}): "
                f"pip install 'linop-gn[{name}]'."
            ) from error
        if guest.calculus is None:
            raise ValueError(f"derivatives={name!r}: {name} has no derivatives of its own; name a framework that has.")
        if "compiled" in home.capabilities:
            raise ValueError(
                f"derivatives={name!r}: {home.name} differentiates its own arrays, and a compiler could not follow the "
                f"work to {name}. Leave derivatives= out, and write the model for {home.name}."
            )
        return guest

    def abroad(self, space: Space) -> tuple[Terms, Crossing]:
        """These terms in the framework that differentiates, and the way there."""
        made = memo(self).abroad
        if space not in made:
            made[space] = self._abroad(space)
        return made[space]  # type: ignore[no-any-return]

    def _abroad(self, space: Space) -> tuple[Terms, Crossing]:
        ops, guest = space.backend, self.differentiating(space.backend)
        batches = self.batches if self.stream is None else (next(iter(self.stream)),)
        parts = [(batch.inputs, batch.targets, batch.weights) for batch in batches]
        held = [] if self.loss is None else [getattr(self.loss, name) for name in data_fields(self.loss)]
        data = [leaf for part in (*parts, *held) for leaf in ops.flatten(part)[1] if ops.is_array(leaf)]
        dtypes = {*space.dtypes, space.dtype, *(ops.describe(leaf)[1] for leaf in data)}
        crossing = Crossing.of(space, guest, "float64" in dtypes)
        loss = None if self.loss is None else map_arrays(self.loss, ops.is_array, crossing.lend)
        lent = tuple(map(crossing.batch, self.batches))
        stream = None if self.stream is None else Stream(self.stream, crossing.batch, changing=True)
        model = Partial(on_leaves, self.model, ops, space.structure)
        l2 = self.l2_in(space)
        l2 = l2 if l2 is None or isinstance(l2, (int, float)) else crossing.lend(l2)
        made = Terms(loss, lent, stream, model, None, self.whole, l2=l2, reduce=self.reduce, programs=self.programs)
        return made, crossing

    def stream_batches(self, space: Space) -> Iterator[Batch]:
        """One pass over streamed batches."""
        assert self.stream is not None
        for batch in self.stream:
            require_fitting(space, batch)
            yield batch

    def streamed(self, space: Space, x: Vector) -> Iterator[Any]:
        """One pass over streamed batches, a term for each, whose data are checked before or when it is used."""
        there, crossing = self.abroad(space) if self.is_bridged(space) else (self, None)
        for batch in self.stream_batches(space):
            if crossing is None:
                term = self._term(space, batch)
                term.check_ahead(x)
                yield term
            else:
                with crossing.precision():
                    lent = there._term(crossing.away, crossing.batch(batch))
                yield BridgedTerm(lent, Batch(), self.loss, crossing)

    def single(self, space: Space, what: str) -> Any:
        """The term of the one batch there is; an error that names ``what`` for several."""
        if self.host or len(self.batches) != 1 or self.batches[0].stacked:
            whole = "" if self.microbatch is None else ", and leave out microbatch=, which makes several of it"
            raise ValueError(
                f"{what} exists for data of one batch only; make an objective for one: with_data(batch){whole}."
            )
        return self.in_memory(space)[0]
