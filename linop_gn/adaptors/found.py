"""Which backend serves a library that is built on its framework: the one with a module ``with_<library>``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from ..dispatch import imported

__all__ = ["serving"]


def serving(door: str) -> ModuleType:
    """The module ``with_<library>`` of the backend that has one, for the door ``to_<library>`` or ``from_<library>``.

    Only backends whose framework is imported are asked: what a door is given is made of it.

    Raises
    ------
    ImportError
        Where none of them has one, or the library is not installed.
    """
    library = door.partition("_")[2]
    for backend in imported():
        name = f"{type(backend).__module__.partition('.')[0]}.with_{library}"
        if find_spec(name) is None:
            continue
        try:
            return import_module(name)
        except ImportError as error:
            raise ImportError(f"{door} needs {library}, which cannot be imported: pip install {library}.") from error
    raise ImportError(
        f"{door}: no framework that is imported has {library}. It takes what is made of the framework of {library}: "
        "import that first."
    )
