"""The arithmetic that solvers are made of, on every backend, against float64 NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linop_gn.testing import poison, poison_backend
from linop_gn.testing.strategies import array, dtypes, sizes

TOLERANCE = {"float64": 1e-14, "float32": 1e-5}
numbers = st.floats(-100, 100, width=32)
awkward = [0.0, -0.0, 1.0, -3.0, 1e-300, -1e300, math.inf, -math.inf, math.nan]


def draw_vectors(data, backend, count, dtype="float64"):
    """``count`` vectors or blocks of columns of one shape: as host arrays in ``dtype``, and on the backend."""
    n = data.draw(sizes(backend)) if "compiled" not in backend.capabilities else 4
    shape = data.draw(st.sampled_from([(n,), (n, 1), (n, 3)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    hosts = [rng.standard_normal(shape).astype(dtype) for _ in range(count)]
    return hosts, [array(backend, host, dtype) for host in hosts]


def scalar(backend, value, like, data=None):
    """A scalar of the backend for ``like``; one value for each column where ``data`` draws more."""
    k = backend.describe(like)[0][1:]
    values = np.asarray([value] + [data.draw(numbers) for _ in range(k[0] - 1)]) if k and data else value
    return backend.scalar(1.0, like) * values, values


def read(backend, x):
    return np.asarray(backend.read(x), dtype=float)


def check(backend, result, expected, like):
    assert backend.describe(result) == backend.describe(like), "shape, dtype and device stay"
    dtype = backend.describe(like)[1]
    np.testing.assert_allclose(
        np.asarray(backend.to_numpy(result), dtype=float), expected, rtol=0, atol=TOLERANCE[dtype] * 1e5
    )
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    assert np.abs(np.asarray(backend.to_numpy(result), dtype=float) - expected).max(initial=0.0) <= (
        4 * TOLERANCE[dtype] * scale
    )


@given(data=st.data(), a=numbers, b=numbers)
def test_vector_updates_compute_what_they_say(backend, data, a, b):
    dtype = data.draw(dtypes(backend))
    (x, y), (X, Y) = draw_vectors(data, backend, 2, dtype)
    x, y = x.astype(float), y.astype(float)
    (A, a), (B, b) = scalar(backend, a, X, data), scalar(backend, b, X, data)
    check(backend, backend.axpy(A, X, backend.copy(Y)), a * x + y, X)
    check(backend, backend.axpby(A, X, B, backend.copy(Y)), a * x + b * y, X)
    check(backend, backend.scale(A, backend.copy(Y)), a * y, X)
    check(backend, backend.subtract(X, backend.copy(Y)), x - y, X)
    check(backend, backend.zeros_like(X), 0 * x, X)
    check(backend, X, x, X)
    check(backend, Y, y, X)


@given(data=st.data(), a=st.sampled_from([0, 1, 1.0, -2, 0.5]))
def test_scalars_may_be_python_numbers_and_arrays_of_no_axes(backend, data, a):
    (x, y), (X, Y) = draw_vectors(data, backend, 2)
    for factor in (a, array(backend, float(a)), np.float32(a)):
        check(backend, backend.axpy(factor, X, backend.copy(Y)), a * x + y, X)
        check(backend, backend.axpby(factor, X, factor, backend.copy(Y)), a * x + a * y, X)
        check(backend, backend.scale(factor, backend.copy(X)), a * x, X)


def test_copies_share_nothing_with_their_original(backend):
    x = array(backend, np.arange(3.0))
    backend.scale(5.0, backend.copy(x))
    np.testing.assert_array_equal(backend.to_numpy(x), np.arange(3.0))


@given(data=st.data())
def test_dot_and_max_abs_are_taken_a_column_at_a_time(backend, data):
    dtype = data.draw(dtypes(backend))
    (x, y), (X, Y) = draw_vectors(data, backend, 2, dtype)
    x, y = x.astype(float), y.astype(float)
    product, largest = read(backend, backend.dot(X, Y)), read(backend, backend.max_abs(X))
    assert product.shape == largest.shape == x.shape[1:]
    np.testing.assert_allclose(product, (x * y).sum(axis=0), rtol=0, atol=10 * TOLERANCE[dtype] * len(x))
    np.testing.assert_allclose(largest, np.abs(x).max(axis=0), rtol=1e-6)
    assert bool(np.all(read(backend, backend.dot(X, X)) >= 0))


@pytest.mark.parametrize("shape", [(1_000_000,), (200_000, 2)])
def test_single_precision_dots_are_accumulated_safely(backend, shape):
    x = np.random.default_rng(0).uniform(0.5, 1.0, shape).astype("float32")
    exact = (x.astype(float) ** 2).sum(axis=0)
    got = read(backend, backend.dot(array(backend, x, "float32"), array(backend, x, "float32")))
    np.testing.assert_allclose(got, exact, rtol=2e-7)


def test_half_precision_dots_do_not_overflow(numpy_backend):
    x = np.full(100, 100.0, dtype="float16")
    assert numpy_backend.dot(x, x) == pytest.approx(1e6)
    assert numpy_backend.dot(np.stack([x, x], axis=1), np.stack([x, x], axis=1)).tolist() == [1e6, 1e6]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_entries_show_in_dot_and_max_abs(backend, bad):
    x = np.ones(5)
    x[3] = bad
    X = array(backend, x)
    assert not bool(backend.read(backend.isfinite(backend.max_abs(X))))
    assert not bool(backend.read(backend.isfinite(backend.dot(X, X))))


# scalars


def scalars(backend, columns):
    """Pairs of awkward numbers, one by one or as columns."""
    like = array(backend, np.zeros((1, len(awkward)) if columns else 1))
    if columns:
        for shift in range(len(awkward)):
            x, y = np.asarray(awkward), np.roll(awkward, shift)
            one = backend.scalar(1.0, like)
            yield x, y, one * x, one * y
    else:
        for x in awkward:
            for y in awkward:
                one = backend.scalar(1.0, like)
                yield x, y, one * x, one * y


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.filterwarnings("error")
def test_scalar_functions_never_raise_and_pass_nan_on(backend, columns):
    for x, y, X, Y in scalars(backend, columns):
        with np.errstate(all="ignore"):
            quotient = np.where(np.equal(y, 0), 0.0, np.divide(x, np.where(np.equal(y, 0), 1.0, y)))
            root = np.sqrt(x)
        same = np.testing.assert_allclose
        same(read(backend, backend.divide(X, Y)), quotient, rtol=1e-6)
        same(read(backend, backend.sqrt(X)), root, rtol=1e-6)
        same(read(backend, backend.minimum(X, Y)), np.minimum(x, y), rtol=1e-6)
        same(read(backend, backend.maximum(X, Y)), np.maximum(x, y), rtol=1e-6)
        same(read(backend, backend.isfinite(X)), np.isfinite(x))
        same(read(backend, backend.where(X > Y, X, Y)), np.where(np.greater(x, y), x, y), rtol=1e-6)
        same(read(backend, backend.logical_not(X > Y)), np.logical_not(np.greater(x, y)))
        same(read(backend, (X > Y) | (X < Y)), np.greater(x, y) | np.less(x, y))
        assert bool(backend.read(backend.any(X > Y))) == bool(np.any(np.greater(x, y)))


@given(exponent=st.integers(-120, 120), mantissa=st.floats(1, 1.999), sign=st.sampled_from([-1.0, 1.0]))
def test_power_of_two_is_the_one_at_or_below(backend, exponent, mantissa, sign):
    like = array(backend, np.zeros(1), "float32")
    value = backend.scalar(1.0, like) * (sign * mantissa * 2.0**exponent)
    assert float(read(backend, backend.power_of_two(value, like))) == 2.0**exponent


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_power_of_two_of_what_has_none_is_one(backend, value):
    for shape in ((1,), (1, 2)):
        like = array(backend, np.zeros(shape))
        found = read(backend, backend.power_of_two(backend.scalar(1.0, like) * value, like))
        assert found.tolist() == np.ones(shape[1:]).tolist()


@pytest.mark.parametrize("value", [1e-300, 1e300, 5e-324])
def test_power_of_two_and_its_inverse_are_numbers_of_the_dtype(backend, value):
    for dtype in ("float32", "float64"):
        like = array(backend, np.ones(1), dtype)
        found = backend.power_of_two(backend.scalar(1.0, like) * value, like)
        for factor in (found, backend.divide(backend.scalar(1.0, like), found)):
            scaled = float(backend.to_numpy(backend.scale(factor, backend.copy(like)))[0])
            assert scaled > 0
            assert math.isfinite(scaled)
            assert math.log2(scaled) == round(math.log2(scaled))


# choices


@pytest.mark.parametrize("columns", [False, True])
def test_select_and_mask_drop_whatever_the_rejected_holds(backend, columns):
    shape = (3, 2) if columns else (3,)
    good, bad = array(backend, np.ones(shape)), array(backend, np.full(shape, np.nan))
    one = backend.scalar(1.0, good)
    pattern = np.array([True, False]) if columns else True
    chosen = one * pattern > 0.5
    rejected = backend.logical_not(chosen)
    for result, expected in (
        (backend.select(chosen, good, bad), np.where(pattern, np.ones(shape), np.nan)),
        (backend.select(chosen, bad, good), np.where(pattern, np.full(shape, np.nan), 1.0)),
        (backend.mask(chosen, good), np.where(pattern, np.ones(shape), 0.0)),
        (backend.mask(rejected, bad), np.where(pattern, np.zeros(shape), np.nan)),
    ):
        np.testing.assert_array_equal(backend.to_numpy(result), expected)
    assert backend.describe(backend.mask(chosen, good)) == backend.describe(good)


@pytest.mark.parametrize("pattern", [True, False, [True, True], [False, False], [True, False]])
def test_branch_takes_a_side_for_each_column(backend, pattern):
    pattern = np.asarray(pattern)
    x = np.arange(6.0).reshape(3, 2) if pattern.ndim else np.arange(3.0)
    X = array(backend, x)
    one = backend.scalar(1.0, X)

    def then(v, s):
        return backend.scale(2.0, v), s + 1.0

    def otherwise(v, s):
        return backend.subtract(backend.zeros_like(v), v), s - 1.0

    vector, number = backend.branch(one * pattern > 0.5, then, otherwise, backend.copy(X), one * 5.0)
    np.testing.assert_array_equal(backend.to_numpy(vector), np.where(pattern, 2 * x, -x))
    np.testing.assert_array_equal(read(backend, number), np.where(pattern, 6.0, 4.0))


# arrays


@given(data=st.data())
def test_arrays_keep_their_values_on_the_way_there_and_back(backend, data):
    dtype = data.draw(dtypes(backend))
    (x,), (X,) = draw_vectors(data, backend, 1, dtype)
    assert backend.is_array(X)
    assert backend.describe(X)[:2] == (x.shape, dtype)
    np.testing.assert_array_equal(backend.to_numpy(X), x)
    wide = backend.cast(X, "float64")
    assert backend.describe(wide)[:2] == (x.shape, "float64")
    assert backend.describe(wide)[2] == backend.describe(X)[2]
    found = backend.read({"x": X, "n": [3, None]})
    np.testing.assert_array_equal(found["x"], x)
    assert found["n"] == [3, None]
    assert backend.eps(X) == np.finfo(dtype).eps


def test_leaf_names_join_the_path(backend):
    x = array(backend, np.ones(1))
    tree = {"head": (x,), "layers": [{"weight": x}, {"weight": x}]}
    names, leaves, structure = backend.flatten(tree)
    assert names == ["head.0", "layers.0.weight", "layers.1.weight"]
    assert all(leaf is x for leaf in leaves)
    assert backend.unflatten(structure, [1, 2, 3]) == {"head": (1,), "layers": [{"weight": 2}, {"weight": 3}]}
    assert backend.flatten(x)[0] == [""]


def test_functions_of_columns_are_put_side_by_side(backend):
    X = array(backend, np.arange(6.0).reshape(3, 2))
    result = backend.over_columns(lambda v: backend.scale(2.0, backend.copy(v[1:])), X)
    np.testing.assert_array_equal(backend.to_numpy(result), 2 * np.arange(6.0).reshape(3, 2)[1:])


# what is consumed


@pytest.mark.parametrize("name", ["scale", "axpy", "axpby", "subtract"])
def test_the_poisoning_backend_spoils_what_is_consumed_and_nothing_else(name):
    x, y = poison(np.ones(3)), poison(np.full(3, 2.0))
    call = {
        "scale": lambda: poison_backend.scale(3.0, y),
        "axpy": lambda: poison_backend.axpy(3.0, x, y),
        "axpby": lambda: poison_backend.axpby(3.0, x, 2.0, y),
        "subtract": lambda: poison_backend.subtract(x, y),
    }[name]
    expected = {"scale": 6.0, "axpy": 5.0, "axpby": 7.0, "subtract": -1.0}[name]
    result = call()
    assert result.tolist() == [expected] * 3
    assert np.isnan(y).all()
    assert x.tolist() == [1.0] * 3
    assert not np.shares_memory(result, y)


def test_whatever_makes_an_array_of_the_poisoning_backend_makes_one_that_can_be_spoilt():
    xp, x = poison_backend.namespace(), poison(np.arange(6.0).reshape(3, 2))
    made = [
        xp.asarray([1.0]), xp.zeros(3), xp.where(x > 1, x, x), xp.concat([x, x]), xp.stack([x, x]), x[0], x.T @ x,
        xp.linalg.qr(x)[0], xp.exp(x), poison_backend.copy(x), poison_backend.select(np.array([True, False]), x, x),
    ]  # fmt: skip
    for array_made in made:
        assert poison_backend.is_array(array_made)
