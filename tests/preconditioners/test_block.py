"""Block Jacobi against dense inverses of the blocks, for every way of having blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import benign, in_full, with_spectrum
from systems import host as flat_host

import linop_gn as lg
from linop_gn.preconditioners import BlockJacobi
from linop_gn.testing.strategies import array

from ..curvature.cases import Case, Streamed, cases, dense, objective, put
from ..curvature.networks import leaves
from ..curvature.test_block_ggn import BLOCKS

IN_CI_ON_JAX = ("test_large_blocks_are_sketched", "test_the_blocks_that_an_operator_is_made_of")


def inverse(matrix, groups, sizes, damping):
    """The inverse of the damped blocks, in place."""
    owner = np.repeat(groups, sizes)
    made = np.zeros_like(matrix)
    for group in set(groups):
        where = np.ix_(owner == group, owner == group)
        made[where] = np.linalg.inv(matrix[where] + damping * np.eye(int((owner == group).sum())))
    return made


def check(case, which, backend, hold=list, damping=0.1):
    blocks, groups = BLOCKS[case.network][which]
    sizes = [np.size(leaf) for leaf in leaves(case.params())]
    want = inverse(dense(case).G, groups, sizes, damping)
    made, params = objective(case, backend, hold=hold), put(backend, case.params())
    for A in (lg.GGN(made, params), lg.BlockGGN(made, params, blocks=blocks)):
        M = BlockJacobi(blocks=blocks if isinstance(A, lg.GGN) else None)(lg.Damped(A, damping))
        assert M.psd
        np.testing.assert_allclose(flat_host(backend, M.to_dense()), want, atol=1e-9 / damping)


@settings(max_examples=12)
@given(data=st.data(), case=cases(networks=("mlp", "convolutional", "residual", "single", "decay")))
def test_the_blocks_of_a_network(numpy_backend, torch, data, case):
    which = data.draw(st.sampled_from(range(len(BLOCKS[case.network]))))
    hold = data.draw(st.sampled_from([list, Streamed]))
    check(case, which, data.draw(st.sampled_from([numpy_backend, lg.load("torch")])), hold)


@in_full  # in CI on NumPy and torch above, and on JAX within test_fewer_steps
@pytest.mark.parametrize("hold", [list, Streamed])
def test_the_blocks_of_a_network_in_jax(jax, hold):
    check(Case("mlp", "softmax", "mean", 0, "weights", sizes=(2, 2, 1)), 1, lg.load("jax"), hold)


def tree(backend, sizes):
    return {name: array(backend, np.zeros(n)) for name, n in zip("abc", sizes, strict=True)}


def test_the_blocks_of_any_operator_on_trees(backend):
    matrix, sizes = benign(0, 6), (1, 3, 2)
    A = lg.Dense(array(backend, matrix), symmetric=True, domain=lg.Space.of(tree(backend, sizes)))
    for blocks, groups in ((None, [0, 1, 2]), ({"x": ["a", "c"], "y": "b"}, [0, 1, 0])):
        M = BlockJacobi(blocks=blocks)(lg.Damped(A, 0.5))
        np.testing.assert_allclose(flat_host(backend, M.to_dense()), inverse(matrix, groups, sizes, 0.5), atol=1e-12)
    whole = BlockJacobi()(lg.Dense(array(backend, matrix), symmetric=True))
    np.testing.assert_allclose(flat_host(backend, whole.to_dense()), np.linalg.inv(matrix), atol=1e-12)


def test_the_blocks_that_an_operator_is_made_of(backend):
    one, two = (lg.Dense(array(backend, benign(seed, n)), psd=True) for seed, n in ((0, 2), (1, 3)))
    for leaves_, B in ((False, lg.BlockDiagonal((one, two))), (True, None)):
        if leaves_:
            space = lg.Space.of(tree(backend, (1, 3, 1)))
            B = lg.BlockDiagonal((one, two), space, leaves=((0, 2), (1,)))
        M = BlockJacobi()(lg.Damped(B, 0.5))
        both = flat_host(backend, (M @ lg.Damped(B, 0.5)).to_dense())
        np.testing.assert_allclose(both, np.eye(5), atol=1e-12)


def test_large_blocks_are_sketched(backend):
    matrix = with_spectrum(np.r_[np.full(3, 100.0), np.full(7, 1e-3)], 0)
    whole = np.zeros((12, 12))
    whole[:10, :10], whole[10:, 10:] = matrix, benign(1, 2)
    domain = lg.Space.of({"a": array(backend, np.zeros(10)), "b": array(backend, np.zeros(2))})
    A = lg.Dense(array(backend, whole), psd=True, domain=domain)
    M = flat_host(backend, BlockJacobi(dense=5, rank=6)(lg.Damped(A, 1e-2)).to_dense())
    values = np.linalg.eigvals(M @ (whole + 1e-2 * np.eye(12))).real
    assert values.max() / values.min() < 1.5
    assert np.linalg.cond(whole + 1e-2 * np.eye(12)) > 1e3
    with pytest.raises(ValueError, match=r"too large to be factored \(dense=5\) and is not known"):
        BlockJacobi(dense=5)(lg.replace(A, psd=False, symmetric=True))


def test_blocks_that_are_singular_or_indefinite_stay_positive(backend):
    matrix = np.diag([2.0, 0.0, -3.0, 0.0])
    space = lg.Space.of({"a": array(backend, np.zeros(3)), "b": array(backend, np.zeros(1))})
    A = lg.Dense(array(backend, matrix), symmetric=True, domain=space)
    M = flat_host(backend, BlockJacobi()(lg.Damped(A, 0.5)).to_dense())
    np.testing.assert_allclose(M, np.diag(1 / np.array([2.5, 0.5, 3.5, 0.5])), atol=1e-12)
    undamped = flat_host(backend, BlockJacobi()(A).to_dense())
    assert (np.linalg.eigvalsh(undamped) > 0).all()
    assert np.isfinite(undamped).all()


def test_errors_say_what_to_do(numpy_backend):
    with pytest.raises(ValueError, match="needs a symmetric operator"):
        BlockJacobi()(lg.Dense(np.array([[1.0, 2.0], [0.0, 1.0]])))
    with pytest.raises(ValueError, match="dense must be a whole number >= 0"):
        BlockJacobi(dense=-1)
    with pytest.raises(ValueError, match=r"what it computed for .* holds NaN"):
        BlockJacobi()(lg.FunctionOperator(lambda v: v * np.nan, lg.Space.flat(3, np.zeros(1)), symmetric=True))
