"""Vector and scalar arithmetic against NumPy in float64, traced and not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from linop_gn_jax import backend as ops

from linop_gn.run.status import Status

SINGLE = st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)
VECTOR = npst.arrays(np.float32, (17,), elements=SINGLE)
COLUMNS = npst.arrays(np.float32, (17, 3), elements=SINGLE)
NORMAL = np.finfo(np.float32).smallest_normal


@given(VECTOR, VECTOR, SINGLE, SINGLE)
def test_updates_agree_with_numpy(x, y, a, b):
    X, Y, A, B = x.astype(float), y.astype(float), float(a), float(b)
    tiny = 1e-6 * ((abs(A) + 1) * np.abs(X) + (abs(B) + 1) * np.abs(Y))
    for got, want in (
        (ops.scale(a, jnp.asarray(x)), A * X),
        (ops.axpy(a, jnp.asarray(x), jnp.asarray(y)), A * X + Y),
        (ops.axpby(a, jnp.asarray(x), b, jnp.asarray(y)), A * X + B * Y),
        (ops.subtract(jnp.asarray(x), jnp.asarray(y)), X - Y),
    ):
        assert got.dtype == np.float32
        assert np.all(np.abs(np.asarray(got) - want) <= tiny + NORMAL)


@given(COLUMNS, COLUMNS)
def test_dots_and_norms_of_columns(x, y):
    got = ops.dot(jnp.asarray(x), jnp.asarray(y))
    assert got.shape == (3,)
    bound = 1e-5 * np.sum(np.abs(x.astype(float) * y), axis=0) + NORMAL
    assert np.all(np.abs(got - np.sum(x.astype(float) * y, axis=0)) <= bound)
    np.testing.assert_array_equal(ops.max_abs(jnp.asarray(x)), np.max(np.abs(x), axis=0))


@jax.jit
def compiled_power_of_two(x):
    return ops.power_of_two(x, jnp.zeros(1, "float32"))


def test_a_column_scalar_scales_its_column():
    x = jnp.ones((4, 2))
    np.testing.assert_array_equal(ops.axpy(jnp.array([2.0, 3.0]), x, x)[0], [3.0, 4.0])


@pytest.mark.parametrize("n", [1_000_003, 10_000_000])
def test_dot_accumulates_safely_in_single_precision(n):
    x = np.random.default_rng(0).random(n, dtype=np.float32)
    exact = float(np.sum(x.astype(np.float64) ** 2))
    v = jnp.asarray(x)
    assert abs(float(ops.dot(v, v)) - exact) <= 1e-6 * exact
    carried = jax.jit(lambda v: jax.lax.fori_loop(0, 2, lambda i, s: s * 0 + ops.dot(v + 0 * s, v), jnp.float32(0)))(v)
    assert abs(float(carried) - exact) <= 1e-6 * exact


def test_narrow_vectors_have_single_precision_scalars():
    x = jnp.full(1000, 100.0, jnp.float16)
    assert ops.dot(x, x).dtype == np.float32
    assert float(ops.dot(x, x)) == 1e7  # float16 ends at 65504
    assert ops.scale(jnp.float32(0.5), x).dtype == np.float16
    assert ops.scalar(0.0, x).dtype == np.float32
    assert ops.max_abs(x).dtype == np.float32


@pytest.mark.parametrize("odd", [0, 31])
def test_long_vectors_are_reduced_in_windows(odd):
    rng, n = np.random.default_rng(0), (1 << 16) + odd
    x, y = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    exact = x.astype(float) @ y
    assert abs(float(ops.dot(jnp.asarray(x), jnp.asarray(y))) - exact) <= 1e-6 * float(abs(x.astype(float) * y).sum())
    assert float(ops.max_abs(jnp.asarray(x))) == float(abs(x).max())
    for place in (0, n - 32, n - 1):
        for value in (math.nan, -math.inf):
            spoiled = np.where(np.arange(n) == place, np.float32(value), x)
            assert np.array_equal(ops.max_abs(jnp.asarray(spoiled)), abs(value), equal_nan=True)


def test_several_dots_of_long_vectors_are_one_pass():
    x, y = (jnp.asarray(np.random.default_rng(i).uniform(0.5, 1, 100_003), jnp.float32) for i in range(2))
    found, program = ops.dots((x, x), (x, y), (y, y)), str(jax.make_jaxpr(lambda x, y: ops.dots((x, x), (x, y)))(x, y))
    for got, (a, b) in zip(found, ((x, x), (x, y), (y, y)), strict=True):
        np.testing.assert_allclose(got, np.asarray(a, float) @ np.asarray(b, float), rtol=2e-7)
        assert got == ops.dot(a, b)
    assert program.count("dimensions=(1,)") == 1


def test_max_abs_shows_what_is_not_finite():
    assert math.isnan(ops.max_abs(jnp.array([1.0, math.nan])))
    assert math.isinf(ops.max_abs(jnp.array([1.0, -math.inf])))
    assert float(ops.max_abs(jnp.zeros(0))) == 0.0


def test_scalars_have_the_type_that_they_stand_for():
    like, columns = jnp.zeros(3), jnp.zeros((3, 2))
    assert ops.scalar(1.5, like).dtype == np.float32
    assert ops.scalar(0, like).dtype == np.int32
    assert ops.scalar(Status.RUNNING, like).dtype == np.int32
    assert ops.scalar(True, like).dtype == bool
    assert ops.scalar(np.float64(0.5), like).dtype == np.float32
    np.testing.assert_array_equal(ops.scalar(2.0, columns), [2.0, 2.0])
    with ops.calculus.high_precision():
        assert ops.scalar(1.0, jnp.zeros(3, "float64")).dtype == np.float64
        assert ops.scalar(1, jnp.zeros(3, "float64")).dtype == np.int32
        status = ops.where(jnp.array(True), int(Status.CONVERGED), ops.scalar(0, like))
        assert status.dtype == np.int32


def test_division_by_zero_is_zero_in_value_and_derivative():
    x, y = jnp.array([1.0, 0.0, -2.0]), jnp.array([0.0, 0.0, 4.0])
    np.testing.assert_array_equal(ops.divide(x, y), [0.0, 0.0, -0.5])
    assert float(ops.divide(1.0, 0.0)) == 0.0
    gradient = jax.grad(lambda y: jnp.sum(ops.divide(x, y)))(y)
    np.testing.assert_array_equal(gradient, [0.0, 0.0, 0.125])


def test_sqrt_of_a_negative_number_is_nan():
    assert math.isnan(ops.sqrt(jnp.float32(-1.0)))
    assert float(ops.sqrt(4.0)) == 2.0


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_power_of_two_is_exact_and_its_inverse_too(x):
    like = jnp.zeros(1)
    for power in (ops.power_of_two(np.float32(x), like), compiled_power_of_two(np.float32(x))):
        got = float(power)
        assert math.frexp(got)[0] == 0.5
        assert 2.0**-126 <= got <= 2.0**126
        if x == 0:
            assert got == 1.0
        elif 2.0**-126 <= abs(x) < 2.0**127:
            assert got <= abs(x) < 2 * got


def test_power_of_two_of_other_things():
    like = jnp.zeros(1)
    got = ops.power_of_two(jnp.array([math.nan, math.inf, -math.inf, 0.0, 5.0]), like)
    np.testing.assert_array_equal(got, [1.0, 1.0, 1.0, 1.0, 4.0])
    assert float(ops.power_of_two(jnp.float32(1e-30), jnp.zeros(1, jnp.float16))) == 2.0**-14
    with ops.calculus.high_precision():
        assert float(ops.power_of_two(1e-300, jnp.zeros(1, "float64"))) == 2.0 ** math.floor(math.log2(1e-300))


@pytest.mark.parametrize("condition", [True, False])
def test_branch_runs_one_side_for_one_condition(condition):
    ran = []

    def then(x):
        ran.append("then")
        return x + 1, 1.0

    def otherwise(x):
        ran.append("otherwise")
        return x - 1, 2.0

    for known in (condition, jnp.array(condition)):
        ran.clear()
        x, s = ops.branch(known, then, otherwise, jnp.zeros(2))
        assert ran == ["then" if condition else "otherwise"]
    traced = jax.jit(lambda c, x: ops.branch(c, then, otherwise, x))(condition, jnp.zeros(2))
    np.testing.assert_array_equal(traced[0], x)
    assert float(traced[1]) == s


def test_branch_selects_column_by_column():
    x = jnp.ones((3, 2))
    got = ops.branch(jnp.array([True, False]), lambda x: (2 * x, x[0]), lambda x: (-x, 5 * x[0]), x)
    np.testing.assert_array_equal(got[0], [[2, -1]] * 3)
    np.testing.assert_array_equal(got[1], [1, 5])


def test_masks_and_selections():
    x, bad = jnp.ones((2, 2)), jnp.full((2, 2), math.nan)
    np.testing.assert_array_equal(ops.mask(jnp.array([True, False]), bad)[:, 1], [0.0, 0.0])
    np.testing.assert_array_equal(ops.mask(False, bad), np.zeros((2, 2)))
    np.testing.assert_array_equal(ops.select(jnp.array([True, False]), x, 2 * x), [[1, 2], [1, 2]])
    assert bool(ops.any(jnp.array([False, True])))
    assert bool(ops.logical_not(False))
    assert bool(ops.isfinite(1.0))
    assert not bool(ops.isfinite(jnp.float32(math.inf)))
    assert (float(ops.minimum(1.0, 2.0)), float(ops.maximum(1.0, 2.0))) == (1.0, 2.0)
    assert ops.eps(jnp.zeros(1)) == float(np.finfo(np.float32).eps)


def test_branch_takes_counts_beside_python_integers_in_double_precision():
    """Python's are of 64 bits there, and so are codes that are chosen; counts are of 32."""
    with jax.enable_x64(True):
        x = jnp.zeros(2)
        assert x.dtype == jnp.float64

        def branched(c, x):
            count = ops.scalar(3, x)
            return ops.branch(c, lambda x: (ops.where(c, 1, 2), 0), lambda x: (count, count + 1), x)

        for condition, wanted in (True, (1, 0)), (False, (3, 4)):
            assert tuple(map(int, jax.jit(branched)(condition, x))) == wanted


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_numbers_of_narrow_floats_are_scalars_of_float32(dtype):
    """As dots of such vectors are: a loop that carries both has one dtype."""
    made = ops.item(jnp.ones((), dtype))
    assert made.dtype == ops.dot(jnp.ones(2, dtype), jnp.ones(2, dtype)).dtype == jnp.float32
