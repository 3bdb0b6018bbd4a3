"""Doctests are left out where the framework or library that they need is not installed."""

from importlib.util import find_spec

FRAMEWORKS = ("autograd", "cupy", "jax", "torch")
NEEDED = {
    "lineax": ["backends/linop_gn_jax/with_lineax.py"],
    "optax": [f"backends/linop_gn_jax/{name}.py" for name in ("optimisers", "with_optax")]
    + ["benchmarks/studies/linop_gn_studies/soap.py"],
    "sklearn": ["linop_gn/adaptors/estimators.py"],
}

collect_ignore = [f"backends/linop_gn_{name}" for name in FRAMEWORKS if find_spec(name) is None]
collect_ignore += [path for name, paths in NEEDED.items() if find_spec(name) is None for path in paths]
