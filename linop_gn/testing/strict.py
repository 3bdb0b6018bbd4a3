"""The array-API base on ``array-api-strict``, on a device that is not the host.

That library raises for whatever the standard does not promise, and its arrays
on ``device1`` refuse to become NumPy arrays by themselves, as CuPy's do: an
honest stand-in for an array library off the host.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import array_api_strict
import numpy as np

from ..dispatch import register
from ..eager.array_api import ArrayApiBackend
from ..protocols import Array
from .device import use_device

__all__ = ["DEVICE", "StrictBackend", "strict_backend"]

HOST = array_api_strict.Device("CPU_DEVICE")
DEVICE: Hashable = array_api_strict.Device("device1")
"""Where tests put arrays of this backend."""


class StrictBackend(ArrayApiBackend):
    """array-api-strict; devices are the library's own objects."""

    contract = 1
    capabilities = ArrayApiBackend.capabilities | {"devices"}

    def __init__(self) -> None:
        super().__init__("array_api_strict", array_api_strict, (type(array_api_strict.asarray(0.0)),))

    def __reduce__(self) -> Any:
        return "strict_backend"

    def devices(self) -> list[str]:
        return [str(HOST), str(DEVICE)]

    def _device(self, x: Array) -> Hashable:
        device: Hashable = x.device
        return device

    def borrow(self, x: Any) -> Array:
        return self.xp.from_dlpack(x, device=DEVICE)

    def to_numpy(self, x: Array) -> Any:
        return np.from_dlpack(x.to_device(HOST))


strict_backend = StrictBackend()
"""The one instance, to which every array of the library belongs."""

register(strict_backend.array_types[0], strict_backend)
use_device(strict_backend, DEVICE)
