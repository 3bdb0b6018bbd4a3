"""Objectives drawn by Hypothesis, on any framework, beside their dense value, gradient and Gauss-Newton matrix.

Losses and their Hessians come from ``linop_gn.testing.losses``, which takes one example at a time in Python numbers;
J from the complex step; then G = J^T H_L J, all batches summed and divided once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import linop_gn as lg
from linop_gn.testing import device_of
from linop_gn.testing.losses import LOSSES, draw, expected

from .networks import NETWORKS, Network, fill, flat, jacobian, leaves, like

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


class Data(NamedTuple):
    """One batch; targets and weights for the network's outputs."""

    inputs: Any
    targets: Any
    weights: Any


class Case(NamedTuple):
    """What an objective is made of, in NumPy, and in how many pieces the data come."""

    network: str
    loss: str
    reduction: str
    seed: int
    weighting: str = "none"
    sizes: tuple[int, ...] = (5,)
    ignore: bool = False

    @property
    def net(self) -> Network:
        return NETWORKS[self.network]

    def params(self) -> Any:
        return self.net.params(self.seed)

    def batches(self) -> list[Data]:
        rng = np.random.default_rng([self.seed, 1])
        total = sum(self.sizes)
        x = self.net.inputs(rng, total)
        _, y, w = draw(self.loss, self.seed, (total, *self.net.outputs), 1.0, "float64")
        w.reshape(-1)[0] = 1.0  # something counts
        if self.ignore:
            y = np.where(rng.random(y.shape) < 0.4, -100, y)
            y.reshape(-1)[0] = 1
        weights = {"none": None, "weights": w, "mask": w > 0.5, "leading": w.reshape(total, -1)[:, 0]}[self.weighting]
        ends = np.cumsum(self.sizes).tolist()
        cut = [slice(i, j) for i, j in zip([0, *ends[:-1]], ends, strict=True)]
        return [Data(x[s], y[s], None if weights is None else weights[s]) for s in cut]

    def make_loss(self) -> lg.losses.Loss:
        made = LOSSES[self.loss]
        fields = {"ignore_index": -100} if self.ignore else {}
        return lg.replace(made, reduction=self.reduction, **fields)


class Dense(NamedTuple):
    """Value, gradient, Jacobian, loss Hessian and Gauss-Newton matrix of a case, in float64."""

    value: float
    gradient: Any
    gradient_size: Any
    J: Any
    H: Any
    G: Any


def full_weights(case: Case, batch: Data, z: Any) -> np.ndarray[Any, Any]:
    """Weights of this loss's examples, whatever shape they were given in; zero where the target is ignored."""
    axes = 1 if case.loss == "squared" else z.ndim - 1 if case.loss.startswith("softmax") else z.ndim
    shape = z.shape[:axes]
    w = np.ones(shape) if batch.weights is None else np.asarray(batch.weights, dtype=float)
    w = np.broadcast_to(w.reshape(w.shape + (1,) * (len(shape) - w.ndim)), shape)
    return np.where(batch.targets == -100, 0.0, w) if case.ignore else np.array(w)


def dense(case: Case, params: Any = None) -> Dense:
    """The oracle: sums over all batches, divided once."""
    params = case.params() if params is None else params
    params = like(params, flat(params).astype(np.float64))
    value, weight, slopes, sizes, Js, Hs = 0.0, 0.0, [], [], [], []
    for batch in case.batches():
        z = np.asarray(case.net.model(params, batch.inputs))
        w = full_weights(case, batch, z)
        y = np.where(batch.targets == -100, 0, batch.targets) if case.ignore else batch.targets
        found = expected(case.loss, z, y, w)
        value, weight = value + found.total, weight + float(w.sum())
        slopes.append(found.gradient.reshape(-1))
        sizes.append(np.broadcast_to(found.gradient_size, z.shape).reshape(-1))
        Js.append(jacobian(case.net.model, params, batch.inputs))
        Hs.append(found.dense())
    scale = 1.0 / weight if case.reduction == "mean" else 1.0
    J, g, size = np.concatenate(Js), scale * np.concatenate(slopes), scale * np.concatenate(sizes)
    G = scale * sum(J.T @ H @ J for J, H in zip(Js, Hs, strict=True))
    return Dense(scale * value, J.T @ g, float((abs(J).T @ (abs(g) + size)).max()), J, scale * _diagonal(Hs), G)


