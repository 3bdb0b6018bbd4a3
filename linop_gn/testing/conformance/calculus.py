"""Derivatives of first order: J v, J^T u and gradients against the complex step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn
from .functions import FUNCTIONS, Derivatives, Differentiable, scalar_of

__all__ = ["Calculus", "FirstOrder", "Place"]


class Place(NamedTuple):
    """A function at parameters of the backend, and what NumPy says of it."""

    function: Differentiable
    model: Any
    """``leaves -> outputs``."""
    objective: Any
    """``leaves -> scalar``."""
    params: list[Any]
    inputs: Any
    truth: Derivatives
    tolerance: float


class Calculus(Kit):
    """What laws about derivatives share."""

    @property
    def calculus(self) -> Any:
        """The backend's calculus, or a skip."""
        self.require("derivatives")
        return self.ops.calculus

    def place(self, data: Draws, name: str | None = None, dtype: str | None = None) -> Place:
        """A function at drawn parameters."""
        _ = self.calculus
        function = FUNCTIONS[name or data.draw(st.sampled_from(sorted(FUNCTIONS)))]
        dtype = dtype or self.wide
        flat, x = self.normal(data, function.size, dtype=dtype), self.normal(data, 3, 2, dtype=dtype)
        X, xp = self.array(x, dtype), self.xp
        return Place(
            function,
            lambda p: function.value(xp, p, X),
            lambda p: scalar_of(function.value)(xp, p, X),
            self.on(function, flat, dtype),
            X,
            function.at(flat, x),
            500 * EPS[dtype],
        )

    def on(self, function: Differentiable, flat: NDArray, dtype: str | None = None) -> list[Any]:
        """Leaves on the backend."""
        return [self.array(leaf, dtype or self.wide) for leaf in function.leaves(flat)]

    def flat(self, leaves: Any) -> NDArray:
        """Leaves side by side, in NumPy."""
        return np.concatenate([self.host(leaf).reshape(-1) for leaf in leaves])

    def near(self, got: Any, expected: Any, at: Place, what: str) -> None:
        """Fail unless equal to rounding."""
        agree(got, expected, at.tolerance * max(1.0, float(np.abs(expected).max(initial=0.0))), what)

    def like_params(self, leaves: Any, at: Place, what: str) -> None:
        """Fail unless there is a leaf of the same kind for each parameter."""
        claim(len(leaves) == len(at.params), f"{what} has {len(leaves)} leaves for {len(at.params)} parameters")
        for leaf, param in zip(leaves, at.params, strict=True):
            self.same_kind(leaf, param, what)


