"""What a backend imports: the contract, what it inherits, and what it declares.

A backend says which contract it was written for, ``contract = 1`` in its class;
:data:`CONTRACT` is the toolkit's own, and the look-up refuses any other.

What it can do stands beside its code, readable without its framework, in a file
``capabilities.toml`` of its package::

    title = "MyLib"
    capabilities = ["float64", "in_place", "trees"]     # the words of CAPABILITIES

    [says]                                              # a row of the table: what stands there instead of yes or no
    compiled = "each vector update"

    [unsupported]                                       # known gaps: name and sentence
    "sparse arrays" = "They have no derivative."

The backend takes its ``capabilities`` from there (:func:`declared`), so that what
is declared and what the toolkit acts upon are one thing; ``linop-gn doctor`` and
the table in the documentation read the same file. The conformance kit holds a
backend to the words that it claims.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from . import protocols
from .dispatch import writing_for
from .eager.array_api import ArrayApiBackend
from .eager.defaults import BackendDefaults, CalculusDefaults, LinearizationDefaults
from .eager.loops import EagerLoops
from .eager.scalars import EagerScalars
from .protocols import *  # noqa: F403
from .protocols import CAPABILITIES

__all__ = ["ROWS", "ArrayApiBackend", "BackendDefaults", "CalculusDefaults", "Declaration", "EagerLoops"]
__all__ += ["EagerScalars", "LinearizationDefaults", "declared", "writing_for", *protocols.__all__]

ROWS = ("derivatives", "compiled", "in_place", "float64", "devices", "views", "trees", "bridge", "sparse")
"""The rows of the table: the capabilities, and two that every backend has in some way."""

NAME = "capabilities.toml"


@dataclass(frozen=True)
class Declaration:
    """What one package declares."""

    title: str
    capabilities: frozenset[str]
    says: Mapping[str, str]
    unsupported: Mapping[str, str]

    def cell(self, row: str) -> str:
        """What the table says in ``row``."""
        if row in self.says:
            return self.says[row]
        if row == "bridge":
            return "differentiates for others" if "derivatives" in self.capabilities else "is differentiated by others"
        return "SciPy's, on the host" if row == "sparse" else "yes" if row in self.capabilities else "no"


@cache
def declared(package: str) -> Declaration:
    """What the import package of that name declares; neither it nor its framework is imported.

    >>> "in_place" in declared("linop_gn_" + "numpy").capabilities
    True

    Raises
    ------
    LookupError
        Where there is no such package, or no declaration in it.
    ValueError
        For a declaration with words that nobody knows, or a gap that is not told in a sentence.
    """
    spec = find_spec(package)
    places = [Path(place) / NAME for place in (spec.submodule_search_locations or ())] if spec else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise LookupError(
            f"the package {package!r} has no file {NAME}: that is where a backend declares what it can do."
        )
    content = tomllib.loads(found.read_text(encoding="utf-8"))
    unknown = [*content.keys() - {"title", "capabilities", "says", "unsupported"}]
    unknown += [word for word in content.get("capabilities", ()) if word not in CAPABILITIES]
    unknown += [row for row in content.get("says", ()) if row not in ROWS]
    if unknown:
        raise ValueError(
            f"{found} has {', '.join(map(repr, unknown))}, which means nothing here. Capabilities are "
            f"{', '.join(sorted(CAPABILITIES))}; [says] takes these, bridge and sparse."
        )
    made = Declaration(
        content.get("title", package),
        frozenset(content.get("capabilities", ())),
        content.get("says", {}),
        content.get("unsupported", {}),
    )
    for gap, sentence in made.unsupported.items():
        if not sentence.endswith("."):
            raise ValueError(f"{found}: the gap {gap!r} is told by {sentence!r}; write a sentence.")
    return made
