"""Diagonals from flat arrays and from trees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing import dense
from linop_gn.testing.strategies import array, layouts, seeds, tree


@given(layout=layouts(), seed=seeds(), positive=st.booleans())
def test_a_tree_of_values_acts_on_trees_like_it(numpy_backend, layout, seed, positive):
    values = tree(numpy_backend, layout, seed)
    space = lg.Space.of(values)
    flat = space.pack(values)
    if positive:
        flat = np.abs(flat)
        values = space.unpack(flat)
    D = lg.Diagonal(values)
    assert D.symmetric
    assert D.psd == bool((flat >= 0).all())
    np.testing.assert_array_equal(dense(D), np.diag(flat))
    result = D @ values
    np.testing.assert_array_equal(space.pack(result), flat**2)


def test_flat_values_may_act_on_a_tree(backend):
    space = lg.Space.of({"a": array(backend, np.zeros(1)), "b": array(backend, np.zeros((1, 2)))})
    D = lg.Diagonal(array(backend, [1.0, 2.0, 3.0]), domain=space)
    result = D @ space.unpack(array(backend, np.ones(3)))
    assert backend.to_numpy(result["b"]).tolist() == [[2.0, 3.0]]


def test_one_array_of_two_axes_acts_on_arrays_like_it(backend):
    D = lg.Diagonal(array(backend, np.arange(6.0).reshape(2, 3)))
    assert D.shape == (6, 6)
    np.testing.assert_array_equal(
        backend.to_numpy(D @ array(backend, np.full((2, 3), 2.0))), 2 * np.arange(6.0).reshape(2, 3)
    )


def test_zero_counts_as_not_negative_and_a_claim_is_checked(backend):
    assert lg.Diagonal(array(backend, [0.0, 1.0])).psd
    assert not lg.Diagonal(array(backend, [0.0, -1.0])).psd
    assert not lg.Diagonal(array(backend, [0.0, 1.0]), psd=False).psd
    with pytest.raises(ValueError, match=r"given with psd=True, but entry 1 is -3; leave the claim out"):
        lg.Diagonal(array(backend, [0.0, -3.0, -1.0]), psd=True)


def test_bad_values_are_refused(backend, other):
    with pytest.raises(ValueError, match="the diagonal holds 1 entries that are NaN or infinite, the first at 2"):
        lg.Diagonal(array(backend, [1.0, 2.0, np.nan]))
    with pytest.raises(TypeError, match="the diagonal has dtype int64"):
        lg.Diagonal(array(backend, [1, 2], "int64"))
    space = lg.Space.flat(3, array(backend, np.zeros(1)))
    with pytest.raises(ValueError, match=r"the diagonal has shape \(2,\); expected \(3,\)"):
        lg.Diagonal(array(backend, [1.0, 2.0]), domain=space)
    with pytest.raises(ValueError, match=r"the diagonal has shape \(3, 2\); expected \(3,\)"):
        lg.Diagonal(array(backend, np.ones((3, 2))), domain=space)
    with pytest.raises(TypeError, match=f"the domain belongs to {backend.name} but the diagonal to {other.name}"):
        lg.Diagonal(array(other, np.ones(3)), domain=space)


def test_a_claim_is_what_is_known_in_a_trace(jax):
    @jax.jit
    def flags(d):
        assert not lg.Diagonal(d).psd
        assert lg.Diagonal(d, psd=True).psd
        return d

    flags(jax.numpy.ones(2))
