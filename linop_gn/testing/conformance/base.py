"""What all laws share: the backend, its arrays, and ways to say what is wrong.

A law is a method whose name begins with ``test_`` and whose docstring is the
sentence that it holds the backend to. Hypothesis draws its data, the same data
at each run; every expected value is worked out in float64 NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ...protocols import Array, Backend, Scalar, Vector
from ..device import device_of, on_device

__all__ = ["EPS", "QUIET", "Draws", "Kit", "Law", "agree", "claim", "drawn"]

NDArray = np.ndarray[Any, Any]
Law = Callable[..., None]
Draws = st.DataObject

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}

QUIET = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
"""Hypothesis as the kit uses it: the same examples each time, however slow the machine."""


def drawn(examples: int = 15) -> Callable[[Law], Law]:
    """Run a law, which takes ``data``, on so many draws."""

    def decorate(law: Law) -> Law:
        return settings(QUIET, max_examples=examples)(given(data=st.data())(law))

    return decorate


def claim(truth: Any, message: str) -> None:
    """Fail with ``message`` unless ``truth`` holds (an ``assert`` that ``python -O`` keeps)."""
    if not truth:
        raise AssertionError(message)


def agree(got: Any, expected: Any, tolerance: Any, what: str) -> None:
    """Fail unless ``got`` is ``expected`` within ``tolerance``, and equal to it where that is not finite."""
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    claim(got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}")
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore"):
        near = np.abs(got - expected) <= np.broadcast_to(np.asarray(tolerance), expected.shape)
    right = np.where(finite, near, (got == expected) | (np.isnan(got) & np.isnan(expected)))
    if not right.all():
        where = np.unravel_index(np.argmin(right), right.shape)
        at = f" at {tuple(map(int, where))}" if where else ""
        raise AssertionError(f"{what}{at}: got {float(got[where])!r}, expected {float(expected[where])!r}")


class Kit:
    """A backend under test. See :class:`linop_gn.testing.BackendConformance`."""

    backend: Any = None
    capabilities: ClassVar[frozenset[str] | None] = None
    derivatives: ClassVar[str | None] = None

    def array(self, host: Any, dtype: str) -> Array:
        """An array of the backend from NumPy data, where the laws are to be tried.

        The default puts it on the device that the backend prefers. Override it to try another device.
        """
        return self.backend.asarray(np.asarray(host), dtype, device_of(self.backend))

    def read_only(self, x: Array) -> Array | None:
        """An array of the same numbers that cannot be written to; None where the framework has no such thing."""
        flags = getattr(x, "flags", None)
        if not hasattr(flags, "writeable"):
            return None
        frozen = self.ops.copy(x)
        frozen.flags.writeable = False
        return frozen

    # how pytest, or ``check_backend``, runs a law

    def setup_method(self, method: Any = None) -> None:
        """Before each law: float64 is switched on where a framework wants asking, and the device is chosen."""
        if self.backend is None:
            raise TypeError(f"{type(self).__qualname__} has no backend: give its class body a line `backend = ...`.")
        self._around = ExitStack()
        calculus = getattr(self.backend, "calculus", None)
        if calculus is not None:
            self._around.enter_context(calculus.high_precision())
        self._around.enter_context(on_device(self.backend, self._device()))

    def teardown_method(self, method: Any = None) -> None:
        """After each law: everything as it was."""
        self._around.close()

    def _device(self) -> Hashable:
        device: Hashable = self.backend.describe(self.array(np.zeros(1), "float32"))[2]
        return device

    # what laws are written with

    @property
    def ops(self) -> Any:
        """The backend."""
        backend: Backend = self.backend
        return backend

    @property
    def xp(self) -> Any:
        """Its array-API namespace."""
        return self.ops.namespace()

    @property
    def claimed(self) -> frozenset[str]:
        """The capabilities that the laws hold it to."""
        return frozenset(self.ops.capabilities) if self.capabilities is None else frozenset(self.capabilities)

    @property
    def compiled(self) -> bool:
        """Whether each shape costs a compilation, so that data are drawn and shapes are not."""
        return "compiled" in self.claimed

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The precisions that numbers are compared in, the widest first."""
        return ("float64", "float32") if "float64" in self.claimed else ("float32",)

    @property
    def wide(self) -> str:
        """The widest of them."""
        return self.dtypes[0]

    def require(self, capability: str) -> None:
        """Skip the law, with a reason, where the capability is not claimed."""
        if capability not in self.claimed:
            raise SkipTest(f"{self.ops.name} does not claim {capability!r}")

    def host(self, x: Array) -> NDArray:
        """A float64 copy on the host."""
        return np.array(self.ops.to_numpy(x), dtype=np.float64)

    def number(self, s: Scalar) -> NDArray:
        """A scalar of the backend, or its numbers for each column."""
        return np.array(self.ops.read(s), dtype=np.float64)

    def scalar(self, values: Any, like: Vector) -> Scalar:
        """Values, one or one for each column, as a scalar of the backend."""
        one = self.ops.scalar(1.0, like)
        values = np.asarray(values, dtype=self.ops.describe(like)[1])
        return one * (values if values.ndim else float(values))

    def truth(self, values: Any, like: Vector) -> Scalar:
        """Truth values as a condition of the backend."""
        return self.scalar(np.asarray(values, dtype=float), like) > 0.5

    def normal(self, data: Draws, *shape: int, dtype: str | None = None) -> NDArray:
        """Normal entries that ``dtype`` holds exactly, in float64."""
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        return rng.standard_normal(shape).astype(dtype or self.wide).astype(np.float64)

    def shape(self, data: Draws) -> tuple[int, ...]:
        """The shape of a vector or of columns."""
        if self.compiled:
            return data.draw(st.sampled_from([(4,), (4, 3)]))
        n = data.draw(st.integers(1, 12))
        return data.draw(st.sampled_from([(n,), (n, 1), (n, 3)]))

    def same_kind(self, result: Array, like: Array, what: str) -> None:
        """Fail unless ``result`` is of the kind of ``like``: an array, its shape, dtype and device."""
        claim(self.ops.is_array(result), f"{what} returned a {type(result).__qualname__}, not a {self.ops.name} array")
        got, want = self.ops.describe(result), self.ops.describe(like)
        claim(got == want, f"{what} turned (shape, dtype, device) {want} into {got}")

    @contextmanager
    def untouched(self, what: str, *arrays: Array) -> Iterator[None]:
        """Fail if one of ``arrays`` holds other numbers at the end than at the start."""
        before = [self.host(x) for x in arrays]
        yield
        for number, (x, old) in enumerate(zip(arrays, before, strict=True)):
            agree(self.host(x), old, 0.0, f"{what} wrote to argument {number}, which is not consumed,")
