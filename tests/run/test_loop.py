"""The one loop: chunks of any size, looks, watchers, and what is left of a run when one of them fails."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import N, benign, gaussian, host, operator, spare

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array, seeds

IN_CI_ON_JAX = (
    "test_a_watched_run_is_the_unwatched_one",
    "test_looks_come_at_step_0_and_then_as_asked",
    "test_compiled_backends_look_every_25_steps_others_at_each",
    "test_what_breaks_a_solve_off_carries_what_was_reached",
)

METHOD = lg.CG(rtol=1e-8, max_steps=20)


def problem(backend, seed=0, columns=None, warm=False):
    b = gaussian(seed, *((N,) if columns is None else (N, columns)))
    if columns:
        b[:, 0] = 0.0
        b[:, 1] = np.linalg.eigh(benign(seed))[1][:, 0]
    x0 = array(backend, gaussian(seed + 1, *b.shape)) if warm else None
    return lg.LinearProblem(operator(backend, benign(seed)), array(backend, b), x0)


def fields(backend, state):
    """The state on the host, by name."""
    made = {}
    for name, value in backend.read(state)._asdict().items():
        parts = value if isinstance(value, list) else [value]  # a shelf of an eager backend
        made |= {f"{name} {i}": np.array(held) for i, held in enumerate(parts)}
    return made


@pytest.mark.parametrize("columns", [None, 3])
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6), warm=st.booleans())
def test_advancing_n_is_n_times_advancing_one(backend, columns, chunks, warm):
    linear = problem(backend, columns=columns, warm=warm)
    one_by_one, in_chunks = (backend.begin(METHOD, linear, 20) for _ in range(2))
    for chunk in chunks:
        in_chunks = backend.advance(METHOD, linear, in_chunks, chunk)
        for _ in range(chunk):
            one_by_one = backend.advance(METHOD, linear, one_by_one, 1)
    left, right = fields(backend, in_chunks.state), fields(backend, one_by_one.state)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    last = int(np.max(left["steps 0"]))
    np.testing.assert_array_equal(backend.rows(in_chunks, 0, last + 1), backend.rows(one_by_one, 0, last + 1))


@pytest.mark.parametrize("columns", [None, 3])
@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_a_watched_run_is_the_unwatched_one(backend, columns, every):
    linear = problem(backend, columns=columns)
    A, b = linear.operator, linear.rhs
    record = lg.Recorder()
    plain, watched = lg.solve(A, b, METHOD), lg.solve(A, b, METHOD, watch=[record], every=every)
    if "compiled" in backend.capabilities:  # two programs, in which sums may be ordered otherwise
        np.testing.assert_allclose(host(backend, watched.x), host(backend, plain.x), rtol=0, atol=1e-12)
    else:
        np.testing.assert_array_equal(host(backend, watched.x), host(backend, plain.x))
    assert repr(plain).splitlines()[1:] == repr(watched).splitlines()[1:]
    for name, column in watched.history.items():
        np.testing.assert_array_equal(record.history[name], column)
        np.testing.assert_allclose(column, plain.history[name], rtol=1e-6, atol=1e-12)
    assert record.steps[0] == 0
    assert record.steps[-1] == int(np.max(watched.steps))


@given(seed=seeds(), every=st.integers(1, 4))
def test_looks_come_at_step_0_and_then_as_asked(backend, seed, every):
    linear = problem(backend, seed)
    seen = list(lg.steps(linear.operator, linear.rhs, lg.CG(steps=5), every=every))
    assert [look.step for look in seen] == sorted({0, 5} | set(range(0, 5, every)))
    assert [look.running for look in seen] == [True] * (len(seen) - 1) + [False]
    assert {look.limit for look in seen} == {5}
    assert {look.method for look in seen} == {"CG"}
    rows = np.concatenate([look.rows["residual"] for look in seen])
    whole = lg.solve(linear.operator, linear.rhs, lg.CG(steps=5)).history["residual"]
    np.testing.assert_allclose(rows, whole, rtol=1e-9)
    assert [look.first for look in seen] == [0, *(look.step + 1 for look in seen[:-1])]


def test_the_row_of_a_step_that_was_verified_comes_again(backend):
    linear = problem(backend)
    looks = list(lg.steps(linear.operator, linear.rhs, METHOD))
    assert looks[-1].step == looks[-2].step == looks[-1].first
    assert len(looks[-1].rows["residual"]) == 1


def test_compiled_backends_look_every_25_steps_others_at_each(backend):
    linear = problem(backend)
    steps = []
    solution = lg.solve(linear.operator, linear.rhs, lg.CG(steps=4), watch=[lambda look: steps.append(look.step)])
    assert steps == ([0, 4] if "compiled" in backend.capabilities else [0, 1, 2, 3, 4])
    assert solution.status is Status.COMPLETED


@pytest.mark.parametrize("columns", [None, 3])
def test_a_watcher_stops_the_run_with_the_latest_iterate(backend, columns):
    linear = problem(backend, columns=columns)
    A, b = linear.operator, linear.rhs
    stop = lg.stop_when(lambda look: look.step >= 3)
    solution = lg.solve(A, b, METHOD, watch=[stop], every=1)
    expected = lg.solve(A, b, lg.CG(steps=3))
    assert int(np.max(solution.steps)) == 3
    if columns is None:
        assert solution.status is Status.STOPPED
        assert "watcher" in repr(solution)
    else:
        assert solution.status == [Status.CONVERGED, Status.CONVERGED, Status.STOPPED]
    np.testing.assert_allclose(host(backend, solution.x), host(backend, expected.x), rtol=0, atol=1e-12)
    assert not solution.succeeded


def test_a_wish_to_stop_at_the_end_changes_nothing(backend):
    linear = problem(backend)
    solution = lg.solve(linear.operator, linear.rhs, METHOD, watch=[lg.stop_when(lambda look: not look.running)])
    assert solution.status is Status.CONVERGED


class Diary:
    def __init__(self, fails=None, stops=False):
        self.fails, self.stops, self.events = fails, stops, []

    def note(self, event, look):
        self.events.append((event, look.step))
        if self.fails == event:
            raise RuntimeError(event)

    def begin(self, look):
        self.note("begin", look)

    def __call__(self, look):
        self.note("look", look)
        return self.stops

    def end(self, look):
        self.note("end", look)


def test_every_watcher_sees_every_look_between_its_begin_and_its_end(numpy_backend):
    linear = problem(numpy_backend)
    first, second, plain = Diary(stops=True), Diary(), []
    lg.solve(linear.operator, linear.rhs, METHOD, watch=[first, second, lambda look: plain.append(look.step)])
    assert first.events == second.events == [("begin", 0), ("look", 0), ("end", 0)]
    assert plain == [0]
    diary = Diary()
    lg.solve(linear.operator, linear.rhs, lg.CG(steps=2), watch=[diary])
    assert diary.events == [("begin", 0), ("look", 0), ("look", 1), ("look", 2), ("end", 2)]


def test_whatever_fails_those_that_began_are_ended(numpy_backend):
    linear = problem(numpy_backend)

    def run(*watchers):
        with pytest.raises(RuntimeError):
            lg.solve(linear.operator, linear.rhs, METHOD, watch=watchers)
        return [watcher.events for watcher in watchers]

    looked = [("begin", 0), ("look", 0), ("end", 0)]
    assert run(Diary(), Diary("look"), Diary()) == [looked, looked, [("begin", 0), ("end", 0)]]
    assert run(Diary(), Diary("begin"), Diary()) == [[("begin", 0), ("end", 0)], [("begin", 0)], []]
    ended = run(Diary(), Diary("end"), Diary())
    assert [events[-1][0] for events in ended] == ["end", "end", "end"]


def test_an_operator_that_fails_ends_the_watchers_too(numpy_backend):
    def fail(v):
        raise ZeroDivisionError

    A = lg.FunctionOperator(fail, lg.Space.flat(2, np.zeros(2)), symmetric=True)
    diary = Diary()
    with pytest.raises(ZeroDivisionError):
        lg.solve(A, np.ones(2), watch=[diary])
    assert diary.events == [("begin", 0), ("look", 0), ("end", 0)]


class Failing:
    """A product that raises at its sixth call."""

    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0

    def __call__(self, v):
        self.calls += 1
        if self.calls == 6:
            raise FloatingPointError
        return self.matrix @ v


@pytest.mark.parametrize(
    "method",
    [
        lg.CG(max_steps=20, keep="every"),
        lg.MINRES(),
        lg.LSMR(),
        lg.Lanczos(8),
        lg.MultiShiftCG(dampings=[0.0]),
        lg.LU(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_what_breaks_a_solve_off_carries_what_was_reached(backend, method):
    spare(backend, False)
    matrix, b = benign(0, 12), gaussian(0, 12)
    product, rhs = Failing(array(backend, matrix)), array(backend, b)
    A = lg.FunctionOperator(product, lg.Space.of(rhs), symmetric=True)
    with pytest.raises(FloatingPointError) as caught:
        lg.solve(A, rhs, method)
    reached = caught.value.result
    assert f"{int(np.max(reached.steps))} steps were done" in caught.value.__notes__[0]
    assert all(len(column) == int(np.max(reached.steps)) + 1 for column in reached.history.values())
    assert not reached.succeeded
    looked = {lg.LU: -5, lg.Lanczos: 0, lg.LSMR: 2}.get(
        type(method), 1
    )  # products with x, which the step may have moved
    assert int(reached.products) == 5 + looked
    x = host(backend, reached.x).reshape(12)
    assert np.max(reached.residual) == pytest.approx(np.linalg.norm(b - matrix @ x), rel=1e-9)
    if method.solves_system:
        assert lg.solve(A, rhs, method, x0=reached.x).succeeded


class Signal:
    """A trace function that raises at one of the lines, or returns, of solvers and backends, as Ctrl-C may."""

    def __init__(self, at):
        self.left = at

    def __call__(self, frame, event, argument):
        path = frame.f_code.co_filename
        return self.line if "linop_gn/solvers" in path or "linop_gn_numpy" in path or "linop_gn/eager" in path else None

    def line(self, frame, event, argument):
        self.left -= 1
        if self.left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self.line


@pytest.mark.parametrize(
    "method",
    [
        lg.CG(rtol=1e-8),
        lg.CG(max_steps=20, keep="every"),
        lg.CG(rtol=1e-8, preconditioner=lg.Diagonal(np.linspace(0.5, 1.0, 12), psd=True)),
        lg.MINRES(rtol=1e-8),
        lg.Neumann(steps=8),
        lg.Steihaug(100.0),
        lg.MultiShiftCG(dampings=[0.0, 1.0], max_steps=9),
        lg.LSMR(max_steps=9, damping=0.5),
    ],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "columns"])
def test_an_interrupt_anywhere_leaves_what_x_is(method, columns):
    if columns and isinstance(method, lg.MultiShiftCG):
        pytest.skip("takes one right-hand side")
    matrix, b = benign(0, 12), gaussian(0, 12, *columns)
    A, tracing, reached, at = lg.Dense(matrix, symmetric=True), sys.gettrace(), 0, 1
    while True:
        at += 97 if columns else 13  # a few in each step, or one, at other lines of it
        signal = Signal(at)
        try:
            sys.settrace(signal)
            lg.solve(A, b, method)
        except KeyboardInterrupt as error:
            result = getattr(error, "result", None)
        finally:
            sys.settrace(tracing)
        if signal.left > 0:
            break
        if result is None:
            continue  # before the first step, or after the last
        reached += 1
        r = method.defect(A, b, np.asarray(result.x)) if method.square else b - matrix @ result.x
        true = np.linalg.norm(r, axis=0)
        if not method.square:
            true = np.sqrt(true**2 + method.damping * np.linalg.norm(result.x, axis=0) ** 2)
        np.testing.assert_allclose(result.residual, true, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(result.history["residual"][-1], true, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(result.history["model"][-1], result.model)
        assert len(result.history["residual"]) == int(np.max(result.steps)) + 1
    assert reached > 5


def test_a_basis_that_is_broken_off_goes_on(backend):
    spare(backend, False)
    matrix, b = array(backend, benign(0, 12)), array(backend, gaussian(0, 12))
    with pytest.raises(FloatingPointError) as caught:
        lg.krylov(lg.FunctionOperator(Failing(matrix), lg.Space.of(b), symmetric=True), b, 8)
    whole = lg.krylov(lg.Dense(matrix, symmetric=True), b, 8)
    reached = caught.value.result
    reached.operator.function.calls = 4  # and once more on the way
    with pytest.raises(FloatingPointError) as caught:
        reached.extend(3)
    on = caught.value.result.extend(2)
    assert (int(reached.steps), int(caught.value.result.steps)) == (5, 6)
    np.testing.assert_allclose(host(backend, on.solve().x), host(backend, whole.solve().x))


def test_a_watcher_that_raises_leaves_what_was_reached(backend):
    spare(backend, False)

    def watcher(look):
        if look.step == 2:
            raise KeyboardInterrupt

    matrix, b = benign(0), gaussian(0)
    with pytest.raises(KeyboardInterrupt) as caught:
        lg.solve(operator(backend, matrix), array(backend, b), lg.CG(rtol=1e-9), watch=[watcher], every=1)
    reached = caught.value.result
    true = np.linalg.norm(b - matrix @ host(backend, reached.x))
    assert (int(reached.steps), float(reached.residual)) == (2, pytest.approx(true, rel=1e-9))


def test_the_callers_own_loop_may_end_when_it_likes(backend):
    linear = problem(backend)
    for look in lg.steps(linear.operator, linear.rhs, METHOD):
        if look.rows["residual"][-1] < 0.5 * look.rows["residual"][0] or look.step == 2:
            break
    assert 0 < look.step <= 2
    x = host(backend, look.state.x) * float(look.state.scale)
    assert np.isfinite(x).all()
    assert x.any()


def test_watchers_are_looked_at():
    A, b, seen = lg.Diagonal(np.ones(3), psd=True), np.ones(3), []
    lg.solve(A, b, watch=seen.append)  # one alone will do
    assert seen
    for watch in ([lg.ProgressBar], ["bar"], 3):
        with pytest.raises(TypeError, match="watch= takes watchers"):
            lg.solve(A, b, watch=watch)
    for every in (0, -1, 1.5, "a"):
        with pytest.raises(ValueError, match="every must be a whole number >= 1"):
            lg.solve(A, b, watch=seen.append, every=every)
        with pytest.raises(ValueError, match="every must be a whole number >= 1"):
            next(lg.steps(A, b, every=every))


@pytest.mark.parametrize("method", [lg.CG(), lg.MINRES(), lg.LSMR(), lg.GLTR(), lg.Cholesky(), lg.Lanczos(2)], ids=repr)
def test_of_an_input_that_is_not_finite_no_residual_is_known(numpy_backend, method):
    solution = lg.solve(lg.Diagonal(np.array([1.0, 2.0]), psd=True), np.array([1.0, np.nan]), method)
    assert solution.status is Status.NONFINITE_INPUT
    assert np.isnan(solution.residual)
    assert not solution.residual < 1.0


def test_no_columns_are_nothing_to_solve(backend):
    A = operator(backend, np.eye(7))
    with pytest.raises(ValueError, match="no columns"):
        lg.solve(A, array(backend, np.ones((7, 0))))


def test_a_tolerance_for_each_column_or_for_all():
    A, b = lg.Diagonal(np.array([1.0, 2.0, 4.0]), psd=True), np.ones((3, 2))
    loose = lg.solve(A, b, lg.CG(rtol=np.array([0.9, 1e-9])))
    assert int(loose.steps[0]) < int(loose.steps[1])
    with pytest.raises(ValueError, match="one for each column"):
        lg.solve(A, b, lg.CG(rtol=np.full(3, 1e-3)))
    with pytest.raises(ValueError, match="rtol must be a finite number"):
        lg.CG(rtol=np.array([1e-3, -1.0]))


STRIDES = {
    "fixed": ({"steps": 9}, False),
    "converging": ({"rtol": 1e-9}, False),
    "warm": ({"rtol": 1e-9}, True),
    "preconditioned": ({"rtol": 1e-9, "preconditioner": lg.preconditioners.Jacobi()}, False),
    "limited": ({"rtol": 1e-14, "max_steps": 5}, False),
    "indefinite": ({"rtol": 1e-9}, False),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", STRIDES)
def test_a_stride_is_its_steps(backend, kind, dtype):
    spare(backend, False)
    options, warm = STRIDES[kind]
    matrix, b = benign(0, 12), gaussian(0, 12)
    if kind == "indefinite":
        matrix = matrix - 0.9 * np.eye(12)
    A, rhs = operator(backend, matrix, dtype), array(backend, b, dtype)
    start = array(backend, gaussian(1, 12), dtype) if warm else None
    method = lg.CG(**options)
    whole = lg.solve(A, rhs, method, x0=start)
    watched = lg.solve(A, rhs, method, x0=start, watch=[lambda look: False])
    assert (whole.status, whole.steps, whole.products) == (watched.status, watched.steps, watched.products)
    np.testing.assert_array_equal(host(backend, whole.x), host(backend, watched.x))
    for name, column in watched.history.items():
        np.testing.assert_array_equal(whole.history[name], column)


def test_a_subclass_that_steps_in_its_own_way_is_asked_for_each_step(numpy_backend):
    taken = []

    @lg.record
    class Told(lg.CG):
        def step(self, ops, problem, s):
            taken.append(s.steps)
            return super().step(ops, problem, s)

    A, b = operator(numpy_backend, benign(0)), gaussian(0)
    assert lg.solve(A, b, Told(steps=3)).steps == 3
    assert taken == [0, 1, 2]


def test_what_a_run_inside_a_product_had_reached_is_not_told_of_the_outer_one(numpy_backend):
    matrix, b = benign(0, 12), gaussian(0, 12)
    inner = lg.FunctionOperator(Failing(matrix), lg.Space.of(b), symmetric=True)
    calls = []

    def product(v):
        calls.append(v)
        return matrix @ v if len(calls) < 4 else list(lg.steps(inner, b, lg.CG(steps=9)))  # whose error keeps its carry

    with pytest.raises(FloatingPointError) as caught:
        lg.solve(lg.FunctionOperator(product, lg.Space.of(b), symmetric=True), b, lg.CG(steps=9))
    assert caught.value.result.steps == 3
