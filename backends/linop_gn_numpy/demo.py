"""NumPy's part of ``linop-gn demo``: the network whose derivatives are written by hand."""

from __future__ import annotations

from linop_gn.app.demo.by_hand import ByHand

from . import backend

__all__ = ["participant"]

participant = ByHand(backend, packages=("numpy",))
