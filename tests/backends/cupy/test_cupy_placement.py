"""Where arrays are, and where work runs."""

import numpy as np
import pytest

import linop_gn as lg


def on(ops, number, values=(1.0, 2.0, 3.0)):
    return ops.asarray(np.asarray(values), "float64", f"cuda:{number}")


def test_devices_have_the_names_that_other_frameworks_give_them(ops, cupy, second):
    assert ops.devices()[:2] == ["cuda:0", "cuda:1"]
    assert ops.describe(on(ops, 1))[2] == "cuda:1"
    assert {ops.describe(x)[2] for x in (ops.asarray(1.0, "float32"), ops.asarray(1.0, "float32", None))} == {"cuda:0"}
    with cupy.cuda.Device(1):
        assert ops.describe(ops.asarray(1.0, "float32"))[2] == "cuda:1"
    for device in (1, cupy.cuda.Device(1)):
        assert ops.describe(ops.asarray(1.0, "float32", device))[2] == "cuda:1"
    assert ops.describe(lg.Space.of({"w": on(ops, 1)}).zeros())[2] == "cuda:1"


def test_the_current_device_stays_what_it_was(ops, cupy, second):
    x, y = on(ops, 1), on(ops, 1)
    ops.dot(x, ops.axpy(2.0, x, y))
    with pytest.raises(TypeError):
        ops.axpy(2.0, x, ops.asarray(np.ones(3), "float32", "cuda:1"))
    assert cupy.cuda.runtime.getDevice() == 0


def test_a_fit_runs_where_its_arrays_are(ops, second):
    rng = np.random.default_rng(0)
    t, y = rng.uniform(0, 2, 20), rng.standard_normal(20)
    T, Y = on(ops, 1, t), on(ops, 1, y)
    xp = ops.namespace()
    fit = lg.Objective(
        lambda p, t: p["a"] * xp.exp(-p["b"] * t),
        lg.losses.SquaredError(),
        (T, Y),
        jacobian=lambda p, t: {
            "a": xp.exp(-p["b"] * t)[:, None],
            "b": (-p["a"] * t * xp.exp(-p["b"] * t))[:, None],
        },
    )
    start = {"a": on(ops, 1, [1.0]), "b": on(ops, 1, [1.0])}
    result = lg.minimize(fit, start, max_steps=30)
    assert result.succeeded, result
    assert {ops.describe(leaf)[2] for leaf in result.params.values()} == {"cuda:1"}
    same = lg.Objective(
        lambda p, t: p["a"] * np.exp(-p["b"] * t),
        lg.losses.SquaredError(),
        (t, y),
        jacobian=lambda p, t: {
            "a": np.exp(-p["b"] * t)[:, None],
            "b": (-p["a"] * t * np.exp(-p["b"] * t))[:, None],
        },
    )
    expected = lg.minimize(same, {"a": np.ones(1), "b": np.ones(1)}, max_steps=30)
    for name in start:
        np.testing.assert_allclose(result.params[name].get(), expected.params[name], rtol=1e-8)


def test_arrays_of_two_devices_are_refused(ops, second):
    with pytest.raises(ValueError, match="'a' on cuda:0, 'b' on cuda:1"):
        lg.Space.of({"a": on(ops, 0), "b": on(ops, 1)})


def test_waiting_waits_for_the_stream_of_each_array(ops, counts, second):
    before = 0 if counts is None else counts["wait"]
    ops.wait({"a": on(ops, 0), "b": on(ops, 1), "n": 3})
    assert counts is None or counts["wait"] == before + 2


def test_borrowed_memory_is_shared(ops):
    x = on(ops, 0)
    borrowed = ops.borrow(ops.lendable(x))
    assert ops.describe(borrowed) == ops.describe(x)
    ops.scale(3.0, x)
    assert ops.to_numpy(borrowed).tolist() == [3.0, 6.0, 9.0]


def test_numpy_arrays_are_not_mixed_in(ops):
    with pytest.raises(TypeError, match="arrays of several frameworks are mixed"):
        lg.backend_of(on(ops, 0), np.ones(3))
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(on(ops, 0))
