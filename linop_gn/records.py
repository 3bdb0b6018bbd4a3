"""Records: frozen dataclasses whose fields are *data* or *static*.

Operators, losses, objectives, methods and solutions are records. A field is
*data* (arrays, trees of arrays, numbers, other records) unless it is declared
with :func:`static`, which is for functions, names and flags. A backend whose
compiler wants to know which is which (JAX) subscribes with
:func:`on_new_record` and is told of every record type, past and future.

The rule that makes one compiled program serve every step: *nothing numeric is
static*. Changing the damping, the batch or the parameters changes data only.

What is worked out from a record's fields, once, stands in its :func:`memo`. A
constructor that computes its fields sets them with :func:`fill`. Nothing else
writes into a record.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from typing import Any, TypeVar, dataclass_transform

from .foreign import advised

__all__ = [
    "Asked",
    "Everywhere",
    "Memo",
    "Partial",
    "bare",
    "closed",
    "data_fields",
    "fields",
    "fill",
    "map_arrays",
    "memo",
    "on_new_record",
    "opened",
    "rebuild",
    "record",
    "replace",
    "static",
    "static_fields",
]

T = TypeVar("T")

_types: list[type] = []
_subscribers: list[Callable[[type], None]] = []

replace = dataclasses.replace
_NOTHING = object()


def static(**options: Any) -> Any:
    """A field that is part of the program (a function, a name, a flag), not of its data.

    >>> @record
    ... class Scale:
    ...     factor: float
    ...     name: str = static(default="scale")
    >>> data_fields(Scale), static_fields(Scale)
    (('factor',), ('name',))
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static, dataclasses.field))
def record(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass, compared by identity, known to every backend.

    Raises
    ------
    TypeError
        For a field with the name of an inherited method, which it would hide, or of an inherited attribute without
        a value of its own, which it would get as its default.
    """
    _require_free_names(cls)
    own = _has_own_repr(cls)
    made = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    if not own:
        made.__repr__ = _text  # type: ignore[method-assign]
    made.__getstate__ = fields  # type: ignore[assignment, method-assign]
    made.__init__ = advised(made.__init__)  # type: ignore[method-assign]
    _types.append(made)
    for tell in _subscribers:
        tell(made)
    return made


def _require_free_names(cls: type) -> None:
    for name in inspect.get_annotations(cls):
        inherited = next((base.__dict__[name] for base in cls.__mro__[1:] if name in base.__dict__), _NOTHING)
        known = any(name in getattr(base, "__dataclass_fields__", ()) for base in cls.__mro__[1:])
        if inherited is not _NOTHING and not known and (callable(inherited) or name not in cls.__dict__):
            raise TypeError(
                f"{cls.__qualname__}: the field {name!r} has the name of something that {cls.__mro__[1].__qualname__} "
                "has already; call it otherwise, or give it a default if that is what it is."
            )


def fields(given: Any) -> dict[str, Any]:
    """The fields of a record and their values: what copies and pickles carry."""
    held = given.__dict__
    return {name: held[name] for name in _names(type(given)) if name in held}  # type: ignore[arg-type]


@cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def fill(given: T, **values: Any) -> T:
    """``given`` with these fields set, for constructors: afterwards records are frozen.

    >>> @record
    ... class Half:
    ...     value: float
    ...     def __init__(self, twice):
    ...         fill(self, value=twice / 2)
    >>> Half(3.0)
    Half(value=1.5)
    """
    given.__dict__.update(values)
    return given


def rebuild(cls: type[T], values: Mapping[str, Any]) -> T:
    """A record of these fields; no constructor runs, since they were examined when the record was first made."""
    made = object.__new__(cls)
    made.__dict__.update(values)
    return made


class Partial(partial[T]):
    """A function with its first arguments. Equal ones are one compiled program, where two of ``functools`` are two.

    >>> Partial(pow, 2) == Partial(pow, 2), Partial(pow, 2)(3)
    (True, 8)
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partial):
            return NotImplemented
        return (self.func, self.args, self.keywords) == (other.func, other.args, other.keywords)

    def __hash__(self) -> int:
        return hash((self.func, self.args))


@dataclasses.dataclass(slots=True)
class Asked:
    """What is known of a model that has been asked for something."""

    before: bool = False
    """Whether it has answered."""
    at_once: bool = True
    """Whether its program can tell good data from bad."""
    space: Any = None
    """That of the latest parameters."""
    points: bool = False
    """Whether points have been asked for, whose linearisation products take."""
    model: Any = None
    """As a function, as it was last seen: while somebody holds it, the next copy need not make it anew."""


