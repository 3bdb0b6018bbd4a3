"""Parameters in single precision under a model that multiplies in bfloat16: what is lost, and what is told of it."""

import numpy as np
import pytest

import linop_gn as lg

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((257, 8)), RNG.integers(0, 12, 257)  # bfloat16 has no 257
P = {"A": RNG.standard_normal((8, 8)) / 3, "W": RNG.standard_normal((8, 12)) / 3}
V = {name: RNG.standard_normal(p.shape) for name, p in P.items()}


@pytest.fixture(params=["torch", "jax"])
def fits(request):
    """The objective in float32 over a model in bfloat16, the same in NumPy's float64, and how to make arrays."""
    library = pytest.importorskip(request.param)
    if request.param == "torch":

        def model(p, x):
            with library.autocast("cpu", library.bfloat16):
                return library.tanh(x @ p["A"]) @ p["W"]

        def put(x):
            return library.asarray(x, dtype=library.float32) if x.dtype == float else library.asarray(x)
    else:
        jnp = library.numpy

        def model(p, x):
            A, W = (p[name].astype(jnp.bfloat16) for name in ("A", "W"))
            return jnp.tanh(x.astype(jnp.bfloat16) @ A) @ W

        def put(x):
            return jnp.asarray(x, jnp.float32) if x.dtype == float else jnp.asarray(x)

    fit = lg.Objective(model, lg.losses.CrossEntropy(), (put(X), put(Y)))
    autograd = pytest.importorskip("autograd.numpy")
    exact = lg.Objective(
        lambda p, x: autograd.tanh(x @ p["A"]) @ p["W"], lg.losses.CrossEntropy(), (X, Y), derivatives="autograd"
    )
    return fit, exact, put


def flat(tree):
    return np.concatenate([np.asarray(tree[name], dtype=float).reshape(-1) for name in sorted(tree)])


def off(got, want):
    return np.linalg.norm(flat(got) - flat(want)) / np.linalg.norm(flat(want))


def test_sums_are_in_single_precision_and_products_in_bfloat16(fits):
    fit, exact, put = fits
    p, v = ({name: put(x) for name, x in tree.items()} for tree in (P, V))
    value, G = fit.value(p), lg.GGN(fit, p)
    assert "float32" in str(value.dtype)
    assert "float32" in str(fit.at(p).outputs.dtype)
    assert abs(float(value) - float(exact.value(P))) < 3e-4 * float(value)  # in bfloat16 it would be 4e-3
    made = G @ v
    assert all("float32" in str(x.dtype) for x in made.values())
    assert 1e-4 < off(made, lg.GGN(exact, P) @ V) < 1e-2
    assert 1e-4 < off(lg.Hessian(fit, p) @ v, lg.Hessian(exact, P) @ V) < 1e-2
    assert off(fit.gradient(p), exact.gradient(P)) < 1e-2


@pytest.mark.parametrize(("rtol", "reached"), [(1e-1, True), (2e-2, True), (1e-6, False)])
def test_a_solve_claims_what_its_products_bear(fits, rtol, reached):
    fit, exact, put = fits
    p, b = {name: put(x) for name, x in P.items()}, {name: put(x) for name, x in V.items()}
    solution = lg.solve(lg.Damped(lg.GGN(fit, p), 1e-2), b, lg.CG(rtol=rtol, max_steps=300))
    residual = off(
        lg.Damped(lg.GGN(exact, P), 1e-2) @ {name: np.asarray(x, float) for name, x in solution.x.items()}, V
    )
    assert solution.status.succeeded == reached, solution.status
    assert residual < (1.1 * rtol if reached else 2e-2)
