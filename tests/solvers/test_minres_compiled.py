"""MINRES and its kin in compiled programs: one copy of each product, one program for all data, jit and vmap."""

import numpy as np
import pytest
from systems import N, benign, gaussian, host, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import array

M = N + 2
METHODS = [lg.MINRES(rtol=1e-8), lg.LSQR(damping=0.1), lg.LSMR()]


@pytest.fixture(scope="module")
def ops(jax):
    return lg.load("jax")


def equations(jaxpr):
    """All equations of a jaxpr, those of inner ones included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def forward(v, matrix):
    import jax.numpy as jnp

    return jnp.cos(0.0 * v[0]) * (matrix @ v)


def backward(u, matrix):
    import jax.numpy as jnp

    return jnp.tan(0.0 * u[0] + 0.25 * jnp.pi) * (matrix.T @ u)


def marked(ops, method, seed=0):
    """An operator with a cosine in its product and a tangent in its adjoint's."""
    square = isinstance(method, lg.MINRES)
    matrix = array(ops, benign(seed) if square else gaussian(seed, M, N))
    domain = lg.Space.flat(N, matrix)
    if square:
        return lg.FunctionOperator(forward, domain, args=(matrix,), symmetric=True)
    return lg.FunctionOperator(forward, domain, lg.Space.flat(M, matrix), backward, args=(matrix,))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("warm", [False, True])
def test_the_operator_stands_once_in_the_program(jax, ops, method, warm):
    A = marked(ops, method)
    b, x0 = array(ops, np.ones(A.shape[0])), array(ops, np.ones(N)) if warm else None
    whole = jax.make_jaxpr(lambda A, b: lg.solve(A, b, method, x0=x0).x)(A, b)
    names = [e.primitive.name for e in equations(whole.jaxpr)]
    assert names.count("cos") == 1
    assert names.count("tan") == (0 if isinstance(method, lg.MINRES) else 1)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_other_data_run_the_same_program(ops, method):
    def run(seed):
        A = marked(ops, method, seed)
        changed = lg.replace(method, rtol=1e-6 / (seed + 1)) if isinstance(method, lg.MINRES) else method
        if isinstance(method, lg.LSQR):
            changed = lg.replace(method, damping=0.1 * seed, atol=1e-7)
        return lg.solve(A, array(ops, gaussian(seed, A.shape[0])), changed)

    run(1)
    before = ops.compilations()
    assert all(run(seed).succeeded for seed in range(2, 5))
    assert ops.compilations() == before


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
@pytest.mark.parametrize("method", [METHODS[0], METHODS[2], lg.Cholesky()], ids=lambda m: type(m).__name__)
def test_a_solve_under_jit_and_vmap_is_each_solve(jax, ops, method):
    matrices, rhs = np.stack([benign(s) for s in range(3)]), gaussian(9, 3, N)
    rhs[1] = 0.0

    def program(matrix, b):
        return lg.solve(lg.Dense(matrix, symmetric=True), b, method)

    together = jax.jit(jax.vmap(program))(array(ops, matrices), array(ops, rhs))
    assert together.succeeded
    for i in range(3):
        np.testing.assert_allclose(host(ops, together.x[i]), np.linalg.solve(matrices[i], rhs[i]), rtol=0, atol=1e-4)
    assert int(together.steps[1]) == 0


@pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")
def test_statuses_differ_under_vmap(jax, ops):
    matrices = np.stack([benign(0), with_spectrum(np.arange(N) / N, 0), -benign(1)])
    rhs = gaussian(3, 3, N)

    def program(method):
        return jax.vmap(lambda matrix, b: lg.solve(lg.Dense(matrix, symmetric=True), b, method))

    iterative = program(METHODS[0])(array(ops, matrices), array(ops, rhs))
    assert [s.name for s in iterative.status] == ["CONVERGED", "INCONSISTENT", "CONVERGED"]
    direct = program(lg.Cholesky())(array(ops, matrices), array(ops, rhs))
    assert direct.status[0] is Status.CONVERGED
    assert direct.status[1] in (Status.SINGULAR, Status.NEGATIVE_CURVATURE)
    assert direct.status[2] is Status.NEGATIVE_CURVATURE
    assert np.isfinite(host(ops, direct.x)).all()
