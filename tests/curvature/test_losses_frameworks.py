"""The losses on other array libraries, under their automatic differentiation and compilers, and beside torch's own."""

import contextlib
import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.curvature.losses import BinaryCrossEntropy, CrossEntropy, Poisson, SquaredError
from linop_gn.testing.losses import LOSSES, draw, everything

EACH_IN_CI_ON_JAX = ("test_jax_differentiates_and_compiles_all_of_it",)

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
all_losses = pytest.mark.parametrize("name", LOSSES)


class Library:
    """One array library: its namespace, and how arrays get in and out."""

    def __init__(self, name):
        pytest.importorskip(name)
        self.name = name
        self.xp = importlib.import_module({"jax": "jax.numpy", "torch": "array_api_compat.torch"}.get(name, name))
        # array-api-strict stands in for a library off the host: on this device it mixes with nothing.
        self.device = self.xp.Device("device1") if name == "array_api_strict" else None

    def array(self, x):
        placed = {} if self.device is None else {"device": self.device}
        return None if x is None else self.xp.asarray(np.array(x), **placed)

    def numpy(self, x):
        if self.device is not None:
            assert x.device == self.device
            x = self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE"))
        return np.asarray(x)

    def precise(self):
        return importlib.import_module("jax").enable_x64(True) if self.name == "jax" else contextlib.nullcontext()


@pytest.fixture(params=["array_api_strict", "torch", "jax"], scope="module")
def library(request):
    return Library(request.param)


@pytest.fixture
def torch():
    return Library("torch")


@pytest.fixture
def jax():
    pytest.importorskip("jax")
    return importlib.import_module("jax")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@all_losses
def test_libraries_agree_and_keep_dtype_and_device(library, name, dtype):
    loss = LOSSES[name]
    for seed in range(4):
        z, y, w = draw(name, seed, (2, 3, 4), 10.0 ** (seed - 2), dtype)
        v = np.random.default_rng(seed).standard_normal(z.shape).astype(dtype)
        for weights in (None, w > 0.5, w.astype("float64")):
            wanted = everything(loss, np, z, y, weights, v)
            with library.precise():
                arrays = [library.array(x) for x in (z, y, weights, v)]
                got = {key: library.numpy(x) for key, x in everything(loss, library.xp, *arrays).items()}
                for before, after in zip((z, y, weights, v), arrays, strict=True):
                    assert before is None or np.array_equal(library.numpy(after), before)
            for key, want in wanted.items():
                assert got[key].dtype == want.dtype == np.dtype(dtype), key
                size = np.abs(want).max() + (1 if key in ("gradient", "total") else 0)
                np.testing.assert_allclose(got[key], want, rtol=0, atol=TOLERANCE[dtype] * size, err_msg=key)


@all_losses
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_torch_differentiates_the_total_to_the_closed_forms(torch, name, scale):
    # At scale 0 all logits tie, where max, abs and argmax have kinks that the loss does not have.
    xp, loss = torch.xp, LOSSES[name]
    z, y, w = (torch.array(x) for x in draw(name, 3, (2, 3, 4), scale, "float64"))
    v = torch.array(np.random.default_rng(0).standard_normal(z.shape))
    z.requires_grad_()
    (g,) = xp.autograd.grad(loss.total(xp, z, y, w), z, create_graph=True)
    (Hv,) = xp.autograd.grad(g, z, v)
    closed = everything(loss, xp, z.detach(), y, w, v)
    g, Hv, want = g.detach(), Hv.detach(), closed["hessian_product"]
    np.testing.assert_allclose(g, closed["gradient"], rtol=1e-12, atol=1e-12 * max(1, scale))
    np.testing.assert_allclose(Hv, want, rtol=1e-12, atol=1e-12 * float(abs(want).max()))


