"""Numbers that users hand over: what is known of them is checked at the door.

They come as Python's, as NumPy's of any width, or as arrays of any framework;
inside a compiled program only the compiler will know them.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

__all__ = ["called", "described", "known", "needed", "require_instance", "require_number", "require_plain", "whole"]


def require_plain(kind: type) -> None:
    """Raise for a kind of NumPy's arrays whose arithmetic is not that of arrays.

    >>> require_plain(np.ma.MaskedArray)
    Traceback (most recent call last):
    ...
    TypeError: a masked array was given, and what lies under its mask would count: ...
    """
    if issubclass(kind, np.ma.MaskedArray):
        raise TypeError(
            "a masked array was given, and what lies under its mask would count: leave those entries out "
            "(x.compressed()), or fill them (x.filled(value)). In data a mask is a weight: (inputs, targets, ~mask)."
        )
    if issubclass(kind, np.matrix):
        raise TypeError("an np.matrix was given, whose products are not those of arrays: write np.asarray(x).")


def called(role: str, like: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What ``function`` returns; where it does not take so many arguments, an error that says it is called like that.

    Its own errors get a note with what it was called with: arguments in another order fail in the words of others.

    >>> called("jacobian=", "(params, inputs)", lambda p: p, 1, 2)
    Traceback (most recent call last):
    ...
    TypeError: jacobian= is called as jacobian(params, inputs), with 2 arguments, but its signature is (p).
    """
    try:
        return function(*arguments, **options)
    except StopIteration as error:
        raise RuntimeError(
            f"{role} raised StopIteration: an iterator that it draws from has ended, and it is called as often as the "
            "run needs. Give all data to the objective, or one batch a step as lg.minimize(..., batches=loader)."
        ) from error
    except Exception as error:
        way, signature = f"{role} is called as {role.rstrip('=').rpartition(' ')[2]}{like}", None
        with suppress(TypeError, ValueError):
            signature = inspect.signature(function)
        try:
            if signature is not None and isinstance(error, TypeError):
                signature.bind(*arguments, **options)
        except TypeError:
            count = f"{len(arguments)} argument{'s' * (len(arguments) > 1)}"
            raise TypeError(f"{way}, with {count}, but its signature is {signature}.") from error
        if not any(" is called as " in note for note in getattr(error, "__notes__", ())):  # the user's own is enough
            error.add_note(f"{way}, here with {' and '.join(map(_kind, arguments))}.")
        raise


def _kind(x: Any) -> str:
    """What an argument is, in words: of an array the shape."""
    return f"an array {tuple(x.shape)}" if hasattr(x, "shape") else f"a {type(x).__qualname__}"


def described(x: Any, framework: str) -> str:
    """What an object is that is no array of ``framework``; of sparse matrices, what to do.

    >>> described([1.0], "numpy")
    'a list, not a numpy array'
    """
    kind = f"a {'' if type(x).__module__ == 'builtins' else type(x).__module__ + '.'}{type(x).__qualname__}"
    dense = next((name for name in ("to_dense", "todense", "to_numpy") if hasattr(x, name)), None)
    if dense is None:
        return f"{kind}, not a {framework} array"
    layout = f" of layout {x.layout}" if hasattr(x, "layout") else ""
    product = "lg.FunctionOperator(lambda v, x: x @ v, space, args=(x,)) multiplies by it"
    more = "" if dense == "to_numpy" else f", and {product}"
    return f"{kind}{layout}, not a {framework} array: x.{dense}() is one{more}"


def require_instance(function: str, given: Any, kind: type, wanted: str, advice: str) -> None:
    """Raise unless ``given`` is an instance of ``kind``, and a record; ``wanted`` says what would be one."""
    if kind in type(given).__mro__ and "__dataclass_params__" in vars(type(given)):
        return  # nearly always, and asked at each solve: isinstance takes four times as long of an abstract class
    if isinstance(given, type) or getattr(given, "__module__", "").startswith("linop_gn.methods.named"):
        what = "class" if isinstance(given, type) else "function"
        raise TypeError(f"{function} needs {wanted}, got the {what} {given.__qualname__} itself: call it first.")
    if not isinstance(given, kind):
        what = repr(given) if isinstance(given, str) else f"a {type(given).__qualname__}"
        raise TypeError(f"{function} needs {wanted}, got {what}. {advice}")
    if "__dataclass_params__" not in vars(type(given)):
        name = type(given).__name__
        raise TypeError(f"{name} must be a record, so that compilers know its data: write @lg.record above it.")


