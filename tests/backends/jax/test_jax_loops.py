"""Loops with a method of their own: Richardson's iteration x <- x + w (b - A x)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from linop_gn_jax import backend as ops
from systems import in_full

from linop_gn.records import record, static
from linop_gn.run.status import Status

RUNNING, CONVERGED, MAX_STEPS = int(Status.RUNNING), int(Status.CONVERGED), int(Status.MAX_STEPS)


@record
class System:
    matrix: Any
    rhs: Any
    host: bool = static(default=False)


class State(NamedTuple):
    x: Any
    norm: Any
    status: Any
    steps: Any
    ticks: Any
    kept: Any = None


class Row(NamedTuple):
    residual: Any
    steps: Any


@record
class Richardson:
    """Counts a step only at every second tick where ``slow``; written carelessly about types."""

    weight: Any
    rtol: Any = 1e-4
    max_steps: int = static(default=50)
    slow: bool = static(default=False)

    def init(self, ops, problem):
        b = problem.rhs
        norm = ops.sqrt(ops.dot(b, b))
        return State(ops.zeros_like(b), norm, ops.scalar(RUNNING, b), 0 * ops.scalar(1, b), ticks=0)

    def step(self, ops, problem, s):
        running = s.status == RUNNING
        r = ops.subtract(problem.rhs, problem.matrix @ s.x)
        b = problem.rhs
        norm = ops.where(running, ops.sqrt(ops.dot(r, r)), s.norm)
        met = norm <= self.rtol * ops.sqrt(ops.dot(b, b))
        x = ops.axpy(ops.where(running & ops.logical_not(met), self.weight, 0.0), r, s.x)
        steps = s.steps + ops.where(running & ((s.ticks % 2 == 1) | (not self.slow)), 1, 0)
        status = ops.where(running & (steps >= self.max_steps), MAX_STEPS, s.status)
        return State(x, norm, ops.where(running & met, CONVERGED, status), steps, s.ticks + 1)

    def observe(self, s):
        return Row(s.norm, s.steps)


def system(seed=0, n=6, k=None, host=False):
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((n, n)) / n
    rhs = rng.standard_normal(n if k is None else (n, k))
    return System(jnp.asarray(half @ half.T + np.eye(n), jnp.float32), jnp.asarray(rhs, jnp.float32), host)


def by_numpy(problem, weight, rtol, steps):
    """The iterates and residuals of the same iteration, in float64."""
    A, b = np.asarray(problem.matrix, float), np.asarray(problem.rhs, float)
    x, norms = np.zeros_like(b), [np.linalg.norm(b)]
    for _ in range(steps):
        r = b - A @ x
        norms.append(np.linalg.norm(r))
        if norms[-1] <= rtol * norms[0]:
            break
        x = x + weight * r
    return x, norms


def test_changing_data_compile_once():
    def counts():
        return {name: count for name, count in ops.compilations().items() if name.endswith("Recounted")}

    @record
    class Recounted(Richardson):
        pass

    for seed in range(5):
        ops.run(Recounted(0.1 * seed, 10.0**-seed), system(seed), 20)
        carry = ops.begin(Recounted(0.1 * seed, 10.0**-seed), system(seed), 20)
        for steps in (1, 2, seed + 3):
            carry = ops.advance(Recounted(0.1 * seed, 10.0**-seed), system(seed), carry, steps)
        ops.iterate(Recounted(0.1 * seed), system(seed))
    assert counts() == {f"{action} Recounted": 1 for action in ("run", "begin", "advance", "iterate")}
    ops.run(Recounted(0.5), system(), 30)  # the room for rows is a shape
    assert counts()["run Recounted"] == 2


def test_donation_spares_what_the_user_holds():
    @record
    class Aliasing(Richardson):
        """Its initial state holds the user's arrays, and one array twice."""

        def init(self, ops, problem):
            state = Richardson.init(self, ops, problem)
            return state._replace(x=problem.rhs, kept=(problem.rhs, problem.matrix, state.norm, self.weight))

        def step(self, ops, problem, s):
            return Richardson.step(self, ops, problem, s)._replace(kept=s.kept)

    problem, method = system(), Aliasing(jnp.float32(0.5))
    before = np.array(problem.rhs)
    carry = ops.begin(method, problem, 10)
    seen = ops.read(carry.state.x)
    taken = np.array(seen)
    given = carry.state.kept
    after = ops.advance(method, problem, carry, 3)
    assert all(leaf.is_deleted() for leaf in given)
    assert not any(leaf.is_deleted() for leaf in (problem.matrix, problem.rhs, method.weight))
    np.testing.assert_array_equal(problem.rhs, before)
    np.testing.assert_array_equal(seen, taken)  # what was read stays what it was
    assert not np.array_equal(after.state.x, taken)


