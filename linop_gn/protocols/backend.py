"""One framework: the groups of the contract together."""

from __future__ import annotations

from typing import Protocol

from .arithmetic import Arithmetic
from .arrays import Arrays
from .bases import Bases
from .calculus import Calculus
from .factors import Factors
from .loops import Loops
from .stores import Stores

__all__ = ["Backend"]


class Backend(Arrays, Arithmetic, Factors, Stores, Bases, Loops, Protocol):
    """One framework. Instances are singletons, hashable, found by :func:`linop_gn.backend_of`."""

    calculus: Calculus | None
    """None where the framework has no derivatives of its own."""
    capabilities: frozenset[str]
    """Of ``derivatives``, ``compiled``, ``in_place``, ``float64``, ``devices``, ``views``, ``trees``."""

    def version(self) -> str:
        """The framework's version."""
        ...

    def devices(self) -> list[str]:
        """Names of the devices that can be used now."""
        ...
