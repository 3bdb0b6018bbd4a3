"""The doctests of a backend are left out where its framework is not installed."""

from importlib.util import find_spec

FRAMEWORKS = ("autograd", "cupy", "jax", "torch")

collect_ignore = [f"backends/linop_gn_{name}" for name in FRAMEWORKS if find_spec(name) is None]
