"""What ``lg.cost`` says beside what solves take: products counted, memory traced."""

import tracemalloc

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.preconditioners import BlockJacobi, EmpiricalFisher, Jacobi, Nystrom, SquaredGradient
from linop_gn.testing.strategies import array


def peak(run):
    run()
    tracemalloc.start()
    run()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.fixture(scope="module")
def long():
    return lg.Damped(lg.Diagonal(np.linspace(1, 50, 100_000)), 0.1), np.ones(100_000)


@pytest.fixture(scope="module")
def dense():
    Q = np.random.default_rng(0).standard_normal((300, 300))
    return lg.Damped(lg.Dense(Q @ Q.T, psd=True), 1.0), np.ones(300)


@pytest.fixture(scope="module")
def wide():
    X = np.random.default_rng(0).standard_normal((40, 10_000))
    line = lg.Objective.from_residuals(lambda w: X @ w - 1.0, jvp=lambda w, v: X @ v, vjp=lambda w, u: X.T @ u)
    w = np.zeros(10_000)
    return lg.Damped(lg.GGN(line, w), 1.0), line.gradient(w)


def held_to(system, method, fixed=True):
    A, b = system
    (told,) = lg.cost(A, method)
    solution = lg.solve(A, b, method)
    preparing = told.products - lg.cost(A, lg.replace(method, preconditioner=None))[0].products if fixed else 0
    spent = int(solution.products) + preparing
    if solution.status is lg.Status.COMPLETED and int(solution.steps) == 8:
        assert told.products == spent
    assert told.products >= spent
    assert 0.6 < peak(lambda: lg.solve(A, b, method)) / told.memory < 1.4
    return told


@pytest.mark.parametrize(
    "method",
    [lg.CG(steps=8), lg.CG(max_steps=8), lg.CG(steps=8, preconditioner=Jacobi()), lg.MINRES(steps=8)],
    ids=["CG", "CG at most", "preconditioned", "MINRES"],
)
def test_short_recurrences(long, method):
    told = held_to(long, method)
    assert told.note == "8 steps"
    assert told.flops > 0


@pytest.mark.parametrize("method", [lg.LSMR(steps=8), lg.LSQR(steps=8)], ids=["LSMR", "LSQR"])
def test_least_squares(long, method):
    assert held_to(long, method, fixed=False).products == 17


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
    assert 0.6 < peak(run) / told.memory < 1.4


@pytest.mark.parametrize(
    "method",
    [lg.GLTR(radius=1e9, steps=8), lg.Steihaug(radius=1e9, steps=8), lg.MultiShiftCG(np.ones(4), steps=8)],
    ids=["GLTR", "Steihaug", "MultiShiftCG"],
)
def test_regions_and_shifts(long, method):
    assert held_to(long, method, fixed=False).products == 8


def test_shifts_are_verified_one_by_one(long):
    (told,) = lg.cost(long[0], lg.MultiShiftCG([1.0, 2.0, 3.0], max_steps=8))
    assert told.products == 11


@pytest.mark.parametrize("method", [lg.Cholesky(), lg.LU(), lg.Eigh()], ids=["Cholesky", "LU", "Eigh"])
def test_direct_solvers(dense, method):
    assert held_to(dense, method, fixed=False).products == 300


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
    told = held_to(dense, lg.CG(max_steps=8, preconditioner=recipe))
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
    assert (told.products, told.memory) == (5, 6 * 4 * 4)


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