class FirstOrder(Calculus):
    """Linearisations and gradients."""

    def _linearized(self, at: Place) -> Any:
        return self.calculus.linearize(at.model, at.params, self.xp.cos)

    def _cotangent(self, data: Draws, at: Place) -> tuple[NDArray, Any]:
        u = self.normal(data, *at.truth.outputs.shape)
        return u, self.array(u, self.wide)

    @drawn(10)
    def test_linearize(self, data: Draws) -> None:
        """linearize gives the value, and as gradient J^T applied to what ``cotangent`` makes of the value."""
        at = self.place(data)
        with self.untouched("linearize", *at.params):
            linear = self._linearized(at)
        self.near(self.host(linear.outputs), at.truth.outputs, at, "outputs")
        self.like_params(linear.gradient, at, "gradient")
        expected = at.truth.jacobian.T @ np.cos(at.truth.outputs).reshape(-1)
        self.near(self.flat(linear.gradient), expected, at, "gradient")
        lean = linear.without_gradient()
        claim(lean.gradient is None and linear.gradient is not None, "without_gradient leaves the gradient out")
        agree(self.host(lean.outputs), self.host(linear.outputs), 0.0, "outputs, without_gradient,")

    @drawn(10)
    def test_jvp(self, data: Draws) -> None:
        """jvp(v) is J v, an array like the outputs, the same at each call, written over where it is fresh; v stays."""
        at = self.place(data)
        linear, v = self._linearized(at).without_gradient(), self.normal(data, at.function.size)
        tangents = self.on(at.function, v)
        with self.untouched("jvp", *tangents, *at.params):
            got = linear.jvp(tangents)
            self.same_kind(got, linear.outputs, "jvp")
            expected = (at.truth.jacobian @ v).reshape(at.truth.outputs.shape)
            self.near(self.host(got), expected, at, "J v")
            self.ops.scale(3.0, got if linear.fresh else self.ops.copy(got))
            self.near(self.host(linear.jvp(tangents)), expected, at, "J v, a second time,")

    @drawn(10)
    def test_vjp(self, data: Draws) -> None:
        """vjp(u) is J^T u, leaves like the parameters, the same at each call; u stays as it is."""
        at = self.place(data)
        linear, (u, U) = self._linearized(at), self._cotangent(data, at)
        with self.untouched("vjp", U, *at.params):
            got = linear.vjp(U)
            self.like_params(got, at, "vjp")
            self.near(self.flat(got), at.truth.jacobian.T @ u.reshape(-1), at, "J^T u")
            self.near(self.flat(linear.vjp(U)), at.truth.jacobian.T @ u.reshape(-1), at, "J^T u, a second time,")

    @drawn(10)
    def test_adjoint(self, data: Draws) -> None:
        """<u, J v> is <J^T u, v>."""
        at = self.place(data)
        linear, (u, U), v = self._linearized(at), self._cotangent(data, at), self.normal(data, at.function.size)
        product = self.host(linear.jvp(self.on(at.function, v)))
        size = float(np.linalg.norm(u) * np.linalg.norm(product)) + 1.0
        agree(self.flat(linear.vjp(U)) @ v, np.sum(u * product), at.tolerance / 10 * size, "<J^T u, v> and <u, J v>")

    @drawn(10)
    def test_only(self, data: Draws) -> None:
        """With ``only``, jvp takes and vjp returns those leaves alone, in that order; the others count as zero."""
        at = self.place(data, "network")
        linear, (u, U), v = self._linearized(at), self._cotangent(data, at), self.normal(data, at.function.size)
        for only in ((0,), (1,), (2,), (2, 0), ()):
            parts, chosen = at.function.leaves(v), np.zeros_like(v)
            for index, leaf in enumerate(at.function.leaves(chosen)):
                leaf[...] = parts[index] if index in only else 0.0
            tangents = [self.array(parts[index], self.wide) for index in only]
            got = self.host(linear.jvp(tangents, only))
            expected = (at.truth.jacobian @ chosen).reshape(at.truth.outputs.shape)
            self.near(got, expected, at, f"J v, only leaves {only},")
            back = linear.vjp(U, only)
            whole = at.function.leaves(at.truth.jacobian.T @ u.reshape(-1))
            claim(len(back) == len(only), f"vjp(u, only={only}) returned {len(back)} leaves")
            for leaf, index in zip(back, only, strict=True):
                self.same_kind(leaf, at.params[index], "vjp, only some,")
                self.near(self.host(leaf), whole[index], at, f"leaf {index} of J^T u, only leaves {only},")

    @drawn(4)
    def test_linearize_once(self, data: Draws) -> None:
        """linearize_once gives the value, and J v and J^T u, of all leaves or some; it need not make a gradient."""
        at = self.place(data, "network")
        (u, U), v = self._cotangent(data, at), self.normal(data, at.function.size)
        for only in (None, (2, 0)):
            parts, chosen = at.function.leaves(v), range(3) if only is None else only
            with self.untouched("linearize_once", *at.params):
                once = self.calculus.linearize_once(at.model, at.params, self.xp.cos, at.model)
            self.near(self.host(once.outputs), at.truth.outputs, at, "outputs, linearised once,")
            masked = np.zeros_like(v)
            for index, leaf in enumerate(at.function.leaves(masked)):
                leaf[...] = parts[index] if index in chosen else 0.0
            got = self.host(once.jvp([self.array(parts[index], self.wide) for index in chosen], only))
            self.near(got, (at.truth.jacobian @ masked).reshape(at.truth.outputs.shape), at, "J v, linearised once,")
            whole = at.function.leaves(at.truth.jacobian.T @ u.reshape(-1))
            for leaf, index in zip(once.vjp(U, only), chosen, strict=True):
                self.near(self.host(leaf), whole[index], at, f"leaf {index} of J^T u, linearised once,")

    @drawn(4)
    def test_ignored_leaves(self, data: Draws) -> None:
        """What a function ignores has derivatives that are exact zeros, of the right kind."""
        at = self.place(data, "ignoring")
        linear, (_, U) = self._linearized(at), self._cotangent(data, at)
        second = self.calculus.linearize_gradient(at.objective, at.params)
        v = self.on(at.function, np.ones(at.function.size))
        for what, leaves in (
            ("gradient", linear.gradient),
            ("J^T u", linear.vjp(U)),
            ("gradient of a scalar", self.calculus.gradient(at.objective, at.params)[1]),
            ("H v", second.hvp(v)),
        ):
            self.like_params(leaves, at, what)
            for index in at.function.ignored:
                agree(self.host(leaves[index]), np.zeros(at.function.shapes[index]), 0.0, f"ignored leaf of {what}")
        unmoved = [x if i in at.function.ignored else self.ops.zeros_like(x) for i, x in enumerate(v)]
        agree(self.host(linear.jvp(unmoved)), 0 * at.truth.outputs, 0.0, "J v along ignored leaves")

    @drawn(10)
    def test_gradient(self, data: Draws) -> None:
        """Gradients are those by the complex step, and leaves like the parameters; so are linearize_gradient's."""
        at = self.place(data)
        with self.untouched("gradient", *at.params):
            value, gradient = self.calculus.gradient(at.objective, at.params)
            second = self.calculus.linearize_gradient(at.objective, at.params)
            outputs, pulled = self.calculus.gradient(at.model, at.params, lambda z: 2 * z)
        z, J = at.truth.outputs, at.truth.jacobian
        self.near(self.host(outputs), z, at, "outputs beside a gradient")
        self.near(self.flat(pulled), 2 * J.T @ z.reshape(-1), at, "J^T cotangent(outputs) by gradient")
        for name, number, leaves in (
            ("gradient", value, gradient),
            ("linearize_gradient", second.value, second.gradient),
        ):
            self.near(self.host(number), at.truth.scalar, at, f"value of {name}")
            self.like_params(leaves, at, name)
            self.near(self.flat(leaves), at.truth.gradient, at, name)

    @drawn(4)
    def test_packing_is_differentiable(self, data: Draws) -> None:
        """Derivatives go through pack and split."""
        shapes, dtypes = [(2, 3), (), (4,)], [self.wide] * 3
        _, v, weights = self.calculus, self.normal(data, 11), self.normal(data, 11)
        W, leaves = self.array(weights, self.wide), self.ops.split(self.array(v, self.wide), shapes, dtypes)
        value, gradient = self.calculus.gradient(
            lambda p: self.xp.sum(W * self.ops.pack(p, self.wide) * self.ops.pack(p, self.wide)), leaves
        )
        size = 50 * EPS[self.wide] * (1 + abs(weights * v * v).sum())
        agree(self.host(value), weights @ (v * v), size, "a function of a packed vector")
        agree(self.flat(gradient), 2 * weights * v, size, "its gradient in the leaves")

        def after_split(p: Any) -> Any:
            matrix, number, tail = self.ops.split(p[0], shapes, dtypes)
            return number * self.xp.sum(matrix * matrix) + self.xp.sum(tail)

        _, (slope,) = self.calculus.gradient(after_split, [self.array(v, self.wide)])
        expected = np.concatenate([2 * v[6] * v[:6], [v[:6] @ v[:6]], np.ones(4)])
        agree(self.host(slope), expected, 50 * EPS[self.wide] * (1 + abs(expected).max()), "a gradient through split")

    @drawn(4)
    def test_evaluate(self, data: Draws) -> None:
        """Evaluate is the function's value, with nothing recorded; a plain function is adapted to itself."""
        at = self.place(data)
        self.near(self.host(self.calculus.evaluate(at.model, at.params)), at.truth.outputs, at, "evaluate")
        adapted = self.calculus.adapt(at.model)
        claim(adapted is at.model and self.calculus.adapt(at.model) is adapted, "adapt changed a plain function")
        claim(self.calculus.as_double(at.model) is at.model, "as_double changed a plain function")

    @drawn(4)
    def test_jacobian_rows(self, data: Draws) -> None:
        """jacobian_rows are the rows asked for, in that order."""
        at = self.place(data)
        rows = [at.truth.outputs.size - 1, 0, 1]
        for row, leaves in zip(rows, self.calculus.jacobian_rows(at.model, at.params, rows), strict=True):
            self.near(self.flat_rows(leaves), at.truth.jacobian[row], at, f"row {row} of the Jacobian")

    def flat_rows(self, leaves: Any) -> NDArray:
        """A row, whose leaves may be on the host already."""
        return np.concatenate([np.asarray(self.ops.read(leaf), dtype=float).reshape(-1) for leaf in leaves])

    @drawn(4)
    def test_derivatives_keep_the_precision(self, data: Draws) -> None:
        """Derivatives of float32 leaves are float32, and of float64 leaves float64 to their last digits."""
        for dtype in self.dtypes:
            at = self.place(data, "network", dtype)
            linear = self.calculus.linearize(at.model, at.params, self.xp.cos)
            tangents = [self.array(np.ones(shape), dtype) for shape in at.function.shapes]
            product, back = linear.jvp(tangents), linear.vjp(linear.outputs)
            self.same_kind(product, self.array(at.truth.outputs, dtype), f"jvp of {dtype}")
            self.like_params(back, at, f"vjp of {dtype}")
            self.near(self.host(product).reshape(-1), at.truth.jacobian.sum(axis=1), at, f"J v in {dtype}")
            expected = at.truth.jacobian.T @ at.truth.outputs.reshape(-1)
            self.near(self.flat(back), expected, at, f"J^T u in {dtype}")

    def test_high_precision(self) -> None:
        """Inside high_precision() float64 numbers keep their digits."""
        self.require("float64")
        with self.calculus.high_precision():
            x = self.ops.asarray(np.array([1 / 3]), "float64")
            value, (slope,) = self.calculus.gradient(lambda p: self.xp.sum(p[0] * p[0]), [x])
            agree(self.host(value), 1 / 9, EPS["float64"], "the square of a third")
            agree(self.host(slope), [2 / 3], EPS["float64"], "its slope")

    def test_only_scalars_have_a_gradient(self) -> None:
        """The gradient of a function that is not scalar is refused."""
        _ = self.calculus
        for refuse in (self.calculus.gradient, self.calculus.linearize_gradient):
            try:
                refuse(lambda p: p[0] * p[0], [self.array(np.ones(3), self.wide)])
            except (TypeError, ValueError):
                continue
            raise AssertionError("a gradient of a function with three values was given")
