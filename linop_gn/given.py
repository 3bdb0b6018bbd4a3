"""What people pass, as trees of arrays: numbers and lists of them, mappings of any kind, series and frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .arguments import require_plain
from .dispatch import is_container

__all__ = ["Values", "as_columns", "as_start", "as_tree", "bounded", "the_array"]

_NUMBER = int, float, np.number


class Values(dict[str, Any]):
    """Numbers by name, as functions written for lmfit ask for them: ``p["a"]``, ``p.valuesdict()["a"]``."""

    def valuesdict(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return dict(self)


def as_start(x: Any) -> Any:
    """``x`` as parameters: of numbers, lists and dicts of numbers and series, arrays of float64; else as it is.

    >>> as_start([1, 2.5]), as_start({"a": 3})
    (array([1. , 2.5]), {'a': array(3.)})
    """
    require_plain(type(x))
    if isinstance(x, _NUMBER) or is_framed(x) or (isinstance(x, (list, tuple)) and _is_numbers(x)):
        return np.atleast_1d(np.asarray(x.to_numpy() if is_framed(x) else x, dtype=np.float64))
    if isinstance(x, np.ndarray) and x.dtype.kind in "biu":
        return np.atleast_1d(x.astype(np.float64))
    if isinstance(x, Mapping) and not isinstance(x, dict):
        x = as_tree(x)
    named = x if isinstance(x, dict) else x._asdict() if hasattr(x, "_asdict") else {}
    if named and all(isinstance(value, _NUMBER) for value in named.values()):
        made = {name: np.asarray(value, dtype=np.float64) for name, value in named.items()}
        return made if isinstance(x, dict) else type(x)(**made)
    return x


def bounded(x: Any) -> tuple[dict[str, float], tuple[dict[str, float], dict[str, float]]] | None:
    """The start of ``lmfit.Parameters`` by name, and its bounds, equal where a parameter does not vary; None of others.

    Raises
    ------
    ValueError
        For a parameter that is an expression of others, or has no value.
    """
    if not (isinstance(x, Mapping) and hasattr(x, "valuesdict")):
        return None
    for name, p in x.items():
        if p.expr is not None:
            raise ValueError(
                f"parameter {name!r} is an expression of others, {p.expr!r}, which derivatives cannot follow: remove "
                "it from the parameters, and work it out in the function."
            )
        if not np.isfinite(p.value):
            raise ValueError(f"parameter {name!r} has no value to begin at: set value=.")
    start = {name: float(p.value) for name, p in x.items()}
    lower = {name: float(p.min) if p.vary else start[name] for name, p in x.items()}
    upper = {name: float(p.max) if p.vary else start[name] for name, p in x.items()}
    return start, (lower, upper)


def as_tree(x: Any) -> Any:
    """``x`` with series and frames as NumPy arrays, and mappings that no framework knows for containers as dicts.

    (As Hugging Face's batches are, which have a dict inside.)

    >>> from collections import UserDict
    >>> as_tree((UserDict(a=1), 2))
    ({'a': 1}, 2)
    """
    require_plain(type(x))
    if is_framed(x):
        return np.asarray(x.to_numpy())
    if isinstance(x, Mapping) and type(x) is not dict and not is_container(x):
        x = dict(x)
    if type(x) is dict:
        made: Any = {key: as_tree(value) for key, value in x.items()}
        return made if any(made[key] is not value for key, value in x.items()) else x
    if type(x) in (list, tuple):
        made = type(x)(map(as_tree, x))
        return made if any(new is not old for new, old in zip(made, x, strict=True)) else x
    return x


def as_columns(x: Any) -> Any:
    """:func:`as_tree` of ``x``, or of a frame the dict of its columns."""
    framed = is_framed(x) and hasattr(x, "columns")
    return {name: np.asarray(x[name].to_numpy()) for name in x.columns} if framed else as_tree(x)


def the_array(z: Any) -> Any:
    """What a model returned, or its ``logits``, as Hugging Face's models return them among other things."""
    return z.get("logits", z) if isinstance(z, Mapping) else getattr(z, "logits", z)


def is_framed(x: Any) -> bool:
    """Whether ``x`` is a series or a frame of pandas, polars or the like."""
    return hasattr(x, "to_numpy") and hasattr(x, "shape") and not isinstance(x, type)


def _is_numbers(x: Any) -> bool:
    """Whether a list holds numbers, or lists of them."""
    return len(x) > 0 and all(isinstance(v, _NUMBER) or (isinstance(v, (list, tuple)) and _is_numbers(v)) for v in x)
