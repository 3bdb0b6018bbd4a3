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


@pytest.fixture(params=["torch", "jax"])
def place(request):
    """Put a NumPy array on the accelerator."""
    return {"torch": torch_device, "jax": jax_device}[request.param]()


def network(place):
    rng = np.random.default_rng(0)
    x, y = place(rng.standard_normal((32, 5))), place(rng.integers(0, 3, 32))
    w = place(rng.standard_normal((5, 8)))
    v = place(rng.standard_normal((8, 3)))
    objective = lg.Objective(lambda p, x: lg.namespace(x).tanh(x @ p["w"]) @ p["v"], lg.losses.CrossEntropy(), (x, y))
    return objective, {"w": w, "v": v}


def on_host(name, place):
    """The same network with the same numbers, on the host."""
    return network(lambda x: lg.load(name).asarray(x, str(x.dtype)))


@pytest.mark.parametrize("curvature", [lg.GGN, lg.Hessian, lg.BlockGGN])
def test_products_agree_with_the_host(place, curvature):
    objective, params = network(place)
    A = curvature(objective, params)
    B = curvature(*on_host(A.backend.name, place))
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
    _, there = on_host(lg.backend_of(params).name, place)
    with pytest.raises(ValueError, match="move one of them"):
        lg.GGN(objective, there)
