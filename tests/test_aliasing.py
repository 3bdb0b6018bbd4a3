"""Memory that its owner writes to later changes nothing that was made from it.

JAX uses the memory of suitable NumPy arrays as it is, and reads it whenever its
work gets there: writing to it afterwards gives wrong results, now and then.
"""

import numpy as np
import pytest

import linop_gn as lg


@pytest.mark.parametrize("size", [64, 100_000])
def test_a_solve_may_be_followed_by_writing_to_what_it_was_given(size):
    jnp = pytest.importorskip("jax.numpy")
    backend = lg.load("jax")
    for _ in range(20):
        diagonal, rhs = np.full(size, 2.0), np.ones(size)
        A = lg.Diagonal(backend.asarray(diagonal, "float64"))
        b = backend.asarray(rhs, "float64")
        solution = lg.solve(A, b, lg.CG(rtol=1e-12))
        diagonal[:], rhs[:] = np.nan, np.nan
        assert bool(jnp.all(solution.x == 0.5))


def aligned(n):
    """A vector whose memory JAX takes as it is: it starts at a multiple of 64 bytes."""
    room = np.zeros(n + 8)
    start = (-room.ctypes.data // 8) % 8
    return room[start : start + n]


def test_borrowed_memory_may_be_written_to_after_waiting(jax):
    """Work on it is queued: without the wait, most of these results are wrong."""
    n, backend = 400, lg.load("jax")
    weights = jax.numpy.asarray(np.random.default_rng(0).standard_normal((n, n)) / n)
    work = jax.jit(lambda v: (v.reshape(n, n) @ weights) @ weights)
    numbers = np.random.default_rng(1).standard_normal(n * n)
    want = np.array(work(backend.asarray(numbers, "float64")))
    lent = aligned(n * n)
    for _ in range(20):
        lent[:] = numbers
        result = backend.wait(work(backend.borrow(lent)))
        lent[:] = np.nan
        np.testing.assert_array_equal(np.array(result), want)
