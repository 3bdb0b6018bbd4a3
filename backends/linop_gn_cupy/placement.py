"""Which GPU work runs on: the one that its arrays are on, whichever is current.

CuPy launches kernels on the *current* device and makes results there, even for
arrays of another one (with a warning, over the bus). A process with one GPU
never notices; with two, ``solve`` for arrays of the second would run on the
first. So every operation here, and every loop as a whole, makes the device of
its arrays current while it runs. That costs a look at the current device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import is_dataclass
from typing import Any, TypeVar

import cupy

from linop_gn.backend import Backend, EagerScalars
from linop_gn.records import fields

__all__ = ["advised", "follows", "name_of", "named", "there", "usable"]

T = TypeVar("T")

_HERE: AbstractContextManager[Any] = nullcontext()
_PREFIX = "cuda:"


def name_of(x: Any) -> str:
    """The name of the device that ``x`` is on (CuPy's own device objects cannot be hashed)."""
    return f"{_PREFIX}{x.device.id}"


def named(device: Hashable) -> AbstractContextManager[Any]:
    """Where the device of that name, number or CuPy's own kind is current; the current one for None."""
    if device is None:
        return _HERE
    return cupy.cuda.Device(int(device.removeprefix(_PREFIX)) if isinstance(device, str) else device)


def there(x: Any) -> AbstractContextManager[Any]:
    """Where the device of the array ``x`` is current."""
    device = x.device
    return _HERE if device.id == cupy.cuda.runtime.getDevice() else device


def _first_array(things: Iterable[Any]) -> Any:
    """An array among ``things``: in lists, dicts, tuples and records too."""
    for x in things:
        if isinstance(x, cupy.ndarray):
            return x
        inside = x if isinstance(x, (list, tuple)) else fields(x).values() if is_dataclass(x) else ()
        found = _first_array(x.values() if isinstance(x, dict) else inside)
        if found is not None:
            return found
    return None


_ANYWHERE = {"asarray", "borrow", "describe", "detach", "devices", "flatten", "is_array", "is_concrete", "namespace"}
_ANYWHERE |= {"eps", "normalize", "read", "rows", "unflatten", "version", "wait"}
"""What starts no work on the device of an array that it is given, or sees to it itself."""


def follows(cls: type[T]) -> type[T]:
    """Make all other methods of the contract, but those on scalars, run where the last array they are given is."""

    def placed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(self: Any, *args: Any, **options: Any) -> Any:
            array = _first_array(reversed(args))
            with _HERE if array is None else there(array):
                return method(self, *args, **options)

        return run

    for name in (name for group in Backend.__mro__ for name, value in vars(group).items() if callable(value)):
        if not name.startswith("_") and name not in _ANYWHERE and name not in vars(EagerScalars):
            setattr(cls, name, placed(getattr(cls, name)))
    return cls


def usable() -> int:
    """How many GPUs there are.

    Raises
    ------
    RuntimeError
        If there are none, or no driver for them: says what to do.
    """
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(_advice(str(error))) from error
    if count == 0:
        raise RuntimeError(_advice("CUDA sees no device"))
    return count


def _advice(reason: str) -> str:
    return (
        f"CuPy {cupy.__version__} finds no GPU to work on ({reason}). It needs an NVIDIA GPU that CUDA_VISIBLE_DEVICES "
        "does not hide, and a driver for the version of CUDA that CuPy was built for (nvidia-smi prints the newest "
        "that it takes). Without them use NumPy arrays: the rest of the script stays as it is."
    )


def advised(method: Callable[..., T]) -> Callable[..., T]:
    """Let an error of CUDA for want of a GPU say what to do."""

    @functools.wraps(method)
    def run(*args: Any, **options: Any) -> T:
        try:
            return method(*args, **options)
        except cupy.cuda.runtime.CUDARuntimeError:
            usable()
            raise

    return run
