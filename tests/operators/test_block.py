"""Blocks side by side, and blocks that share the leaves of a tree out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.strategies import array, entries, layouts, seeds, tree


@given(layout=layouts(), seed=seeds(), data=st.data())
def test_blocks_act_on_their_leaves_wherever_those_lie(numpy_backend, layout, seed, data):
    space = lg.Space.of(tree(numpy_backend, layout, seed))
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(space.names), max_size=len(space.names)))
    order = data.draw(st.permutations(range(len(space.names))))
    groups = [tuple(i for i in order if owners[i] == owner) for owner in sorted(set(owners))]
    places = [np.arange(space.size)[block] for block in space.slices.values()]
    rng = np.random.default_rng(seed)
    expected, blocks = np.zeros((space.size, space.size)), []
    for group in groups:
        rows = np.concatenate([places[i] for i in group])
        M = rng.standard_normal((rows.size, rows.size))
        expected[np.ix_(rows, rows)] = M
        blocks.append(lg.Dense(M))
    A = lg.BlockDiagonal(tuple(blocks), space, tuple(groups))
    np.testing.assert_array_equal(dense(A), expected)
    np.testing.assert_allclose(A.to_dense(), expected, rtol=1e-15)
    np.testing.assert_array_equal(dense(A.T), expected.T)
    np.testing.assert_allclose(A.T.to_dense(), expected.T, rtol=1e-15)
    assert entries(layout) == A.shape[0]


def test_blocks_side_by_side_take_tuples_of_their_vectors(backend):
    wide = lg.Dense(array(backend, np.ones((1, 2))))
    tree_block = lg.Diagonal({"a": array(backend, [2.0]), "b": array(backend, [[3.0]])})
    A = lg.BlockDiagonal((wide, tree_block))
    assert A.shape == (3, 4)
    assert not A.symmetric
    first, second = A @ (array(backend, [1.0, 4.0]), {"a": array(backend, [1.0]), "b": array(backend, [[1.0]])})
    assert backend.to_numpy(first).tolist() == [5.0]
    assert backend.to_numpy(second["b"]).tolist() == [[3.0]]
    assert backend.to_numpy(A @ array(backend, [1.0, 4.0, 1.0, 1.0])).tolist() == [5.0, 2.0, 3.0]
    back = A.T @ (array(backend, [1.0]), {"a": array(backend, [1.0]), "b": array(backend, [[1.0]])})
    assert backend.to_numpy(back[0]).tolist() == [1.0, 1.0]


def test_rectangular_blocks_survive_preparation_and_algebra():
    A = lg.BlockDiagonal((lg.Dense(np.ones((1, 2))), lg.Dense(np.ones((2, 1)))))
    assert A.prepare().shape == (3, 3)
    expected = np.array([[1.0, 1, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(dense(A), expected)
    np.testing.assert_array_equal(dense(A.T @ A), expected.T @ expected)


def test_flags_are_those_of_all_blocks():
    P, S = lg.Diagonal(np.ones(2)), lg.Diagonal(-np.ones(2))
    G = lg.Dense(np.array([[0.0, 1.0], [2.0, 0.0]]))
    assert lg.BlockDiagonal((P, P)).psd
    assert lg.BlockDiagonal((P, S)).symmetric
    assert not lg.BlockDiagonal((P, S)).psd
    assert not lg.BlockDiagonal((P, G)).symmetric


def test_one_block_returns_an_array_of_its_own():
    A = lg.BlockDiagonal((lg.Identity(lg.Space.flat(2, np.zeros(1))),))
    v = np.ones(2)
    assert not np.shares_memory(A @ v, v)


def test_blocks_that_do_not_fit_are_refused(backend, other):
    space = lg.Space.of({"a": array(backend, np.zeros(1)), "b": array(backend, np.zeros(2))})
    one, two = lg.Diagonal(array(backend, [1.0])), lg.Diagonal(array(backend, [1.0, 2.0]))
    with pytest.raises(ValueError, match=r"the blocks have \[1, 1\] entries, 2 in all, but the domain has 3"):
        lg.BlockDiagonal((one, one), space)
    with pytest.raises(ValueError, match=r"must hold each index 0 .. 1 once: the domain's leaves are \['a', 'b'\]"):
        lg.BlockDiagonal((one, two), space, ((0,), (0,)))
    with pytest.raises(ValueError, match=r"block 0 is Diagonal\(1 x 1.*\), but its leaves \['b'\] have 2 entries"):
        lg.BlockDiagonal((one, two), space, ((1,), (0,)))
    with pytest.raises(ValueError, match="there are 2 blocks, but leaves are given for 1"):
        lg.BlockDiagonal((one, two), space, ((0, 1),))
    with pytest.raises(ValueError, match="leaves are indices into a domain"):
        lg.BlockDiagonal((one, two), leaves=((0,), (1,)))
    with pytest.raises(ValueError, match="at least one block"):
        lg.BlockDiagonal(())
    with pytest.raises(TypeError, match="not a linear operator; wrap matrices in Dense"):
        lg.BlockDiagonal((one, np.eye(2)))
    for stranger in (lg.Diagonal(array(other, [1.0])), lg.Diagonal(array(backend, [1.0], "float32"))):
        with pytest.raises(TypeError, match="blocks must share framework and dtype"):
            lg.BlockDiagonal((one, stranger))