def _diagonal(blocks: list[Any]) -> Any:
    size = sum(len(block) for block in blocks)
    made, start = np.zeros((size, size)), 0
    for block in blocks:
        made[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return made


# the same on a backend


def put(backend: Any, tree: Any, dtype: str = "float64") -> Any:
    """NumPy data on a backend: floats in ``dtype``, integers and booleans as they are."""

    def place(x: Any) -> Any:
        kind = {"f": dtype, "i": "int64", "b": "bool"}[np.asarray(x).dtype.kind]
        return backend.asarray(np.asarray(x), kind, device_of(backend))

    if tree is None:
        return None
    return fill(tree, place)


def host(backend: Any, tree: Any) -> np.ndarray[Any, Any]:
    """A tree of the backend as one flat float64 vector."""
    return np.concatenate([np.asarray(backend.to_numpy(leaf), dtype=float).reshape(-1) for leaf in leaves(tree)])


class ByComplexStep:
    """``jacobian=`` for frameworks without derivatives: the complex step on the host."""

    def __init__(self, model: Callable[[Any, Any], Any], backend: Any, form: str = "array") -> None:
        self.model, self.backend, self.form, self.calls = model, backend, form, 0

    def __call__(self, params: Any, x: Any) -> Any:
        self.calls += 1
        ops = self.backend
        dtype = ops.describe(leaves(params)[0])[1]
        params, x = fill(params, ops.to_numpy), np.asarray(ops.to_numpy(x))
        z = np.asarray(self.model(params, x))
        J = jacobian(self.model, params, x)
        if self.form == "array":
            return put(ops, J.reshape(*z.shape, -1), dtype)
        return put(ops, _rows(params, J, z.shape), dtype)


def _rows(params: Any, J: Any, outputs: tuple[int, ...]) -> Any:
    parts = iter(np.split(J, np.cumsum([np.size(leaf) for leaf in leaves(params)])[:-1], axis=1))
    return fill(params, lambda leaf: next(parts).reshape(outputs + np.shape(leaf)))


def objective(
    case: Case,
    backend: Any,
    dtype: str = "float64",
    hold: Callable[[list[Any]], Any] = list,
    derivatives: str | None = None,
) -> lg.Objective:
    """The case as an objective; ``hold`` makes data of the list of batches."""
    batches = [tuple(put(backend, part, dtype) for part in batch) for batch in case.batches()]
    batches = [batch if batch[2] is not None else batch[:2] for batch in batches]
    data = batches[0] if len(batches) == 1 and hold is list else hold(batches)
    given: dict[str, Any] = {"derivatives": derivatives}
    if backend.calculus is None and derivatives is None:
        given = {"jacobian": ByComplexStep(case.net.model, backend)}
    return lg.Objective(case.net.model, case.make_loss(), data, **given)


class Streamed:
    """Batches that can be iterated again and again, and are read anew each time."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(self.batches)


# what Hypothesis draws

SPLITS = ((5,), (4, 1), (1, 3, 1), (2, 2, 1), (1, 1, 1, 1, 1))


@st.composite
def cases(
    draw: st.DrawFn,
    networks: tuple[str, ...] = tuple(NETWORKS),
    losses: tuple[str, ...] = tuple(LOSSES),
    splits: tuple[tuple[int, ...], ...] = SPLITS,
) -> Case:
    """Network, loss, reduction, weights, ignored targets, split; data from a seed."""
    loss = draw(st.sampled_from(losses))
    plain = loss.startswith("softmax") and loss != "softmax of probabilities"
    return Case(
        network=draw(st.sampled_from(networks)),
        loss=loss,
        reduction=draw(st.sampled_from(["mean", "sum"])),
        seed=draw(st.integers(0, 2**16)),
        weighting=draw(st.sampled_from(["none", "weights", "mask", "leading"])),
        sizes=draw(st.sampled_from(splits)),
        ignore=plain and draw(st.booleans()),
    )
