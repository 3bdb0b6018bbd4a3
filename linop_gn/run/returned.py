"""What a solver, an outer method or a part of one returns, looked at where it comes in: its structure and kinds."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .status import Status

__all__ = ["require_code", "require_level", "require_pair", "require_row", "require_scalar", "require_state"]
__all__ += ["require_vector", "row_type"]

row_type: Callable[[str, tuple[str, ...]], Callable[..., NamedTuple]] = functools.cache(namedtuple)  # type: ignore[assignment]
"""The type of rows with these fields, made once."""

_CODES = frozenset(map(int, Status))


def require_state(owner: str, made: Any, needed: Iterable[str] = (), before: Any = None) -> Any:
    """``made`` if it is a state: of ``init`` with the fields ``needed``, of ``step`` of the kind of ``before``."""
    member = f"{owner}.{'init' if before is None else 'step'} must return a"
    missing = ", ".join(name for name in needed if name not in getattr(type(made), "_fields", ()))
    if missing:
        raise TypeError(f"{member} NamedTuple with {', '.join(needed)}, got {made!r:.200} without {missing}.")
    if before is not None and type(made) is not type(before):
        raise TypeError(f"{member} {type(before).__name__}, as init does, got {made!r:.200}.")
    for name, old, new in () if before is None else zip(made._fields, before, made, strict=True):
        if _shape(old) != _shape(new) or (old is None) != (new is None):
            raise TypeError(f"{member} state whose {name} is like that of init, {_shown(old)}, got {_shown(new)}.")
    for name, wanted in (("status", "a code of lg.Status"), ("steps", "a whole number")):
        value = getattr(made, name)
        unknown = name == "status" and isinstance(value, int) and value not in _CODES
        if unknown or (type(value) is not int and _kind(value) != "int"):
            raise TypeError(f"{member} state whose {name} is {wanted}, got {_shown(value)}.")
    return made


def require_row(owner: str, row: Any, shape: tuple[int, ...] = ()) -> dict[str, Any]:
    """The fields of ``row`` if it is a NamedTuple of numbers, or of one for each column or block."""
    wrong = f"{row!r:.200}" if not hasattr(type(row), "_fields") else ""
    for name, value in () if wrong else zip(row._fields, row, strict=True):
        if type(value) not in (float, int) and not (_kind(value) and _shape(value) in ((), shape)):
            wrong = f"{_shown(value)} in {name}"
    if wrong:
        raise TypeError(f"{owner}.observe must return a NamedTuple of scalars, got {wrong}.")
    return row._asdict()  # type: ignore[no-any-return]


def require_vector(who: str, ops: Any, x: Any, shape: tuple[int, ...], like: Any) -> Any:
    """``x`` if it is an array of this shape, in the dtype of ``like``; ``who`` "must return" it."""
    dtype = ops.describe(like)[1]
    if not ops.is_array(x) or ops.describe(x)[:2] != (shape, dtype):
        raise TypeError(f"{who} an array of shape {shape} and dtype {dtype}, got {_shown(x)}.")
    return x


def require_pair(part: Any, member: str, made: Any, wanted: str) -> Any:
    """What a part's member returned, if it is a pair."""
    if type(made) is not tuple or len(made) != 2:
        raise TypeError(f"{type(part).__qualname__}.{member} must return {wanted}, got {_shown(made)}.")
    return made


def require_code(part: Any, member: str, code: Any) -> Any:
    """What a part's member returned for a status, if it is a code, or an array of them."""
    if code not in _CODES if isinstance(code, int) else _kind(code) not in ("int", "bool"):
        raise TypeError(f"{type(part).__qualname__}.{member} must return a code of lg.Status, got {_shown(code)}.")
    return code


def require_scalar(part: Any, member: str, made: Any, wanted: str) -> Any:
    """What a part's member returned, or ``wanted`` of it, if it is a number."""
    if type(made) is not float and not (_kind(made) and _shape(made) == ()):
        raise TypeError(f"{type(part).__qualname__}.{member} must return {wanted}, got {_shown(made)}.")
    return made


def require_level(control: Any, member: str, made: Any) -> Any:
    """What a control returned, if it is a level and a number to remember; no level that is known is below zero."""
    wanted = "the level, a number" if member == "at" else "(level, growth), two numbers"
    level, growth = require_pair(control, member, made, wanted)
    require_scalar(control, member, level, wanted)
    require_scalar(control, member, growth, wanted)
    if isinstance(level, (float, int)) and level < 0:
        raise ValueError(
            f"{type(control).__qualname__}.{member} must return a level that is not negative, got {level}: "
            "ops.maximum(level, 0.0) keeps one at zero."
        )
    return made


def _kind(value: Any) -> str:
    """The kind of a number, Python's or any framework's; nothing for what is none."""
    dtype = str(getattr(value, "dtype", ""))
    return next((kind.__name__ for kind in (bool, int, float) if isinstance(value, kind) or kind.__name__ in dtype), "")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _shown(value: Any) -> str:
    return f"{value.dtype} of shape {_shape(value)}" if hasattr(value, "dtype") else f"{value!r:.200}"