def test_inside_the_users_jit_vmap_and_jvp():
    method, problem = Richardson(0.5), system()

    def solve(b):
        return ops.run(method, System(problem.matrix, b), 50).state

    alone = solve(problem.rhs)
    np.testing.assert_allclose(jax.jit(solve)(problem.rhs).x, alone.x, rtol=1e-5)
    several = jax.vmap(solve)(jnp.stack([problem.rhs, 0 * problem.rhs, 3 * problem.rhs]))
    np.testing.assert_allclose(several.x[0], alone.x, rtol=1e-5)
    np.testing.assert_allclose(several.x[2], 3 * alone.x, rtol=1e-4, atol=1e-5)
    assert several.status.tolist() == [CONVERGED] * 3
    assert int(several.steps[1]) < int(several.steps[0])
    _, tangent = jax.jvp(lambda b: solve(b).x, (problem.rhs,), (problem.rhs,))
    np.testing.assert_allclose(tangent, alone.x, rtol=1e-4)
    both = jax.jit(jax.vmap(lambda b: ops.iterate(method, System(problem.matrix, b)).x))(problem.rhs[None])
    np.testing.assert_allclose(both[0], alone.x, rtol=1e-5)


def test_constants_of_a_users_jit():
    problem = system()
    inside = jax.jit(lambda: ops.run(Richardson(0.5), problem, 50).state.x)()
    np.testing.assert_allclose(inside, ops.run(Richardson(0.5), problem, 50).state.x, rtol=1e-5)


def test_a_key_can_be_carried():
    @record
    class Random(Richardson):
        def init(self, ops, problem):
            return Richardson.init(self, ops, problem)._replace(kept=jax.random.key(0))

        def step(self, ops, problem, s):
            return Richardson.step(self, ops, problem, s)._replace(kept=jax.random.fold_in(s.kept, 1))

    carry = ops.advance(Random(0.5), system(), ops.begin(Random(0.5), system(), 5), 2)
    want = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 1)
    assert jax.random.key_data(carry.state.kept).tolist() == jax.random.key_data(want).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": jnp.ones(2)}, r"Wrong\.step turned state\.norm from shape \(\) into shape \(2,\).*like=vector"),
        ({"ticks": 0.5}, r"Wrong\.step turned state\.ticks from int32 into float32.*0\.0 instead of 0"),
        ({"kept": jnp.ones(2)}, r"Wrong\.step returned a state of another structure"),
    ],
)
def test_states_that_change_their_type(change, message):
    @record
    class Wrong(Richardson):
        def step(self, ops, problem, s):
            return Richardson.step(self, ops, problem, s)._replace(**change)

    with pytest.raises(TypeError, match=message):
        ops.run(Wrong(0.5), system(), 5)


def test_a_state_keeps_the_dtype_of_the_vectors():
    problem = system()
    for dtype in ("bfloat16", "float32"):
        narrow = System(problem.matrix.astype(dtype), problem.rhs.astype(dtype))
        state, rows = ops.run(Richardson(0.5, 1e-1), narrow, 50)
        assert state.x.dtype == dtype
        assert rows.dtype == np.float32
        assert (state.status.dtype, state.steps.dtype) == (np.int32, np.int32)


def _scaled(x, factor):
    return {"sum": factor * x["a"] @ x["b"]}, x["a"] - factor


def test_scans_over_stacked_data():
    rng = np.random.default_rng(0)
    stacked = {name: jnp.asarray(rng.standard_normal((5, 3)), jnp.float32) for name in "ab"}
    total, kept = ops.scan_over(_scaled, stacked, 2.0)
    np.testing.assert_allclose(total["sum"], 2 * np.sum(stacked["a"] * stacked["b"]), rtol=1e-5)
    np.testing.assert_allclose(kept, stacked["a"] - 2.0)
    np.testing.assert_allclose(jax.jit(lambda s: ops.scan_over(_scaled, s, 2.0)[1])(stacked), kept)
    np.testing.assert_allclose(ops.sum_over(_inner, stacked), np.sum(stacked["a"] * stacked["b"]), rtol=1e-5)


