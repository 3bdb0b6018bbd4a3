"""CuPy as a backend of linop_gn: the array-API base, one fused kernel for each vector update, any GPU, any stream.

Everything is queued on the stream that is current for the array's device, and
nothing waits for it but what must be read on the host: an inner product, a
largest entry, :meth:`CupyBackend.to_numpy`. Write to memory that a queued
operation still reads and CuPy's own rules apply.

CuPy differentiates nothing: supply products or a Jacobian (``jvp=``, ``vjp=``,
``jacobian=``), or name a framework that does (``derivatives="torch"``).
:func:`to_cupyx` and :func:`linop_gn.from_scipy` lead to ``cupyx.scipy.sparse``
and back, on the device.
"""

from __future__ import annotations

try:
    import cupy
except ModuleNotFoundError as error:
    if error.name != "cupy":
        raise
    raise ModuleNotFoundError(
        "CuPy is not installed. It comes in one package for each version of CUDA: pip install 'linop-gn[cupy12]' for "
        "CUDA 12, 'linop-gn[cupy13]' for CUDA 13 (nvidia-smi prints the newest that the driver takes).",
        name="cupy",
    ) from error

from collections.abc import Hashable
from typing import Any

import array_api_compat.cupy
import numpy as np

from linop_gn.backend import Array, ArrayApiBackend, Tree, declared
from linop_gn.operators import LinearOperator

from .arithmetic import CupyArithmetic
from .factors import CupyFactors
from .interop import from_cupyx, to_cupyx
from .placement import advised, follows, name_of, named, there, usable

__all__ = ["CupyBackend", "backend", "to_cupyx"]


@follows
class CupyBackend(CupyArithmetic, CupyFactors, ArrayApiBackend):
    """The one instance is :data:`backend`. Devices are named ``"cuda:0"`` and so on, as other frameworks name them."""

    contract = 1
    capabilities = declared(__name__).capabilities

    def __init__(self) -> None:
        super().__init__("cupy", array_api_compat.cupy, (cupy.ndarray,))

    def version(self) -> str:
        return str(cupy.__version__)

    def devices(self) -> list[str]:
        """The GPUs that CUDA sees.

        Raises
        ------
        RuntimeError
            If there are none, or no driver for them.
        """
        return [f"cuda:{i}" for i in range(usable())]

    def _device(self, x: Array) -> Hashable:
        return name_of(x)

    @advised
    def asarray(self, host: Any, dtype: str, device: Hashable = None) -> Array:
        """A new array on ``device`` (the current one if None).

        The host's data are copied first: CuPy reads page-locked memory at a time of its own.
        """
        with named(device):
            return cupy.array(np.array(host, order="C"), dtype=dtype)

    def wait(self, tree: Tree) -> Tree:
        for leaf in self.flatten(tree)[1]:
            if self.is_array(leaf):
                with there(leaf):
                    cupy.cuda.get_current_stream().synchronize()
        return tree

    def to_numpy(self, x: Array) -> Any:
        return cupy.asnumpy(x)

    def operator_of(self, obj: Any, like: Array | None, symmetric: bool | None, psd: bool) -> LinearOperator | None:
        """What :func:`linop_gn.from_scipy` makes of objects of ``cupyx``; None for all others."""
        return from_cupyx(obj, like, symmetric, psd)


backend = CupyBackend()
