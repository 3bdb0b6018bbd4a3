"""Memory: what is read-only, what the user holds and what was consumed are not written to, or read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import SkipTest

import numpy as np

from ...dispatch import backend_of, register
from ...methods import LevenbergMarquardt
from ...minimize import minimize
from ...operators import Damped, Dense, LowRank
from ...solve import solve
from ...solvers import CG
from ..poison import poisoned
from .base import EPS, NDArray, agree, claim
from .solvers import Solvers, positive

__all__ = ["Aliasing"]


class Aliasing(Solvers):
    """Solves from the memory of others."""

    def _results(self, hold: Callable[[Any], Any]) -> dict[str, NDArray]:
        """Solves and a minimisation from arrays that went through ``hold``."""

        def array(host: Any) -> Any:
            return hold(self.array(host, self.wide))

        rng = np.random.default_rng(5)
        A = Damped(
            Dense(array(positive(3)), symmetric=True, psd=True) + LowRank(array(rng.standard_normal((4, 2)))), 0.5
        )
        results = {}
        for name, shape in (("a vector", (4,)), ("columns", (4, 3))):
            b, x0 = array(rng.standard_normal(shape)), array(rng.standard_normal(shape))
            method = CG(rtol=1e3 * EPS[self.wide], max_steps=40)
            results[f"x for {name}"] = self.host(solve(A, b, method).x)
            results[f"x for {name}, from x0,"] = self.host(solve(A, b, method, x0=x0).x)
        objective, _, _ = self.curve(2.0, -0.5, np.zeros(6))
        fit = minimize(objective, array([1.0, 0.0]), LevenbergMarquardt(damping=0.1), max_steps=4)
        return {**results, "params after four steps": self.host(fit.params)}

    def _same(self, got: dict[str, NDArray], expected: dict[str, NDArray], how: str) -> None:
        for name, value in expected.items():
            agree(got[name], value, 1e5 * EPS[self.wide] * (1 + abs(value).max()), f"{name} {how}")

    def test_read_only_input(self) -> None:
        """Read-only matrices, right-hand sides, starting points and parameters are as good as others."""
        if self.read_only(self.array(np.ones(2), self.wide)) is None:
            raise SkipTest("its arrays cannot be made read-only")
        self._same(self._results(self.read_only), self._results(lambda x: x), "from read-only arrays")

    def test_views_of_what_the_user_holds(self) -> None:
        """Input that is a view of a larger array works, and nothing of that array is written to."""
        self.require("in_place")
        held: list[tuple[Any, NDArray]] = []

        def view(x: Any) -> Any:
            host = self.host(x)
            wide = np.full((host.shape[0] + 2, *host.shape[1:]), 7.0)
            wide[1:-1] = host
            whole = self.array(wide, self.wide)
            held.append((whole, wide))
            return whole[1:-1, ...]

        self._same(self._results(view), self._results(lambda x: x), "from views")
        for whole, wide in held:
            agree(self.host(whole), wide.astype(self.wide), 0.0, "an array of which a view was given")

    def test_results_are_nobody_elses(self) -> None:
        """What solve and minimize return can be written to without changing what they were given."""
        self.require("in_place")
        b = self.array(np.ones(4), self.wide)
        A = Dense(self.array(np.eye(4), self.wide), psd=True)
        for method in (CG(), CG(max_steps=0)):
            with self.untouched("a result", b, A.matrix):
                for start in (None, b):
                    self.ops.scale(3.0, solve(A, b, method, x0=start).x)
                self.ops.scale(3.0, A @ b)

    def test_consumed_vectors_are_not_read_again(self) -> None:
        """With consumed vectors overwritten by NaN, solves on this backend give what they give without."""
        if self.compiled:
            raise SkipTest("programs are compiled: nothing is overwritten in them")
        spoiling = poisoned(self.ops)
        y = self.array(np.ones(2), self.wide)
        try:
            spoiling.axpy(1.0, self.array(np.ones(2), self.wide), y)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise SkipTest(f"its arrays cannot be overwritten ({error})") from None
        claim(bool(np.isnan(self.host(y)).all()), "the poisoned backend does not spoil what it consumes")
        expected = self._results(lambda x: x)
        with _registered(type(y), spoiling):
            self._same(self._results(lambda x: x), expected, "with consumed vectors overwritten by NaN")


@contextmanager
def _registered(kind: type, backend: Any) -> Iterator[None]:
    """Let arrays of this type run on ``backend`` in here."""
    before = backend_of(backend.asarray(np.zeros(1), "float32"))
    register(kind, backend)
    try:
        yield
    finally:
        register(kind, before)
