"""Every backend that is at hand keeps every law of the kit; where there is an accelerator, on it too."""

import importlib

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import poison_backend

conformance = pytest.importorskip("linop_gn.testing.conformance")
BackendConformance, check_backend = conformance.BackendConformance, conformance.check_backend


def loaded(name):
    """The backend called ``name``; None where its framework is not installed."""
    try:
        return lg.load(name)
    except (ImportError, LookupError):
        return None


def strict():
    try:
        return importlib.import_module("linop_gn.testing.strict").strict_backend
    except ImportError:
        return None


TORCH, JAX, AUTOGRAD, STRICT = loaded("torch"), loaded("jax"), loaded("autograd"), strict()


class TestNumpy(BackendConformance):
    backend = lg.load("numpy")
    capabilities = frozenset({"float64", "in_place", "trees", "views"})


class TestPoison(BackendConformance):
    backend = poison_backend


@pytest.mark.strict
@pytest.mark.skipif(STRICT is None, reason="array-api-strict is not installed")
class TestStrict(BackendConformance):
    """Arrays on a device that is not the host."""

    backend = STRICT


@pytest.mark.skipif(TORCH is None, reason="torch is not installed")
class TestTorch(BackendConformance):
    backend = TORCH
    capabilities = frozenset({"derivatives", "devices", "float64", "in_place", "trees", "views"})


@pytest.mark.skipif(JAX is None, reason="jax is not installed")
class TestJax(BackendConformance):
    backend = JAX
    capabilities = frozenset({"compiled", "derivatives", "devices", "float64", "trees"})


@pytest.mark.skipif(AUTOGRAD is None, reason="autograd is not installed")
class TestAutograd(BackendConformance):
    """NumPy's arrays, differentiated by another framework."""

    backend = AUTOGRAD
    derivatives = "autograd"


def cuda_of_torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return "cuda:0"


def accelerator_of_jax():
    jax = pytest.importorskip("jax")
    found = [device for device in jax.devices() if device.platform != "cpu"]
    if not found:
        pytest.skip("JAX sees no accelerator (set JAX_PLATFORMS to let it look for one)")
    return found[0]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "find"), [("torch", cuda_of_torch), ("jax", accelerator_of_jax)])
def test_on_an_accelerator(name, find):
    device = find()
    backend = lg.load(name)
    report = check_backend(backend, array=lambda host, dtype: backend.asarray(np.asarray(host), dtype, device))
    print(report)
    assert report.passed, report
