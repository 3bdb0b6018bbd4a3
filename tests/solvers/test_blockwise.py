"""One CG for each block, run together: each must be CG alone on that block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import (
    FULL,
    benign,
    counted,
    finished,
    gaussian,
    host,
    operator,
    section,
    spare,
    tridiagonal,
    unit,
    with_spectrum,
)

import linop_gn as lg
from linop_gn import Status
from linop_gn.operators.partition import Block, consecutive
from linop_gn.solvers.block_arithmetic import BlockArithmetic
from linop_gn.testing.strategies import array, dtypes, seeds

IN_CI_ON_JAX = (
    "test_blocks_of_all_kinds_beside_each_other",
    "test_one_product_serves_all_blocks",
    "test_what_has_no_blocks_is_refused",
)

SIZES = (3, 5, 1, 4)
ENDS = np.cumsum(SIZES)
N = int(ENDS[-1])


def parts(x):
    return np.split(np.asarray(x), ENDS[:-1])


def block_operator(backend, matrices, dtype="float64"):
    return lg.BlockDiagonal(tuple(operator(backend, matrix, dtype) for matrix in matrices))


def plainest(backend):
    """Where a block is solved alone: on NumPy where each size would be compiled, and the source is the same."""
    return lg.load("numpy") if "compiled" in backend.capabilities else backend


def matrices_of(seed):
    return [benign(seed + j, size) for j, size in enumerate(SIZES)]


@given(data=st.data(), seed=seeds(), warm=st.booleans())
def test_each_block_is_cg_alone(backend, data, seed, warm):
    dtype = data.draw(dtypes(backend))
    rng = np.random.default_rng(seed)
    matrices = matrices_of(seed % 1000)
    b = np.concatenate([10.0 ** rng.integers(-9, 9) * rng.standard_normal(size) for size in SIZES])
    x0 = rng.standard_normal(N) * np.abs(b) if warm else None
    method = lg.CG(rtol=1e-5, max_steps=20)
    start = array(backend, x0, dtype) if warm else None
    together = lg.solve(
        block_operator(backend, matrices, dtype), array(backend, b, dtype), lg.Blockwise(method), x0=start
    )
    assert together.blocks == ("0", "1", "2", "3")
    ops = plainest(backend)
    assert together.history["residual"].shape == (int(np.max(together.steps)) + 1, len(SIZES))
    for j, (matrix, rhs, x) in enumerate(zip(matrices, parts(b), parts(host(backend, together.x)), strict=True)):
        start = array(ops, parts(x0)[j], dtype) if warm else None
        alone = lg.solve(operator(ops, matrix, dtype), array(ops, rhs, dtype), method, x0=start)
        assert together.status[j] is alone.status is Status.CONVERGED
        assert abs(int(together.steps[j]) - int(alone.steps)) <= 1, "sums in another order may cost a step"
        size = np.abs(rhs).max()
        np.testing.assert_allclose(x, host(ops, alone.x), rtol=0, atol=1e-4 * size)
        if int(together.steps[j]) == int(alone.steps):
            assert int(together.products[j]) == int(alone.products)
            rows = together.history["residual"][: int(alone.steps), j]
            np.testing.assert_allclose(rows, alone.history["residual"][:-1], rtol=2e-2, atol=1e-5 * size)


def test_blocks_of_all_kinds_beside_each_other(backend):
    indefinite = with_spectrum([-1.0, 1.0, 2.0], 0)
    lowest = np.linalg.eigh(indefinite)[1][:, 0]
    matrices = [indefinite, benign(1, 5), benign(2, 1), benign(3, 4)]
    b = np.concatenate([lowest, np.full(5, np.nan), np.zeros(1), gaussian(3, 4)])
    solution = lg.solve(block_operator(backend, matrices), array(backend, b), lg.Blockwise(lg.CG(rtol=1e-9)))
    assert solution.status == [
        Status.NEGATIVE_CURVATURE,
        Status.NONFINITE_INPUT,
        Status.CONVERGED,
        Status.CONVERGED,
    ]
    assert not solution.succeeded
    x = parts(host(backend, solution.x))
    assert not np.concatenate(x[:3]).any()
    np.testing.assert_allclose(x[3], np.linalg.solve(matrices[3], b[-4:]), rtol=1e-7)
    assert np.asarray(solution.products)[:3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("warm", [False, True])
def test_a_block_ends_at_any_step_beside_others_that_go_on(backend, warm):
    """Negative curvature and exact convergence at every step index, under a rule, with every iterate kept."""
    spare(backend, FULL or warm)
    n, couplings = 5, np.linspace(0.4, 0.9, 4)
    good = tridiagonal(np.linspace(1, 3, n), couplings)
    rule = lg.AnyOf(lg.MaxResidual(1e-9), lg.RelativeProgress(1e-14, least=1))
    method = lg.CG(stop=rule, max_steps=12, keep="every")
    b = np.concatenate([unit(n), unit(n), unit(n)])
    start = array(backend, np.zeros(3 * n)) if warm else None
    for step in range(n):
        pivots = np.linspace(1, 3, n)
        pivots[step] = -0.3
        bent = tridiagonal(pivots, couplings)
        cut = good.copy()
        cut[step, step + 1 :] = cut[step + 1 :, step] = 0.0  # the Krylov space ends after step + 1
        A = block_operator(backend, [bent, cut, good])
        solution = lg.solve(A, array(backend, b), lg.Blockwise(method), x0=start)
        assert solution.status == [Status.NEGATIVE_CURVATURE, Status.CONVERGED, Status.CONVERGED]
        assert [int(s) for s in solution.steps] == [step, step + 1, n]
        assert [int(p) for p in solution.products] == [step + 1 + warm, step + 2 + warm, n + 1 + warm]
        x = np.split(host(backend, solution.x), 3)
        expected = [section(bent, step), section(cut, step + 1), np.linalg.solve(good, unit(n))]
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9)
        last = solution.iterates.steps[-1].tolist()
        assert last == [step, step + 1, n]
        np.testing.assert_array_equal(host(backend, solution.iterates[-1]), host(backend, solution.x))


def test_a_block_that_spoils_its_products_spoils_no_other(backend):
    matrices = matrices_of(0)
    bad = lg.FunctionOperator(spoiled, lg.Space.flat(5, array(backend, np.zeros(1))), symmetric=True)
    A = lg.BlockDiagonal((operator(backend, matrices[0]), bad, *[operator(backend, m) for m in matrices[2:]]))
    solution = lg.solve(A, array(backend, gaussian(0, N)), lg.Blockwise(lg.CG(rtol=1e-9)))
    assert [s is Status.CONVERGED for s in solution.status] == [True, False, True, True]
    assert solution.status[1] is Status.NONFINITE
    assert np.isfinite(host(backend, solution.x)).all()


def spoiled(v):
    return float("nan") * v


def test_one_product_serves_all_blocks(backend):
    matrix = np.zeros((N, N))
    for m, stop in zip(matrices_of(0), ENDS, strict=True):
        matrix[stop - len(m) : stop, stop - len(m) : stop] = m
    A, counter = counted(backend, matrix)
    A = with_partition(A)
    solution = lg.solve(A, array(backend, gaussian(0, N)), lg.Blockwise(lg.CG(rtol=1e-9)))
    finished(backend)
    products = np.asarray(solution.products)
    assert counter.calls == products.max() == 6  # five steps in the block of five unknowns, and one to verify
    assert products.tolist() == [4, 6, 2, 5]
    assert "at most 5 steps, 6 products" in repr(solution)


@lg.record
class Partitioned(lg.LinearOperator):
    """An operator whose user knows its blocks."""

    operator: lg.LinearOperator
    known: tuple = lg.static()

    @property
    def domain(self):
        return self.operator.domain

    @property
    def symmetric(self):
        return True

    @property
    def partition(self):
        return self.known

    def matvec(self, v):
        return self.operator.matvec(v)


def with_partition(A):
    return Partitioned(A, consecutive(SIZES))


SPACE = {"fc1": {"bias": (2,), "weight": (2, 2)}, "fc2": (3,), "head": (1,)}


def tree(backend, flat):
    xp, v = backend.namespace(), array(backend, flat)
    return {"fc1": {"bias": v[:2], "weight": xp.reshape(v[2:6], (2, 2))}, "fc2": v[6:9], "head": v[9:]}


def scattered(backend):
    """Two blocks of leaves that do not lie side by side, listed in another order than they begin in."""
    space = lg.Space.of(tree(backend, np.zeros(10)))
    blocks = (operator(backend, benign(0, 7)), operator(backend, benign(1, 3)))
    return lg.BlockDiagonal(blocks, space, leaves=((3, 1, 0), (2,))), space


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_blocks_that_do_not_lie_side_by_side(backend, damping):
    spare(backend, damping > 0)
    A, space = scattered(backend)
    assert A.partition == (Block("head+fc1.weight+fc1.bias", ((0, 6), (9, 10))), Block("fc2", ((6, 9),)))
    damped = [A] if damping == 0 else [lg.Damped(A, damping), A + damping * lg.Identity(space)]
    b = gaussian(2, 10)
    for operator_ in damped:
        flat = lg.solve(operator_, array(backend, b), lg.Blockwise(lg.CG(rtol=1e-9)))
        dense = host(backend, operator_.to_dense())
        np.testing.assert_allclose(host(backend, flat.x), np.linalg.solve(dense, b), rtol=0, atol=1e-7)
        in_trees = lg.solve(operator_, tree(backend, b), lg.Blockwise(lg.CG(rtol=1e-9)))
        np.testing.assert_array_equal(host(backend, space.pack(in_trees.x)), host(backend, flat.x))
        assert [int(steps) for steps in flat.steps] == [7, 3]


def test_as_many_blocks_as_entries(backend):
    d = np.array([3.0, 1e-6, 7e8])
    A = lg.BlockDiagonal(tuple(lg.Diagonal(array(backend, [v]), psd=True) for v in d))
    solution = lg.solve(A, array(backend, np.ones(3)), lg.Blockwise(), x0=array(backend, [0.0, 1e6, -1.0]))
    assert solution.status == [Status.CONVERGED] * 3
    np.testing.assert_allclose(host(backend, solution.x), 1 / d, rtol=1e-12)


def test_rules_and_kept_iterates_hold_for_each_block(backend):
    matrices = matrices_of(4)
    A, b = block_operator(backend, matrices), gaussian(4, N)
    method = lg.CG(stop=lg.MaxResidual(1e-8), max_steps=12, keep="every")
    solution = lg.solve(A, array(backend, b), lg.Blockwise(method))
    assert solution.status == [Status.CONVERGED] * len(SIZES)
    kept, ops = solution.iterates, plainest(backend)
    assert len(kept) == int(np.max(solution.steps)) + 1
    for j, (matrix, rhs) in enumerate(zip(matrices, parts(b), strict=True)):
        alone = lg.solve(operator(ops, matrix), array(ops, rhs), method)
        last = int(alone.steps)
        assert kept.steps[:, j].tolist() == [min(i, last) for i in range(len(kept))]
        for i, x in enumerate(kept.x):
            expected = host(ops, alone.iterates.x[min(i, last)])
            np.testing.assert_allclose(parts(host(backend, x))[j], expected, rtol=0, atol=1e-9)


def test_preconditioners_must_keep_the_blocks_apart(backend):
    spare(backend, FULL)
    matrices = matrices_of(0)
    A, b = block_operator(backend, matrices), array(backend, gaussian(0, N))
    inverse = np.concatenate([1 / np.diag(m) for m in matrices])
    jacobi = lg.Diagonal(array(backend, inverse), psd=True)
    exact = block_operator(backend, [np.linalg.inv(m) for m in matrices])
    finer = lg.BlockDiagonal(
        tuple(lg.Diagonal(array(backend, part), psd=True) for part in np.split(inverse, [3, 5, 8, 9]))
    )
    for M in (jacobi, exact, finer):
        for method in (lg.Blockwise(lg.CG(rtol=1e-8, preconditioner=M)), lg.Blockwise(lg.CG(rtol=1e-8), M)):
            solution = lg.solve(A, b, method)
            assert solution.succeeded
            if M is exact:
                assert max(int(s) for s in solution.steps) <= 2
    wider = lg.BlockDiagonal((operator(backend, benign(0, 8)), operator(backend, benign(0, 5))))
    for M in (wider, operator(backend, benign(0, N))):
        with pytest.raises(ValueError, match="keep the blocks"):
            lg.solve(A, b, lg.Blockwise(lg.CG(preconditioner=M)))
    with pytest.raises(ValueError, match="once"):
        lg.Blockwise(lg.CG(preconditioner=jacobi), jacobi)


def test_what_has_no_blocks_is_refused(backend):
    b = array(backend, gaussian(0, 3))
    with pytest.raises(ValueError, match="knows of none"):
        lg.solve(operator(backend, benign(0, 3)), b, lg.Blockwise())
    A = block_operator(backend, matrices_of(0))
    with pytest.raises(ValueError, match="one right-hand side at a time"):
        lg.solve(A, array(backend, gaussian(0, N, 2)), lg.Blockwise())
    with pytest.raises(TypeError, match="needs a solver"):
        lg.Blockwise(lg.CG)


def test_a_solution_of_blocks_reads_well(numpy_backend):
    A, _ = scattered(numpy_backend)
    text = repr(lg.solve(A, np.ones(10), lg.Blockwise(lg.CG(rtol=1e-9)))).splitlines()
    assert text[0] == "Blockwise CG, 2 blocks: 2 converged; at most 7 steps, 8 products"
    assert text[1].startswith("  head+fc1.weight+fc1.bias  converged after 7 steps; residual ")
    assert text[2].startswith("  fc2                       converged after 3 steps; residual ")
    assert text[3:] == [Status.CONVERGED.sentence]
    many = lg.BlockDiagonal(tuple(lg.Diagonal(np.ones(1), psd=True) for _ in range(30)))
    assert "  and 10 more" in repr(lg.solve(many, np.ones(30), lg.Blockwise()))


def test_layers_of_a_network_are_solved_as_each_alone(numpy_backend):
    """The block GGN of a small network, damped."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((12, 9))
    params = {"fc1": {"b": np.zeros(2), "w": np.zeros(4)}, "fc2": np.zeros(3)}
    split = {"fc1": {"b": J[:, :2], "w": J[:, 2:6]}, "fc2": J[:, 6:]}
    plane = lg.Objective.from_residuals(
        lambda p: J @ np.concatenate([p["fc1"]["b"], p["fc1"]["w"], p["fc2"]]) - 1.0, jacobian=lambda p: split
    )
    B = lg.BlockGGN(plane, params)
    gradient = plane.gradient(params)
    solution = lg.solve(lg.Damped(B, 0.1), gradient, lg.Blockwise(lg.CG(rtol=1e-10)))
    assert solution.blocks == ("fc1", "fc2")
    for name, block, rhs, x in (
        ("fc1", J[:, :6], np.concatenate([gradient["fc1"]["b"], gradient["fc1"]["w"]]), solution.x["fc1"]),
        ("fc2", J[:, 6:], gradient["fc2"], solution.x["fc2"]),
    ):
        found = np.concatenate([x["b"], x["w"]]) if name == "fc1" else x
        expected = np.linalg.solve(block.T @ block + 0.1 * np.eye(block.shape[1]), rhs)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@given(seed=seeds())
