"""Errors at the door: each says what was wrong, where, and what to do."""

import numpy as np
import pytest

from linop_gn.curvature.losses import BinaryCrossEntropy, CrossEntropy, FromFunction, Poisson, SquaredError
from linop_gn.eager.array_api import ArrayApiBackend
from linop_gn.testing.losses import LOSSES, draw

NUMPY = ArrayApiBackend("numpy", np, (np.ndarray,))
IDS = np.array([[0, 3, 1], [2, 2, 0]])
GOOD = {
    "squared": (SquaredError(), (4, 3), np.zeros((4, 3))),
    "residuals": (SquaredError(), (4,), None),
    "softmax": (CrossEntropy(), (2, 3, 4), IDS),
    "ignoring": (CrossEntropy(ignore_index=-1), (2, 3, 4), np.where(IDS == 3, -1, IDS)),
    "probabilities": (CrossEntropy(), (2, 4), np.full((2, 4), 0.25, "float32")),
    "binary": (BinaryCrossEntropy(), (3,), np.array([True, False, True])),
    "poisson": (Poisson(), (3,), np.array([0, 4, 1])),
    "callable": (FromFunction(lambda z, y: z), (3,), None),
    "summed callable": (FromFunction(lambda z, y: z.sum(), per_example=False), (3,), {"any": "thing"}),
}


def with_entry(array, position, value):
    changed = np.array(array)
    changed[position] = value
    return changed


@pytest.mark.parametrize("name", GOOD)
def test_good_data_pass(name):
    loss, shape, targets = GOOD[name]
    loss.check(NUMPY, shape, targets, None)
    if name == "summed callable":
        return
    weights = with_entry(np.ones(shape[0]), 0, 0.0)
    loss.check(NUMPY, shape, targets, weights)
    loss.check(NUMPY, shape, targets, weights > 0)
    loss.check(NUMPY, shape, targets, np.asarray(2))


def test_every_backend_has_the_same_door(backend):
    def array(x):
        return None if x is None else backend.asarray(x, str(x.dtype))

    for loss, shape, targets in GOOD.values():
        if isinstance(targets, np.ndarray):
            loss.check(backend, shape, array(targets), array(np.arange(shape[0]) < 2))
    with pytest.raises(ValueError, match=r"got 7 at position \(0, 1\)"):
        CrossEntropy().check(backend, (2, 3, 4), array(with_entry(IDS, (0, 1), 7)), None)
    with pytest.raises(ValueError, match=r"weights must be finite, got inf at position \(1,\)"):
        SquaredError().check(backend, (2,), None, array(np.array([1.0, np.inf])))
    for given in (IDS.tolist(), memoryview(IDS)):
        with pytest.raises(TypeError, match=f"targets must be an array of {backend.name}"):
            CrossEntropy().check(backend, (2, 3, 4), given, None)


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_tests_draw_passes(name):
    for seed in range(5):
        z, y, w = draw(name, seed, (2, 3, 4), 1.0, "float32")
        LOSSES[name].check(NUMPY, z.shape, y, with_entry(w, (0,) * w.ndim, 1.0))


BAD_TARGETS = [
    ("squared", (4, 3), np.zeros((4, 1)), ValueError, r"outputs' shape \(4, 3\), got \(4, 1\)"),
    ("squared", (4, 1), np.zeros(4), ValueError, r"got \(4,\).*length one only: reshape"),
    ("squared", (), np.asarray(0.0), ValueError, "no example axis"),
    ("squared", (4,), np.zeros(4, complex), TypeError, "targets must be real or integer or bool, got complex128"),
    ("squared", (4,), [0.0] * 4, TypeError, r"array of numpy, like the outputs, got builtins\.list"),
    ("squared", (2, 2), np.array([[0, 1], [np.nan, 2]]), ValueError, r"finite, got nan at position \(1, 0\)"),
    ("softmax", (2, 3, 4), None, TypeError, "class indices or probabilities"),
    (
        "softmax",
        (2, 3, 4),
        IDS[0],
        ValueError,
        r"integers of shape \(2, 3\) or probabilities of shape \(2, 3, 4\), got",
    ),
    ("softmax", (2, 3, 4), IDS * 1.0, ValueError, r"got float64 of shape \(2, 3\). Cast the class indices to integers"),
    (
        "softmax",
        (2, 3, 4),
        IDS[..., None],
        ValueError,
        r"of shape \(2, 3, 1\). Drop the last axis.*targets\[\.\.\., 0\]",
    ),
    ("softmax", (2, 3, 4), IDS[:1], ValueError, r"of shape \(1, 3\). Give one for each example"),
    ("softmax", (2, 3, 4), np.eye(4, dtype=int)[IDS], ValueError, "One-hot integers are probabilities: cast"),
    ("softmax", (2, 4, 3), IDS, ValueError, "Classes are the last axis"),
    ("softmax", (2, 3, 4), IDS > 1, TypeError, "integer or real, got bool"),
    (
        "softmax",
        (2, 3, 3),
        IDS,
        ValueError,
        r"0\.\.2 for these 3 classes .* which is not set.*, got 3 at position \(0, 1\)",
    ),
    ("softmax", (2, 3, 4), IDS - 1, ValueError, r"got -1 at position \(0, 0\) \(and 1 more like it\)"),
    ("ignoring", (2, 3, 4), IDS - 2, ValueError, r"ignore_index, which is -1.*got -2 at position \(0, 0\)"),
    ("ignoring", (2, 4), np.full((2, 4), 0.25), ValueError, "ignore_index has no meaning for probabilities"),
    ("softmax", (3, 1), np.zeros(3, int), ValueError, "at least two classes.*BinaryCrossEntropy"),
    ("probabilities", (2, 4), np.full((2, 4), 0.3), ValueError, r"sum to one .*got 1\.2 at position \(0,\)"),
    ("probabilities", (1, 3), np.array([[-0.5, 1.0, 0.5]]), ValueError, r"negative, got -0\.5 at position \(0, 0\)"),
    ("probabilities", (1, 2), np.array([[np.inf, 0.0]]), ValueError, r"finite, got inf at position \(0, 0\)"),
    ("binary", (3,), np.array([1, -1, 1]), ValueError, r"\[0, 1\].*\(y \+ 1\) / 2.*got -1 at position \(1,\)"),
    ("binary", (3,), np.array([1.0, 0.0, 1.5]), ValueError, r"got 1\.5 at position \(2,\)"),
    ("binary", (3,), None, TypeError, "targets are missing"),
    ("binary", (3, 1), np.ones(3), ValueError, "length one only"),
    ("poisson", (3,), np.array([0, 2, -3]), ValueError, r"counts must not be negative, got -3 at position \(2,\)"),
    ("poisson", (2,), np.array([np.inf, 1.0]), ValueError, "finite, got inf"),
]


