"""The same results on an accelerator as on the host. Skipped, with the reason, where there is none."""

import numpy as np
import pytest

import linop_gn as lg

pytestmark = pytest.mark.gpu


def torch_device():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return lambda x: torch.as_tensor(x).to("cuda")


def jax_device():
    jax = pytest.importorskip("jax")
    accelerators = [device for device in jax.devices() if device.platform in ("gpu", "tpu")]
    if not accelerators:
        pytest.skip("JAX sees no accelerator (set JAX_PLATFORMS to let it look for one)")
    return lambda x: jax.device_put(jax.numpy.asarray(x), accelerators[0])


def cupy_device():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed (linop-gn doctor says how to get it)")
    if not cupy.cuda.is_available():
        pytest.skip("CuPy sees no GPU")
    return cupy.asarray


@pytest.fixture(params=["torch", "jax", "cupy"])
def place(request):
    """Put a NumPy array on the accelerator."""
    return {"torch": torch_device, "jax": jax_device, "cupy": cupy_device}[request.param]()


def model(p, x):
    return lg.namespace(x).tanh(x @ p["w"]) @ p["v"]


def jvp(p, x, d):
    h = lg.namespace(x).tanh(x @ p["w"])
    return ((1 - h * h) * (x @ d["w"])) @ p["v"] + h @ d["v"]


def vjp(p, x, u):
    h = lg.namespace(x).tanh(x @ p["w"])
    return {"w": x.T @ ((u @ p["v"].T) * (1 - h * h)), "v": h.T @ u}


def network(place):
    rng = np.random.default_rng(0)
    x, y = place(rng.standard_normal((32, 5))), place(rng.integers(0, 3, 32))
    params = {"w": place(rng.standard_normal((5, 8))), "v": place(rng.standard_normal((8, 3)))}
    supplied = {} if lg.backend_of(x).calculus else {"jvp": jvp, "vjp": vjp}
    return lg.Objective(model, lg.losses.CrossEntropy(), (x, y), **supplied), params


def on_host(backend):
    """The same network with the same numbers, on the host: in NumPy where the framework has no arrays there."""
    home = lg.load("numpy") if backend.name == "cupy" else backend
    return network(lambda x: home.asarray(x, str(x.dtype)))


@pytest.mark.parametrize("curvature", [lg.GGN, lg.Hessian, lg.BlockGGN])
def test_products_agree_with_the_host(place, curvature):
    objective, params = network(place)
    if curvature is lg.Hessian and lg.backend_of(params).calculus is None:
        pytest.skip("no second derivatives without a framework that has them")
    A = curvature(objective, params)
    B = curvature(*on_host(A.backend))
    product = A @ A.domain.random(1)
    assert A.backend.describe(product)[2] == A.domain.device != B.domain.device
    expected = B.backend.to_numpy(B @ B.domain.random(1))
    np.testing.assert_allclose(A.backend.to_numpy(product), expected, rtol=1e-10, atol=1e-12)


def test_solve_and_minimize_stay_on_the_device(place):
    objective, params = network(place)
    G = lg.Damped(lg.GGN(objective, params), 0.1)
    step = lg.solve(G, objective.gradient(params), lg.CG(rtol=1e-10))
    assert step.succeeded
    assert G.backend.describe(step.x["w"])[2] == G.domain.device
    fit = lg.minimize(objective, params, max_steps=5)
    assert float(fit.value) < float(objective.value(params))
    assert G.backend.describe(fit.params["w"])[2] == G.domain.device


def test_data_left_on_the_host_are_an_error(place):
    objective, params = network(place)
    _, there = on_host(lg.backend_of(params))
    with pytest.raises((TypeError, ValueError), match=r"(move|convert) one of them"):
        lg.GGN(objective, there)


@pytest.mark.parametrize("guest", ["torch", "jax"])
def test_cupy_arrays_are_differentiated_by_another_framework_on_the_gpu(guest):
    cupy = cupy_device()
    {"torch": torch_device, "jax": jax_device}[guest]()
    rng = np.random.default_rng(0)
    x, y = cupy(rng.standard_normal((32, 5))), cupy(rng.integers(0, 3, 32))
    params = {"w": cupy(rng.standard_normal((5, 8))), "v": cupy(rng.standard_normal((8, 3)))}
    bridged = lg.GGN(lg.Objective(model, lg.losses.CrossEntropy(), (x, y), derivatives=guest), params)
    own = lg.GGN(*network(cupy))
    v = own.domain.random(1)
    assert bridged.backend.name == "cupy"
    np.testing.assert_allclose((bridged @ v).get(), (own @ v).get(), rtol=1e-9, atol=1e-12)