def _inner(x):
    return x["a"] @ x["b"]


def test_columns_are_one_copy_in_a_trace():
    matrix = jnp.arange(6.0).reshape(2, 3)
    traced = []

    def product(v):
        traced.append(v.shape)
        return matrix @ v

    V = jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(jax.jit(lambda V: ops.over_columns(product, V))(V), matrix @ V)
    assert traced == [(3,)]
    np.testing.assert_allclose(ops.over_columns(product, V), matrix @ V)


def test_call_is_compiled_once_and_inlined_in_a_trace():
    def doubled(x):
        return 2 * x

    name = f"call {doubled.__qualname__}"
    for value in (1.0, 2.0):
        assert float(ops.call(doubled, jnp.float32(value))) == 2 * value
    assert ops.compilations()[name] == 1
    jaxpr = jax.make_jaxpr(lambda x: lax.sin(ops.call(doubled, x)))(jnp.float32(1.0))
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["mul", "sin"]


@in_full
def test_small_loops_are_compiled_quickly_and_others_well(monkeypatch):
    """What a loop is compiled with goes by the sizes of its data and of the model's outputs."""
    from linop_gn_jax import loops

    import linop_gn as lg

    asked = []
    pick = loops.JaxLoops._loop

    def spied(self, action, method, problem):
        made = pick(self, action, method, problem)
        if not loops.tracing():  # a solver's loop in a method's step becomes part of that program
            asked.extend(effort for effort, made_so in self._loops.items() if made is made_so[action])
        return made

    monkeypatch.setattr(loops.JaxLoops, "_loop", spied)

    def solved(n):
        asked.clear()
        lg.solve(lg.Diagonal(jnp.arange(1.0, n + 1)), jnp.ones(n), lg.CG(max_steps=2))
        return set(asked)

    def wanted(effort):
        return {effort if loops.can_be_quick() else "full"}

    def looped(p, t):
        return jax.lax.fori_loop(0, 3, lambda i, r: r + p[0] * t, -1.0 - 0 * t)

    assert solved(10) == wanted("less")
    assert solved(2_000) == {"full"}
    for outputs, effort in (20, "least"), (300, "less"), (3_000, "full"):  # which the residuals close over
        asked.clear()
        t = jnp.linspace(0.0, 1.0, outputs)
        lg.least_squares(lambda p, t=t: p[0] * t - 1.0, jnp.ones(1), max_steps=1)
        assert set(asked) == wanted(effort)
    asked.clear()
    lg.least_squares(lambda p: looped(p, jnp.ones(5)), jnp.ones(1), max_steps=1)
    assert set(asked) == wanted("less")
    asked.clear()
    t = jnp.linspace(0.0, 1.0, 200)  # of which a linearisation keeps more numbers than are tiny
    curve = lg.Objective.from_residuals(lambda p: jnp.exp(p[0] * t) * jnp.sin(p[1] * t) - 1.0)
    lg.minimize(curve, jnp.ones(2), max_steps=1)
    assert set(asked) == wanted("least")


def test_what_compares_is_not_compiled_without_optimisations():
    """In those programs no entry need equal the largest, and the derivative of ``max`` is 0/0."""
    from linop_gn_jax import loops

    import linop_gn as lg
    from linop_gn.methods.problem import MinimizeProblem

    squares, data, p = lg.losses.SquaredError(), (jnp.ones((5, 3)), jnp.ones(5)), jnp.ones(3)
    for model, loss, effort in (
        (lambda p, x: x @ p, squares, "least"),
        (lambda p, x: jnp.max(x * p, -1), squares, "less"),
        (lambda p, x: x * p, lambda z, y: jnp.sum(z, -1) + y, "least"),
        (lambda p, x: x * p, lambda z, y: jnp.max(z, -1) + y, "less"),
    ):
        point = lg.Objective(model, loss, data).at(p)
        problem = MinimizeProblem(point.objective, point.x, point.space, 1)
        assert loops._effort_for((lg.SGN(), problem)) == effort


def test_a_compiler_without_the_quick_way_is_no_error(monkeypatch):
    from linop_gn_jax import compiled

    compiled.can_be_quick.cache_clear()
    monkeypatch.setitem(compiled.EFFORTS["least"], "xla_no_such_option", False)
    assert not compiled.can_be_quick()
    compiled.can_be_quick.cache_clear()
