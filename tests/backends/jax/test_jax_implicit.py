"""Derivatives through solves: against dense closed forms, in every mode, and by one more solve."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from linop_gn_jax.linear import inner_jaxprs
from systems import FULL, N, gaussian, in_full, with_spectrum

import linop_gn as lg
from linop_gn import Status
from linop_gn.testing.strategies import seeds

EACH_IN_CI_ON_JAX = "test_every_solver_of_systems", "test_the_data_of_every_operator"

backend = lg.load("jax")
METHOD = lg.CG(rtol=1e-13)
SPECTRA = ("benign", "spread", "clustered", "tiny", "huge")

pytestmark = pytest.mark.filterwarnings("ignore:jaxlib 0.10.2")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def spectrum(kind, seed):
    values = np.random.default_rng(seed).uniform(0.5, 2.0, N)
    if kind == "spread":
        values = 10.0 ** np.linspace(-2, 2, N)
    if kind == "clustered":
        values = np.array([1.0, 5.0, 5.0 + 1e-9])[np.arange(N) % 3]
    return values * {"tiny": 1e-6, "huge": 1e6}.get(kind, 1.0)


def tree(v):
    return {"bias": v[:2], "weight": v[2:].reshape(5, *v.shape[1:])}


def untree(x):
    return jnp.concatenate([x["bias"], x["weight"]])


def solve(matrix, b, damping, layout="flat"):
    """x in the flat format, by a solve in the given one."""
    if layout == "tree":
        space = lg.Space.of(tree(jnp.zeros(N)))
        A = lg.Damped(lg.Dense((matrix + matrix.T) / 2, psd=True, domain=space), damping)
        return untree(lg.solve(A, tree(b), METHOD).x)
    return lg.solve(lg.Damped(lg.Dense((matrix + matrix.T) / 2, psd=True), damping), b, METHOD).x


def dense(matrix, b, damping):
    return jnp.linalg.solve((matrix + matrix.T) / 2 + damping * jnp.eye(N), b)


@functools.cache
def programs(layout):
    """Compiled once for all data: derivatives in both modes, of ours and of the oracle."""

    def both(function):
        def derivatives(data, tangents, u):
            x, pull = jax.vjp(function, *data)
            return x, pull(u), jax.jvp(function, data, tangents)[1]

        return jax.jit(derivatives)

    return both(functools.partial(solve, layout=layout)), both(dense)


@pytest.mark.parametrize("layout", [pytest.param("flat", marks=in_full), "tree", "columns"])
@given(seed=seeds(), kind=st.sampled_from(SPECTRA), relative=st.floats(-3, 2))
def test_both_modes_give_the_dense_derivatives(layout, seed, kind, relative):
    values = spectrum(kind, seed)
    shape = (N, 2) if layout == "columns" else (N,)
    data = with_spectrum(values, seed), gaussian(seed, *shape), values.mean() * 10.0**relative
    # Each argument moves by about its own size.
    tangents = np.abs(data[0]).max() * gaussian(seed + 1, N, N), gaussian(seed + 2, *shape), data[2]
    u = gaussian(seed + 3, *shape)
    got, want = (program(*jax.tree.map(jnp.asarray, (data, tangents, u))) for program in programs(layout))
    for one, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-8 * float(jnp.max(jnp.abs(expected))))


def test_second_derivatives_in_every_nesting():
    matrix, b = jnp.asarray(with_spectrum(spectrum("benign", 1), 1)), jnp.asarray(gaussian(1))

    def of(function):
        return lambda d, s: jnp.sum(jnp.sin(function(matrix * s, b * s * d, d)))

    outers = (jax.grad, lambda f: lambda *s: jax.jvp(lambda d: f(d, s[1]), (s[0],), (1.0,))[1])
    for outer in outers if FULL else outers[1:]:
        second = [jax.jit(outer(jax.grad(of(f), 1)))(0.3, 1.2) for f in (solve, dense)]
        np.testing.assert_allclose(*second, rtol=1e-9)


@in_full  # the dense derivatives hold more
def test_first_derivatives_against_differences():
    matrix, b = jnp.asarray(with_spectrum(spectrum("benign", 2), 2)), jnp.asarray(gaussian(2))
    check_grads(jax.jit(solve), (matrix, b, 0.5), order=1, modes=["fwd", "rev"])


@in_full  # lanes of a vmap, their derivatives too, are below
def test_vmap_over_right_hand_sides_and_dampings():
    matrix, B = jnp.asarray(with_spectrum(spectrum("spread", 3), 3)), jnp.asarray(gaussian(3, 4, N))
    dampings = jnp.array([1e-2, 1e-1, 1.0, 10.0])

    def loss(function, matrix, b, damping):
        return jnp.sum(jnp.cos(function(matrix, b, damping)))

    for axes in ((None, 0, None), (None, None, 0)):
        arguments = matrix, B if axes[1] == 0 else B[0], dampings if axes[2] == 0 else dampings[1]
        got, want = (
            jax.jit(jax.vmap(jax.grad(functools.partial(loss, f), (0, 1, 2)), axes))(*arguments) for f in (solve, dense)
        )
        for ours, expected in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-8 * float(jnp.max(jnp.abs(expected))))


def same_gradients(ours, oracle, *data):
    every = tuple(range(len(data)))
    got, want = jax.jit(lambda *data: [jax.grad(f, every)(*data) for f in (ours, oracle)])(*data)
    for one, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-9 * float(jnp.max(jnp.abs(expected))))


def product_of(v, matrix, shift):
    return matrix.T @ (matrix @ v) + shift * v


U, D = gaussian(4, N, 3), np.abs(gaussian(5)) + 0.5
OPERATORS = {
    "diagonal": (lambda d: lg.Diagonal(d, psd=True), lambda d: jnp.diag(d), [D]),
    "low rank": (
        lambda u, m, c: lg.Damped(lg.LowRank(u, m, psd=True), c),
        lambda u, m, c: u @ jnp.diag(m) @ u.T + c * jnp.eye(N),
        [U, np.array([1.0, 2.0, 0.5]), 0.4],
    ),
    "sum, product and multiple": (
        lambda u, d, c: c * (lambda J: J @ J.T)(lg.Dense(u)) + lg.Diagonal(d, psd=True),
        lambda u, d, c: c * u @ u.T + jnp.diag(d),
        [U, D, 1.7],
    ),
    "product that reads the same from both ends": (
        lambda u, d: (lambda J: J.T @ lg.Diagonal(d, psd=True) @ J)(lg.Dense(u)),
        lambda u, d: u.T @ jnp.diag(d) @ u,
        [gaussian(6, N, N) + 3 * np.eye(N), D],
    ),
    "function": (
        lambda u, s: lg.FunctionOperator(product_of, lg.Space.flat(N, u[0]), args=(u, s), psd=True),
        lambda u, s: u.T @ u + s * jnp.eye(N),
        [gaussian(7, N, N), 0.5],
    ),
    "blocks": (
        lambda d, m: lg.BlockDiagonal((lg.Diagonal(d[:4], psd=True), lg.Dense(m @ m.T, psd=True))),
        lambda d, m: jax.scipy.linalg.block_diag(jnp.diag(d[:4]), m @ m.T),
        [D, gaussian(8, 3, 3) + 3 * np.eye(3)],
    ),
}


SIMPLE = ("diagonal", "low rank")  # the sum has both


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_full if name in SIMPLE else ()) for name in OPERATORS])
def test_the_data_of_every_operator(name):
    make, matrix, data = OPERATORS[name]
    data = [jnp.asarray(x) for x in data]
    b = jnp.asarray(gaussian(9))

    def ours(b, *data):
        return jnp.sum(jnp.sin(lg.solve(make(*data), b, METHOD).x))

    def oracle(b, *data):
        return jnp.sum(jnp.sin(jnp.linalg.solve(matrix(*data), b)))

    same_gradients(ours, oracle, b, *data)


X = gaussian(10, 6, 3)
Y = np.random.default_rng(11).integers(0, 2, 6)


def network(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


def curvature_matrix(kind, p):
    q, unravel = ravel_pytree(p)
    if kind is lg.Hessian:
        return jax.hessian(lambda q: -jnp.mean(jax.nn.log_softmax(network(unravel(q), X))[jnp.arange(6), Y]))(q)
    J = jax.jacrev(lambda q: network(unravel(q), X).reshape(-1))(q)
    blocks = [(jnp.diag(r) - jnp.outer(r, r)) / 6 for r in jax.nn.softmax(network(p, X))]
    return J.T @ jax.scipy.linalg.block_diag(*blocks) @ J


@pytest.mark.parametrize("kind", [lg.GGN, pytest.param(lg.Hessian, marks=in_full)], ids=lambda kind: kind.__name__)
def test_curvature_at_parameters_that_are_differentiated(kind):
    p = {"v": jnp.asarray(gaussian(12, 4, 2)), "w": jnp.asarray(gaussian(13, 3, 4))}
    damping, g = 3.0 if kind is lg.Hessian else 0.1, jax.tree.map(jnp.ones_like, p)

    def ours(p, damping):
        A = kind(lg.Objective(network, lg.losses.CrossEntropy(), (jnp.asarray(X), jnp.asarray(Y))), p)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(lg.solve(lg.Damped(A, damping), g, METHOD).x))

    def oracle(p, damping):
        x = jnp.linalg.solve(curvature_matrix(kind, p) + damping * jnp.eye(20), ravel_pytree(g)[0])
        return jnp.sum(jnp.sin(x))

    got, want = (jax.jit(jax.grad(f, (0, 1)))(p, damping) for f in (ours, oracle))
    eager = [jax.grad(ours, (0, 1))(p, damping)] if kind is lg.GGN and FULL else []
    for gradients in (got, *eager):
        for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def test_neither_starting_point_nor_preconditioner_has_a_derivative():
    matrix, b = jnp.asarray(with_spectrum(spectrum("spread", 4), 4)), jnp.asarray(gaussian(14))

    def loss(b, x0, inverse, matrix):
        method = lg.CG(rtol=1e-13, preconditioner=lg.Diagonal(inverse, psd=True))
        return jnp.sum(lg.solve(lg.Dense(matrix, psd=True), b, method, x0=x0).x ** 2)

    start, inverse = jnp.asarray(gaussian(15)), 1 / jnp.diag(matrix)
    got = jax.jit(jax.grad(loss, (0, 1, 2)))(b, start, inverse, matrix)
    want = 2 * jnp.linalg.solve(matrix, jnp.linalg.solve(matrix, b))
    np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-9 * float(jnp.max(jnp.abs(want))))
    assert not got[1].any()
    assert not got[2].any()

    def made(matrix):  # from the operator itself: part of the way, not of the solution
        method = lg.CG(rtol=1e-13, preconditioner=lambda A: lg.Diagonal(1 / jnp.diag(A.matrix), psd=True))
        return jnp.sum(lg.solve(lg.Dense(matrix, psd=True), b, method).x ** 2)

    oracle = jax.grad(lambda m: jnp.sum(jnp.linalg.solve(m, b) ** 2))(matrix)
    np.testing.assert_allclose(jax.grad(made)(matrix), oracle, rtol=0, atol=1e-8 * float(jnp.max(jnp.abs(oracle))))


def symmetric(matrix):
    return lg.Dense((matrix + matrix.T) / 2, symmetric=True)


SOLVERS = {
    "MINRES": (symmetric, lg.MINRES(rtol=1e-13)),
    "Cholesky": (lambda matrix: lg.Dense(matrix @ matrix.T + jnp.eye(N), psd=True), lg.Cholesky()),
    "LU": (lg.Dense, lg.LU()),
    "Eigh": (symmetric, lg.Eigh()),
    "LSMR": (lg.Dense, lg.LSMR(atol=1e-13, btol=1e-13, conlim=None)),
}


DIRECT = ("Cholesky", "Eigh", "LSMR")  # as LU, and as those of least norm


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_full if name in DIRECT else ()) for name in SOLVERS])
def test_every_solver_of_systems(name):
    make, method = SOLVERS[name]
    matrix, b = jnp.asarray(gaussian(28, N, N) + 4 * np.eye(N)), jnp.asarray(gaussian(29))

    def ours(matrix, b):
        return jnp.sum(jnp.sin(lg.solve(make(matrix), b, method).x))

    def oracle(matrix, b):
        return jnp.sum(jnp.sin(jnp.linalg.solve(make(matrix).matrix, b)))

    same_gradients(ours, oracle, matrix, b)


def test_least_squares_with_damping():
    A, b = jnp.asarray(gaussian(30, 9, N)), jnp.asarray(gaussian(31, 9, 2))

    def ours(A, b, damping):
        method = lg.LSQR(damping=damping, atol=1e-13, btol=1e-13)
        return jnp.sum(jnp.sin(lg.solve(lg.Dense(A), b, method).x))

    def oracle(A, b, damping):
        return jnp.sum(jnp.sin(jnp.linalg.solve(A.T @ A + damping * jnp.eye(N), A.T @ b)))

    same_gradients(ours, oracle, A, b, 0.3)


def of_least_norm(left, right, b):
    """A^+ b for A = L R, whose rank is the number of columns of L, by formulas that are regular."""
    return right.T @ jnp.linalg.solve(right @ right.T, jnp.linalg.solve(left.T @ left, left.T @ b))


SHAPES = {"wide": (3, 5, 3), "deficient": (5, 4, 2), "tall": (6, 3, 3)}


@pytest.mark.parametrize("shape", [pytest.param(s, marks=() if s == "deficient" else in_full) for s in SHAPES])
def test_solutions_of_least_norm_for_every_shape_and_rank(shape):
    m, n, rank = SHAPES[shape]
    data = [jnp.asarray(gaussian(40 + i, *size)) for i, size in enumerate([(m, rank), (rank, n), (m,)])]
    tangents, u = [jnp.ones_like(x) - 0.3 * x * x for x in data], jnp.asarray(gaussian(43, n))
    method = (lg.LSQR if shape == "wide" else lg.LSMR)(atol=1e-13, btol=1e-13, conlim=None)

    def ours(left, right, b):
        return lg.solve(lg.Dense(left @ right), b, method).x

    def both(function):
        def derivatives(data, tangents, u):
            x, pull = jax.vjp(function, *data)
            return x, pull(u), jax.jvp(function, data, tangents)[1]

        return jax.jit(derivatives)(data, tangents, u)

    for got, want in zip(*(jax.tree.leaves(both(f)) for f in (ours, of_least_norm)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * float(jnp.max(jnp.abs(want))))


@in_full
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_of_solutions_of_least_norm(outer, inner):
    left, right, b = (jnp.asarray(gaussian(i, *size)) for i, size in ((44, (5, 2)), (45, (2, 4)), (46, (5,))))
    method = lg.LSMR(atol=1e-13, btol=1e-13, conlim=None)

    def along(function):
        return lambda s: jnp.sum(jnp.sin(function(left + s * jnp.cos(left), right + s * jnp.sin(right), b * (1 + s))))

    ours = along(lambda left, right, b: lg.solve(lg.Dense(left @ right), b, method).x)
    np.testing.assert_allclose(
        jax.jit(outer(inner(ours)))(0.2), jax.hessian(along(of_least_norm))(0.2), rtol=1e-9, atol=1e-9
    )


def test_an_array_of_no_damping_is_no_silent_wrong_number():
    A, b = jnp.asarray([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), jnp.asarray([1.0, 2.0])

    def x(A, damping):
        return lg.solve(lg.Dense(A), b, lg.LSMR(damping=damping, atol=1e-12, btol=1e-12)).x

    dA = jnp.asarray([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(jax.jvp(lambda A: x(A, 0.0), (A,), (dA,))[1], [2 / 9, -7 / 9, 10 / 9], atol=1e-9)
    with pytest.raises(NotImplementedError, match="damping=None for those of the solution of least norm"):
        jax.jvp(lambda d: x(A, d), (0.0,), (1.0,))


@in_full  # every nesting is above
def test_second_derivatives_where_the_right_hand_side_is_what_is_traced():
    matrix, b, t = jnp.array([[4.0, 1.0], [1.0, 3.0]]), jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])

    def f(b, solve=lambda b: lg.solve(lg.Dense(matrix, symmetric=True), b, METHOD).x):
        return jnp.sum(jnp.sin(solve(b)))

    want = jax.hessian(lambda b: f(b, lambda b: jnp.linalg.solve(matrix, b)))(b)
    np.testing.assert_allclose(jax.grad(lambda b: jax.jvp(f, (b,), (t,))[1])(b), want[0], atol=1e-10)
    for second in (jax.jacrev(jax.jacfwd(f)), jax.jacfwd(jax.jacfwd(f))) if FULL else ():
        np.testing.assert_allclose(second(b), want, atol=1e-10)


def test_a_solve_is_transposed_in_its_right_hand_side_alone():
    matrix, u = jnp.asarray(gaussian(47, 3, 5)), jnp.asarray(gaussian(48, 5))
    square = jnp.asarray(gaussian(49, 5, 5) + 4 * np.eye(5))

    def wide(b, matrix=matrix):
        return lg.solve(lg.Dense(matrix), b, lg.LSMR(atol=1e-13, btol=1e-13)).x

    (got,) = jax.linear_transpose(wide, jnp.ones(3))(u)
    np.testing.assert_allclose(got, jnp.linalg.pinv(matrix).T @ u, atol=1e-9)
    (got,) = jax.linear_transpose(jax.jit(lambda b: lg.solve(lg.Dense(square), b, lg.LU()).x), u)(u)
    np.testing.assert_allclose(got, jnp.linalg.solve(square.T, u), atol=1e-9)
    with pytest.raises(NotImplementedError, match="linear in its right-hand side alone"):
        jax.linear_transpose(lambda matrix: wide(jnp.ones(3), matrix), matrix)(u)


# what it costs


def counted_operator(calls, matrix):
    def product(v, matrix):
        jax.debug.callback(lambda: calls.append(1))
        return matrix @ v

    return lg.FunctionOperator(product, lg.Space.flat(N, matrix[0]), args=(matrix,), psd=True)


@pytest.mark.parametrize("wrap", [pytest.param(lambda f: f, marks=in_full), jax.jit], ids=["eager", "jit"])
def test_a_gradient_takes_one_more_solve_and_one_product(wrap):
    matrix, b, u = jnp.asarray(with_spectrum(spectrum("benign", 5), 5)), jnp.asarray(gaussian(16)), gaussian(17)
    calls = []

    def loss(b, matrix):
        solution = lg.solve(counted_operator(calls, matrix), b, lg.CG(rtol=1e-6))
        return jnp.vdot(jnp.asarray(u), solution.x), solution

    _, solution = wrap(jax.grad(loss, (0, 1), has_aux=True))(b, matrix)
    jax.effects_barrier()
    assert solution.status is Status.CONVERGED
    assert len(solution.history["residual"]) == int(solution.steps) + 1
    backward = lg.solve(lg.Dense(matrix, psd=True), jnp.asarray(u), lg.CG(rtol=1e-6))
    assert len(calls) - int(solution.products) - int(backward.products) in (1, 2)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation.params):
            yield from equations(inner)


def test_no_derivative_goes_through_the_loop():
    matrix, b = jnp.eye(N), jnp.ones(N)

    def gradient(limit):
        def loss(matrix, b):
            return jnp.sum(lg.solve(lg.Dense(matrix, psd=True), b, lg.CG(max_steps=limit)).x)

        return jax.grad(loss, (0, 1))

    few, many = (jax.make_jaxpr(gradient(limit))(matrix, b).jaxpr for limit in (5, 5000))
    assert [e.primitive for e in equations(few)] == [e.primitive for e in equations(many)]
    compiled = [jax.jit(gradient(limit)).lower(matrix, b).compile() for limit in (5, 5000)]
    assert [program.as_text().count(" while(") for program in compiled] == [6, 6]  # CG puts a vector by, and verifies
    small, large = (program.memory_analysis().temp_size_in_bytes for program in compiled)
    history = 8 * 2 * 5000  # residual and model at each step
    assert large - small <= 2.5 * history


def test_a_program_that_is_not_differentiated_holds_one_loop():
    whole = jax.make_jaxpr(lambda m, b: lg.solve(lg.Dense(m, psd=True), b).x)(jnp.eye(N), jnp.ones(N))
    names = [e.primitive.name for e in equations(whole.jaxpr)]
    assert names.count("while") == 3  # and those that verify, and put a vector by, where it is wanted
    assert "custom_linear_solve" not in names


# what can go wrong


def test_a_derivative_that_is_not_one_is_nan():
    d, b = jnp.array([1.0, 2.0, 3.0]), jnp.ones(3)

    @functools.partial(jax.jit, static_argnums=2)
    def x(d, b, limit=20):
        return lg.solve(lg.Diagonal(d, psd=False), b, lg.CG(rtol=1e-10, max_steps=limit)).x

    def pull(d, b, u, limit=20):
        return jax.vjp(lambda d: x(d, b, limit), d)[1](u)[0]

    np.testing.assert_allclose(pull(d, b, jnp.ones(3)), -1 / d**2, atol=1e-9)
    assert jnp.isnan(pull(d.at[1].set(-2.0), b, jnp.ones(3))).all()  # x itself is no solution
    e = jnp.array([1.0, 0.0, 0.0])
    assert jnp.isnan(pull(d, e, jnp.ones(3), 1)[0])  # x is, but what its derivative asks for takes more steps
    assert jnp.isnan(jax.jvp(lambda b: x(d, b, 1), (e,), (jnp.ones(3),))[1]).all()
    np.testing.assert_allclose(pull(d, e, e, 1), -e, atol=1e-9)
    assert not pull(d, b, jnp.zeros(3), 1).any()  # nobody asked


def test_lanes_of_a_vmap_have_statuses_steps_and_derivatives_of_their_own():
    d = jnp.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, -2.0, 3.0], [1.0, 2.0, 3.0]])
    b = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [0.0, 0.0, 0.0]])

    def lane(d, b):
        solution = lg.solve(lg.Diagonal(d, psd=False), b, lg.CG(rtol=1e-12))
        return jnp.sum(solution.x), solution

    gradient, solution = jax.jit(jax.vmap(jax.grad(lane, (0, 1), has_aux=True)))(d, b)
    assert solution.status == [Status.CONVERGED, Status.CONVERGED, Status.NEGATIVE_CURVATURE, Status.CONVERGED]
    assert np.asarray(solution.steps)[[0, 1, 3]].tolist() == [3, 1, 0]
    good = np.array([0, 1, 3])
    np.testing.assert_allclose(gradient[0][good], -(b / d**2)[good], atol=1e-10)
    np.testing.assert_allclose(gradient[1][good], (1 / d)[good], atol=1e-10)
    assert jnp.isnan(gradient[0][2]).all()


@pytest.mark.parametrize("b", [np.ones(3), np.zeros(3)], ids=["ones", "zeros"])
def test_an_absolute_tolerance_belongs_to_the_right_hand_side_alone(b):
    d = jnp.array([1.0, 2.0, 3.0])

    def x(b):
        return lg.solve(lg.Diagonal(d), b, lg.CG(rtol=0.0, atol=1e-6)).x

    _, pull = jax.vjp(jax.jit(x), jnp.asarray(b))
    np.testing.assert_allclose(pull(1e-9 * jnp.ones(3))[0], 1e-9 / d, rtol=1e-5)


def test_single_precision_and_one_compilation_for_all_data():
    def loss(matrix, b, damping):
        return jnp.sum(lg.solve(lg.Damped(lg.Dense(matrix, psd=True), damping), b, lg.CG(rtol=1e-6)).x)

    program = jax.jit(jax.grad(loss, (0, 1, 2)))
    for seed in range(4):
        matrix = jnp.asarray(with_spectrum(spectrum("benign", seed), seed), "float32")
        b, damping = jnp.asarray(gaussian(seed), "float32"), jnp.float32(10.0**-seed)
        got = program(matrix, b, damping)
        assert {leaf.dtype.name for leaf in got} == {"float32"}
        wide = matrix.astype("float64") + damping * jnp.eye(N)
        w = jnp.linalg.solve(wide, jnp.ones(N))
        np.testing.assert_allclose(got[1], w, rtol=1e-4)
        np.testing.assert_allclose(got[2], -w @ jnp.linalg.solve(wide, b.astype("float64")), rtol=1e-3)
    assert program._cache_size() == 1


# methods of the user's own


class RichardsonState(NamedTuple):
    x: object
    norm: object
    status: object
    steps: object
    products: object


class RichardsonRow(NamedTuple):
    residual: object
    model: object


@lg.record
class Richardson(lg.Solver):
    """x <- x + (b - A x): for operators near the identity, symmetric or not."""

    count: int = lg.static(default=60)

    def limit(self, problem):
        return self.count

    def init(self, ops, problem):
        b = problem.rhs
        zero = ops.scalar(0, b)
        running = ops.scalar(int(Status.RUNNING), b)
        return RichardsonState(ops.zeros_like(b), ops.sqrt(ops.dot(b, b)), running, zero, ops.scalar(0, b))

    def step(self, ops, problem, s):
        r = ops.subtract(problem.rhs, problem.operator.apply(s.x))
        steps = s.steps + 1
        status = ops.where(steps >= self.count, int(Status.COMPLETED), s.status)
        return RichardsonState(ops.axpy(1.0, r, s.x), ops.sqrt(ops.dot(r, r)), status, steps, s.products + 1)

    def observe(self, state):
        return RichardsonRow(state.norm, state.norm)

    def answer(self, ops, problem, state):
        return state.x


def test_an_operator_that_is_not_symmetric_and_a_method_of_the_users_own():
    matrix, b = jnp.asarray(np.eye(N) + 0.1 * gaussian(18, N, N)), jnp.asarray(gaussian(19))

    def x(matrix, b):
        return lg.solve(lg.Dense(matrix), b, Richardson()).x

    want = jax.jacrev(jnp.linalg.solve, (0, 1))(matrix, b)
    for mode in (jax.jacfwd, jax.jacrev):
        for got, expected in zip(jax.jit(mode(x, (0, 1)))(matrix, b), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


@lg.record
class NoSystem(Richardson):
    """A method whose answer solves no linear system."""

    solves_system = False


def test_a_method_that_solves_no_system_says_so():
    matrix = jnp.eye(N)
    with pytest.raises(NotImplementedError, match="the answer of NoSystem is not the solution of a linear system"):
        jax.grad(lambda b: jnp.sum(lg.solve(lg.Dense(matrix), b, NoSystem()).x))(jnp.ones(N))


@pytest.mark.parametrize("wrap", [lambda f: jax.grad(f), lambda f: jax.grad(jax.jit(f))], ids=["eager", "jit"])
def test_an_array_that_an_operator_closes_over_is_refused(wrap):
    def loss(matrix, b):
        return jnp.sum(lg.solve(lg.FunctionOperator(lambda v: matrix @ v, lg.Space.flat(N, b), psd=True), b).x)

    assert jnp.isfinite(jax.jit(loss)(jnp.eye(N), jnp.ones(N)))
    with pytest.raises(NotImplementedError, match=r"closes over arrays that are traced.*args=\(array,\)"):
        wrap(lambda m: loss(m, m[0]))(jnp.eye(N))
