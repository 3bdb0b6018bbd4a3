"""What is compiled, when, and with which protection; and what an import must not do."""

import json
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from linop_gn_jax import compiled as programs
from linop_gn_jax.compiled import compilations, compiled, tracing


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_backend_starts_nothing():
    started = run(
        "import json, linop_gn_jax, jax\n"
        "from jax._src import xla_bridge\n"
        "print(json.dumps(xla_bridge.backends_are_initialized()))"
    )
    assert started is False


def test_tracing_is_noticed_in_every_transformation_that_makes_programs():
    seen = {}

    def note(name):
        seen[name] = tracing()
        return jnp.float32(0)

    note("eager")
    jax.jit(lambda: note("jit"))()
    jax.eval_shape(lambda: note("eval_shape"))
    lax.scan(lambda c, _: (note("scan"), None), jnp.float32(0), None, length=1)
    jax.vmap(lambda x: note("vmap"))(jnp.ones(2))
    assert seen == {"eager": False, "jit": True, "eval_shape": True, "scan": True, "vmap": False}


def test_programs_are_counted_by_name():
    program = compiled(lambda x, n: x * n, static=(1,), label=lambda x, n: f"counted {n}")
    for n in (2, 3, 2):
        assert float(program(jnp.float32(2.0), n)) == 2 * n
    counts = compilations()
    assert (counts["counted 2"], counts["counted 3"]) == (1, 1)
    counts["counted 2"] = 100
    assert compilations()["counted 2"] == 1


def test_a_program_goes_through_vmap_and_jvp():
    program = compiled(lambda x: jnp.sin(x) ** 2)
    x = jnp.linspace(0.0, 1.0, 5)
    np.testing.assert_allclose(jax.vmap(program)(x), np.sin(x) ** 2, rtol=1e-6)
    for gradient in (jax.vmap(jax.grad(program))(x), jax.grad(lambda x: jnp.sum(program(x)))(x)):
        np.testing.assert_allclose(gradient, np.sin(2 * x), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not programs._YNN_IS_WRONG, reason="only jaxlib 0.10.2 is affected")
def test_programs_are_compiled_without_the_fusions_that_are_wrong():
    texts = run(
        "import json, jax, jax.numpy as jnp\n"
        "from linop_gn_jax.compiled import compiled\n"
        "def loop(x): return jax.lax.fori_loop(0, 3, lambda i, x: x / jnp.vdot(x, x), x)\n"
        "x = jnp.ones(100_000, 'float32')\n"
        "plain = jax.jit(loop).lower(x).compile().as_text()\n"
        "ours = compiled(loop).program.lower(x).compile().as_text()\n"
        "print(json.dumps(['ynn' in plain, 'ynn' in ours]))",
        XLA_FLAGS="",
    )
    assert texts == [True, False]


@pytest.mark.skipif(not programs._YNN_IS_WRONG, reason="only jaxlib 0.10.2 is affected")
def test_a_loop_in_a_users_program_is_warned_about_once(monkeypatch):
    program = compiled(lambda x: lax.fori_loop(0, 3, lambda i, x: x / 2, x), loops=True)
    monkeypatch.setenv("XLA_FLAGS", "")
    programs._warn_of_wrong_fusions.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program(jnp.ones(2))
    with pytest.warns(RuntimeWarning, match=r"jaxlib 0\.10\.2.*set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= "):
        jax.jit(lambda x: program(x))(jnp.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda x: program(x) + 1)(jnp.ones(2))
    programs._warn_of_wrong_fusions.cache_clear()


@pytest.mark.parametrize("n", [100, 5_000, 100_000])
def test_a_compiled_loop_agrees_with_numpy_and_with_itself(n):
    """The shape of a CG step (dots, updates, a quotient), repeated: what the wrong fusions spoilt."""
    rng = np.random.default_rng(0)
    d, b = rng.uniform(1, 10, n).astype(np.float32), rng.standard_normal(n).astype(np.float32)

    def loop(xp, repeat, d, b):
        def step(carry):
            x, r, p, rr = carry
            q = d * p
            alpha = rr / xp.sum(p * q)
            x, r = x + alpha * p, r - alpha * q
            new = xp.sum(r * r)
            return x, r, r + new / rr * p, new

        return repeat(step, (xp.zeros_like(b), b, b, xp.sum(b * b)))[0]

    def in_python(step, carry):
        for _ in range(12):
            carry = step(carry)
        return carry

    exact = loop(np, in_python, d.astype(float), b.astype(float))
    program = compiled(lambda d, b: loop(jnp, lambda step, c: lax.fori_loop(0, 12, lambda _, c: step(c), c), d, b))
    first = np.asarray(program(d, b))
    np.testing.assert_allclose(first, exact, rtol=1e-3, atol=1e-4)
    for _ in range(5):
        np.testing.assert_array_equal(program(d, b), first)
