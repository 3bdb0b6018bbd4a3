"""The solver of ``docs/writing_a_solver.md`` in all the uses that the page promises."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from systems import host
from written import SOURCE, Richardson, State

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

IN_CI_ON_JAX = (
    "test_the_solution",
    "test_a_start",
    "test_columns",
    "test_inside_levenberg_marquardt",
    "test_what_is_malformed_is_named",
    "test_a_member_of_the_enumeration_is_a_code",
)

N = 5
Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
MATRIX = (Q * np.linspace(1.0, 3.0, N)) @ Q.T + 0.05 * np.triu(np.ones((N, N)), 1)  # not symmetric
SYMMETRIC = (Q * np.linspace(1.0, 3.0, N)) @ Q.T
B = np.random.default_rng(1).standard_normal(N)
TIGHT = Richardson(rtol=1e-10)


def system(backend, matrix=MATRIX):
    return lg.Dense(array(backend, matrix))


def test_it_is_short():
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 30


def test_the_solution(backend):
    calls = []

    def product(v, matrix):
        calls.append(1)
        return matrix @ v

    b = array(backend, B)
    A = lg.FunctionOperator(product, lg.Space.flat(N, b), args=(array(backend, SYMMETRIC),), symmetric=True)
    solution = lg.solve(A, b, TIGHT)
    x = host(backend, solution.x)
    np.testing.assert_allclose(x, np.linalg.solve(SYMMETRIC, B), rtol=0, atol=1e-8)
    assert solution.status is Status.CONVERGED
    assert int(solution.products) == int(solution.steps) + 1  # one for the model's value
    if backend.name != "jax":
        assert int(solution.products) == len(calls)
    assert float(solution.model) == pytest.approx(x @ (SYMMETRIC @ x - 2 * B) / 2, rel=1e-9)
    assert float(solution.residual) == pytest.approx(np.linalg.norm(B - SYMMETRIC @ x), abs=1e-12)
    assert solution.history["residual"].shape == (int(solution.steps) + 1,)
    assert repr(solution).startswith("Richardson: converged after")


def test_a_start(backend):
    x0 = np.random.default_rng(2).standard_normal(N)
    start = array(backend, x0)
    solution = lg.solve(system(backend), array(backend, B), TIGHT, x0=start)
    x = host(backend, solution.x)
    np.testing.assert_allclose(x, np.linalg.solve(MATRIX, B), rtol=0, atol=1e-8)
    assert int(solution.products) == int(solution.steps) + 2
    assert float(solution.model) == pytest.approx(x @ (MATRIX @ x - 2 * B) / 2, rel=1e-6)
    np.testing.assert_array_equal(host(backend, start), x0)
    again = lg.solve(system(backend), array(backend, B), TIGHT, x0=solution.x)
    np.testing.assert_allclose(host(backend, again.x), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_start_that_is_not_finite_is_told_as_input(backend, bad):
    b, x0 = np.stack([B, B], axis=1), np.stack([np.ones(N), np.ones(N)], axis=1)
    x0[1, 0] = bad
    for method in (TIGHT, lg.CG()):
        A = lg.Dense(array(backend, SYMMETRIC), symmetric=True)
        solution = lg.solve(A, array(backend, b), method, x0=array(backend, x0))
        assert solution.status == [Status.NONFINITE_INPUT, Status.CONVERGED]
        assert np.all(host(backend, solution.x)[:, 0] == 0)
        assert np.isnan(np.asarray(solution.residual)[0])


def test_a_start_whose_product_overflows_is_given_up(backend):
    solution = lg.solve(system(backend), array(backend, B), TIGHT, x0=array(backend, np.resize([1.7e308, -1.7e308], N)))
    assert solution.status is Status.CONVERGED
    np.testing.assert_allclose(host(backend, solution.x), np.linalg.solve(MATRIX, B), rtol=0, atol=1e-8)


def test_columns(backend):
    columns = np.stack([B, 0 * B, 2 * B[::-1], np.nan * B], axis=1)
    solution = lg.solve(system(backend), array(backend, columns), Richardson(rtol=1e-10))
    assert solution.status == [Status.CONVERGED, Status.CONVERGED, Status.CONVERGED, Status.NONFINITE_INPUT]
    for j in (0, 1, 2):
        alone = lg.solve(system(backend), array(backend, columns[:, j]), TIGHT)
        np.testing.assert_allclose(host(backend, solution.x)[:, j], host(backend, alone.x), rtol=0, atol=1e-12)
        for name in ("steps", "products"):
            assert np.asarray(solution.__dict__[name])[j] == int(alone.__dict__[name])
    assert solution.steps[1] == solution.products[1] == 0
    starts = array(backend, np.ones((N, 4)))
    warm = lg.solve(system(backend), array(backend, columns), TIGHT, x0=starts)
    np.testing.assert_allclose(host(backend, warm.x)[:, :3], np.linalg.solve(MATRIX, columns[:, :3]), atol=1e-8)


def test_inside_levenberg_marquardt(backend):
    t = np.linspace(0.0, 2.0, 6)
    times = array(backend, t)
    y = array(backend, 2.0 * np.exp(-0.5 * t))

    def residuals(p, data):
        xp = lg.namespace(p)
        return p[0] * xp.exp(p[1] * data[0]) - data[1]

    def jacobian(p, data):
        xp = lg.namespace(p)
        return xp.stack([xp.exp(p[1] * data[0]), p[0] * data[0] * xp.exp(p[1] * data[0])], axis=1)

    supplied = None if backend.calculus is not None else jacobian
    curve = lg.Objective.from_residuals(residuals, (times, y), jacobian=supplied)
    method = lg.LevenbergMarquardt(solver=Richardson(omega=0.1, rtol=1e-2))
    fit = lg.minimize(curve, array(backend, np.array([1.0, 0.0])), method)
    assert fit.succeeded
    np.testing.assert_allclose(host(backend, fit.params), [2.0, -0.5], atol=1e-3)
    assert int(fit.products) > 0


def test_watched_and_stepped(backend):
    recorder = lg.Recorder()
    solution = lg.solve(system(backend), array(backend, B), Richardson(), watch=[recorder], every=7)
    assert solution.succeeded
    looks = list(lg.steps(system(backend), array(backend, B), Richardson(), every=7))
    assert looks[-1].method == "Richardson"
    assert looks[-1].step == int(solution.steps)
    stopped = lg.solve(system(backend), array(backend, B), Richardson(), watch=[lambda look: look.step >= 3], every=1)
    assert stopped.status is Status.STOPPED
    assert np.isfinite(host(backend, stopped.x)).all()


def test_blocks_are_refused(numpy_backend):
    D = lg.Diagonal(np.array([1.0, 2.0]), psd=True)
    with pytest.raises(TypeError, match="Blockwise cannot run Richardson side by side"):
        lg.solve(lg.BlockDiagonal((D, D)), np.ones(4), lg.Blockwise(Richardson()))


def test_a_limit(backend):
    solution = lg.solve(system(backend), array(backend, B), Richardson(rtol=0.0))
    assert (solution.status, int(solution.steps)) == (Status.MAX_STEPS, 10 * N)

    @lg.record
    class Fixed(Richardson):
        steps: Any = lg.static(default=3)

    solution = lg.solve(system(backend), array(backend, B), Fixed())
    assert (solution.status, int(solution.steps), int(solution.products)) == (Status.COMPLETED, 3, 4)


# compiled and differentiated


def test_under_jit_grad_and_vmap(jax):
    jnp = jax.numpy
    matrix, b, want = jnp.asarray(MATRIX), jnp.asarray(B), np.linalg.solve(MATRIX, B)

    def x(matrix, b, x0=None):
        return lg.solve(lg.Dense(matrix), b, TIGHT, x0=x0).x

    np.testing.assert_allclose(jax.jit(x)(matrix, b, jnp.ones(N)), want, atol=1e-8)
    columns = jax.jit(x)(matrix, jnp.stack([b, 0 * b], axis=1))
    np.testing.assert_allclose(columns, np.outer(want, [1, 0]), atol=1e-8)
    gradient = jax.jit(jax.grad(lambda m, b: jnp.sum(x(m, b) ** 2), (0, 1)))(matrix, b)
    w = np.linalg.solve(MATRIX.T, 2 * want)
    np.testing.assert_allclose(gradient[1], w, atol=1e-7)
    np.testing.assert_allclose(gradient[0], -np.outer(w, want), atol=1e-7)
    many = jax.vmap(lambda b: x(matrix, b))(jnp.stack([b, 2 * b, 0 * b]))
    np.testing.assert_allclose(many, np.outer([1, 2, 0], want), atol=1e-8)


def test_another_number_is_the_same_program(jax):
    jnp, traces = jax.numpy, []

    @jax.jit
    def x(b, solver):
        traces.append(1)
        return lg.solve(lg.Dense(jnp.asarray(MATRIX)), b, solver).x

    for omega in (0.4, 0.5):
        np.testing.assert_allclose(x(jnp.asarray(B), Richardson(omega, 1e-10)), np.linalg.solve(MATRIX, B), atol=1e-8)
    assert len(traces) == 1


def test_torch_gradients(torch):
    matrix, b = (torch.tensor(v, requires_grad=True) for v in (MATRIX, B))
    x = lg.solve(lg.Dense(matrix), b, TIGHT).x
    (x**2).sum().backward()
    want = np.linalg.solve(MATRIX, B)
    w = np.linalg.solve(MATRIX.T, 2 * want)
    np.testing.assert_allclose(b.grad, w, atol=1e-7)
    np.testing.assert_allclose(matrix.grad, -np.outer(w, want), atol=1e-7)


# what is missing is named at the door


def test_the_door_names_what_is_missing(numpy_backend):
    A, b = lg.Diagonal(np.ones(2)), np.ones(2)

    @lg.record
    class Half(lg.Solver):
        def init(self, ops, problem): ...
        def step(self, ops, problem, state): ...

    with pytest.raises(TypeError, match=r"Half.*answer.*observe"):
        Half()

    class NoRecord(Richardson):
        pass

    class Duck:
        init = step = observe = answer = None

    @lg.record
    class NoStatus(Richardson):
        def init(self, ops, problem):
            return problem.rhs, 0

    @lg.record
    class NoCode(Richardson):
        def init(self, ops, problem):
            return super().init(ops, problem)._replace(status=99)

    @lg.record
    class NoRow(Richardson):
        def observe(self, s):
            return s.norm

    for solver, match in (
        (NoRecord(), r"NoRecord must be a record.*write @lg\.record above it"),
        (Duck(), r"got a .*Duck\. A solver of your own derives from lg\.Solver"),
        (NoStatus(), r"NoStatus\.init must return a NamedTuple with status, steps"),
        (NoCode(), r"NoCode\.init must return a state whose status is a code of lg\.Status, got 99"),
        (NoRow(), r"NoRow\.observe must return a NamedTuple"),
    ):
        with pytest.raises(TypeError, match=match):
            lg.solve(A, b, solver)
    for supports in (frozenset({"rows"}), "x0", ("x0",), {"x0": True}):
        with pytest.raises(TypeError, match=r"Odd: supports must be a frozenset of .*'x0'.*got "):
            type("Odd", (Richardson,), {"supports": supports})
    with pytest.raises(TypeError, match="'steps' has the name of something"):
        lg.record(type("Bare", (lg.Solver,), {"__annotations__": {"steps": int}, "__module__": __name__}))
    with pytest.raises(ValueError, match="rtol has shape"):
        lg.solve(A, np.ones((2, 2)), Richardson(rtol=np.ones(2)))
    with pytest.raises(ValueError, match="Richardson needs a square operator"):
        lg.solve(lg.Dense(np.ones((3, 2))), np.ones(3), Richardson())


# other shapes of solvers


@lg.record
class Landweber(Richardson):
    """x <- x + omega A^T (b - A x): least squares."""

    square = False

    def init(self, ops, problem):
        A, b = problem.operator, problem.rhs
        return self.state(ops, problem, ops.zeros(A.shape[1], b), ops.scalar(0, b))

    def step(self, ops, problem, s):
        x = ops.axpy(self.omega, s.r, s.x)
        return self.state(ops, problem, x, s.steps + 1)

    def state(self, ops, problem, x, steps):
        r = ops.subtract(problem.rhs, problem.operator.apply(x))
        normal = problem.operator.T.apply(r)
        norm = ops.sqrt(ops.dot(normal, normal))
        done = norm <= self.rtol * ops.sqrt(ops.dot(problem.rhs, problem.rhs))
        return State(x, normal, norm, ops.where(done, int(Status.LEAST_SQUARES), int(Status.RUNNING)), steps)

    def observe(self, s):
        return NormalRow(s.norm)


class NormalRow(NamedTuple):
    normal: Any


TALL = np.linalg.qr(np.random.default_rng(3).standard_normal((7, 3)))[0] * [1.2, 1.4, 1.6]


def test_least_squares(backend):
    b = np.random.default_rng(4).standard_normal(7)
    want = np.linalg.lstsq(TALL, b, rcond=None)[0]
    method = Landweber(rtol=1e-9)
    solution = lg.solve(lg.Dense(array(backend, TALL)), array(backend, b), method)
    np.testing.assert_allclose(host(backend, solution.x), want, atol=1e-7)
    r = b - TALL @ want
    assert float(solution.residual) == pytest.approx(np.linalg.norm(r), rel=1e-9)
    assert float(solution.model) == pytest.approx((r @ r - b @ b) / 2, rel=1e-9)
    warm = lg.solve(lg.Dense(array(backend, TALL)), array(backend, b), method, x0=array(backend, np.ones(3)))
    np.testing.assert_allclose(host(backend, warm.x), want, atol=1e-7)
    assert float(warm.model) == pytest.approx((r @ r - b @ b) / 2, rel=1e-9)


def test_derivatives_of_least_squares(jax):
    jnp = jax.numpy
    b = np.random.default_rng(4).standard_normal(7)

    def x(matrix, b):
        return jnp.sum(lg.solve(lg.Dense(matrix), b, Landweber(rtol=1e-11)).x ** 2)

    def want(matrix, b):
        return jnp.sum(jnp.linalg.solve(matrix.T @ matrix, matrix.T @ b) ** 2)

    for got, expected in zip(
        jax.grad(x, (0, 1))(jnp.asarray(TALL), jnp.asarray(b)), jax.grad(want, (0, 1))(TALL, b), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-7)


@lg.record
class Boastful(Richardson):
    """One that claims what is not so."""

    def judged(self, ops, problem, x, r, steps):
        status = ops.where(steps >= 20, int(Status.CONVERGED), int(Status.RUNNING))
        return State(x, r, ops.sqrt(ops.dot(r, r)), status, steps)

    def step(self, ops, problem, s):
        x = ops.axpy(ops.where(s.status == Status.RUNNING, self.omega, 0.0), s.r, s.x)
        return self.judged(ops, problem, x, s.r, s.steps + 1)


def test_a_false_claim_is_no_success(backend):
    solution = lg.solve(system(backend), array(backend, B), Boastful(omega=3.0))
    assert solution.status is Status.STAGNATED


@lg.record
class Recurring(Richardson):
    """The residual follows by a recurrence, which a wrong x does not enter."""

    off: float = 0.0

    def answer(self, ops, problem, s):
        return ops.scale(1 + self.off, s.x)


def test_the_residual_told_is_that_of_x(backend):
    """The row has a residual and no model, so that the product for the model tells of the residual too."""
    b = array(backend, B)
    for off in (0.0, 1e-3, 1e6):
        found = lg.solve(system(backend), b, Recurring(rtol=1e-8, off=off))
        true = np.linalg.norm(B - MATRIX @ host(backend, found.x))
        assert float(found.residual) == pytest.approx(true, rel=1e-3, abs=1e-12)
        assert float(found.history["residual"][-1]) == pytest.approx(true, rel=1e-3, abs=1e-12)


@lg.record
class Uncounted(Richardson):
    """Its steps are not counted, and never end."""

    def step(self, ops, problem, s):
        calls.append(1)
        return s


calls = []


def test_a_run_whose_steps_are_not_counted_ends(numpy_backend):
    found = lg.solve(system(numpy_backend), B, Uncounted())
    assert found.status is Status.MAX_STEPS
    assert int(found.steps) == 0
    assert len(calls) <= 4 * 10 * N + 100


def malformed(member, change):
    """Richardson with what ``member`` returns changed by a function of it."""

    def instead(self, *given):
        return change(getattr(Richardson, member)(self, *given))

    return lg.record(type("Wrong", (Richardson,), {member: instead, "__module__": __name__}))()


class VectorRow(NamedTuple):
    residual: Any
    x: Any = None


def narrow(x):
    return x[:2]


def single(x):
    return lg.backend_of(x).asarray(host(lg.backend_of(x), x), "float32") if lg.backend_of(x).is_concrete(x) else x[:2]


@pytest.mark.parametrize(
    ("member", "change", "match"),
    [
        ("init", lambda s: None, r"Wrong\.init must return a NamedTuple with status, steps, got None"),
        ("init", lambda s: tuple(s), r"Wrong\.init must return a NamedTuple with status, steps, got .* without status"),
        ("init", lambda s: VectorRow(0.0), r"Wrong\.init must return .* without status, steps"),
        (
            "init",
            lambda s: s._replace(status=0.0),
            r"Wrong\.init must return a state whose status is a code of lg\.Status",
        ),
        ("init", lambda s: s._replace(status=None), r"status is a code of lg\.Status, got None"),
        ("init", lambda s: s._replace(status="RUNNING"), r"status is a code of lg\.Status, got 'RUNNING'"),
        ("init", lambda s: s._replace(status=False), r"status is a code of lg\.Status, got False"),
        ("init", lambda s: s._replace(steps=0.0), r"steps is a whole number, got 0\.0"),
        ("step", lambda s: None, r"Wrong\.step must return a State, as init does, got None"),
        ("step", lambda s: tuple(s), r"Wrong\.step must return a State, as init does, got"),
        (
            "step",
            lambda s: s._replace(x=narrow(s.x)),
            r"Wrong\.step must return a state whose x is like that of init, .*float64 of shape \(5,\), got",
        ),
        ("step", lambda s: s._replace(norm=None), r"Wrong\.step must return a state whose norm is like .*, got None"),
        ("step", lambda s: s._replace(status=1.0), r"Wrong\.step must return a state whose status is a code"),
        ("observe", lambda row: 0.0, r"Wrong\.observe must return a NamedTuple of scalars, got 0\.0"),
        ("observe", lambda row: row._replace(residual=None), r"Wrong\.observe .* scalars, got None in residual"),
        ("observe", lambda row: row._replace(residual="x"), r"Wrong\.observe .* scalars, got 'x' in residual"),
        ("observe", lambda row: row._replace(residual=np.ones(5)), r"got float64 of shape \(5,\) in residual"),
        ("answer", lambda x: None, r"Wrong\.answer must return an array of shape \(5,\) and dtype float64, got None"),
        (
            "answer",
            lambda x: [1.0] * 5,
            r"Wrong\.answer must return an array of shape \(5,\) and dtype float64, got \[",
        ),
        ("answer", narrow, r"Wrong\.answer must .*, got .*float64 of shape \(2,\)"),
        ("answer", single, r"Wrong\.answer must return an array of shape \(5,\) and dtype float64, got "),
    ],
)
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_what_is_malformed_is_named(name, member, change, match):
    pytest.importorskip(name)
    backend = lg.load(name)
    b = array(backend, B)
    for solve in (
        lambda solver: lg.solve(system(backend), b, solver),
        lambda solver: lg.solve(system(backend), array(backend, np.stack([B, B], axis=1)), solver),
    ):
        with pytest.raises(TypeError, match=match):
            solve(malformed(member, change))


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_member_of_the_enumeration_is_a_code(name):
    pytest.importorskip(name)
    backend = lg.load(name)
    solver = malformed("init", lambda s: s._replace(status=Status.RUNNING, steps=0))
    assert lg.solve(system(backend), array(backend, B), solver).status is Status.CONVERGED
    at_once = malformed("init", lambda s: s._replace(status=Status.COMPLETED, steps=0))
    assert lg.solve(system(backend), array(backend, B), at_once).status is Status.COMPLETED


@lg.record
class EarlyStop(Richardson):
    """CONVERGED at a tolerance that is not the one asked for."""

    atol: Any = 0.0
    loose: Any = 0.5

    def judged(self, ops, problem, x, r, steps):
        made = super().judged(ops, problem, x, r, steps)
        close = made.norm <= self.loose * ops.sqrt(ops.dot(problem.rhs, problem.rhs))
        return made._replace(status=ops.where(close, int(Status.CONVERGED), made.status))


def test_converged_keeps_rtol_and_atol(backend):
    b, size = array(backend, B), float(np.linalg.norm(B))
    for options, status in (
        ({"rtol": 1e-6}, Status.STAGNATED),
        ({"rtol": 0.6}, Status.CONVERGED),
        ({"rtol": 1e-6, "atol": 0.6 * size}, Status.CONVERGED),
        ({"rtol": 1e-6, "loose": 1e-6}, Status.CONVERGED),
    ):
        found = lg.solve(system(backend), b, EarlyStop(**options))
        assert found.status is status, options
        assert float(found.residual) == pytest.approx(
            np.linalg.norm(B - MATRIX @ host(backend, found.x)), rel=1e-6, abs=1e-12
        )


class FullRow(NamedTuple):
    residual: Any
    model: Any


@pytest.mark.parametrize("code", ["LEAST_SQUARES", "INVARIANT", "CONVERGED"])
def test_no_success_above_zero(numpy_backend, code):
    """Told by the solver itself, so that no product verifies it."""

    @lg.record
    class Far(Richardson):
        rtol: Any = 2.0

        def observe(self, s):
            return FullRow(s.norm, 0.0)

        def judged(self, ops, problem, x, r, steps):
            status = ops.where(steps >= 3, int(Status[code]), 0)
            return State(x, r, ops.sqrt(ops.dot(r, r)), status, steps)

    found = lg.solve(system(numpy_backend), B, Far(omega=3.0))
    assert (found.status, int(found.products)) == (Status.STAGNATED, 3)
    assert float(found.residual) > np.linalg.norm(B)


# odd ones


class SmallState(NamedTuple):
    x: Any
    status: Any
    steps: Any


class NoRow(NamedTuple):
    pass


@lg.record
class Steepest(lg.Solver):
    """In the framework's own arithmetic; nothing to observe."""

    rtol: Any = 1e-9
    symmetric = True

    def init(self, ops, problem):
        return SmallState(0 * problem.rhs, Status.RUNNING, 0)

    def step(self, ops, problem, s):
        A, b = problem.operator, problem.rhs
        r = b - A @ s.x
        done = r @ r <= self.rtol**2 * (b @ b)
        length = ops.where(done, 0.0, ops.divide(r @ r, r @ (A @ r)))
        return SmallState(s.x + length * r, ops.where(done, Status.CONVERGED, s.status), s.steps + 1)

    def observe(self, s):
        return NoRow()

    def answer(self, ops, problem, s):
        return s.x


