"""CG as part of compiled programs: one product in each, one program for all data, under the user's jit and vmap."""

import itertools

import numpy as np
import pytest
from systems import N, benign, counted, gaussian, host, operator, spare

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

RTOL = 1e-8


def equations(jaxpr):
    """All equations of a jaxpr, those of inner ones included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def marked(v, matrix):
    """A product with one cosine in it, to be found again in a program."""
    import jax.numpy as jnp

    return jnp.cos(0.0 * v[0]) * (matrix @ v)


@pytest.fixture(scope="module")
def ops(jax):
    return lg.load("jax")


def marked_operator(ops, matrix):
    M = array(ops, matrix)
    return lg.FunctionOperator(marked, lg.Space.flat(len(matrix), M), args=(M,), symmetric=True)


@pytest.mark.parametrize(("columns", "warm"), [(None, False), (2, True)])
@pytest.mark.parametrize(
    "method",
    [
        lg.CG(),
        lg.CG(steps=3),
        lg.CG(stop=lg.AnyOf(lg.RelativeProgress(), lg.MaxResidual()), max_steps=9, keep=1.3),
    ],
)
def test_the_operator_stands_once_in_the_program(jax, ops, columns, warm, method):
    b = array(ops, gaussian(0, *((N,) if columns is None else (N, columns))))

    def program(A, b):
        return lg.solve(A, b, method, x0=b if warm else None).x

    whole = jax.make_jaxpr(program)(marked_operator(ops, benign(0)), b)
    (loop,) = [e for e in equations(whole.jaxpr) if e.primitive.name == "while" and "body_jaxpr" in e.params][:1]
    assert [e.primitive.name for e in equations(whole.jaxpr)].count("cos") == 1
    assert [e.primitive.name for e in equations(loop.params["body_jaxpr"].jaxpr)].count("cos") == 1


def test_no_vector_comes_out_of_a_conditional(jax, ops):
    """A compiler would copy it at every step."""
    b = array(ops, gaussian(0, N))
    whole = jax.make_jaxpr(lambda A, b: lg.solve(A, b, lg.CG()).x)(marked_operator(ops, benign(0)), b)
    loop = next(e for e in equations(whole.jaxpr) if e.primitive.name == "while" and "body_jaxpr" in e.params)
    sides = [e for e in equations(loop.params["body_jaxpr"].jaxpr) if e.primitive.name == "cond"]
    assert sides
    assert not [v for e in sides for v in e.outvars if N in v.aval.shape]


def test_ten_solves_with_other_data_compile_once(ops):
    def run(seed):
        A = lg.Damped(marked_operator(ops, benign(seed)), 10.0**-seed)
        M = lg.Diagonal(array(ops, 1.0 / np.diag(benign(seed))), psd=True)
        b, x0 = array(ops, gaussian(seed)), array(ops, gaussian(seed + 1))
        plain, preconditioned = lg.CG(rtol=10.0 ** -(seed % 7), atol=1e-12 * seed), lg.CG(rtol=1e-6, preconditioner=M)
        for method, start in ((plain, x0), (preconditioned, None)):
            assert lg.solve(A, b, method, x0=start).succeeded
        lg.solve(A, b, lg.CG(preconditioner=halved))
        lg.solve(A, b, lg.CG(steps=4), watch=[lg.Recorder()])

    run(0)
    before = ops.compilations()
    for seed in range(1, 11):
        run(seed)
    assert ops.compilations() == before


def halved(A):
    return 0.5 * lg.Identity(A.domain)


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_a_solve_in_the_users_jit_is_the_solve_outside(jax, ops):
    def program(matrix, b, x0, rtol):
        solution = lg.solve(lg.Dense(matrix, symmetric=True), b, lg.CG(rtol=rtol), x0=x0)
        return solution, 2.0 * solution.x

    compiled = jax.jit(program)
    for seed, warm in itertools.product(range(3), (False, True)):
        matrix, b, x0 = benign(seed), gaussian(seed), gaussian(seed + 1) if warm else np.zeros(N)
        solution, twice = compiled(array(ops, matrix), array(ops, b), array(ops, x0), RTOL)
        outside = lg.solve(operator(ops, matrix), array(ops, b), lg.CG(rtol=RTOL), x0=array(ops, x0))
        assert solution.status is outside.status is Status.CONVERGED
        assert (int(solution.steps), int(solution.products)) == (int(outside.steps), int(outside.products))
        np.testing.assert_allclose(host(ops, solution.x), host(ops, outside.x), rtol=0, atol=1e-12)
        np.testing.assert_allclose(host(ops, twice), 2 * host(ops, outside.x), rtol=0, atol=1e-12)
        np.testing.assert_allclose(solution.history["model"], outside.history["model"], rtol=1e-9, atol=1e-12)
    assert compiled._cache_size() == 1


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_a_solve_under_vmap_is_each_solve(jax, ops):
    matrices, rhs = np.stack([benign(s) for s in range(4)]), gaussian(9, 4, N)
    rhs[2] = 0.0
    rhs[3, 1] = np.nan

    def program(matrix, b):
        return lg.solve(lg.Dense(matrix, symmetric=True), b, lg.CG(rtol=RTOL))

    together = jax.jit(jax.vmap(program))(array(ops, matrices), array(ops, rhs))
    assert together.status == [Status.CONVERGED, Status.CONVERGED, Status.CONVERGED, Status.NONFINITE_INPUT]
    for i in range(3):
        single = lg.solve(operator(ops, matrices[i]), array(ops, rhs[i]), lg.CG(rtol=RTOL))
        assert int(together.steps[i]) == int(single.steps)
        np.testing.assert_allclose(host(ops, together.x[i]), host(ops, single.x), rtol=0, atol=1e-9)
    assert not host(ops, together.x[3]).any()
    A, b = operator(ops, matrices[0]), array(ops, rhs[0])
    damped = jax.vmap(lambda c: lg.solve(lg.Damped(A, c), b, lg.CG(steps=N)).x)
    for c, x in zip((0.1, 10.0), host(ops, damped(array(ops, [0.1, 10.0]))), strict=True):
        np.testing.assert_allclose(x, np.linalg.solve(matrices[0] + c * np.eye(N), rhs[0]), rtol=0, atol=1e-9)


def test_watching_inside_a_compiled_function_is_refused(jax, ops):
    A, b = operator(ops, benign(0)), array(ops, gaussian(0))
    for program in (
        lambda A, b: lg.solve(A, b, watch=[lg.Recorder()]).x,
        lambda A, b: [look.step for look in lg.steps(A, b)],
    ):
        with pytest.raises(TypeError, match="inside a compiled function cannot be watched"):
            jax.jit(program)(A, b)
        with pytest.raises(TypeError, match="inside a compiled function cannot be watched"):
            jax.jit(lambda: program(A, b))()  # noqa: B023


def test_the_product_is_computed_as_often_inside_jit(jax, ops):
    A, counter = counted(ops, benign(0))
    solution = jax.jit(lambda A, b: lg.solve(A, b, lg.CG(rtol=RTOL)))(A, array(ops, gaussian(0)))
    jax.effects_barrier()
    assert counter.calls == int(solution.products) == int(solution.steps) + 1


# buffers, of every backend


def address(backend, x):
    """Where an array's memory begins and ends."""
    if backend.name == "jax":
        return x.unsafe_buffer_pointer(), x.unsafe_buffer_pointer() + x.nbytes
    if backend.name == "torch":
        return x.data_ptr(), x.data_ptr() + x.nbytes
    return np.lib.array_utils.byte_bounds(getattr(x, "_array", x))


@pytest.mark.parametrize("columns", [None, 2])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_no_two_leaves_of_a_state_share_memory(backend, columns, warm, preconditioned):
    spare(backend, warm and preconditioned)
    b = array(backend, gaussian(0, *((N,) if columns is None else (N, columns))))
    x0 = array(backend, gaussian(1, *b.shape)) if warm else None
    M = lg.Diagonal(array(backend, np.ones(N))) if preconditioned else None
    problem = lg.LinearProblem(operator(backend, benign(0)), b, x0, M)
    carry = backend.begin(lg.CG(), problem, 5)
    for _ in range(3):
        kept = [b, M.values if preconditioned else None, x0, *carry.state]
        vectors = [x for x in kept if backend.is_array(x) and len(x.shape) and x.shape[0] == N]
        assert len(vectors) == 4 + warm + preconditioned
        for one, other in itertools.combinations([address(backend, x) for x in vectors], 2):
            assert one[1] <= other[0] or other[1] <= one[0]
        carry = backend.advance(lg.CG(), problem, carry, 1)
