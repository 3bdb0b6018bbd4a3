"""NumPy functions that HIPS autograd differentiates, as a backend: ``derivatives="autograd"``.

A model written with ``autograd.numpy``, or with ``lg.namespace(x)``, has
derivatives on NumPy arrays without another array library. Its arrays *are*
NumPy's; only inside a model that is being differentiated are they autograd's
boxes, which is what this backend is found by.

>>> import numpy as np, autograd.numpy as anp, linop_gn as lg
>>> t = np.array([0.0, 1.0, 2.0])
>>> fit = lg.Objective.from_residuals(lambda p: p[0] * anp.exp(p[1] * t) - 1.0, derivatives="autograd")
>>> lg.GGN(fit, np.array([1.0, 0.0])) @ np.array([1.0, 0.0])
array([3., 3.])
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
from autograd.numpy.numpy_boxes import ArrayBox
from linop_gn_numpy import NumpyBackend

from linop_gn.backend import ArrayApiBackend, Calculus, declared

from .calculus import AutogradCalculus, unboxed
from .namespace import namespace

__all__ = ["AutogradBackend", "backend"]


class AutogradBackend(NumpyBackend):
    """NumPy arrays with derivatives by autograd."""

    calculus: Calculus | None = AutogradCalculus()
    contract = 1
    capabilities = declared(__name__).capabilities

    def __init__(self) -> None:
        ArrayApiBackend.__init__(self, "autograd", namespace, (np.ndarray, np.number, np.bool_, ArrayBox))

    def version(self) -> str:
        from importlib.metadata import version

        return version("autograd")

    def borrow(self, x: Any) -> Any:
        return x if isinstance(x, np.ndarray) else np.from_dlpack(x)

    def detach(self, tree: Any) -> Any:
        return optree.tree_map(unboxed, tree)


backend = AutogradBackend()