@dataclasses.dataclass(slots=True)
class Memo:
    """What has been worked out from a record's fields. Copies, pickles and compiled programs start without it."""

    prepared: Any = None
    """Of an operator: what :meth:`~linop_gn.LinearOperator.prepare` made; of a Krylov space, its weak reference."""
    children: Any = None
    """Of an operator: those among its fields."""
    terms: Any = None
    """Of an objective: its :class:`~linop_gn.curvature.terms.Terms` with the model as it was last seen."""
    latest: Any = None
    """Of an objective: the latest point."""
    most: int | None = None
    """Of an objective: the most batches that a process has, where all have to go through as many."""
    answer: Any = None
    """Of an objective: leaves of parameters, and the value there, where no point was made."""
    linear: Any = None
    """Of a term at a point where it is linearised: its piece."""
    parts: dict[Any, Any] = dataclasses.field(default_factory=dict)
    """Of terms: one for each batch, by the space of the parameters."""
    abroad: dict[Any, Any] = dataclasses.field(default_factory=dict)
    """Of terms: themselves in the framework that differentiates, by the space of the parameters."""
    checked: Any = None
    """Of a term: whether the values of its data have been looked at; of a point: whether those of its parameters; of
    terms: the space of the parameters with which the data in memory passed."""
    shape: Any = None
    """Of a term: the shape of the outputs that it had last."""
    asked: Any = None
    """Of an objective, its terms and its copies with other data: the :class:`Asked` that they share."""
    made: Any = None
    """Of a point: what was evaluated and linearised there, in common with other points at the same values."""
    origin: Any = None
    """Of a point: the parameters in the graph that they were detached from, and the leaves that they were packed of."""
    reduction: Any = None
    """Of a state: what sums over the processes that its run is on, where there are several."""
    mark: int = 0
    """Of terms that are summed over processes: of what must be the same on all of these."""
    packed: Any = None
    """Of a point that was given leaves: the flat vector of them."""
    outputs: Any = None
    """Of a batch that is linearised anew for each product: the model's outputs, once somebody has asked for them."""
    known: Any = None
    """Of a loss that is a function: what :func:`~linop_gn.curvature.losses.recognised.computed` said of it."""


def memo(given: Any) -> Memo:
    """The memo of a record."""
    found: Memo = given.__dict__.get("_memo") or given.__dict__.setdefault("_memo", Memo())
    return found


def bare(tree: Any) -> Any:
    """The tree with its records as they were made: nothing that has been worked out from their fields is held."""
    if isinstance(tree, tuple(_types)):
        return rebuild(type(tree), {name: bare(value) for name, value in fields(tree).items()})
    if type(tree) is dict:
        return {key: bare(value) for key, value in tree.items()}
    return type(tree)(map(bare, tree)) if type(tree) in (tuple, list) else tree


def opened(tree: Any) -> Any:
    """The tree with dicts of their data in place of records: what any framework's trees, and files, can hold."""
    if isinstance(tree, tuple(_types)):
        return {name: opened(getattr(tree, name)) for name in data_fields(tree)}
    return _mapped(opened, tree)


def closed(like: Any, tree: Any) -> Any:
    """The inverse of :func:`opened`, with what is static from ``like``, a tree of the same structure."""
    if isinstance(like, tuple(_types)):
        data = {name: closed(getattr(like, name), tree[name]) for name in data_fields(like)}
        return rebuild(type(like), fields(like) | data)
    if type(like) is dict:
        return {key: closed(value, tree[key]) for key, value in like.items()}
    if isinstance(like, (tuple, list)):
        parts = [closed(*both) for both in zip(like, tree, strict=True)]
        return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
    return tree


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with ``function`` of what its dicts, lists and tuples hold; anything else as it is."""
    if type(tree) is dict:
        return {key: function(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = map(function, tree)
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def _has_own_repr(cls: type) -> bool:
    """Whether the class, or a base, says itself how it reads (rather than by the list of its fields)."""
    said: Any = cls.__repr__
    return said is not object.__repr__ and said is not _text


def _text(given: Any) -> str:
    """The call that makes the record: fields that are as by default are left out."""
    told, held = [], fields(given)
    for field in dataclasses.fields(given):
        if field.repr and field.name in held:
            text = _word(held[field.name])
            if field.default is dataclasses.MISSING or text != _word(field.default):
                told.append(f"{field.name}={text}")
    return f"{type(given).__qualname__}({', '.join(told)})"


def _word(value: Any) -> str:
    """How a field reads: classes and functions by name."""
    return getattr(value, "__qualname__", None) or repr(value)


def on_new_record(tell: Callable[[type], None]) -> None:
    """Call ``tell(type)`` for every record type there is and for each one made later."""
    _subscribers.append(tell)
    for known in _types:
        tell(known)


def map_arrays(given: T, is_array: Callable[[Any], bool], change: Callable[[Any], Any]) -> T:
    """A copy of a record with ``change`` applied to the arrays among its fields."""
    data = {name: getattr(given, name) for name in data_fields(given)}
    return rebuild(type(given), fields(given) | {name: change(x) for name, x in data.items() if is_array(x)})


def data_fields(cls: type | object) -> tuple[str, ...]:
    """Names of the fields that hold data, in order."""
    return _named(cls if isinstance(cls, type) else type(cls), False)


def static_fields(cls: type | object) -> tuple[str, ...]:
    """Names of the fields that are part of the program."""
    return _named(cls if isinstance(cls, type) else type(cls), True)


@lru_cache(maxsize=1024)  # each solve asks for those of its operators, several times
def _named(cls: type, wanted: bool) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls) if f.init and bool(f.metadata.get("static")) is wanted)


@record
class Everywhere:
    """What among stacked arrays has no leading axis, an array or a tree of them: the same at every index."""

    array: Any
