"""What every solver promises, tried on small systems whose answers NumPy knows.

The operators have eigenvalues (singular values) from 1 to 3 in size, and what is drawn has
harder ones: there a solver may fail, and must say so. Nothing here knows how it works.

An answer is one x, or a column for each column of b, each with one status. What gives
something else has tests of its own: ``Blockwise`` a status for each block of one x,
``MultiShiftCG`` a column for each damping of one b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from ...operators import Dense, FunctionOperator, LinearOperator
from ...protocols import Backend, Vector
from ...records import data_fields, replace, static_fields
from ...run.status import Code, Status
from ...solve import solve
from ...solvers.base import Solver, require_solver
from ...solvers.problem import LinearProblem
from ...solvers.served import served
from ...spaces import Space
from .base import EPS, Draws, Kit, NDArray, agree, claim, drawn
from .kit import report_of
from .report import ConformanceReport

__all__ = ["SolverConformance", "check_solver"]

N = 5
KINDS = ("definite", "indefinite", "general", "tall")


def orthogonal(n: int, seed: int) -> NDArray:
    """An orthogonal matrix (n, n)."""
    made: NDArray = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return made


class SolverConformance(Kit):
    """Every law that a solver must keep.

    Subclass it in a module of tests::

        from linop_gn.testing import SolverConformance


        class TestMine(SolverConformance):
            backend = lg.load("numpy")

            def solver(self, rtol):
                return MySolver(rtol=rtol)

    Attributes
    ----------
    backend
        The framework to try it on.
    kinds
        The operators that it is for: ``"definite"``, ``"indefinite"`` (symmetric), ``"general"`` (square), ``"tall"``
        (least squares). The first is the one that most laws take.
    rtol
        Relative residuals to ask for, and to hold ``CONVERGED`` to, by dtype.
    spreads
        Hard systems have condition numbers of ten to these; infinity stands for singular ones.
    powers
        b times 2^-powers .. 2^powers is solved as b is.
    counts
        Whether ``products`` are calls of the operator's products.

    Methods
    -------
    solver(rtol)
        The solver, made to converge to ``rtol``.
    operator(matrix, kind, dtype)
        The operator of a matrix (m, n); override it for solvers that take special ones.
    promised(matrix, b, x, rtol)
        The norm of the residual that ``CONVERGED`` promises, if that is not rtol ||b||.
    """

    kinds: ClassVar[tuple[str, ...]] = ("definite",)
    rtol: ClassVar[dict[str, float]] = {"float64": 1e-7, "float32": 1e-3}
    spreads: ClassVar[tuple[float, ...]] = (0.0, 1.0, 3.0, 6.0, np.inf)
    powers: ClassVar[int] = 100
    counts: ClassVar[bool] = True
    _endless: ClassVar[bool] = False

    def solver(self, rtol: float) -> Solver:
        """The solver."""
        raise TypeError(f"{type(self).__qualname__} has no solver: give it a method solver(self, rtol).")

    def setup_method(self, method: Any = None) -> None:
        super().setup_method(method)
        require_solver(type(self).__qualname__, self.solver(1e-3))
        claim(not self._endless, "the solver does not end (see ends): it is not run")

    # systems

    def matrix(self, kind: str, seed: int = 0) -> NDArray:
        """A matrix of this kind."""
        sizes = np.linspace(1.0, 3.0, N)
        Q, P = orthogonal(N, seed), orthogonal(N + 2, seed + 1)
        if kind == "tall":
            made: NDArray = (P[:, :N] * sizes) @ Q.T
            return made
        if kind == "general":
            return (Q * sizes) @ Q.T + 0.1 * np.triu(P[:N, :N], 1)
        made = (Q * (sizes * (-1.0) ** np.arange(N) if kind == "indefinite" else sizes)) @ Q.T
        return (made + made.T) / 2

    def operator(self, matrix: NDArray, kind: str, dtype: str) -> LinearOperator:
        """The operator, with what is known of its kind."""
        return Dense(self.array(matrix, dtype), symmetric=kind in ("definite", "indefinite"), psd=kind == "definite")

    def function(self, matrix: NDArray, calls: list[int]) -> FunctionOperator:
        """An operator of the first kind that is a function, and notes its products."""
        kind, finite = self.kinds[0], np.where(np.isfinite(matrix), matrix, 0.0)
        M, rest = self.array(finite, self.wide), self.array(matrix - finite, self.wide)

        def product(v: Vector) -> Vector:
            calls.append(1)
            return M @ v + rest @ v

        def adjoint(u: Vector) -> Vector:
            calls.append(1)
            return M.T @ u + rest.T @ u

        domain, codomain = (Space.flat(n, M) for n in matrix.shape[::-1])
        if kind in ("definite", "indefinite"):
            return FunctionOperator(product, domain, symmetric=True, psd=kind == "definite")
        return FunctionOperator(product, domain, codomain, adjoint)

    def system(self, kind: str | None = None, dtype: str | None = None, seed: int = 0) -> tuple[Any, NDArray, NDArray]:
        """An operator, its matrix, and a right-hand side."""
        kind, dtype = kind or self.kinds[0], dtype or self.wide
        matrix = self.matrix(kind, seed).astype(dtype).astype(float)
        b = np.random.default_rng(seed + 2).standard_normal(len(matrix)).astype(dtype).astype(float)
        return self.operator(matrix, kind, dtype), matrix, b

    def promised(self, matrix: NDArray, b: NDArray, x: NDArray, rtol: float) -> float:
        """The norm of the residual that CONVERGED promises of ``solver(rtol)``: rtol ||b||."""
        return rtol * float(np.linalg.norm(b))

    def columns(self, b: NDArray, *others: NDArray) -> NDArray:
        """Columns side by side: b, zero, and others."""
        return np.stack([b, 0 * b, *others], axis=1)

    def solve(self, A: Any, b: NDArray, dtype: str | None = None, **options: Any) -> Any:
        """A run through ``lg.solve``; ``x0`` from NumPy."""
        dtype = dtype or self.wide
        if options.get("x0") is not None:
            options["x0"] = self.array(options["x0"], dtype)
        with np.errstate(all="ignore"):
            return solve(A, self.array(b, dtype), self.solver(self.rtol[dtype]), **options)

    # what is claimed

    def residual(self, matrix: NDArray, b: NDArray, x: NDArray) -> tuple[Any, Any]:
        """||b - A x|| in float64, and what rounding in ``x`` makes of it, in round-offs."""
        with np.errstate(all="ignore"):
            size = np.linalg.norm(matrix, 2) * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
            return np.linalg.norm(b - matrix @ x, axis=0), 8.0 * (len(matrix) + 4) * size

    def is_honest(self, found: Any, matrix: NDArray, b: NDArray, dtype: str, what: str) -> None:
        """Fail unless what is told of each column's x is so."""
        x, eps = self.host(found.x), EPS[dtype]
        claim(bool(np.isfinite(x).all()), f"{what}: x is not finite, in a run that ended as {found.status!r}")
        true, rounding = self.residual(matrix, b, x)
        told, codes = self.number(found.residual), self.number(found.code)
        for j in np.ndindex(np.shape(codes)):
            status, size = Status(int(codes[j])), float(np.linalg.norm(b, axis=0)[j])
            if status is Status.NONFINITE_INPUT:
                continue
            where, slack = f"{what}{list(j) or ''}, {status.name}", float(rounding[j]) * eps
            near = 1e-3 * true[j] + slack
            claim(told[j] >= true[j] - near, f"{where}: the residual told is {told[j]:.3e}, that of x {true[j]:.3e}")
            most = 1.01 * self.promised(matrix, b[(..., *j)], x[(..., *j)], self.rtol[dtype])
            high = max(true[j] + 10 * near, most)  # to be sure, more may be told
            claim(told[j] <= high, f"{where}: the residual told is {told[j]:.3e}, that of x {true[j]:.3e}")
            slack = min(slack, 0.1 * size)  # an x so large that its rounding hides b solves nothing
            if status in (Status.CONVERGED, Status.UNEXPLORED):
                claim(true[j] <= most + slack, f"{where} at a residual of {true[j]:.2e}, more than {most:.2e}")
            if status in (Status.CONVERGED, Status.LEAST_SQUARES, Status.INVARIANT):
                claim(true[j] <= 1.01 * size + slack, f"{where}: a success at {true[j]:.2e}, where b is {size:.2e}")

    def is_solved(self, found: Any, matrix: NDArray, b: NDArray, dtype: str, what: str) -> None:
        """Fail unless it is a success, and x what NumPy finds."""
        claim(found.succeeded, f"{what} is not solved: {found!r:.200}")
        expected = np.linalg.lstsq(matrix, b, rcond=None)[0]
        near = 10 * self.rtol[dtype] * (np.linalg.norm(b, axis=0) + np.linalg.norm(expected, axis=0))
        agree(self.host(found.x), expected, near, f"{what}: x")

    def state(self, A: Any, b: NDArray) -> tuple[Solver, LinearProblem]:
        """The solver and the problem as the loop has them."""
        problem = LinearProblem(A.prepare(), self.array(b, self.wide))
        return served(self.solver(self.rtol[self.wide]), problem), problem

    def seen(self, solver: Solver, problem: LinearProblem, state: Any) -> dict[str, NDArray]:
        """All that there is to see of a state; consumes it."""
        row = solver.observe(state)._asdict()
        counts = {"status": state.status, "steps": state.steps, "products": state.products}
        told = {name: self.number(value) for name, value in {**row, **counts}.items()}
        x = solver.answer(self.ops, problem, state)
        told["x"], kept = self.host(x), solver.iterates(self.ops, problem, state, x)
        return told if kept is None else {**told, "kept": np.stack([self.host(one) for one in kept.x])}

    def same(self, one: dict[str, NDArray], two: dict[str, NDArray], what: str, tolerance: float = 0.0) -> None:
        """Fail unless two states look the same."""
        for name, value in one.items():
            agree(two[name], value, tolerance * (1 + abs(value)), f"{what}: {name}")

    # laws

    def test_ends(self) -> None:
        """A run ends: after at most 4 calls of step for each step of its limit."""
        A, _, b = self.system()
        solver, problem = self.state(A, b)
        limit = self.solver(self.rtol[self.wide]).limit(problem)
        with np.errstate(all="ignore"):
            first = self.ops.begin(solver, problem, limit)
            state = self.ops.advance(solver, problem, first, 4 * limit + 100).state
        type(self)._endless = bool(np.any(self.number(state.status) == Code.RUNNING))
        claim(not self._endless, f"still running after {4 * limit + 100} calls of step, with a limit of {limit} steps")

    def test_solves(self) -> None:
        """Systems that it is for are solved, in each precision, to the tolerance asked for."""
        for kind in self.kinds:
            for dtype in self.dtypes:
                A, matrix, b = self.system(kind, dtype)
                found = self.solve(A, b, dtype)
                self.is_solved(found, matrix, b, dtype, f"a {kind} system in {dtype}")
                self.is_honest(found, matrix, b, dtype, f"a {kind} system in {dtype}")
                claim(bool(np.all(self.number(found.steps) > 0)), "steps are not counted: it is solved at step 0")

    def test_zero_right_hand_side(self) -> None:
        """A zero right-hand side is solved at step 0: x is zero, and no product is made."""
        A, _, b = self.system()
        found = self.solve(A, 0 * b)
        counts = (found.status, int(self.number(found.steps)), int(self.number(found.products)))
        claim(counts == (Status.CONVERGED, 0, 0), f"status, steps, products: {counts}")
        agree(self.host(found.x), 0 * self.host(found.x), 0.0, "x")
        agree(self.number(found.residual), 0.0, 0.0, "the residual")

    def test_a_right_hand_side_that_is_not_finite(self) -> None:
        """NaN or infinity in b is no success, and x is finite all the same."""
        A, _, b = self.system()
        for bad in (np.nan, np.inf):
            given = b.copy()
            given[1] = bad
            found = self.solve(A, given)
            claim(not found.succeeded, f"{bad} in b ended as {found.status!r}")
            claim(bool(np.isfinite(self.host(found.x)).all()), f"{bad} in b: x is not finite")

    def test_products_that_are_not_finite(self) -> None:
        """NaN in a product is no success, and x is finite all the same; or an error says so."""
        _, matrix, b = self.system()
        matrix[1, 1] = np.nan
        try:
            found = self.solve(self.function(matrix, []), b)
        except ValueError:  # of a preconditioner, which looks at what it is made of
            return
        claim(not found.succeeded, f"NaN in a product ended as {found.status!r}")
        claim(bool(np.isfinite(self.host(found.x)).all()), "NaN in a product: x is not finite")

    def test_the_model(self) -> None:
        """The model told is that of x: 1/2 x.A x - b.x, or (||r||^2 - ||b||^2) / 2 of least squares."""
        for kind in self.kinds:
            A, matrix, b = self.system(kind)
            found = self.solve(A, b)
            x = self.host(found.x)
            r = b - matrix @ x
            value = (r @ r - b @ b) / 2 if kind == "tall" or not self.solver(1e-3).square else -x @ (b + r) / 2
            agree(self.number(found.model), value, 1e4 * EPS[self.wide] * (1 + abs(value)), f"{kind}: the model")

    @drawn(10)
    def test_claims_are_facts(self, data: Draws) -> None:
        """On hard systems too, the residual told is that of x, CONVERGED keeps the tolerance, a success is one."""
        kind = data.draw(st.sampled_from([kind for kind in self.kinds if kind != "tall"] or ["tall"]))
        dtype = data.draw(st.sampled_from(self.dtypes[:1] if self.compiled else self.dtypes))
        size = data.draw(st.sampled_from([N] if self.compiled or kind == "tall" else [2, N, 20]))
        for spread in self.spreads:
            matrix = self.hard(kind, size, spread, dtype, data.draw(st.integers(0, 999)))
            b = self.normal(data, len(matrix), dtype=dtype)
            found = self.solve(self.operator(matrix, kind, dtype), b, dtype)
            self.is_honest(found, matrix, b, dtype, f"{kind}, {size} unknowns, a condition of 10^{spread}")

    def test_claims_near_rounding(self) -> None:
        """CONVERGED is said of b - A x itself, at a tolerance that a residual updated from step to step drifts past."""
        if self.kinds[0] == "tall":
            return
        dtype, eps, n = self.wide, EPS[self.wide], 4 * N
        signs = (-1.0) ** np.arange(n) if self.kinds[0] == "indefinite" else np.ones(n)
        # Of a diagonal, A x is exact up to one rounding of each entry, so that a verified claim is exact as well.
        matrix = np.diag(signs * np.logspace(-10.0 if dtype == "float64" else -5.0, 0.0, n))
        matrix = matrix.astype(dtype).astype(float)
        A = self.operator(matrix, self.kinds[0], dtype)
        for seed in range(2):
            b = np.random.default_rng(seed).standard_normal(n).astype(dtype).astype(float)
            with np.errstate(all="ignore"):
                found = solve(A, self.array(b, dtype), self.solver(16 * eps))
            if found.status is Status.CONVERGED:
                x = self.host(found.x)
                true, size = float(np.linalg.norm(b - matrix @ x)), float(np.linalg.norm(b))
                most = 1.01 * self.promised(matrix, b, x, 16 * eps) + 4 * eps * size
                claim(true <= most, f"converged at a residual of {true / size:.1e} ||b||, more than {most / size:.1e}")

    def hard(self, kind: str, size: int, spread: float, dtype: str, seed: int) -> NDArray:
        """A matrix with a condition number of 10^spread, in single precision of its root."""
        Q, P = orthogonal(size, seed), orthogonal(size + 2, seed + 1)
        if spread == np.inf:
            sizes = np.r_[0.0, np.linspace(0.5, 1.0, size - 1)]
        else:
            sizes = np.logspace(-spread * (1.0 if dtype == "float64" else 0.5), 0.0, size)
        if kind == "tall":
            made: NDArray = (P[:, :size] * sizes) @ Q.T
        elif kind == "general":
            made = (orthogonal(size, seed + 2) * sizes) @ Q.T
        else:
            signs = (-1.0) ** np.arange(size) if kind == "indefinite" else np.ones(size)
            made = (Q * (sizes * signs)) @ Q.T
            made = (made + made.T) / 2
        return made.astype(dtype).astype(float)

    def test_columns(self) -> None:
        """Columns are solved as each alone is: one may be zero, or not finite, and the others do not notice."""
        A, matrix, b = self.system()
        B = self.columns(b, b[::-1], np.nan * b)
        with self.untouched("solve", *[x for x in [self.array(B, self.wide)] if np.isfinite(B).all()]):
            found = self.solve(A, B)
        claim(list(np.shape(found.status)) == [4], f"the status of 4 columns is {found.status!r}")
        claim(not found.status[3].succeeded, f"a column of NaN ended as {found.status[3]!r}")
        for j in range(3):
            alone = self.solve(A, B[:, j])
            claim(
                found.status[j] is alone.status, f"column {j} ended as {found.status[j]!r}, alone as {alone.status!r}"
            )
            near = 1e4 * EPS[self.wide] * (1 + np.linalg.norm(b))
            agree(self.host(found.x)[:, j], self.host(alone.x), near, f"column {j}: x")
        self.is_honest(found, matrix, B, self.wide, "columns")

    def test_a_start(self) -> None:
        """From an x0 the same is found; x0 stays as it is, one that is the solution is a success, NaN is none."""
        solver = self.solver(1e-3)
        if not solver.solves_system:
            return
        A, matrix, b = self.system()
        x0 = np.random.default_rng(5).standard_normal(matrix.shape[1])
        start = self.array(x0, self.wide)
        with self.untouched("solve", start), np.errstate(all="ignore"):
            found = solve(A, self.array(b, self.wide), self.solver(self.rtol[self.wide]), x0=start)
        self.is_honest(found, matrix, b, self.wide, "from an x0")
        self.is_solved(found, matrix, b, self.wide, "from an x0")
        exact = self.solve(A, b, x0=np.linalg.lstsq(matrix, b, rcond=None)[0])
        self.is_solved(exact, matrix, b, self.wide, "from the solution")
        spoiled = self.solve(A, b, x0=x0 * np.nan)
        right = not spoiled.succeeded or ("x0" in solver.supports and int(self.number(spoiled.products)) > 0)
        finite = bool(np.isfinite(self.host(spoiled.x)).all())
        claim(right and finite, f"from NaN: {spoiled.status!r}, x {'is' if finite else 'is not'} finite")

    def test_products_are_counted(self) -> None:
        """As many products are told as are made."""
        if self.compiled or not self.counts:
            return
        (_, matrix, b), calls = self.system(), list[int]()
        A = self.function(matrix, calls)
        starts = [None, np.ones(matrix.shape[1])] if self.solver(1e-3).solves_system else [None]
        for x0 in starts:
            calls.clear()
            found = self.solve(A, b, x0=x0)
            told = int(self.number(found.products))
            claim(told == len(calls), f"{told} products told, {len(calls)} made{'' if x0 is None else ', with x0'}")

    def test_advance(self) -> None:
        """advance(n) is n times advance(1), and the history has a row for each step."""
        A, _, b = self.system()
        solver, problem = self.state(A, b)
        limit = self.solver(self.rtol[self.wide]).limit(problem)
        whole = self.ops.advance(solver, problem, self.ops.begin(solver, problem, limit), 4)
        parts = self.ops.begin(solver, problem, limit)
        for _ in range(4):
            parts = self.ops.advance(solver, problem, parts, 1)
        one = self.seen(solver, problem, whole.state)
        self.same(one, self.seen(solver, problem, parts.state), "4 steps, one by one", 1e3 * EPS[self.wide])
        found = self.solve(A, b)
        rows, steps = len(found.history["residual"]), int(self.number(found.steps))
        claim(rows == steps + 1, f"{rows} rows of history for {steps} steps")
        last = self.number(found.residual)
        agree(found.history["residual"][-1], last, 1e-6 * last, "the last row's residual")

    def test_steps_are_total(self) -> None:
        """A step that is taken after the end changes nothing: not x, not what is told of it."""
        A, _, b = self.system()
        supports = self.solver(1e-3).supports
        cases = {"a vector": b, "zero": 0 * b, "NaN": np.nan * b, "columns": self.columns(b), "x0": b}
        for what, given in cases.items():
            if what in supports or what not in ("columns", "x0"):
                solver, problem = self.state(A, given)
                if what == "x0":
                    problem = replace(problem, x0=self.array(np.ones(A.shape[1]), self.wide))
                first = self._run(solver, problem)
                before = self.seen(solver, problem, self._run(solver, problem).state)
                claim(
                    not np.any(before["status"] == Code.RUNNING),
                    f"{what}: the run ended with status {before['status']}",
                )
                state = first.state
                for _ in range(3):
                    state = self.ops.call(_step, solver, problem, state)
                self.same(before, self.seen(solver, problem, state), f"{what}, three steps after the end")

    def _run(self, solver: Solver, problem: LinearProblem) -> Any:
        with np.errstate(all="ignore"):
            return self.ops.run(solver, problem, self.solver(self.rtol[self.wide]).limit(problem))

    def test_compiled_equals_eager(self) -> None:
        """The run as one program, if this framework makes one, ends where its steps do one by one."""
        A, _, b = self.system()
        solver, problem = self.state(A, b)
        with np.errstate(all="ignore"):
            state = solver.init(self.ops, problem)
            while np.any(self.number(state.status) == Code.RUNNING):
                state = solver.step(self.ops, problem, state)
        one = self.seen(solver, problem, state)
        solver, problem = self.state(A, b)
        two = self.seen(solver, problem, self._run(solver, problem).state)
        solver, problem = self.state(A, b)
        near = 10 * self.rtol[self.wide]
        for name in ("status", "x"):
            agree(two[name], one[name], near, f"as one run: {name}")
        again = self.ops.call(_solved, self.solver(self.rtol[self.wide]), A, problem.rhs)
        agree(self.host(again), two["x"], near, "inside a program: x")

    def test_scale(self) -> None:
        """b times a power of two is solved as b is, in single precision too, x times that power."""
        for dtype in self.dtypes[-1:]:
            A, matrix, b = self.system(dtype=dtype)
            one = self.solve(A, b, dtype)
            x = self.host(one.x)
            for power in (2.0**-self.powers, 2.0**self.powers):
                found = self.solve(A, power * b, dtype)
                claim(found.status == one.status, f"{power:.0e} b ended as {found.status!r}, b as {one.status!r}")
                near = 1e4 * EPS[dtype] * (1 + np.linalg.norm(b))
                agree(self.host(found.x) / power, x, near, f"{power:.0e} b: x")
                self.is_honest(found, matrix, power * b, dtype, f"{power:.0e} b")

    def test_limits(self) -> None:
        """A run takes no more steps than its limit; with max_steps=k it ends there, or sooner, as it says."""
        A, matrix, b = self.system()
        solver = self.solver(1e-30)
        limits = (0, 1, 2) if "max_steps" in static_fields(solver) else (None,)
        for limit in limits:
            limited = solver if limit is None else replace(solver, max_steps=limit)
            with np.errstate(all="ignore"):
                found = solve(A, self.array(b, self.wide), limited)
            most = limited.limit(LinearProblem(A.prepare(), self.array(b, self.wide)))
            steps = int(self.number(found.steps))
            claim(steps <= most, f"{steps} steps, where {most} are the most")
            if limit is not None:
                claim(steps <= limit, f"{steps} steps with max_steps={limit}")
                claim(limit > 0 or not found.succeeded, f"ended as {found.status!r} after no steps")
            if found.status is not Status.CONVERGED:
                self.is_honest(found, matrix, b, self.wide, f"max_steps={limit}")

    def test_nothing_is_written_to(self) -> None:
        """b, x0 and what the operator holds stay as they are, be they read-only; x is of b's kind, and its own."""
        for dtype in self.dtypes:
            A, _, b = self.system(dtype=dtype)
            given = self.array(b, dtype)
            frozen = self.read_only(given)
            held = [A.__dict__[name] for name in data_fields(A) if self.ops.is_array(A.__dict__[name])]
            with self.untouched("solve", given, *held), np.errstate(all="ignore"):
                found = solve(A, given if frozen is None else frozen, self.solver(self.rtol[dtype]))
                x = self.host(found.x)
                claim(self.ops.describe(found.x)[1:] == self.ops.describe(given)[1:], f"x is {found.x!r} for {dtype}")
                again = solve(A, given, self.solver(self.rtol[dtype]))
                if "in_place" in self.claimed:
                    self.ops.scale(0.0, again.x)
            agree(self.host(found.x), x, 0.0, "x after another run")
            agree(A.shape[1], len(x), 0.0, "the size of x")

    def test_the_first_state_shares_no_memory(self) -> None:
        """Each vector of the first state is its own, and none is the right-hand side."""
        A, _, b = self.system()
        _, problem = self.state(A, b)
        arrays = [problem.rhs, *_arrays(self.ops, self.solver(1e-3).init(self.ops, problem))]
        claim(len({id(x) for x in arrays}) == len(arrays), "an array stands twice in the first state, or is b")

    def test_watched(self) -> None:
        """Watchers see the last step and change nothing; a run that they stop has an x, and says so."""
        A, _, b = self.system()
        looks: list[Any] = []
        alone, watched = self.solve(A, b), self.solve(A, b, watch=[looks.append], every=1)
        near = 10 * self.rtol[self.wide]
        agree(self.host(watched.x), self.host(alone.x), near, "x of a watched run")
        claim(looks[-1].step == int(self.number(watched.steps)), f"the last look was at step {looks[-1].step}")
        stopped = self.solve(A, b, watch=[lambda look: look.step >= 1], every=1)
        claim(bool(np.isfinite(self.host(stopped.x)).all()), "x of a stopped run is not finite")
        right = stopped.status is Status.STOPPED or looks[-1].step <= 1
        claim(right, f"stopped at step 1 of {looks[-1].step}, it ended as {stopped.status!r}")

    def test_other_operators_are_refused(self) -> None:
        """An operator of a shape that it does not take is refused before anything is computed."""
        solver = self.solver(1e-3)
        if solver.square or solver.symmetric:
            try:
                self.solve(Dense(self.array(np.ones((4, 3)), self.wide)), np.ones(4))
            except (TypeError, ValueError):
                return
            claim(False, "a rectangular operator was taken for a square one")