@lg.record
class Refined(Steepest):
    """Iterative refinement: a solve inside the step."""

    inner: Any = lg.CG(rtol=1e-2)

    def step(self, ops, problem, s):
        A, b = problem.operator, problem.rhs
        x = s.x + lg.solve(A, b - A @ s.x, self.inner).x
        r = b - A @ x
        return SmallState(x, ops.where(r @ r <= self.rtol**2 * (b @ b), Status.CONVERGED, s.status), s.steps + 1)


@lg.record
class Neumann(Steepest):
    """Sixty terms of a series, all in init."""

    def init(self, ops, problem):
        x = ops.zeros_like(problem.rhs)
        for _ in range(60):
            x = ops.axpy(0.4, ops.subtract(problem.rhs, problem.operator.apply(x)), x)
        return SmallState(x, Status.COMPLETED, 0)

    def step(self, ops, problem, s):
        return s


class TreeState(NamedTuple):
    vectors: dict
    rr: Any
    status: Any
    steps: Any


@lg.record
class Columns(Steepest):
    """Conjugate gradients on all columns, its vectors in a dict."""

    supports = frozenset({"columns"})

    def init(self, ops, problem):
        b = problem.rhs
        zero, vectors = ops.scalar(0, b), {"x": ops.zeros_like(b), "r": ops.copy(b), "p": ops.copy(b)}
        return TreeState(vectors, ops.dot(b, b), ops.where(ops.dot(b, b) == 0, Status.CONVERGED, 0) + zero, zero)

    def step(self, ops, problem, s):
        running, p = s.status == Status.RUNNING, s.vectors["p"]
        Ap = problem.operator.apply(p)
        length = ops.where(running, ops.divide(s.rr, ops.dot(p, Ap)), 0.0)
        x, r = ops.axpy(length, p, s.vectors["x"]), ops.axpy(-length, Ap, s.vectors["r"])
        rr = ops.dot(r, r)
        vectors = {"x": x, "r": r, "p": ops.axpby(1.0, r, ops.divide(rr, s.rr), p)}
        done = running & (rr <= self.rtol**2 * ops.dot(problem.rhs, problem.rhs))
        return TreeState(vectors, rr, ops.where(done, Status.CONVERGED, s.status), s.steps + ops.where(running, 1, 0))

    def answer(self, ops, problem, s):
        return s.vectors["x"]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("solver", [Steepest(), Refined(), Neumann(), Columns()], ids=lambda s: s.title)
def test_odd_ones(name, solver):
    pytest.importorskip(name)
    backend = lg.load(name)
    A = lg.Dense(array(backend, SYMMETRIC), symmetric=True)
    b = array(backend, B)
    x = np.linalg.solve(SYMMETRIC, B)
    found = [(lg.solve(A, b, solver, x0=array(backend, 0.9 * x), watch=[lambda look: None]), x)]
    if name != "jax":
        found += [(lg.solve(A, b, solver), x)]
        columns = lg.solve(A, array(backend, np.stack([B, 0 * B], axis=1)), solver)
        found += [(columns, np.stack([x, 0 * x], axis=1))]
        assert (columns.status[1], columns.steps[1]) == (Status.CONVERGED, 0)
    for solution, want in found:
        assert solution.succeeded
        np.testing.assert_allclose(host(backend, solution.x), want, rtol=0, atol=1e-7)
