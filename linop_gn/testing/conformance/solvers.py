"""Solvers on the backend: conjugate gradients and Levenberg-Marquardt against dense NumPy, and every status."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...curvature import Objective
from ...dispatch import namespace
from ...methods import LevenbergMarquardt
from ...minimize import minimize
from ...operators import Dense, FunctionOperator, LinearOperator
from ...protocols import Vector
from ...run.status import Code, Status
from ...solve import solve
from ...solvers import CG, LinearProblem
from ...spaces import Space
from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn

__all__ = ["Solvers"]

TIMES = np.linspace(0.0, 2.0, 6)


def positive(seed: int) -> NDArray:
    """A symmetric positive definite matrix (4, 4) with eigenvalues 1/2 .. 2."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    matrix: NDArray = (Q * rng.uniform(0.5, 2.0, 4)) @ Q.T
    return (matrix + matrix.T) / 2


class Solvers(Kit):
    """The toolkit's own solvers, running on this backend."""

    def _operator(self, matrix: NDArray, dtype: str | None = None) -> Dense:
        return Dense(self.array(matrix, dtype or self.wide), symmetric=True)

    def curve(self, amplitude: float, rate: float, noise: NDArray) -> tuple[Objective, Any, Any]:
        """Fit a exp(b t) to a curve: the objective, residuals and Jacobian in NumPy."""
        y = amplitude * np.exp(rate * TIMES) + noise
        data = self.array(TIMES, self.wide), self.array(y, self.wide)
        supplied = None if self.ops.calculus is not None else _jacobian
        return (
            Objective.from_residuals(_residuals, data, jacobian=supplied, derivatives=self.derivatives),
            lambda p: p[0] * np.exp(p[1] * TIMES) - y,
            lambda p: np.stack([np.exp(p[1] * TIMES), p[0] * TIMES * np.exp(p[1] * TIMES)], axis=1),
        )

    @drawn(8)
    def test_cg(self, data: Draws) -> None:
        """CG solves a positive definite system, of one vector and of columns, warm and cold, as NumPy does."""
        few = [(self.wide, (), False), (self.wide, (3,), True), (self.dtypes[-1], (3,), False)]
        many = [(dtype, k, warm) for dtype in self.dtypes for k in ((), (3,)) for warm in (False, True)]
        dtype, k, warm = data.draw(st.sampled_from(few if self.compiled else many))
        matrix = positive(data.draw(st.integers(0, 99))).astype(dtype).astype(float)
        b, x0 = self.normal(data, 4, *k, dtype=dtype), self.normal(data, 4, *k, dtype=dtype)
        A, B = self._operator(matrix, dtype), self.array(b, dtype)
        start = self.array(x0, dtype) if warm else None
        with self.untouched("solve", A.matrix, B, *([] if start is None else [start])):
            solution = solve(A, B, CG(rtol=100 * EPS[dtype]), x0=start)
            claim(solution.succeeded, f"the run ended as {solution!r}")
            self.same_kind(solution.x, B, "solve")
            expected = np.linalg.solve(matrix, b)
            agree(self.host(solution.x), expected, 2000 * EPS[dtype] * (1 + abs(expected).max()), "x")
        steps, columns = int(np.max(self.number(solution.steps))), solution.history
        claim(len(columns["residual"]) == steps + 1, f"{steps} steps, {len(columns['residual'])} rows of history")

    @drawn(4)
    def test_cg_over_a_tree(self, data: Draws) -> None:
        """A right-hand side that is a tree is answered by a tree of the same kind."""
        self.require("trees")
        matrix = positive(data.draw(st.integers(0, 99)))
        b = self.normal(data, 4)
        rhs = {"w": self.array(b[:3].reshape(3, 1), self.wide), "b": [self.array(b[3], self.wide)]}
        order = [0, 1, 2, 3] if self.ops.flatten(rhs)[0][0] == "w" else [3, 0, 1, 2]
        M = self.array(matrix[np.ix_(order, order)], self.wide)
        A = FunctionOperator(_multiply, Space.of(rhs), args=(M,), symmetric=True)
        x = solve(A, rhs, CG(rtol=1e3 * EPS[self.wide])).x
        expected = np.linalg.solve(matrix, b)
        for got, like, part in ((x["w"], rhs["w"], expected[:3].reshape(3, 1)), (x["b"][0], rhs["b"][0], expected[3])):
            self.same_kind(got, like, "solve")
            agree(self.host(got), part, 1e5 * EPS[self.wide] * (1 + abs(expected).max()), "a leaf of x")

    def _ends(self, A: LinearOperator, b: NDArray, method: CG) -> Any:
        with np.errstate(all="ignore"):
            return solve(A, self.array(b, self.wide), method)

    def test_zero_right_hand_side(self) -> None:
        """A zero right-hand side is solved at step 0, without a product."""
        solution = self._ends(self._operator(positive(0)), np.zeros(4), CG())
        counts = (solution.status, int(self.number(solution.steps)), int(self.number(solution.products)))
        claim(counts == (Status.CONVERGED, 0, 0), f"status, steps, products: {counts}")
        agree(self.host(solution.x), np.zeros(4), 0.0, "x")

    def test_negative_curvature(self) -> None:
        """An indefinite operator ends a run as NEGATIVE_CURVATURE, with the iterate before it."""
        solution = self._ends(self._operator(np.diag([1.0, 2.0, -1.0, 3.0])), np.ones(4), CG(rtol=1e-12))
        claim(solution.status is Status.NEGATIVE_CURVATURE, f"ended as {solution.status!r}")
        claim(bool(np.isfinite(self.host(solution.x)).all()), "x is finite")

    def test_what_is_not_finite(self) -> None:
        """NaN never comes back as a success: not from the right-hand side, not from a product."""
        b = np.ones(4)
        b[2] = math.nan
        given = self._ends(self._operator(positive(0)), b, CG())
        claim(given.status is Status.NONFINITE_INPUT, f"NaN in b ended as {given.status!r}")
        matrix = positive(0)
        matrix[1, 1] = math.nan
        M = self.array(matrix, self.wide)
        A = FunctionOperator(_multiply, Space.flat(4, M), args=(M,), symmetric=True)
        made = self._ends(A, np.ones(4), CG())
        claim(made.status is Status.NONFINITE, f"NaN in a product ended as {made.status!r}")
        claim(bool(np.isfinite(self.host(made.x)).all()), "x is finite")

    def test_each_column_has_its_status(self) -> None:
        """Columns end each with their own status, steps and iterate."""
        matrix, b = np.diag([1.0, 2.0, -1.0, 3.0]), np.zeros((4, 4))
        b[0, 1], b[2, 2], b[0, 3] = 1.0, 1.0, math.nan
        solution = self._ends(self._operator(matrix), b, CG(rtol=1e-6))
        want = [Status.CONVERGED, Status.CONVERGED, Status.NEGATIVE_CURVATURE, Status.NONFINITE_INPUT]
        claim(solution.status == want, f"ended as {solution.status!r}, expected {want!r}")
        agree(self.number(solution.steps), [0, 1, 0, 0], 0.0, "steps")
        agree(self.host(solution.x)[:, :2], [[0, 1], [0, 0], [0, 0], [0, 0]], 1e-6, "x")

    def test_the_limit_on_steps(self) -> None:
        """A run that reaches its limit ends as MAX_STEPS; one of a fixed number of steps as COMPLETED."""
        A, b = self._operator(positive(1)), np.arange(1.0, 5.0)
        limited, fixed = self._ends(A, b, CG(rtol=1e-12, max_steps=2)), self._ends(A, b, CG(steps=2))
        claim(limited.status is Status.MAX_STEPS, f"ended as {limited.status!r}")
        claim(fixed.status is Status.COMPLETED, f"ended as {fixed.status!r}")
        agree(self.host(limited.x), self.host(fixed.x), 1e-5, "x after two steps")
        claim(len(fixed.history["residual"]) == 3, f"2 steps, {len(fixed.history['residual'])} rows")

    @drawn(4)
    def test_steps_are_total(self, data: Draws) -> None:
        """A step that is taken after the status is set changes nothing of the answer, its status, norm and counts."""
        columns, rtol = data.draw(st.booleans()), data.draw(st.sampled_from([1e-4, 1e-30]))
        b = self.normal(data, 4, *([3] if columns else []))
        if columns:
            b[:, 0] = 0.0
        problem, method = LinearProblem(self._operator(positive(2)), self.array(b, self.wide)), CG(rtol=rtol)
        state = self.ops.run(method, problem, 40).state
        final = self.ops.read(state)
        claim(not np.any(np.equal(final.status, Code.RUNNING)), f"the run ended with status {final.status}")
        names = ("x", "status", "steps", "products", "norm", "model", "scale")
        ended = {name: np.array(getattr(final, name)) for name in names}

        def step(method: CG, problem: LinearProblem, state: Any) -> Any:
            return method.step(self.ops, problem, state)

        for _ in range(3):
            state = self.ops.call(step, method, problem, state)
        for name, value in ended.items():
            agree(self.ops.read(getattr(state, name)), value, 0.0, f"after three steps more: {name}")

    @drawn(3)
    def test_minimize(self, data: Draws) -> None:
        """Levenberg-Marquardt ends where the gradient, by NumPy, vanishes; the start stays as it is."""
        rate, noise = data.draw(st.sampled_from([-0.5, -1.0])), 0.05 * self.normal(data, 6)
        objective, residuals, jacobian = self.curve(2.0, rate, noise)
        p, start, double = np.array([1.0, 0.0]), self.array([1.0, 0.0], self.wide), self.wide == "float64"
        steepness = np.linalg.norm(jacobian(p).T @ residuals(p))
        with self.untouched("minimize", start):
            fit = minimize(objective, start, LevenbergMarquardt(rtol=1e-9 if double else 1e-3), max_steps=60)
            claim(fit.succeeded, f"the run ended as {fit!r}")
            self.same_kind(fit.params, start, "minimize")
        p = self.host(fit.params)
        r, J = residuals(p), jacobian(p)
        agree(J.T @ r, np.zeros(2), (1e-6 if double else 2e-3) * steepness, "the gradient at the end")
        agree(self.number(fit.value), 0.5 * r @ r, 1e-5, "the value at the end")
        values = fit.history["value"]
        claim(bool(np.all(np.diff(values) <= 1e-6)), f"the value rose on the way: {values}")


def _residuals(p: Vector, data: Any) -> Any:
    t, y = data
    return p[0] * namespace(p).exp(p[1] * t) - y


def _jacobian(p: Vector, data: Any) -> Any:
    xp, (t, _) = namespace(p), data
    return xp.stack([xp.exp(p[1] * t), p[0] * t * xp.exp(p[1] * t)], axis=1)


def _multiply(v: Vector, matrix: Any) -> Vector:
    return matrix @ v
