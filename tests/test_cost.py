"""What ``lg.cost`` says beside what solves take: products counted, memory traced."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.preconditioners import BlockJacobi, EmpiricalFisher, Jacobi, Nystrom, SquaredGradient
from linop_gn.testing.strategies import array

from .support.peaks import compiled_peak, peak


@pytest.fixture(params=["numpy", "torch"])
def name(request):
    """Where operations are done as they are asked for."""
    if request.param != "numpy":
        request.getfixturevalue(request.param)
    return request.param


def put(name, x):
    return array(lg.load(name), x, "float64")


@pytest.fixture
def long(name):
    return lg.Damped(lg.Diagonal(put(name, np.linspace(1, 50, 100_000))), 0.1), put(name, np.ones(100_000))


@pytest.fixture
def dense(name):
    Q = np.random.default_rng(0).standard_normal((300, 300))
    return lg.Damped(lg.Dense(put(name, Q @ Q.T), psd=True), 1.0), put(name, np.ones(300))


def linear(name, m, n):
    X, w = put(name, np.random.default_rng(0).standard_normal((m, n))), put(name, np.zeros(n))
    line = lg.Objective.from_residuals(lambda w: X @ w - 1.0, jvp=lambda w, v: X @ v, vjp=lambda w, u: X.T @ u)
    return lg.Damped(lg.GGN(line, w), 1.0), line.gradient(w)


@pytest.fixture
def wide(name):
    return linear(name, 40, 10_000)


def held_to(system, method, fixed=True, unseen=0, least=0.8):
    A, b = system
    (told,) = lg.cost(A, method)
    solution = lg.solve(A, b, method)
    preparing = told.products - lg.cost(A, lg.replace(method, preconditioner=None))[0].products if fixed else 0
    spent = int(solution.products) + preparing
    if solution.status is lg.Status.COMPLETED and int(solution.steps) == 8:
        assert told.products == spent
    assert told.products >= spent
    assert_near(told, peak(A.backend.name, lambda: lg.solve(A, b, method)) + unseen, least)
    return told


def assert_near(told, measured, least=0.8):
    assert least <= told.memory / measured <= 2 - least


@pytest.mark.parametrize(
    "method",
    [lg.CG(steps=8), lg.CG(steps=8, preconditioner=Jacobi()), lg.CG(steps=8, keep="every"), lg.MINRES(steps=8)],
    ids=["CG", "preconditioned", "iterates", "MINRES"],
)
def test_short_recurrences(long, method):
    told = held_to(long, method)
    assert told.note == "8 steps"
    assert told.flops > 0


@pytest.mark.parametrize(
    "method",
    [
        lg.CG(max_steps=60),
        lg.CG(max_steps=60, preconditioner=Jacobi()),
        lg.MINRES(max_steps=60),
        lg.Steihaug(radius=1e9, max_steps=60),
    ],
    ids=["CG", "preconditioned", "MINRES", "Steihaug"],
)
def test_a_solution_that_is_verified(long, method):
    A, b = long
    assert lg.solve(A, b, method).succeeded
    assert_near(lg.cost(A, method)[0], peak(A.backend.name, lambda: lg.solve(A, b, method)))


@pytest.mark.parametrize("method", [lg.LSMR(steps=8), lg.LSQR(steps=8)], ids=["LSMR", "LSQR"])
def test_least_squares(long, method):
    assert held_to(long, method, fixed=False).products == 17


@pytest.mark.parametrize("tall", [True, False])
def test_least_squares_of_two_spaces(name, tall):
    few, many = put(name, np.zeros(40_000)), put(name, np.zeros(120_000))
    spaces = lg.Space.flat(40_000, few), lg.Space.flat(120_000, many)

    def stacked(v):
        return lg.namespace(v).concat([v, v, v])

    def summed(u):
        return u[:40_000] + u[40_000:80_000] + u[80_000:]

    A = lg.FunctionOperator(stacked, *spaces, summed)
    A, b = (A, many + 1.0) if tall else (A.T, few + 1.0)
    for method in (lg.LSMR(steps=8), lg.LSQR(steps=8, damping=0.1)):
        assert_near(lg.cost(A, method)[0], peak(name, lambda method=method: lg.solve(A, b, method)))


@pytest.mark.parametrize("keep", [True, False])
def test_krylov(long, keep):
    A, b = long
    way = "selective" if keep else "none"

    def run():
        K = lg.krylov(A, b, 8, reorthogonalise=way, keep=keep)
        return K, K.solve(damping=0.1)

    (told,) = lg.cost(A, lg.Lanczos(8, way, keep))
    assert told.products == (8 if keep else 15)
    assert int(run()[0].products) == 8
    assert_near(told, peak(A.backend.name, run))


@pytest.mark.parametrize(
    "method",
    [lg.GLTR(radius=1e9, steps=8), lg.Steihaug(radius=1e9, steps=8), lg.MultiShiftCG(np.ones(4), steps=8)],
    ids=["GLTR", "Steihaug", "MultiShiftCG"],
)
def test_regions_and_shifts(long, method):
    assert held_to(long, method, fixed=False).products == 8


def test_room_is_taken_before_it_is_needed(long):
    """A basis for all the steps that a run may take, of which cost is asked for a few."""
    A, b = long
    (told,) = lg.cost(A, lg.GLTR(radius=1.0), steps=8)
    assert told.products == 8
    assert_near(told, peak(A.backend.name, lambda: lg.solve(A, b, lg.GLTR(radius=1.0))))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_series_that_looks_for_its_scale(name, dtype):
    values, b = (array(lg.load(name), x, dtype) for x in (np.linspace(1, 50, 100_000), np.ones(100_000)))
    A, method = lg.Diagonal(values, psd=True), lg.Neumann(steps=8)
    assert_near(lg.cost(A, method)[0], peak(name, lambda: lg.solve(A, b, method)))


def test_shifts_are_verified_one_by_one(long):
    (told,) = lg.cost(long[0], lg.MultiShiftCG([1.0, 2.0, 3.0], max_steps=8))
    assert told.products == 11


@pytest.mark.parametrize("method", [lg.Cholesky(), lg.LU(), lg.Eigh()], ids=["Cholesky", "LU", "Eigh"])
def test_direct_solvers(dense, method):
    unseen = 0  # where LAPACK's workspace is not an array of the framework's
    if isinstance(method, lg.Eigh) and dense[0].backend.name == "numpy":
        unseen = 2 * 300**2 * 8
    assert held_to(dense, method, fixed=False, unseen=unseen).products == 300


@pytest.mark.parametrize(("m", "n"), [(40, 10_000), (300, 2000)])
def test_of_outputs_and_parameters(name, m, n):
    A, b = linear(name, m, n)
    for method in (lg.GramSolve(), lg.GramSolve(rows=False), lg.GramSolve(solver=lg.CG(max_steps=20))):
        assert_near(lg.cost(A, method)[0], peak(name, lambda method=method: lg.solve(A, b, method)))


def test_of_a_low_rank(name):
    A = lg.Damped(lg.LowRank(put(name, np.random.default_rng(0).standard_normal((4000, 50))), psd=True), 0.1)
    b = put(name, np.ones(4000))
    assert_near(lg.cost(A, lg.GramSolve())[0], peak(name, lambda: lg.solve(A, b, lg.GramSolve())))


def test_blocks_take_a_vector_more(name):
    halves = (lg.Diagonal(put(name, np.linspace(1, 50, 50_000))),) * 2
    A, b, method = lg.Damped(lg.BlockDiagonal(halves), 0.1), put(name, np.ones(100_000)), lg.Blockwise(lg.CG(steps=8))
    assert_near(lg.cost(A, method)[0], peak(name, lambda: lg.solve(A, b, method)))


def test_compiled_programs(jax):
    """Of two routes, since compiling takes time; benchmarks/memory.py measures all."""
    n = 20_000
    A, b = lg.Damped(lg.Diagonal(put("jax", np.linspace(1, 50, n))), 0.1), put("jax", np.ones(n))
    taken = compiled_peak(lambda A, b: lg.solve(A, b).x, A, b)
    assert_near(lg.cost(A, lg.CG())[0], taken)
    assert taken <= 6.1 * b.nbytes  # x, r, p, A p, the best point, and one that is multiplied or summed
    (told,) = lg.cost(A, lg.Lanczos(20))
    assert_near(told, compiled_peak(lambda A, b: lg.krylov(A, b, 20).solve(damping=0.1).x, A, b))


@pytest.mark.parametrize(
    "method",
    [
        lg.CG(steps=20, keep="every"),
        lg.MultiShiftCG(np.ones(8), max_steps=20),
        lg.Neumann(steps=8),
        lg.Neumann(steps=8, scale=1e-2),
        lg.CG(steps=5, preconditioner=Nystrom(10)),
    ],
    ids=["iterates", "MultiShiftCG", "Neumann", "scaled", "Nystrom"],
)
def test_compiled_programs_with_all_that_they_give_back(jax, method):
    A, b = lg.Damped(lg.Diagonal(put("jax", np.linspace(1, 50, 20_000)), psd=True), 0.1), put("jax", np.ones(20_000))
    assert_near(lg.cost(A, method)[0], compiled_peak(lambda A, b: lg.solve(A, b, method), A, b))


def test_bytes_of_each_device(jax):
    """A vector takes its share on each; what is told is that, and of how many."""
    space = lg.Space.flat(1000, put("jax", np.zeros(1000)))

    class Layout:
        devices, size = 8, 1024

    divided = lg.replace(space, layout=Layout())
    whole, parts = (
        lg.cost(lg.FunctionOperator(lambda v: v, s, psd=True, on="tree"), lg.CG(steps=5))[0] for s in (space, divided)
    )
    assert (whole.memory, parts.memory) == (6 * 1000 * 8, 6 * 128 * 8)
    assert parts.note == "5 steps; each of 8 devices"


def test_blocks_share_their_products():
    A = lg.BlockDiagonal((lg.Dense(np.eye(3), psd=True), lg.Dense(np.eye(5), psd=True)))
    (told,) = lg.cost(A, lg.Cholesky())
    assert (told.products, told.note) == (5, "2 blocks of up to 5")
    assert int(lg.solve(A, np.ones(8), lg.Cholesky()).products) == 5
    (told,) = lg.cost(A, lg.Blockwise(lg.CG(steps=3, preconditioner=Jacobi())))
    assert told.route == "Blockwise CG + Jacobi"


@pytest.mark.parametrize(
    "method",
    [lg.GramSolve(), lg.GramSolve(rows=False), lg.GramSolve(solver=lg.CG(max_steps=20))],
    ids=["rows", "columns", "CG"],
)
def test_the_gram_space(wide, method):
    told = held_to(wide, method, fixed=False)
    assert "40 outputs" in told.note
    if method.solver is None:
        assert told.products == int(lg.solve(*wide, method).products)


@pytest.mark.parametrize("recipe", [Nystrom(200), BlockJacobi(dense=1000)], ids=lambda r: type(r).__name__)
def test_recipes_that_keep_matrices(dense, recipe):
    told = held_to(dense, lg.CG(max_steps=8, preconditioner=recipe), least=0.2)  # LAPACK's workspace is seen in torch
    assert told.products == 9 + (200 if isinstance(recipe, Nystrom) else 300)
    assert type(recipe).__name__ in told.route


def test_recipes_made_of_gradients(wide):
    A, _ = wide
    bare = lg.cost(A, lg.CG(steps=5))[0].products
    for recipe, products in (
        (EmpiricalFisher(), 16),
        (EmpiricalFisher(probes=None), 40),
        (SquaredGradient(), 0),
        (Jacobi(), 32),
        (Jacobi("exact"), 10_000),
        (BlockJacobi(), 20),
        (lg.Identity(A.domain), 0),
    ):
        assert lg.cost(A, lg.CG(steps=5, preconditioner=recipe))[0].products == bare + products


def test_all_routes_in_order(wide):
    told = lg.cost(wide[0], steps=20)
    names = [row.route for row in told]
    assert set(names) >= {
        "CG",
        "MINRES",
        "Cholesky",
        "Eigh",
        "GramSolve, Cholesky",
        "GramSolve, CG",
        "krylov, basis kept",
    }
    assert [row.products for row in told] == sorted(row.products for row in told)
    lines = repr(told).splitlines()
    assert lines[0].split() == ["route", "products", "memory", "flops", "beside"]
    assert len(lines) == len(told) + 1
    assert all(len(line) <= 100 for line in lines)


def test_only_routes_that_there_are(torch):
    square, tall = lg.Dense(np.array([[1.0, 2.0], [0.0, 1.0]])), lg.Dense(np.ones((5, 3)))
    assert [row.route for row in lg.cost(square)] == ["LU", "LSMR", "LSQR"]
    assert [row.route for row in lg.cost(tall)] == ["LSMR", "LSQR"]
    indefinite = lg.Dense(np.diag([1.0, -1.0]))
    assert {"CG", "Cholesky"}.isdisjoint(row.route for row in lg.cost(indefinite))
    x, p = torch.ones((2, 3), dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    own = lg.Objective(lambda p, x: x @ p, lambda z, y: (z - y) ** 2, (x, torch.ones(2)))
    assert not any("Gram" in row.route for row in lg.cost(lg.Damped(lg.GGN(own, p), 1.0)))


def test_under_every_framework(backend):
    A = lg.Damped(lg.Diagonal(array(backend, np.ones(4), "float32")), 1.0)
    (told,) = lg.cost(A, lg.CG(steps=5))
    assert (told.products, told.memory) == (5, (6 if "compiled" in backend.capabilities else 4) * 4 * 4)


def test_methods_of_your_own():
    @lg.record
    class Mine(lg.Solver):
        def init(self, ops, problem): ...
        def step(self, ops, problem, state): ...
        def observe(self, state): ...
        def answer(self, ops, problem, state): ...

    @lg.record
    class Known(Mine):
        def cost(self, operator, steps):
            return lg.Cost("mine", steps, 8, 1.0)

    A = lg.Diagonal(np.ones(2))
    assert lg.cost(A, Known(), steps=7)[0] == ("mine", 7, 8, 1.0, "")
    with pytest.raises(TypeError, match="cost of Mine is not known"):
        lg.cost(A, Mine())


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match=r"cost needs a linear operator, got ndarray; wrap a matrix in lg\.Dense"):
        lg.cost(np.eye(2))
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
        lg.cost(lg.Diagonal(np.ones(2)), steps=0)
    with pytest.raises(ValueError, match="CG needs a symmetric operator"):
        lg.cost(lg.Dense(np.array([[1.0, 2.0], [0.0, 1.0]])), lg.CG())
