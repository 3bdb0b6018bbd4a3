"""Where the tests of a backend put its arrays."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import numpy as np

from ..protocols import Backend

__all__ = ["device_of", "on_device", "use_device"]

_devices: dict[str, Hashable] = {}


def use_device(backend: Backend, device: Hashable) -> None:
    """Let tests put arrays of ``backend`` on ``device`` from now on."""
    _devices[backend.name] = device


@contextmanager
def on_device(backend: Backend, device: Hashable) -> Iterator[None]:
    """Let tests put arrays of ``backend`` on ``device`` in here."""
    before = device_of(backend)
    use_device(backend, device)
    try:
        yield
    finally:
        use_device(backend, before)


def device_of(backend: Backend) -> Hashable:
    """The device that was asked for, or the one that the backend prefers."""
    if backend.name not in _devices:
        _devices[backend.name] = backend.describe(backend.asarray(np.zeros(1), "float32"))[2]
    return _devices[backend.name]