def test_arithmetic_of_blocks_is_that_of_each_part(backend, seed):
    rng = np.random.default_rng(seed)
    partition = (Block("a", ((0, 2), (5, 6))), Block("b", ((2, 5),)))
    ops = BlockArithmetic(backend, partition)
    owner = np.array([0, 0, 1, 1, 1, 0])
    x, y = rng.standard_normal(6), rng.standard_normal(6)
    X = array(backend, x)

    def plain(v):
        return np.asarray(backend.read(v), dtype=float)

    a = ops.dot(X, X)
    alpha = np.array([x[owner == j] @ x[owner == j] for j in (0, 1)])
    np.testing.assert_allclose(plain(a), alpha, rtol=1e-12)
    np.testing.assert_allclose(plain(ops.max_abs(X)), [np.abs(x[owner == j]).max() for j in (0, 1)])
    for made, expected in (
        (ops.axpy(a, X, array(backend, y)), alpha[owner] * x + y),
        (ops.axpby(1.0, X, a, array(backend, y)), x + alpha[owner] * y),
        (ops.axpby(a, X, a, array(backend, y)), alpha[owner] * (x + y)),
        (ops.scale(a, array(backend, y)), alpha[owner] * y),
        (ops.axpy(2.0, X, array(backend, y)), 2 * x + y),
        (ops.select(a > alpha.mean(), X, array(backend, y)), np.where((alpha > alpha.mean())[owner], x, y)),
        (ops.mask(a > alpha.mean(), X), np.where((alpha > alpha.mean())[owner], x, 0.0)),
    ):
        np.testing.assert_allclose(host(backend, made), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(host(backend, X), x)

    def then(u, v):
        return ops.axpy(1.0, u, v), ops.dot(u, u)

    def otherwise(u, v):
        return ops.scale(-1.0, v), 0.0 * ops.dot(u, u)

    vector, scalar = ops.branch(a > alpha.mean(), then, otherwise, X, array(backend, y))
    holds = alpha > alpha.mean()
    np.testing.assert_allclose(host(backend, vector), np.where(holds[owner], x + y, -y), rtol=1e-12)
    np.testing.assert_allclose(plain(scalar), np.where(holds, alpha, 0.0), rtol=1e-12)


def test_inside_a_compiled_program(jax):
    ops = lg.load("jax")
    matrices, b = matrices_of(7), gaussian(7, N)
    method = lg.Blockwise(lg.CG(rtol=1e-9, max_steps=10, keep=1.3))

    def program(matrices, b, damping):
        A = lg.BlockDiagonal(tuple(lg.Dense(m, symmetric=True) for m in matrices))
        return lg.solve(lg.Damped(A, damping), b, method)

    text = str(jax.make_jaxpr(program)([array(ops, m) for m in matrices], array(ops, b), 0.1))
    assert text.count("dot_general[") == len(SIZES), "each block stands once in the program"
    compiled = jax.jit(program)
    for damping in (0.1, 1.0):
        inside = compiled([array(ops, m) for m in matrices], array(ops, b), damping)
        assert inside.status == [Status.CONVERGED] * len(SIZES)
        for matrix, rhs, x in zip(matrices, parts(b), parts(host(ops, inside.x)), strict=True):
            expected = np.linalg.solve(matrix + damping * np.eye(len(matrix)), rhs)
            np.testing.assert_allclose(x, expected, rtol=0, atol=1e-8)
        assert repr(inside).startswith("Blockwise CG, 4 blocks: 4 converged")
        np.testing.assert_array_equal(host(ops, inside.iterates.x[-1]), host(ops, inside.x))
    assert compiled._cache_size() == 1


def test_a_million_unknowns_in_single_precision(backend):
    spare(backend, FULL)
    if backend.name in ("array_api_strict", "poison"):
        pytest.skip("the same arithmetic as NumPy's, slower")
    n, k = 1_000_000, 4
    d, b = np.linspace(1.0, 100.0, n), np.random.default_rng(0).standard_normal(n)
    d[: n // k] = 3.0  # done in a step
    A = lg.BlockDiagonal(tuple(lg.Diagonal(array(backend, part, "float32"), psd=True) for part in np.split(d, k)))
    rule = lg.AnyOf(lg.RelativeResidual(1e-5), lg.RelativeProgress(1e-8))
    solution = lg.solve(A, array(backend, b, "float32"), lg.Blockwise(lg.CG(stop=rule, max_steps=100)))
    assert solution.status == [Status.CONVERGED] * k
    assert int(solution.steps[0]) == 1
    for part, rhs, x in zip(*(np.split(y, k) for y in (d, b, host(backend, solution.x))), strict=True):
        assert np.linalg.norm(rhs - part * x) <= 1.1e-5 * np.linalg.norm(rhs)


def plane(backend):
    """Residuals of two layers, whose curvature has terms between the layers."""
    rng = np.random.default_rng(0)
    a, b = array(backend, rng.standard_normal((12, 3))), array(backend, rng.standard_normal((12, 4)))
    y, xp = array(backend, rng.standard_normal(12)), backend.namespace()
    supplied = None if backend.calculus else lambda p: {"a": {"w": a}, "b": {"w": b}}
    return lg.Objective.from_residuals(
        lambda p: xp.matmul(a, p["a"]["w"]) + xp.matmul(b, p["b"]["w"]) - y, jacobian=supplied
    )


def test_levenberg_marquardt_goes_block_by_block(backend):
    spare(backend, FULL)
    objective, start = plane(backend), {"a": {"w": array(backend, np.ones(3))}, "b": {"w": array(backend, np.ones(4))}}
    tight, found = lg.CG(rtol=1e-10, max_steps=30), []
    for solver in (tight, lg.Blockwise(tight)):
        method = lg.LevenbergMarquardt(curvature=lg.BlockGGN, solver=solver, damping=1.0, rtol=1e-6)
        found.append(lg.minimize(objective, start, method, max_steps=60))
    whole, blocks = found
    assert whole.status is blocks.status is Status.REDUCED
    assert int(whole.steps) == int(blocks.steps)
    np.testing.assert_allclose(blocks.history["value"], whole.history["value"], rtol=1e-6)
    assert int(blocks.products) <= int(whole.products), "no block takes more than all of them together"


def test_a_block_out_of_range_is_told_from_the_others(backend):
    """Its answer is zero, with the residual of zero; what it kept on the way is zero where it was out of range too."""
    spare(backend, FULL)
    values = (np.array([1e-26, 1e-20]), np.array([1.0, 2.0]))
    A = lg.BlockDiagonal(tuple(lg.Diagonal(array(backend, part, "float32"), psd=True) for part in values))
    b = array(backend, np.array([1e15, 0.0, 1.0, 1.0]), "float32")
    for method in (lg.CG(steps=2, keep="every"), lg.MINRES(steps=2)):
        if backend.name == "jax" and type(method) is lg.MINRES:
            continue  # compiled for one of them
        solution = lg.solve(A, b, lg.Blockwise(method))
        assert solution.status == [Status.NONFINITE, Status.COMPLETED]
        np.testing.assert_allclose(backend.to_numpy(solution.x), [0.0, 0.0, 1.0, 0.5], rtol=1e-5)
        residual, model = (np.asarray(x, float) for x in (solution.residual, solution.model))
        assert residual[0] == pytest.approx(1e15, rel=1e-5)
        assert (model[0], residual[1] < 1e-6) == (0.0, True)
        if solution.iterates is not None:
            assert all(np.isfinite(backend.to_numpy(x)).all() for x in solution.iterates.x)
