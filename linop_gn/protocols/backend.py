"""One framework: the groups of the contract together."""

from __future__ import annotations

from typing import Protocol

from .arithmetic import Arithmetic
from .arrays import Arrays
from .bases import Bases
from .calculus import Calculus
from .factors import Factors
from .loops import Loops
from .processes import Processes
from .stores import Stores

__all__ = ["CAPABILITIES", "CONTRACT", "Backend"]

CONTRACT = 1
"""The number of this contract: raised when a backend written for the one before would no longer work.

A member that comes later with a default leaves it as it is: who inherits ``BackendDefaults``, ``CalculusDefaults`` and
``LinearizationDefaults`` has the member then. It is raised where a member goes, changes its meaning, or has no default.
"""

CAPABILITIES = frozenset({"compiled", "derivatives", "devices", "float64", "in_place", "trees", "views"})
"""The words that a backend may claim."""


class Backend(Arrays, Arithmetic, Factors, Stores, Bases, Loops, Processes, Protocol):
    """One framework. Instances are singletons, hashable, found by :func:`linop_gn.backend_of`."""

    contract: int
    """The number of the contract that it was written for: :data:`CONTRACT` at that time."""
    calculus: Calculus | None
    """None where the framework has no derivatives of its own."""
    capabilities: frozenset[str]
    """What it claims of :data:`CAPABILITIES`: the toolkit acts upon these words."""

    def version(self) -> str:
        """The framework's version."""

    def devices(self) -> list[str]:
        """Names of the devices that can be used now."""
