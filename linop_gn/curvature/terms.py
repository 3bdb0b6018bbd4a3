"""A model and a loss over batches: what an objective is made of, and all that points and operators need of it.

Nothing here remembers parameters. :class:`~linop_gn.Objective` does, and adds
what users ask for; points hold the bare :class:`Terms`, since a cycle of
references would keep a recorded graph alive long after its last use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..dispatch import load
from ..protocols import Backend, Vector
from ..records import data_fields, map_arrays, record, static
from ..spaces import Space
from .batches import Batch, Stream, stack
from .bridge import BridgedTerm, Crossing, OnLeaves
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

    @property
    def host(self) -> bool:
        """Whether data are streamed from the host."""
        return self.stream is not None

    def _share(self, other: Terms) -> Any:
        """``self``, with the adapted model in common with ``other``, whose data alone differ."""
        self.__dict__["_adapted"] = other.__dict__.setdefault("_adapted", {})
        return self

    def require_fitting(self, space: Space) -> None:
        """Raise for data of another framework or device than the parameters'."""
        if self.__dict__.get("_fitting") != (space.backend, space.device):
            for batch in self.batches:
                require_fitting(space, batch)
            self.__dict__["_fitting"] = (space.backend, space.device)

    def term(self, space: Space, batch: Batch) -> Term:
        """The part of one batch in memory; the same one each time, so that its data are checked once."""
        terms: dict[Any, Term] = self.__dict__.setdefault("_terms", {})
        key = (id(batch), space)
        if key not in terms:
            terms[key] = self._term(space, batch)
        return terms[key]

    def _term(self, space: Space, batch: Batch) -> Term:
        ops = space.backend
        inputs, targets, weights = ops.detach((batch.inputs, batch.targets, batch.weights))
        bare = Batch(inputs, targets, weights, stacked=batch.stacked)
        alone = not self.host and len(self.batches) == 1 and not batch.stacked
        return Term(self.loss, bare, self._function(ops), space, self.supplied, alone)

    def _function(self, ops: Backend) -> Any:
        """The model as a plain function: the same object for all data, as long as an objective lives."""
        adapted: dict[str, Any] = self.__dict__.setdefault("_adapted", {})
        if ops.name not in adapted:
            adapted[ops.name] = self.model if ops.calculus is None else ops.calculus.adapt(self.model)
        return adapted[ops.name]

    def in_memory(self, space: Space) -> list[Any]:
        """The terms of batches in memory."""
        if not self.is_bridged(space):
            return [self.term(space, batch) for batch in self.batches]
        there, crossing = self.abroad(space)
        return [
            BridgedTerm(there.term(crossing.away, lent), batch, self.loss, crossing)
            for lent, batch in zip(there.batches, self.batches, strict=True)
        ]

    # in another framework

    def is_bridged(self, space: Space) -> bool:
        """Whether another framework than that of the parameters differentiates."""
        return self.derivatives not in (None, space.backend.name)

    def abroad(self, space: Space) -> tuple[Terms, Crossing]:
        """These terms in the framework that differentiates, and the way there."""
        kept: dict[Space, tuple[Terms, Crossing]] = self.__dict__.setdefault("_crossings", {})
        if space not in kept:
            kept[space] = self._abroad(space)
        return kept[space]

    def _abroad(self, space: Space) -> tuple[Terms, Crossing]:
        ops, guest = space.backend, _differentiating(self.derivatives, space.backend)
        batches = self.batches if self.stream is None else (next(iter(self.stream)),)
        parts = [(batch.inputs, batch.targets, batch.weights) for batch in batches]
        held = [] if self.loss is None else [getattr(self.loss, name) for name in data_fields(self.loss)]
        data = [leaf for part in (*parts, *held) for leaf in ops.flatten(part)[1] if ops.is_array(leaf)]
        dtypes = {*space.dtypes, space.dtype, *(ops.describe(leaf)[1] for leaf in data)}
        crossing = Crossing.of(space, guest, "float64" in dtypes)
        loss = None if self.loss is None else map_arrays(self.loss, ops.is_array, crossing.lend)
        lent = tuple(map(crossing.batch, self.batches))
        stream = None if self.stream is None else Stream(_Lent(self.stream, crossing))
        model = OnLeaves(self._function(guest), ops, space.structure)
        return Terms(loss, lent, stream, model, None, self.whole), crossing

    def stream_batches(self, space: Space) -> Iterator[Batch]:
        """One pass over streamed batches."""
        assert self.stream is not None
        for batch in self.stream:
            require_fitting(space, batch)
            yield batch

    def streamed(self, space: Space, x: Vector) -> Iterator[Any]:
        """One pass over streamed batches, a term for each. Their values are looked at on the first whole pass."""
        assert self.stream is not None
        if self.is_bridged(space):
            there, crossing = self.abroad(space)
            with crossing.precision():
                abroad = crossing.parameters(x)
            source = there.streamed(crossing.away, abroad)
            while True:
                with crossing.precision():  # not around the yield: what is done with a term is the caller's
                    term = next(source, None)
                if term is None:
                    return
                yield BridgedTerm(term, Batch(), self.loss, crossing)
        for batch in self.stream_batches(space):
            term = self._term(space, batch)
            if self.stream.checked:
                term.trust()
            else:
                term.check_ahead(x)
            yield term
        self.stream.checked = self.stream.checked or space.backend.is_concrete(x)

    def single(self, space: Space, what: str) -> Any:
        """The term of the one batch there is; an error that names ``what`` for several."""
        if self.host or len(self.batches) != 1 or self.batches[0].stacked:
            raise ValueError(f"{what} exists for data of one batch only; make an objective for one: with_data(batch).")
        return self.in_memory(space)[0]

    def stacked(self, space: Space, x: Vector) -> Terms:
        """These terms with equal batches as one, where a compiler would make a copy of the work for each."""
        batches = self.batches
        if len(batches) > 1 and "compiled" in space.backend.capabilities:
            for term in self.in_memory(space):
                term.check_ahead(x)
            batches = stack(batches, space.backend)
        fields = self.loss, batches, self.stream, self.model, self.supplied, self.whole, self.derivatives
        made: Terms = Terms(*fields)._share(self)
        return made


class _Lent:
    """A stream whose batches are lent to another framework one after the other."""

    def __init__(self, stream: Stream, crossing: Crossing) -> None:
        self.stream, self.crossing = stream, crossing

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.stream:
            require_fitting(self.crossing.home, batch)
            yield self.crossing.batch(batch)


def _differentiating(name: str | None, home: Backend) -> Backend:
    """The backend called ``name``, if it can differentiate for arrays of ``home``."""
    assert name is not None
    try:
        guest = load(name)
    except ImportError as error:
        raise ImportError(
            f"derivatives={name!r} needs {name}, which cannot be imported ({error}): pip install 'linop-gn[{name}]'."
        ) from error
    if guest.calculus is None:
        raise ValueError(f"derivatives={name!r}: {name} has no derivatives of its own; name a framework that has.")
    if "compiled" in home.capabilities:
        raise ValueError(
            f"derivatives={name!r}: {home.name} differentiates its own arrays, and a compiler could not follow the "
            f"work to {name}. Leave derivatives= out, and write the model for {home.name}."
        )
    return guest
