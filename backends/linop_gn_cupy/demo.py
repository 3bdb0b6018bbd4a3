"""CuPy's part of ``linop-gn demo``: the network whose derivatives are written by hand, on the GPU."""

from __future__ import annotations

from importlib.metadata import packages_distributions

from linop_gn.app.demo.by_hand import ByHand

from . import backend

__all__ = ["participant"]

participant = ByHand(backend, packages=tuple(packages_distributions().get("cupy", ())))
