"""The method of one's own in docs/methods.md: under 40 lines, the same numbers on three frameworks."""

import re
from pathlib import Path

import curves
import numpy as np
import pytest
from systems import FULL

import linop_gn as lg

conformance = pytest.importorskip("linop_gn.testing.conformance")
PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
SECTION = PAGE.read_text().partition("## A method of your own")[2]
BLOCK = re.search(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL).group(1)
scope = {"__name__": "page", "lg": lg}
exec(compile(BLOCK, PAGE.name, "exec"), scope)


def test_it_is_short():
    assert len(BLOCK.splitlines()) < 40


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_it_runs_the_same_everywhere(name):
    pytest.importorskip(name)
    ops, t = lg.load(name), np.linspace(0, 2, 12)
    y, p, damping = 2.0 * np.exp(-0.5 * t), np.array([1.0, 0.0]), 1.0
    run = lg.minimize(curves.exponential(ops, t, y), ops.asarray(p, "float64"), scope["mine"], max_steps=12)

    def at(p):
        r, J = p[0] * np.exp(p[1] * t) - y, np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1)
        return 0.5 * r @ r, J.T @ r, J.T @ J

    values, dampings = [at(p)[0]], [damping]
    for _ in range(12):
        value, g, G = at(p)
        d = -(g @ g) / (g @ G @ g + damping * g @ g) * g
        ratio = (value - at(p + d)[0]) / -(g @ d + 0.5 * d @ G @ d)
        p = p + d if ratio > 1e-4 else p
        damping *= 0.1 if ratio > 0.5 else 1.0 if ratio > 1e-4 else 10.0
        values.append(at(p)[0])
        dampings.append(damping)
    np.testing.assert_allclose(run.history["value"], values, rtol=1e-10)
    np.testing.assert_allclose(run.history["damping"], dampings, rtol=1e-12)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_it_keeps_what_every_method_promises(name):
    pytest.importorskip(name)
    only = ["compiled_once"] if name == "jax" and not FULL else None  # what it computes there is held above
    conformance.check_method(scope["mine"], lg.load(name), only=only).raise_if_failed()