def check_solver(
    solver: Callable[[float], Solver],
    backend: Backend | None = None,
    *,
    kit: type[SolverConformance] = SolverConformance,
    only: Iterable[str] | None = None,
    stop: bool = False,
    **options: Any,
) -> ConformanceReport:
    """Hold a solver to every law and say how it fared, without a test runner.

    Parameters
    ----------
    solver
        A function of the relative residual to ask for, such as ``lambda rtol: lg.CG(rtol=rtol)``.
    backend
        NumPy's by default.
    kit
        A subclass with laws or operators of its own.
    only
        Names of laws, to run no others.
    stop
        Stop at the first law that fails.
    **options
        ``kinds``, ``rtol``, ``powers``, ``counts``, as in :class:`SolverConformance`.

    >>> import linop_gn as lg
    >>> check_solver(lambda rtol: lg.CG(rtol=rtol)).headline()
    'CG on numpy: 20 laws passed'
    """
    if backend is None:
        from ...dispatch import load

        backend = load("numpy")
    body: dict[str, Any] = {**options, "backend": backend, "solver": lambda self, rtol: solver(rtol)}
    bound = type(kit.__name__, (kit,), body)
    return report_of(f"{solver(1e-3).title} on {backend.name}", bound, only=only, stop=stop)


def _step(solver: Solver, problem: LinearProblem, state: Any) -> Any:
    with np.errstate(all="ignore"):
        return solver.step(problem.operator.backend, problem, state)


def _solved(solver: Solver, A: LinearOperator, b: Vector) -> Vector:
    x: Vector = solve(A, b, solver).x
    return x


def _arrays(ops: Any, tree: Any) -> list[Any]:
    """The arrays in a state; a list is a shelf, whose places are the backend's."""
    if isinstance(tree, tuple):
        return [x for part in tree for x in _arrays(ops, part)]
    return [tree] if ops.is_array(tree) and len(tree.shape) > 0 else []
