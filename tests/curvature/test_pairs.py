"""Residuals of all pairs, (n, 1) less (n,), are told; images of residuals are not."""

import warnings

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature.pairs import may_be_pairs
from linop_gn.testing.strategies import array

N = 6
X, Y = np.linspace(0.0, 1.0, N)[:, None], 1.0 + 2.0 * np.linspace(0.0, 1.0, N) ** 2
POINTS = np.random.default_rng(0).standard_normal((N, 2))
PAIRED = {
    "start at zero": lambda p, x, y: p[0] * x + p[1] - y,
    "weights of rows": lambda p, x, y: (p[0] * x + p[1] + x - y) / (1.0 + x),
    "weights of columns": lambda p, x, y: (p[0] * x + p[1] + x - y) / (1.0 + y),
    "the other way": lambda p, x, y: y[:, None] - (p[0] * x + p[1])[:, 0] * 2.0,
}
IMAGES = {
    "a bump": lambda p, x, y: (1 + p[0]) * x * x[:, 0] ** 2 - x**2 * x[:, 0],
    "all the same": lambda p, x, y: 0.0 * (x + y) + p[0] + 1.0,
    "a column": lambda p, x, y: p[0] * x - y[:, None],
}


def told(run):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in seen if "residuals, one for each pair" in str(w.message)]


def fitted(backend, residuals, **data):
    x, y, start = (array(backend, value) for value in (X, Y, np.zeros(2)))
    return lambda: lg.least_squares(residuals, start, args=(x, y), max_steps=1, **data)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("name", PAIRED)
def test_pairs_are_told(framework, name):
    backend = lg.load(framework)
    (message,) = told(fitted(backend, PAIRED[name]))
    assert f"there are {N} x {N} residuals" in message


@pytest.mark.parametrize("shape", [(N, 1, 1), (N - 1, 1), (1, N, 1)])
def test_pairs_along_other_axes_are_told(numpy_backend, shape):
    rows = X[: max(shape)].reshape(shape)
    (message,) = told(lambda: lg.least_squares(lambda p: p[0] * rows + p[1] - Y, np.zeros(2), max_steps=1))
    assert f"there are {max(shape)} x {N} residuals" in message
    table = np.zeros((max(shape), N))
    assert told(lambda: lg.least_squares(lambda p: p[0] * rows - Y - table, np.zeros(2), max_steps=1)) == []


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_no_pairing_is_not(numpy_backend, name):
    assert told(fitted(numpy_backend, IMAGES[name])) == []


def test_an_exact_plane_is_an_image_where_one_is_known(numpy_backend):
    image = X + X[:, 0]
    plane = lambda p: p[0] * X + p[1] * X[:, 0] - image  # noqa: E731
    assert told(lambda: lg.least_squares(plane, np.array([0.5, 0.5]))) == []
    given = lambda p, z: p[0] * X + p[1] * X[:, 0] - z  # noqa: E731
    assert told(lambda: lg.least_squares(given, np.array([0.5, 0.5]), args=(image,))) == []


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_many_features_are_no_image(name):
    backend = lg.load(name)
    points, y, start = (array(backend, value) for value in (POINTS, Y, np.zeros((2, 1))))
    fit = lg.Objective.from_residuals(lambda w, data: data[0] @ w - data[1], (points, y))
    assert len(told(lambda: fit.value(start))) == 1
    assert told(lambda: fit.value(start)) == []  # once
    model = lg.Objective(lambda w, x: x @ w - y, lg.losses.SquaredError(), (points, None))
    assert len(told(lambda: lg.GGN(model, start) @ start)) == 1


def test_what_functions_hold_is_found(numpy_backend):
    image = np.eye(N)

    class Scene:
        def __init__(self):
            self.image = image

        def residuals(self, p):
            return p - self.image

        def __call__(self, p):
            return p - self.image

    def inner(p, z=image):
        return p - z

    holders = [Scene().residuals, Scene(), inner, lambda p: inner(p), lg.losses.FromFunction(inner).fn]
    assert not any(may_be_pairs(numpy_backend, (N, N), holder, None) for holder in holders)
    assert may_be_pairs(numpy_backend, (N, N), lambda p: p - Y, (X, Y))
