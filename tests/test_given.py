"""What people pass: numbers, lists, series, frames, mappings of any kind, outputs with logits, trees of residuals."""

from collections import ChainMap, UserDict
from types import MappingProxyType

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.given import as_start, as_tree
from linop_gn.testing.strategies import array

LINE = lg.Objective.from_residuals(lambda p: p - np.array([1.0, 2.0]), jacobian=lambda p: np.eye(2))
T, Y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0, 7.1])


class Series:
    """What pandas and polars have in common."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def to_numpy(self):
        return self.values


class Frame(Series):
    columns = ("t", "y")

    def __getitem__(self, name):
        return Series(self.values[:, self.columns.index(name)])


@pytest.mark.parametrize(
    "start",
    [[0.0, 0.0], (0, 0), np.zeros(2, int), Series([0.0, 0.0]), [np.float32(0), 0]],
    ids=lambda x: type(x).__name__,
)
def test_numbers_are_a_start(start):
    assert lg.minimize(LINE, start).params == pytest.approx([1.0, 2.0], abs=1e-6)
    assert lg.GGN(LINE, start).shape == (2, 2)
    assert lg.start(lg.LevenbergMarquardt(), LINE, start).params.dtype == np.float64
    assert lg.least_squares(lambda p: p - np.array([1.0, 2.0]), start).x == pytest.approx([1.0, 2.0])


def test_one_number_is_a_start():
    one = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.ones((1, 1)))
    for start in (0, 0.0, np.float32(0.0), np.array(0)):
        assert lg.minimize(one, start).params == pytest.approx([3.0], abs=1e-6)
    assert as_start(3).shape == (1,)


def test_arrays_and_trees_of_them_stay_what_they_are(backend):
    x = array(backend, np.ones(2))
    for tree in (x, [x], {"a": x}, (x, {"b": x})):
        assert as_start(tree) is tree
        assert as_tree(tree) is tree


@pytest.mark.parametrize("kind", [UserDict, MappingProxyType, ChainMap])
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_mappings_of_any_kind(name, kind):
    pytest.importorskip(name)
    backend = lg.load(name)
    x, y, w = (array(backend, v) for v in (np.arange(6.0).reshape(3, 2), np.ones(3), np.array([1.0, 2.0])))

    def made(inputs):
        jacobian = {"jacobian": lambda p, z: z["x"]} if name == "numpy" else {}
        return lg.Objective(lambda p, z: z["x"] @ p, lg.losses.SquaredError(), (inputs, y), **jacobian)

    right = backend.to_numpy(made({"x": x}).gradient(w))
    np.testing.assert_array_equal(backend.to_numpy(made(kind({"x": x})).gradient(w)), right)
    if name != "jax":
        vector = lg.Diagonal(kind({"a": w, "b": y}))
        assert set(vector.domain.names) == {"a", "b"}
        residuals = lg.Objective.from_residuals(lambda p, d: d["x"] @ p - y, kind({"x": x}))
        assert float(residuals.value(w)) == pytest.approx(3 * float(made({"x": x}).value(w)))


def test_a_mapping_with_labels_is_a_batch():
    x, y = np.arange(6.0).reshape(3, 2), np.ones(3)
    model = {"jacobian": lambda p, z: z["x"]}
    plain = lg.Objective(lambda p, z: z["x"] @ p, lg.losses.SquaredError(), ({"x": x}, y), **model)
    for data in ({"x": x, "labels": y}, [UserDict(x=x, labels=y)], (UserDict(x=x, labels=y), {"x": x, "labels": y})):
        given = lg.Objective(lambda p, z: z["x"] @ p, lg.losses.SquaredError(), data, **model)
        assert float(given.value(np.ones(2))) == float(plain.value(np.ones(2)))


def test_series_and_frames():
    found, _ = lg.curve_fit(
        lambda t, a, b: a * t + b, Series(T), Series(Y), p0=Series([1, 1]), sigma=Series(np.ones(4))
    )
    assert found == pytest.approx([2.03, 0.98])
    frame = Frame(np.stack([T, Y], 1))
    jacobian = lambda p, d: np.stack([d["t"], np.ones(4)], 1)  # noqa: E731
    line = lg.Objective.from_residuals(lambda p, d: p[0] * d["t"] + p[1] - d["y"], frame, jacobian=jacobian)
    assert lg.minimize(line, [0, 0]).params == pytest.approx([2.03, 0.98], abs=1e-6)
    model = lg.Objective(lambda p, x: x @ p, lg.losses.SquaredError(), (frame, Series(Y)), jacobian=lambda p, x: x)
    assert model.gradient([0, 0]).shape == (2,)
    fit = lg.least_squares(lambda p, t: p[0] * t + p[1] - Y, [1, 1], args=(Series(T),), bounds=(Series([0, 0]), np.inf))
    assert fit.x == pytest.approx([2.03, 0.98])
    with pytest.raises(TypeError, match=r"Write x.to_numpy\(\)"):
        lg.Dense(frame)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_residuals_that_are_a_tree(name):
    pytest.importorskip(name)
    backend = lg.load(name)
    start = array(backend, np.ones(2), "float64" if name != "jax" else "float32")
    fit = lg.least_squares(lambda p: {"a": p - 1.0, "b": (2.0 * p[:1],)}, start)
    assert backend.to_numpy(fit.x) == pytest.approx([0.2, 1.0], abs=1e-4)
    assert tuple(fit.fun.shape) == (3,)


def test_logits_among_other_outputs(torch):
    class Output(dict):
        __getattr__ = dict.__getitem__

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(2, 3)

        def forward(self, input_ids, mask=None):
            return Output(loss=None, logits=self.last(input_ids))

    model, x, y = Model(), torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    plain = lg.Objective(model.last, lg.losses.CrossEntropy(), (x, y)).gradient(model.last)
    found = lg.Objective(model, lg.losses.CrossEntropy(), UserDict(input_ids=x, labels=y)).gradient(model)
    assert torch.allclose(found["last.weight"], plain["weight"])
    function = lg.Objective(lambda w, x: Output(logits=x @ w), lg.losses.CrossEntropy(), (x, y))
    assert function.gradient(torch.zeros(2, 3)).shape == (2, 3)


def test_lists_that_a_loader_collates(torch):
    class Pairs(torch.utils.data.Dataset):
        x, y = torch.randn(5, 3, 2), torch.tensor([0, 1, 2, 0, 1])

        def __len__(self):
            return 5

        def __getitem__(self, i):
            return (self.x[i, 0], self.x[i, 1]), self.y[i]

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(2, 3)

        def forward(self, a, b):
            return self.last(a + b)

    model, loss = Both(), lg.losses.CrossEntropy()
    loader = torch.utils.data.DataLoader(Pairs(), batch_size=2)
    right = lg.Objective(model, loss, ((Pairs.x[:, 0], Pairs.x[:, 1]), Pairs.y)).gradient(model)["last.weight"]
    for data in (loader, list(loader), ([Pairs.x[:, 0], Pairs.x[:, 1]], Pairs.y)):
        assert torch.allclose(lg.Objective(model, loss, data).gradient(model)["last.weight"], right, atol=1e-6)


@pytest.mark.parametrize("of", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("given", ["numpy", "torch", "jax"])
def test_arrays_of_another_framework_are_refused_with_what_to_write(of, given):
    if of == given:
        pytest.skip("it is the same")
    pytest.importorskip(of), pytest.importorskip(given)
    here, there = lg.load(of), lg.load(given)
    module = {"jax": "jax.numpy"}.get(of, of)
    x, y = np.ones((4, 2), "float32"), np.ones(4, "float32")

    def objective(x, y, *weights, loss=None, l2=None):
        supplied = {"jacobian": lambda p, x: x} if of == "numpy" else {}
        loss = loss or lg.losses.SquaredError()
        return lg.Objective(lambda p, x: x @ p, loss, (x, y, *weights), l2=l2, **supplied)

    p, one = array(here, np.zeros(2), "float32"), array(there, np.ones(2), "float32")
    own, foreign = ([array(ops, part, "float32") for part in (x, y)] for ops in (here, there))
    A = lg.Diagonal(array(here, np.ones(2), "float32"))
    for ask in (
        lambda: objective(*foreign).gradient(p),
        lambda: objective(own[0], foreign[1]).gradient(p),
        lambda: objective(*own, foreign[1]).gradient(p),
        lambda: lg.minimize(objective(*own), p, batches=[tuple(foreign)]),
        lambda: lg.solve(A, one),
        lambda: lg.solve(A, A.values, x0=one),
        lambda: A @ one,
    ):
        with pytest.raises(TypeError, match=rf"belongs? to .* but the .* to {of}; convert it: {module}\.asarray\(x\)"):
            ask()
    if "numpy" not in (of, given):
        for ask in (
            lambda: objective(*own, l2=one).gradient(p),
            lambda: lg.least_squares(lambda p, x: p - x, p, args=(one,)),
            lambda: lg.curve_fit(lambda t, a, b: a * t + b, foreign[1], own[1]),
        ):
            with pytest.raises(TypeError, match=rf"convert it: {module}\.asarray\(x\)"):
                ask()
    if given == "numpy":
        np.testing.assert_allclose(
            here.to_numpy(objective(*own, l2=one).gradient(p)), here.to_numpy(objective(*own, l2=1.0).gradient(p))
        )


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_arguments_of_residuals_may_be_arrays_and_others(name):
    """In JAX arrays are data of the program, the rest a part of it; NumPy's are brought to other frameworks."""
    pytest.importorskip(name)
    ops = lg.load(name)
    p, t, y = array(ops, np.zeros(2), "float32"), array(ops, T, "float32"), array(ops, Y, "float32")

    def line(p, t, y, power=2.0, kind=None):
        return p[0] * t**power + p[1] - (y["y"] if isinstance(y, dict) else y)

    cases = ((t, Y, 1.0, "line"), {}), ((T, {"y": y}), {"power": 1.0, "kind": None})
    for args, kwargs in cases[: 1 if name == "jax" else 2]:  # each is compiled
        x = ops.to_numpy(lg.least_squares(line, p, args=args, kwargs=kwargs).x)
        np.testing.assert_allclose(x, np.polyfit(T, Y, 1), rtol=1e-3)
