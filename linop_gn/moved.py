"""Where names stood before: for one release the old paths lead to the new ones, with a warning that tells them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "OldPaths", "forwarding"]

UNTIL = "0.2"

MOVED = {
    "linop_gn.array_api": ("linop_gn.backend",),
    "linop_gn.bases": ("linop_gn.eager.bases",),
    "linop_gn.capabilities": ("linop_gn.backend", "linop_gn.app.doctor"),
    "linop_gn.cli": ("linop_gn.app.cli",),
    "linop_gn.doctor": ("linop_gn.app.doctor",),
    "linop_gn.drive": ("linop_gn.run.loop", "linop_gn.solve"),
    "linop_gn.eager": ("linop_gn.backend",),
    "linop_gn.factors": ("linop_gn.eager.factors",),
    "linop_gn.krylov_basis": ("linop_gn.lanczos.basis",),
    "linop_gn.solution": ("linop_gn.run.solution",),
    "linop_gn.status": ("linop_gn.run.status",),
    "linop_gn.stores": ("linop_gn.eager.stores",),
    "linop_gn.watch": ("linop_gn.run.watch",),
}
"""Each old path, and where to look for what was there."""


def forwarding(old: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module at an old path."""

    def find(name: str) -> Any:
        if name == "__all__":
            return [known for new in MOVED[old] for known in import_module(new).__all__]
        for new in MOVED[old] if not name.startswith("__") else ():
            module = import_module(new)
            if hasattr(module, name):
                told = f"{old}.{name} is {new}.{name} now; the old path goes in linop_gn {UNTIL}."
                warnings.warn(told, DeprecationWarning, stacklevel=2)
                return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return find


class OldPaths:
    """The import system's way to the modules at old paths, which have no files."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = forwarding(module.__name__)  # type: ignore[method-assign]
