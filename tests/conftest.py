"""Hypothesis profiles, the backends that tests run on, and which cases run in CI.

CI has ten minutes of two cores; `nox -s tests_full` runs every case with every draw on every framework. CI runs

- every case on NumPy, and every test that is of one framework alone;
- on the others, where a test has several `parametrize`, as many cases as it takes for each row of each to come once.
  Rows that only hold together belong into one `parametrize`, which is run whole;
- on JAX, where each test compiles, those tests of a module that it names in ``IN_CI_ON_JAX``, or all of them. Name
  what a compiled program or its types may spoil: one test of each solver, of its columns, statuses, dtypes and range.
  Of the cases of a test every third, but for those in ``EACH_IN_CI_ON_JAX``, whose cases are each another promise;
- of a test that calls ``systems.spare(backend, enough)``, on JAX the cases that are ``enough``, and all elsewhere;
- a few of hypothesis' draws where programs are compiled (``FEW_DRAWS``). Draw from a few shapes: each is a program;
- nothing marked ``systems.in_full``: what takes over five seconds, where a quicker test holds as much.

The environment is set before any framework is imported: double precision in JAX,
one thread each, and XLA's CPU fusions that miscompile loops switched off.
"""
# ruff: noqa: E402

import gc
import importlib
import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path

for name, value in {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}.items():
    os.environ.setdefault(name, value)
if importlib.util.find_spec("jaxlib") and version("jaxlib") == "0.10.2":  # others may not know the flag, and abort
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import pytest
from hypothesis import HealthCheck, settings

import linop_gn as lg

calm = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("ci", derandomize=True, max_examples=15, **calm)
settings.register_profile("quick", derandomize=True, max_examples=3, **calm)  # of an installation, not of the code
settings.register_profile("full", derandomize=True, max_examples=25, **calm)
settings.register_profile("thorough", max_examples=400, **calm)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)

FRAMEWORKS = ("numpy", "torch", "jax", "array_api_strict", "poison")
FEW_DRAWS = {"torch": 4, "jax": 2, "array_api_strict": 2} if PROFILE == "ci" else {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Draw in full on NumPy and the poison backend, and a few fixed ones where compiling is what takes the time."""
    drawn = getattr(item, "obj", None)
    kept = getattr(drawn, "_hypothesis_internal_use_settings", None)
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = {name for name in (*given, *item.path.parts, *item.fixturenames) if isinstance(name, str)}
    few = min((FEW_DRAWS[name] for name in named & FEW_DRAWS.keys()), default=None)
    if kept is None or few is None or kept.max_examples <= few:
        return (yield)
    owner = getattr(drawn, "__func__", drawn)
    owner._hypothesis_internal_use_settings = settings(kept, max_examples=few)
    try:
        return (yield)
    finally:
        owner._hypothesis_internal_use_settings = kept


def _frameworks(item):
    """The frameworks that this case is parametrised with."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return tuple(value for value in params.values() if isinstance(value, str) and value in FRAMEWORKS)


def _rows(item):
    """The row of each `parametrize` that this case takes, and the value of each fixture."""
    left = item.callspec.params.keys()
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        yield {name.strip() for name in names} & left
        left -= {name.strip() for name in names}
    yield from ({name} for name in left)


def _written(item):
    """The test as it is written, within what hypothesis makes of it."""
    return item.function.hypothesis.inner_test if hasattr(item.function, "hypothesis") else item.function


def left_to_full(items):
    """The cases that CI leaves to ``tests_full``, as the docstring above says."""
    seen, twins = {}, {}
    for item in items:
        twins.setdefault(item.nodeid.partition("[")[0], set()).update(_frameworks(item))
    for item in items:
        frameworks, test = _frameworks(item), item.nodeid.partition("[")[0]
        if not set(frameworks) - {"numpy"} or any(mark.args[0] for mark in item.iter_markers("skipif")):
            continue
        chosen = getattr(item.module, "IN_CI_ON_JAX", None)
        assert all(hasattr(item.module, name) for name in chosen or ()), f"IN_CI_ON_JAX of {item.path} names no test"
        if "jax" in frameworks and chosen is not None and item.originalname not in chosen and twins[test] != {"jax"}:
            yield item
        elif not {"spare", "skip"} & set(_written(item).__code__.co_names):
            values = item.callspec.params
            rows = {tuple((name, id(values[name])) for name in sorted(row)) for row in _rows(item)}
            known = seen.setdefault((test, frameworks), set())
            if known and rows <= known:
                yield item
            known |= rows


ON_JAX_EACH = 3
"""Of a test's cases on JAX CI runs the first, and after it each one in so many."""


def thinned_on_jax(items):
    """The cases on JAX that CI leaves to ``tests_full`` for being many."""
    count = {}
    for item in items:
        if not hasattr(item, "callspec"):
            continue
        each = getattr(item.module, "EACH_IN_CI_ON_JAX", ())
        assert all(hasattr(item.module, name) for name in each), f"EACH_IN_CI_ON_JAX of {item.path} names no test"
        on_jax = "jax" in _frameworks(item) or "jax" in item.path.parts or "jax" in item.originalname
        if not on_jax or item.originalname in each:
            continue
        test = item.nodeid.partition("[")[0]
        count[test] = count.get(test, -1) + 1
        if count[test] % ON_JAX_EACH:
            yield item


def pytest_collection_modifyitems(items):
    if PROFILE not in ("ci", "quick"):
        return
    left = set(map(id, left_to_full(items)))
    left |= set(map(id, thinned_on_jax([item for item in items if id(item) not in left])))
    for item in items:
        if id(item) in left:
            item.add_marker(pytest.mark.skip(reason="held by other cases: in nox -s tests_full"))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without looking for garbage, and leave what was collected out of every later look."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


collect_ignore = [f"backends/{name}" for name in ("torch", "jax") if importlib.util.find_spec(name) is None]

STAND_INS = {"array_api_strict": "linop_gn.testing.strict:strict_backend", "poison": "linop_gn.testing:poison_backend"}


def load(name):
    """The backend called ``name``, or a skip that says why there is none."""
    try:
        if name in STAND_INS:
            module, _, attribute = STAND_INS[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        backend = lg.load(name)
    except ImportError as error:
        pytest.skip(f"backend {name!r} cannot be loaded here: {error}")
    if name == "torch":
        importlib.import_module("torch").set_num_threads(1)
    return backend


@pytest.fixture(
    scope="session",
    params=["numpy", "torch", "jax", pytest.param("array_api_strict", marks=pytest.mark.strict), "poison"],
)
def backend(request):
    """Each backend in turn, the strict stand-in for libraries off the host, and the one that spoils what it may."""
    return load(request.param)


MOST_MAPPINGS = 6_000


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs when there are many: each takes 20 MB, and a hundred of a process's 65530 mappings.

    Beyond that the compiler aborts the process, in whichever test comes next.
    """
    yield
    mappings = Path("/proc/self/maps")
    if "jax" in sys.modules and mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def other(backend):
    """A backend that is not ``backend``."""
    return lg.load("numpy") if backend.name != "numpy" else load("array_api_strict")


@pytest.fixture(scope="session")
def numpy_backend():
    return lg.load("numpy")


@pytest.fixture(scope="session")
def torch():
    load("torch")
    return importlib.import_module("torch")


@pytest.fixture(scope="session")
def jax():
    load("jax")
    return importlib.import_module("jax")
