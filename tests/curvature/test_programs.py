"""compile=True where products can be compiled, are compiled anyway, and cannot be."""

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.dispatch import load

SE = lg.losses.SquaredError()
x, y, w = np.eye(3, 2), np.ones(3), np.ones(2)


def test_frameworks_without_a_compiler_say_so():
    objective = lg.Objective(lambda w, x: x @ w, SE, (x, y), compile=True)
    with pytest.raises(ValueError, match="compile=True: numpy compiles no products"):
        objective.value(w)
    pytest.importorskip("autograd")
    abroad = lg.Objective(lambda w, x: x @ w, SE, (x, y), compile=True, derivatives="autograd")
    with pytest.raises(ValueError, match="autograd compiles no products"):
        abroad.gradient(w)


@pytest.mark.parametrize("make", [
    lambda: lg.Objective(lambda w, x: x @ w, SE, (x, y), jacobian=lambda w, x: x, compile=True),
    lambda: lg.Objective.from_residuals(lambda w: x @ w, jvp=print, vjp=print, compile=True),
    lambda: lg.Objective.from_function(lambda w: w @ w, gradient=print, hvp=print, compile=True),
])  # fmt: skip
def test_derivatives_that_are_given_run_as_they_are(make):
    with pytest.raises(ValueError, match="compile=True was given beside functions that supply derivatives"):
        make()


def test_where_everything_is_compiled_it_changes_nothing():
    jax = pytest.importorskip("jax")
    jnp, programs = jax.numpy, []

    def model(w, x):
        programs.append(1)
        return jnp.tanh(x @ w)

    data = jnp.asarray(x), jnp.asarray(y)
    asked, plain = (lg.Objective(model, SE, data, compile=c) for c in (True, False))
    v = jnp.ones(2)
    want = lg.GGN(plain, jnp.ones(2)) @ v
    count = len(programs)
    assert jnp.array_equal(lg.GGN(asked, jnp.ones(2)) @ v, want)
    assert len(programs) == count  # the same program


def test_arrays_of_another_framework_are_compiled_over_there(monkeypatch):
    torch = pytest.importorskip("torch")
    programs = pytest.importorskip("linop_gn_torch.programs")
    monkeypatch.setattr(programs, "COMPILER", "eager")
    plain, asked = (
        lg.Objective(lambda w, x: torch.tanh(x @ w), SE, (x, y), derivatives="torch", compile=c) for c in (False, True)
    )
    for make in (lg.GGN, lg.Hessian):
        np.testing.assert_allclose(make(asked, w) @ w, make(plain, w) @ w, rtol=1e-14)
    assert asked.programs.of(load("torch")).traced == 2
