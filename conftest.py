"""The doctests of a backend are left out where its framework is not installed."""

from importlib.util import find_spec

FRAMEWORKS = ("autograd", "cupy", "jax", "torch")
SOAP = "benchmarks/studies/linop_gn_studies/soap.py"

collect_ignore = [f"backends/linop_gn_{name}" for name in FRAMEWORKS if find_spec(name) is None]
collect_ignore += (
    ["backends/linop_gn_jax/optimisers.py", "backends/linop_gn_jax/with_optax.py", SOAP]
    if find_spec("optax") is None
    else []
)
collect_ignore += ["backends/linop_gn_jax/with_lineax.py"] if find_spec("lineax") is None else []