@pytest.mark.parametrize(("name", "shape", "targets", "error", "match"), BAD_TARGETS)
def test_bad_targets(name, shape, targets, error, match):
    with pytest.raises(error, match=match) as raised:
        GOOD[name][0].check(NUMPY, shape, targets, None)
    assert str(raised.value).startswith(type(GOOD[name][0]).__name__)


@pytest.mark.parametrize("name", ["squared", "residuals", "softmax", "ignoring", "binary", "poisson", "callable"])
def test_bad_weights(name):
    loss, shape, targets = GOOD[name]
    n = shape[0]
    for weights, error, match in (
        (np.ones(n + 1), ValueError, rf"weights of shape \({n + 1},\) do not fit examples of shape \({n},"),
        (np.ones((1,) * (len(shape) + 1)), ValueError, "do not fit"),
        (with_entry(np.ones(n), 1, -2.0), ValueError, r"negative.*got -2 at position \(1,\)"),
        (with_entry(np.ones(n), 1, np.nan), ValueError, r"finite, got nan at position \(1,\)"),
        (np.ones(n, complex), TypeError, "weights must be bool or integer or real"),
        (np.zeros(n), ValueError, "empty batch.*weight zero"),
    ):
        with pytest.raises(error, match=match):
            loss.check(NUMPY, shape, targets, weights)
    with pytest.raises(TypeError, match=r"array of numpy.*builtins\.list"):
        SquaredError().check(NUMPY, (2,), None, [1.0, 1.0])


@pytest.mark.parametrize("name", ["squared", "softmax", "binary", "poisson", "callable"])
def test_empty_batches(name):
    loss, shape, targets = GOOD[name]
    none = (0, *shape[1:])
    targets = None if targets is None else targets[:0]
    with pytest.raises(ValueError, match="empty batch"):
        loss.check(NUMPY, none, targets, None)
    loss.check(NUMPY, none, targets, None, empty_ok=True)


def test_all_ignored_is_an_empty_batch_and_may_be_harmless():
    loss, nothing = CrossEntropy(ignore_index=-100), np.full((2, 3), -100)
    with pytest.raises(ValueError, match="empty batch: none of its 6 examples counts"):
        loss.check(NUMPY, (2, 3, 4), nothing, None)
    loss.check(NUMPY, (2, 3, 4), nothing, None, empty_ok=True)


def test_targets_are_not_looked_at_where_nothing_counts():
    weights = np.array([1.0, 0.0])
    SquaredError().check(NUMPY, (2, 2), np.array([[1, 1], [np.nan, 1]]), weights)
    CrossEntropy().check(NUMPY, (2, 3), np.array([2, -5]), weights)
    CrossEntropy().check(NUMPY, (2, 2), np.array([[0.5, 0.5], [np.nan, -1]]), weights)
    BinaryCrossEntropy().check(NUMPY, (2,), np.array([1, 7]), weights)
    Poisson().check(NUMPY, (2,), np.array([1, -7]), weights)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SquaredError(scale=0.0), "scale must be positive"),
        (lambda: SquaredError(scale=float("nan")), "scale must be positive"),
        (lambda: SquaredError(scale=np.asarray(-1.0)).check(NUMPY, (2,), None, None), "scale must be positive"),
        (lambda: CrossEntropy(label_smoothing=1.5), r"label_smoothing must lie in \[0, 1\], got 1\.5"),
        (
            lambda: CrossEntropy(label_smoothing=np.asarray(-1.0)).check(NUMPY, (2, 3, 4), IDS, None),
            r"label_smoothing must lie in \[0, 1\], got -1",
        ),
    ],
)
def test_bad_numbers_in_a_loss(make, match):
    with pytest.raises(ValueError, match=match):
        make()
    with pytest.raises(TypeError):
        CrossEntropy(ignore_index=0.5)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_are_checked_without_the_door(name):
    # A trace has no values to look at, but it has shapes: what does not fit must not broadcast.
    z, y, w = draw(name, 0, (3, 4), 1.0, "float64")
    loss = LOSSES[name]
    for method in (loss.total, loss.gradient, loss.weight_sum):
        with pytest.raises(ValueError, match="do not fit examples"):
            method(np, z, y, w[:2])
    for method in (loss.total, loss.gradient):
        with pytest.raises(ValueError, match="targets must"):
            method(np, z, y[:1], None)
    if name != "squared":
        with pytest.raises(TypeError, match="targets are missing"):
            loss.total(np, z, None, None)