def needed(module: str, what: str, extra: str) -> Any:
    """A module of a library that is not required, imported.

    >>> needed("no_such", "plots are drawn by no_such", "plots")
    Traceback (most recent call last):
    ...
    ImportError: plots are drawn by no_such, which cannot be imported: pip install 'linop-gn[plots]', or no_such.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ImportError(
            f"{what}, which cannot be imported: pip install 'linop-gn[{extra}]', or {library}."
        ) from error


def whole(owner: str, name: str, value: Any, least: int = 0) -> int:
    """``value`` as an int.

    >>> whole("CG", "steps", np.int64(3))
    3

    Raises
    ------
    ValueError
        Unless it is a whole number >= ``least``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        unlimited = isinstance(value, (float, np.floating)) and math.isinf(value) and name != "steps"
        instead = " For no limit write one that will not be reached, such as 10**6." if unlimited else ""
        raise ValueError(f"{owner}: {name} must be a whole number >= {least}, got {value!r}.{instead}")
    return number


def known(owner: str, name: str, value: Any) -> np.ndarray | None:
    """The number, or the array of numbers, in float64; None for None and for what only a compiler will know.

    Raises
    ------
    TypeError
        For what is no number and no array of numbers.
    """
    if value is None:
        return None
    require_plain(type(value))
    if isinstance(value, (int, float, np.number, np.ndarray)):
        found = np.asarray(value)
        if found.dtype.kind in "biuf":
            return found.astype(np.float64)
    elif hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        try:
            each = [value[i] for i in range(value.shape[0])] if value.shape else value
            return np.asarray(list(map(known_float, each)) if value.shape else known_float(each))
        except Exception:  # every framework has its own way to say that a number is traced
            return None
    raise TypeError(f"{owner}: {name} must be a number, got {value!r}.")


def known_float(value: Any) -> float:
    """A number whose value is known, cut from any graph even where products are being recorded."""
    return float(value.detach() if hasattr(value, "detach") else value)


def require_number(
    owner: str,
    name: str,
    value: Any,
    *,
    positive: bool = False,
    infinite: bool = False,
    below: float = math.inf,
    optional: bool = False,
) -> None:
    """Raise for known numbers that are negative (or not ``positive``), not ``below``, NaN, or infinite unless allowed.

    None is refused unless ``optional``.

    >>> require_number("CG", "rtol", np.float32(-1.0))
    Traceback (most recent call last):
    ...
    ValueError: CG: rtol must be a finite number >= 0, got -1.0.
    """
    plain = type(value) is float or type(value) is int
    if plain and (value > 0 if positive else value >= 0) and (value == value if infinite else value < below):
        return  # nearly always: an array of it takes ten times as long
    if value is None and not optional:
        raise TypeError(f"{owner}: {name} must be a number, got None: leave it out for the default.")
    found = known(owner, name, value)
    if found is None:
        return
    low = found > 0 if positive else found >= 0
    if not (low & (found < below if not infinite else ~np.isnan(found))).all():
        kind = "number" if infinite else "finite number"
        bound = "> 0 (infinity is one)" if positive and infinite else "> 0" if positive else ">= 0"
        bound += "" if below == math.inf else f" and < {below:g}"
        instead = f" {_INSTEAD.get(name[-3:], '')}" if np.isinf(found).any() else ""
        raise ValueError(f"{owner}: {name} must be a {kind} {bound}, got {found.tolist()}.{instead.rstrip()}")


_INSTEAD = {
    "tol": "Everything would meet it: for no such test write 0.",
    "lim": "For no limit write None or 0.",
}
"""What to write instead of infinity, by the last letters of a name."""