@all_losses
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_jax_differentiates_and_compiles_all_of_it(jax, name, scale):
    xp, loss = jax.numpy, LOSSES[name]
    with jax.enable_x64(True):
        z, y, w = (xp.asarray(x) for x in draw(name, 5, (2, 3, 4), scale, "float64"))
        v = jax.random.normal(jax.random.key(0), z.shape, z.dtype)
        plain = everything(loss, np, *map(np.asarray, (z, y, w, v)))
        compiled = jax.jit(lambda *args: everything(loss, xp, *args))(z, y, w, v)
        for key, want in plain.items():
            np.testing.assert_allclose(compiled[key], want, rtol=1e-12, atol=1e-12 * max(1, scale), err_msg=key)
        gradient = jax.grad(lambda z: loss.total(xp, z, y, w))
        g, Hv = jax.jit(lambda z, v: jax.jvp(gradient, (z,), (v,)))(z, v)
        np.testing.assert_allclose(g, plain["gradient"], rtol=1e-12, atol=1e-12 * max(1, scale))
        want = plain["hessian_product"]
        np.testing.assert_allclose(Hv, want, rtol=1e-12, atol=1e-12 * float(abs(want).max()))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_closed_forms_hold_for_probabilities_that_sum_to_nearly_one(torch, smoothing):
    xp, loss = torch.xp, CrossEntropy(label_smoothing=smoothing)
    z, y, w = draw("softmax of probabilities", 0, (4, 3), 1.0, "float64")
    z, y, w = torch.array(z).requires_grad_(), torch.array(1.0009 * y), torch.array(w + 1)
    v = z.detach()[[1, 2, 3, 0]]
    (g,) = xp.autograd.grad(loss.total(xp, z, y, w), z, create_graph=True)
    (Hv,) = xp.autograd.grad(g, z, v)
    closed = everything(loss, xp, z.detach(), y, w, v)
    np.testing.assert_allclose(g.detach(), closed["gradient"], rtol=1e-12)
    np.testing.assert_allclose(Hv, closed["hessian_product"], rtol=1e-12)
    root = loss.hessian(xp, z.detach(), y, w).root(xp)
    twice = root.product(xp, root.transposed(xp, v))
    np.testing.assert_allclose(twice, closed["hessian_product"], rtol=1e-11)


@all_losses
def test_differentiating_past_examples_without_weight_stays_finite(torch, name):
    z, y, w = draw(name, 11, (4, 3), 1.0, "float64")
    w[:2], w[2:], z[2:] = 1.0, 0.0, np.nan
    z, y, w = torch.array(z).requires_grad_(), torch.array(y), torch.array(w)
    (g,) = torch.xp.autograd.grad(LOSSES[name].total(torch.xp, z, y, w), z, create_graph=True)
    (Hv,) = torch.xp.autograd.grad(g, z, torch.xp.ones_like(z))
    for x in (g.detach().numpy(), Hv.numpy()):
        assert np.isfinite(x).all()
        assert x[:2].any() or name.startswith("softmax")  # which does not see a constant
        assert not x[2:].any()


def test_losses_are_arguments_of_compiled_functions_and_their_numbers_are_data(jax):
    lg.load("jax")
    xp, traces = jax.numpy, []
    z, y, _ = draw("softmax", 2, (4, 3), 1.0, "float32")
    v = z[::-1].copy()
    z[0, (y[0] + 1) % 3] = -np.inf  # a forbidden class, harmless while nothing is smoothed

    @jax.jit
    def compiled(cross_entropy, squared, z, y, v):
        traces.append(z)
        return everything(cross_entropy, xp, z, y, None, v) | {"squared": squared.total(xp, v, None, None)}

    for e in (0.1, 0.0, 0.3):
        losses = CrossEntropy(ignore_index=-1, label_smoothing=e), SquaredError(scale=1 + e)
        got = compiled(*losses, z, y, v)
        wanted = everything(losses[0], np, z, y, None, v) | {"squared": losses[1].total(np, v, None, None)}
        assert np.isfinite(got["total"]) == (e == 0)
        for key, want in wanted.items():
            assert got[key].dtype == np.float32
            np.testing.assert_allclose(got[key], want, rtol=2e-6, atol=1e-6, err_msg=key)
    assert len(traces) == 2  # nothing is smoothed, or something is


SPREAD = """
import jax, numpy as np
from linop_gn.curvature.losses import CrossEntropy
from linop_gn.testing.losses import draw, everything
from jax.sharding import Mesh, NamedSharding, PartitionSpec
layout = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data", None))
z, y, _ = draw("softmax", 0, (4, 3), 1.0, "float32")
spread = jax.device_put(z, layout)
assert len(spread.sharding.device_set) == 2
got = everything(CrossEntropy(), jax.numpy, spread, jax.numpy.asarray(y), None, z)
assert got["gradient"].sharding.is_equivalent_to(layout, 2)
for key, want in everything(CrossEntropy(), np, z, y, None, z).items():
    np.testing.assert_allclose(got[key], want, rtol=1e-5, atol=1e-6, err_msg=key)
"""


