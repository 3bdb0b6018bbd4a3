"""Compositions and named methods keep what every method promises, on every backend."""

import pytest
from composed import COMPOSED, NAMED
from systems import in_full, load

import linop_gn as lg

conformance = pytest.importorskip("linop_gn.testing.conformance")
ALL = COMPOSED | NAMED


def laws(method):
    """All of them, but streams for solvers that need all outputs at once."""
    names = [name for name in vars(conformance.MethodConformance) if name.startswith("test_")]
    gram = isinstance(getattr(method.descent, "solver", None), lg.GramSolve) or isinstance(
        method.descent, lg.descents.Momentum
    )
    return [name.removeprefix("test_") for name in names if not (gram and name == "test_streamed_data")]


EAGER = ["numpy", "torch", "poison", pytest.param("array_api_strict", marks=[pytest.mark.strict, in_full])]


@pytest.mark.parametrize("backend", EAGER)
@pytest.mark.parametrize("name", ALL)
def test_eager(name, backend):
    conformance.check_method(ALL[name], load(backend), only=laws(ALL[name])).raise_if_failed()


@pytest.mark.parametrize("backend", ["numpy", "poison"])
def test_weight_decay(backend):
    method = lg.SecondOrder(level=1e-2, weight_decay=1e-3, stopping=None)
    own = [name for name in laws(method) if name != "other_data"]  # where slopes are reversed, the decay is not
    conformance.check_method(method, load(backend), only=own).raise_if_failed()


@in_full
@pytest.mark.parametrize("name", ALL)
def test_compiled(name):
    conformance.check_method(ALL[name], load("jax"), only=laws(ALL[name])).raise_if_failed()
