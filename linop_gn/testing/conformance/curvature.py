"""Derivatives of second order, and the curvature operators made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...curvature import GGN, Hessian, Objective
from ...dispatch import namespace
from .base import Draws, NDArray, agree, drawn
from .calculus import Calculus, Place
from .functions import FUNCTIONS

__all__ = ["SecondOrder"]

DIFFERENCES = 1e-6
"""What is left between products and differences of gradients."""


class SecondOrder(Calculus):
    """Hessian products, and Gauss-Newton and Hessian operators."""

    def _close(self, got: Any, expected: NDArray, at: Place, what: str) -> None:
        loose = max(DIFFERENCES, at.tolerance)
        agree(got, expected, loose * max(1.0, float(np.abs(expected).max(initial=0.0))), what)

    @drawn(8)
    def test_hvp(self, data: Draws) -> None:
        """hvp(v) is H v, by differences of gradients; v stays as it is."""
        at = self.place(data)
        second, v = self.calculus.linearize_gradient(at.objective, at.params), self.normal(data, at.function.size)
        tangents = self.on(at.function, v)
        with self.untouched("hvp", *tangents, *at.params):
            for which in ("H v", "H v, a second time,"):
                got = second.hvp(tangents)
                self.like_params(got, at, "hvp")
                self._close(self.flat(got), at.truth.hessian @ v, at, which)

    @drawn(8)
    def test_hessian_is_symmetric(self, data: Draws) -> None:
        """<w, H v> is <H w, v>."""
        at = self.place(data)
        second = self.calculus.linearize_gradient(at.objective, at.params)
        v, w = self.normal(data, at.function.size), self.normal(data, at.function.size)
        left = w @ self.flat(second.hvp(self.on(at.function, v)))
        right = v @ self.flat(second.hvp(self.on(at.function, w)))
        size = 1.0 + float(np.linalg.norm(v) * np.linalg.norm(w) * np.linalg.norm(at.truth.hessian))
        agree(left, right, at.tolerance * size, "<w, H v> and <H w, v>")

    @drawn(3)
    def test_hessian_rows(self, data: Draws) -> None:
        """hessian_rows are the rows asked for, in that order."""
        at = self.place(data)
        rows = [at.function.size - 1, 0]
        for row, leaves in zip(rows, self.calculus.hessian_rows(at.objective, at.params, rows), strict=True):
            flat = np.concatenate([np.asarray(self.ops.read(leaf), dtype=float).reshape(-1) for leaf in leaves])
            self._close(flat, at.truth.hessian[row], at, f"row {row} of the Hessian")

    @drawn(3)
    def test_curvature_of_an_objective(self, data: Draws) -> None:
        """GGN and Hessian of a least-squares objective are J^T J and that plus the residuals' curvature."""
        at = self.place(data, "network")
        objective = Objective.from_residuals(_network, at.inputs, derivatives=self.derivatives)
        operators = GGN(objective, at.params), Hessian(objective, at.params)
        J, v = at.truth.jacobian, self.normal(data, at.function.size)
        V, W = self.array(v, self.wide), self.normal(data, at.function.size)
        gauss_newton, whole = (A @ V for A in operators)
        self.same_kind(gauss_newton, V, "a product of the GGN")
        self.near(self.host(gauss_newton), J.T @ (J @ v), at, "J^T J v")
        other = self.host(operators[1] @ self.array(W, self.wide))
        size = 1.0 + float(np.linalg.norm(v) * np.linalg.norm(other))
        agree(W @ self.host(whole), other @ v, at.tolerance * size, "<w, H v> and <H w, v>")


def _network(p: Any, x: Any) -> Any:
    return FUNCTIONS["network"].value(namespace(p), p, x)
