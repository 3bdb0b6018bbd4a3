"""Arrays: made from the host and read back, their dtype and device, and memory that is nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import numpy as np
from hypothesis import strategies as st

from ...protocols import Product
from ..device import device_of
from .base import Draws, Kit, agree, claim, drawn

__all__ = ["Arrays"]

SIZES = (1, 7, 64, 1000, 100_000)
"""Frameworks copy small host arrays anyway; whether they copy large ones depends on size and alignment."""


class Arrays(Kit):
    """The way from and to the host."""

    def test_is_array(self) -> None:
        """Its own arrays are arrays; numbers, lists and host arrays of another framework are not."""
        x = self.array(np.ones(2), self.wide)
        claim(self.ops.is_array(x), f"a {type(x).__qualname__} is not an array to is_array")
        for other in (1.0, [x], {"x": x}, None, "x"):
            claim(not self.ops.is_array(other), f"{type(other).__qualname__} is an array to is_array")
        claim(self.ops.is_concrete({"x": x, "n": 1.0}), "a tree of arrays outside of any program is concrete")
        claim(self.ops.lives_with({"x": x, "n": 1.0}, x), "outside of any program what x gives lives with it")

    @drawn()
    def test_asarray(self, data: Draws) -> None:
        """asarray keeps values, shape, dtype and device; to_numpy and read bring them back."""
        shape = self.shape(data) if self.compiled else data.draw(st.sampled_from([(), (0,), (3,), (2, 3), (2, 1, 3)]))
        drawn, device = 3 * self.normal(data, *shape), device_of(self.ops)
        for dtype in (*self.dtypes, "int32", "bool"):
            x = drawn.astype(dtype)
            for host in (x, x.T.copy().T, x[::-1].copy()[::-1] if x.ndim else x, x.tolist()):
                X = self.ops.asarray(host, dtype, device)
                want, got = (x.shape, dtype, self.ops.describe(self.array(0.0, "float32"))[2]), self.ops.describe(X)
                claim(got == want, f"asarray made an array of {got}, expected {want}")
                back = np.asarray(self.ops.to_numpy(X))
                claim(back.dtype == x.dtype, f"to_numpy made {back.dtype} of {dtype}")
                np.testing.assert_array_equal(back, x)

    def test_same(self) -> None:
        """same tells whether all entries are equal, none of them NaN."""
        x = np.arange(6.0).reshape(2, 3)
        other, unknown = x + 1e-3 * (x == 2), np.where(x == 4, np.nan, x)
        for ours, theirs, wanted in ((x, x, True), (x, other, False), (unknown, unknown, False)):
            got = self.ops.same(self.array(ours, self.wide), self.array(theirs, self.wide))
            claim(got is wanted, f"same said {got} of {ours.tolist()} and {theirs.tolist()}")

    def test_laid(self) -> None:
        """laid puts flat arrays, and products of matrices row by row, one after the other in a new array."""
        x, a, b = np.arange(3.0), np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
        X, A, B = (self.array(v, self.wide) for v in (x, a, b))
        with self.untouched("laid", X, A, B):
            made = self.ops.laid([X, Product(A, B), X, Product(B.T, A.T)])
            alone = self.ops.laid([Product(A, B)])
        want = np.concatenate([x, (a @ b).ravel(), x, (b.T @ a.T).ravel()])
        self.same_kind(made, self.array(want, self.wide), "laid")
        agree(self.host(made), want, 0.0, "laid")
        agree(self.host(alone), (a @ b).ravel(), 0.0, "laid, of one product")

    def test_read(self) -> None:
        """read turns the arrays of a tree into NumPy arrays and leaves everything else as it is."""
        X = self.array(np.arange(3.0), self.wide)
        found = self.ops.read({"x": X, "n": [3, None, 0.5], "t": (X,)})
        claim(isinstance(found["x"], np.ndarray) and type(found["x"]).__module__ == np.ndarray.__module__, "read: kind")
        agree(found["x"], np.arange(3.0), 0.0, "read")
        agree(found["t"][0], np.arange(3.0), 0.0, "read, in a tuple,")
        claim(found["n"] == [3, None, 0.5], f"read made {found['n']} of [3, None, 0.5]")
        agree(self.host(self.ops.detach({"x": X})["x"]), np.arange(3.0), 0.0, "detach")

    def test_asarray_copies(self) -> None:
        """Memory that its owner writes to later changes nothing that was made from it."""
        for size in SIZES:
            for offset in range(8):
                memory = np.ones(size + 8)[offset : offset + size]
                made = self.array(memory, self.wide)
                memory[:] = np.nan
                claim(bool(np.all(self.host(made) == 1.0)), f"asarray shares memory with a host array of {size}")
            owned = np.ones(size)
            self.ops.scale(3.0, self.array(owned, self.wide))
            claim(bool(np.all(owned == 1.0)), f"writing to an array of {size} writes to what it was made from")

    def test_asarray_takes_read_only_memory(self) -> None:
        """A read-only host array can be made an array, which can be written to."""
        frozen = np.ones(5)
        frozen.flags.writeable = False
        agree(self.host(self.ops.scale(3.0, self.array(frozen, self.wide))), np.full(5, 3.0), 0.0, "three times ones")

    def test_cast(self) -> None:
        """cast changes the dtype, rounds to it, and keeps shape and device; x stays as it is."""
        for dtype in self.dtypes:
            x = np.full((2, 3), 1 / 3)
            X = self.array(x, dtype)
            for other in self.dtypes:
                with self.untouched("cast", X):
                    made = self.ops.cast(X, other)
                    got, want = self.ops.describe(made), ((2, 3), other, self.ops.describe(X)[2])
                    claim(got == want, f"cast from {dtype} made an array of {got}, expected {want}")
                    agree(self.host(made), x.astype(dtype).astype(other), 0.0, f"cast of {dtype} to {other}")

    def test_namespace(self) -> None:
        """The namespace has what models are written with, and its functions keep dtype and device."""
        for dtype in self.dtypes:
            X, xp = self.array(np.arange(6.0).reshape(2, 3), dtype), self.xp
            host = np.arange(6.0).reshape(2, 3)
            cases: list[tuple[str, Any, Any]] = [
                ("exp", xp.exp(-X), np.exp(-host)),
                ("tanh", xp.tanh(X), np.tanh(host)),
                ("@", X @ X.T, host @ host.T),
                ("sum", xp.sum(X, axis=0), host.sum(axis=0)),
                ("reshape", xp.reshape(X, (3, 2)), host.reshape(3, 2)),
                ("stack", xp.stack([X, X]), np.stack([host, host])),
                ("concat", xp.concat([X, X]), np.concatenate([host, host])),
                ("where", xp.where(X > 2, X, -X), np.where(host > 2, host, -host)),
                ("slice", X[1:, :], host[1:, :]),
            ]
            for name, got, expected in cases:
                self.same_kind(got, self.array(expected, dtype), f"{name} of the namespace")
                agree(self.host(got), expected, 1e-5 * (1 + abs(expected)), f"{name} of the namespace")

    def test_alone(self) -> None:
        """alone returns what the function made, and takes nothing for alone that somebody else holds or can reach."""
        held = self.array(np.arange(6.0), self.wide)
        shared: dict[str, Callable[[], Any]] = {
            "an array that is held": lambda: held,
            "a part of one": lambda: self.ops.split(held, [(2, 2), (2,)], [self.wide, self.wide])[0],
            "a number": lambda: 1.0,
        }
        for name, make in shared.items():
            made, alone = self.ops.alone(make)
            claim(not alone, f"{name} is taken to be alone")
            if self.ops.is_array(made):
                agree(self.host(made), self.host(make()), 0.0, "alone")
        made, alone = self.ops.alone(lambda: self.ops.scale(2.0, self.ops.copy(held)))
        claim(alone in (True, False), f"whether it is alone came as {alone!r}")
        agree(self.host(made), 2.0 * np.arange(6.0), 0.0, "alone")

    def test_borrow(self) -> None:
        """borrow takes an array of another framework as it is: shape, dtype and numbers."""
        if not hasattr(self.ops, "borrow"):
            raise SkipTest("it has no borrow")
        for dtype in self.dtypes:
            for host in (np.arange(6.0, dtype=dtype).reshape(2, 3), np.arange(4.0, dtype=dtype)):
                made = self.ops.borrow(host)
                claim(self.ops.is_array(made), f"borrow returned a {type(made).__qualname__}")
                got = self.ops.describe(made)[:2]
                claim(got == (host.shape, dtype), f"borrow made an array of {got}, expected {(host.shape, dtype)}")
                agree(self.host(made), host, 0.0, "borrow")
            x = self.array(np.arange(6.0).reshape(2, 3), dtype)
            for given in (x, x.T):
                lent = self.ops.lendable(given)
                self.same_kind(lent, given, "lendable")
                agree(self.host(lent), self.host(given), 0.0, "lendable")
            agree(self.host(self.ops.wait({"x": x})["x"]), self.host(x), 0.0, "wait")
