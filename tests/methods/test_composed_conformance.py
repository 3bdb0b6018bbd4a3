"""Compositions and named methods keep what every method promises, on every backend."""

import published
import pytest
from composed import COMPOSED, NAMED
from systems import FULL, OF_A_BACKEND, in_full, load

import linop_gn as lg

conformance = pytest.importorskip("linop_gn.testing.conformance")
ALL = COMPOSED | NAMED


WHOLE = {"numpy": ALL, "torch": ["Krylov"], "poison": ["iterates"]}
"""Elsewhere the laws that a backend may spoil; all of them with ``FULL``."""
ELSEWHERE = [*COMPOSED, "HessianFree", "layerwise"]
"""Not on NumPy alone: the other named ones are made of the same parts. In CI each is on one backend more, in turn."""


EVERY = [law.removeprefix("test_") for law in vars(conformance.MethodConformance) if law.startswith("test_")]


def laws(name, backend):
    """Those of a method on a backend, but for streams of solvers that need all outputs at once."""
    method, names = ALL[name], EVERY
    if not FULL and name not in WHOLE[backend]:
        names = OF_A_BACKEND
    gram = isinstance(getattr(method.descent, "solver", None), lg.GramSolve) or isinstance(
        method.descent, lg.descents.Momentum
    )
    return [law for law in names if not (gram and law == "streamed_data")]


IN_TURN = {name: ("torch", "poison")[i % 2] for i, name in enumerate(ELSEWHERE)} | {"iterates": "poison"}
EAGER = [
    pytest.param(name, backend, marks=() if backend in ("numpy", IN_TURN.get(name)) else in_full)
    for backend in ("numpy", "torch", "poison")
    for name in ALL
]
STRICT = [pytest.param(name, "array_api_strict", marks=[pytest.mark.strict, in_full]) for name in ALL]


@pytest.mark.parametrize(("name", "backend"), EAGER + STRICT)
def test_eager(name, backend):
    conformance.check_method(ALL[name], load(backend), only=laws(name, backend)).raise_if_failed()


@pytest.mark.parametrize("backend", ["numpy", "poison"])
def test_weight_decay(backend):
    method = lg.SecondOrder(level=1e-2, weight_decay=1e-3, stopping=None)
    own = [law for law in EVERY if law != "other_data"]  # where slopes are reversed, the decay is not
    conformance.check_method(method, load(backend), only=own).raise_if_failed()


@in_full
@pytest.mark.parametrize("name", ALL)
def test_compiled(name):
    conformance.check_method(ALL[name], load("jax"), only=laws(name, "jax")).raise_if_failed()


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ELSEWHERE else in_full) for name in ALL])
def test_traced(name):
    """A run makes one program, whether or not anybody compiles it."""
    jax = pytest.importorskip("jax")
    ops, f = load("jax"), published.Tanh()
    start = ops.asarray(f.start, "float64")
    made = jax.eval_shape(lambda x: lg.minimize(f.objective(ops), x, ALL[name], max_steps=3).params, start)
    assert (made.shape, made.dtype) == (start.shape, start.dtype)
