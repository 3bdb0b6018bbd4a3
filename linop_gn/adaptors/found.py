"""Which backend serves a library that is built on its framework: the one with a module ``with_<library>``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from ..dispatch import available

__all__ = ["serving"]


def serving(door: str, library: str) -> ModuleType:
    """The module ``with_<library>`` of the backend that has one.

    Raises
    ------
    ImportError
        Where no backend has one that can be used, or the library is not installed.
    """
    for backend in available().values():
        name = f"{type(backend).__module__.partition('.')[0]}.with_{library}"
        if isinstance(backend, ImportError) or find_spec(name) is None:
            continue
        try:
            return import_module(name)
        except ImportError as error:
            raise ImportError(f"{door} needs {library}, which cannot be imported: pip install {library}.") from error
    raise ImportError(f"{door}: no backend that is installed serves {library}, or its framework is missing.")