def test_outputs_spread_over_two_devices_stay_there(jax):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", SPREAD], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_elementwise_losses_are_those_of_torch(torch):
    xp = torch.xp
    F, same = xp.nn.functional, xp.testing.assert_close

    def mean(loss, z, y, w=None):
        return loss.total(xp, z, y, w) / loss.weight_sum(xp, z, y, w)

    z, y, _ = map(torch.array, draw("squared", 1, (5, 4), 1.0, "float64"))
    same(mean(SquaredError(scale=1 / 4), z, y), F.mse_loss(z, y))
    z, y, w = map(torch.array, draw("binary", 1, (5, 4), 3.0, "float64"))
    same(mean(BinaryCrossEntropy(), z, y), F.binary_cross_entropy_with_logits(z, y))
    weighted = F.binary_cross_entropy_with_logits(z, y, weight=w, reduction="sum") / w.sum()
    same(mean(BinaryCrossEntropy(), z, y, w), weighted)
    z, y, _ = map(torch.array, draw("poisson", 1, (5, 4), 1.0, "float64"))
    same(mean(Poisson(), z, y), F.poisson_nll_loss(z, y.to(z.dtype)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch(torch, smoothing):
    xp = torch.xp
    F, same = xp.nn.functional, xp.testing.assert_close
    loss = CrossEntropy(ignore_index=-100, label_smoothing=smoothing)
    z, y, w = draw("softmax", 4, (3, 5, 7), 3.0, "float64")
    y[0, :3] = -100
    z, y, w = map(torch.array, (z, y, w))
    flat, settings = (z.reshape(-1, 7), y.reshape(-1)), {"ignore_index": -100, "label_smoothing": smoothing}
    mean = loss.total(xp, z, y, None) / loss.weight_sum(xp, z, y, None)
    same(mean, F.cross_entropy(*flat, **settings))
    weighted = F.cross_entropy(*flat, reduction="none", **settings) @ w.reshape(-1)
    same(loss.total(xp, z, y, w), weighted)
    soft = torch.array(draw("softmax of probabilities", 4, (3, 5, 7), 1.0, "float64")[1])
    want = F.cross_entropy(flat[0], soft.reshape(-1, 7), label_smoothing=smoothing, reduction="sum")
    same(CrossEntropy(label_smoothing=smoothing).total(xp, z, soft, None), want)


ENDS = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1.7e308}
AT_THE_END = [SquaredError(), CrossEntropy(), CrossEntropy(label_smoothing=0.1), BinaryCrossEntropy()]
AT_THE_END += [lg.losses.Huber(), lg.losses.SoftL1(), lg.losses.Cauchy(), lg.losses.Arctan()]


def hessians(library, loss, dtype, size):
    """Value, gradient, G 1 and H 1 of a loss of outputs as large as ``size``."""
    xp = library.xp
    z = xp.asarray([[size, -size, 1.0], [-size, size, 0.0]], dtype=getattr(xp, dtype))
    y, ones = xp.asarray([0, 2]) if isinstance(loss, CrossEntropy) else 0 * z + 0.5, xp.ones_like(z)
    objective = lg.Objective(lambda w, x: w * x, loss, (ones, y))
    products = [(curvature(objective, z) @ ones) for curvature in (lg.GGN, lg.Hessian)]
    return [np.asarray(x.tolist()) for x in (objective.value(z), objective.gradient(z), *products)]


@pytest.mark.parametrize("loss", AT_THE_END, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("dtype", ENDS)
def test_nothing_is_nan_up_to_the_end_of_the_range(torch, loss, dtype):
    for size in (0.0, 12.0, 89.0, 1e4, 0.4 * ENDS[dtype] ** 0.5, 0.2 * ENDS[dtype]):
        value, *found = hessians(torch, loss, dtype, size)
        assert not np.isnan(value), size
        assert all(np.isfinite(x).all() for x in found), (size, found)


@pytest.mark.parametrize("loss", AT_THE_END[3:], ids=lambda loss: type(loss).__name__)
def test_nothing_is_nan_in_jax_either(jax, loss):
    found = hessians(Library("jax"), loss, "float32", 1e19)
    assert all(np.isfinite(x).all() for x in found), found


@pytest.mark.parametrize("loss", AT_THE_END[4:], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("u", [0.0, 1e-2, 0.3, 1.0, 1.5, 20.0, 1e3, 1e9, 1e30])
def test_robust_losses_are_scipys_functions(loss, u):
    name = {"Huber": "huber", "SoftL1": "soft_l1", "Cauchy": "cauchy", "Arctan": "arctan"}[type(loss).__name__]
    least_squares = importlib.import_module("scipy.optimize._lsq.least_squares")
    z = np.array([u])
    rho = np.empty((3, 1))
    least_squares.IMPLEMENTED_LOSSES[name](z**2, rho, cost_only=False)
    np.testing.assert_allclose(loss.total(np, z, None, None), 0.5 * rho[0, 0], rtol=1e-7)
    np.testing.assert_allclose(loss.gradient(np, z, None, None), rho[1] * z, rtol=1e-14)
    bent = np.maximum(rho[1] + 2 * z**2 * rho[2], 0.1 * rho[1])
    np.testing.assert_allclose(loss.hessian_product(np, z, None, None, np.ones(1)), bent, rtol=1e-6, atol=1e-300)
