"""Who takes part: a backend, the network written for it, and its own first-order methods.

A participant is an entry point of the group ``linop_gn.demos``, named as its
backend is. The network and the baselines are written as that framework's users
write them; nothing else in the demo differs between frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import entry_points
from typing import Any, Protocol

from ...curvature.objective import Objective
from ...protocols import Backend, Tree
from ..doctor import diagnose
from .problem import Batch, Weights
from .runs import Plan, Run

__all__ = ["Participant", "find", "precision"]

GROUP = "linop_gn.demos"


class Participant(Protocol):
    """One framework's part of the demo."""

    backend: Backend
    optimizers: Sequence[str]
    """Names of the first-order methods that it brings: of ``"SGD"`` (momentum 0.9) and ``"Adam"``."""
    packages: Sequence[str]
    """Distributions whose versions the report is to tell."""

    def objective(self, data: Batch, start: Weights) -> Objective:
        """Mean softmax cross-entropy, on NumPy data, of the network with the shapes of ``start``, in float64."""
        ...

    def params(self, start: Weights) -> Tree:
        """Those weights in the framework's form."""
        ...

    def weights(self, tree: Tree) -> Weights:
        """A tree like the parameters as NumPy weights: the inverse of ``params``."""
        ...

    def train(self, plan: Plan, start: Weights, data: Batch) -> Run:
        """One run of a first-order method, timed after a warm-up. Not needed where ``optimizers`` is empty."""
        ...


def find(names: Sequence[str] | None = None) -> tuple[dict[str, Participant], list[dict[str, Any]]]:
    """Participants by name, the one with most to show first; and what ``doctor`` says of the backends that lack.

    Raises
    ------
    LookupError
        For a name that no participant has.
    """
    report = diagnose()
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    found: dict[str, Participant] = {}
    for described in report["backends"]:
        name = described["name"]
        if name in entries and (not names or name in names):
            try:
                found[name] = entries[name].load()
            except Exception as error:  # a stranger's, which may raise anything
                reason = f"its part of the demo fails: {type(error).__name__}: {error}"
                report["missing"].append({"name": name, "reason": reason, "install": "see the reason"})
    absent = [name for name in names or () if name not in found]
    if absent:
        raise LookupError(
            f"no participant called {', '.join(absent)}; there are: "
            f"{', '.join(d['name'] for d in report['backends'] if d['name'] in entries)}. See linop-gn doctor."
        )
    ordered = sorted(found.items(), key=lambda item: (item[1].backend.calculus is None, item[0]))
    return dict(ordered), report["missing"]


def precision(participant: Participant) -> AbstractContextManager[Any]:
    """Where float64 is float64."""
    calculus = participant.backend.calculus
    return nullcontext() if calculus is None else calculus.high_precision()


Tell = Callable[[str], None]
"""Called with a sentence about what is being done now; its words before a colon name the piece of work."""
