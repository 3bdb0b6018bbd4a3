"""The script of docs/write_once.md with other arrays: the same steps on every framework, and through every bridge."""

import re
from pathlib import Path

import numpy as np
import pytest

import linop_gn as lg
from linop_gn.testing import device_of
from linop_gn.testing.strategies import array

PAGE = Path(__file__).parent.parent / "docs" / "write_once.md"
NATIVE = [("torch", None), ("jax", None)]
BRIDGED = [("numpy", "torch"), ("numpy", "jax"), ("numpy", "autograd"), ("array_api_strict", "torch"), ("torch", "jax")]


@pytest.fixture(scope="module")
def script():
    """Names of the page's blocks up to the first that imports a framework."""
    scope = {"__name__": "write_once"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[:2]:
        exec(compile(block, "write_once.md", "exec"), scope)
    return scope


def backend_for(name):
    pytest.importorskip(name)
    if name == "array_api_strict":
        from linop_gn.testing.strict import strict_backend

        return strict_backend
    return lg.load(name)


def run(script, backend, derivatives):
    def place(x):
        return array(backend, x, str(x.dtype))

    return script["train"](*script["on"](place, derivatives))


@pytest.mark.parametrize(("name", "derivatives"), NATIVE + BRIDGED, ids=lambda name: str(name))
def test_the_same_steps_to_rounding(script, name, derivatives):
    pytest.importorskip("torch")
    if derivatives is not None:
        pytest.importorskip(derivatives)
    backend = backend_for(name)
    reference, values = run(script, lg.load("torch"), None)
    params, found = run(script, backend, derivatives)
    assert values[-1] < 0.7 * values[0]
    np.testing.assert_allclose(found, values, rtol=1e-10)
    for layer, leaves in params.items():
        for leaf, w in leaves.items():
            np.testing.assert_allclose(backend.to_numpy(w), reference[layer][leaf].numpy(), rtol=1e-7, atol=1e-9)
            assert backend.describe(w)[1:] == ("float64", device_of(backend))
