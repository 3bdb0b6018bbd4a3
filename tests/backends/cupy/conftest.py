"""CuPy for tests: the stand-in, and the real one where there is a GPU. Both run the same tests."""

import importlib
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import fake_cupy
import pytest

import linop_gn as lg
from linop_gn import dispatch
from linop_gn.testing import device


@contextmanager
def installed():
    """The stand-in as ``cupy``; taken out again with all that was found through it."""
    if "cupy" in sys.modules:
        pytest.skip("CuPy itself is imported in this process")
    fake_cupy.install()
    yield sys.modules["cupy"]
    fake_cupy.remove()
    dispatch.load.cache_clear()
    for kind in [kind for kind in dispatch._by_type if kind.__module__.partition(".")[0] in ("cupy", "cupyx")]:
        del dispatch._by_type[kind]
    device._devices.pop("cupy", None)


@pytest.fixture(scope="module")
def stand_in():
    with installed() as cupy:
        yield cupy


REAL = [pytest.param("gpu", marks=pytest.mark.gpu)] if find_spec("cupy") else []


@pytest.fixture(scope="module", params=["stand-in", *REAL])
def cupy(request):
    if request.param == "stand-in":
        with installed() as module:
            yield module
        return
    module = importlib.import_module("cupy")
    if not module.cuda.is_available():
        pytest.skip("CuPy sees no GPU")
    yield module


@pytest.fixture(scope="module")
def ops(cupy):
    return lg.load("cupy")


@pytest.fixture(scope="module")
def counts(cupy):
    """Kernels launched, reads and waits, to be cleared before what is counted; None where nobody counts."""
    return fake_cupy.counts if cupy.__version__ == "stand-in" else None


@pytest.fixture(scope="module")
def second(cupy, ops):
    """The name of another device than the current one."""
    if len(ops.devices()) == 1:
        pytest.skip("there is one GPU")
    return "cuda:1"
