"""What tests of the toolkit, of a backend or of an operator of your own are made of.

======================== =====================================================
:mod:`.conformance`      the laws of backends, solvers and methods
:mod:`.oracles`          dense float64 NumPy answers
:mod:`.strategies`       Hypothesis strategies for any backend
:mod:`.poison`           arrays that spoil what has been consumed
:mod:`.strict`           array-api-strict off the host, as a backend
:mod:`.losses`           losses one example at a time
======================== =====================================================

``conformance`` and ``strategies`` need Hypothesis and ``strict`` array-api-strict
(both in the extra ``testing``): they are imported where they are wanted.
"""

from typing import TYPE_CHECKING, Any

from .device import device_of, use_device
from .oracles import (
    complex_step_jacobian,
    dense,
    finite_difference_gradient,
    finite_difference_hessian,
    finite_difference_jacobian,
    relative_error,
)
from .poison import Poison, PoisonArray, PoisonBackend, poison, poison_backend, poisoned

if TYPE_CHECKING:
    from .conformance import (
        BackendConformance,
        ConformanceError,
        ConformanceReport,
        MethodConformance,
        SolverConformance,
        check_backend,
        check_method,
        check_solver,
    )

__all__ = [
    "BackendConformance",
    "ConformanceError",
    "ConformanceReport",
    "MethodConformance",
    "Poison",
    "PoisonArray",
    "PoisonBackend",
    "SolverConformance",
    "check_backend",
    "check_method",
    "check_solver",
    "complex_step_jacobian",
    "dense",
    "device_of",
    "finite_difference_gradient",
    "finite_difference_hessian",
    "finite_difference_jacobian",
    "poison",
    "poison_backend",
    "poisoned",
    "relative_error",
    "use_device",
]

_WITH_HYPOTHESIS = (
    "BackendConformance",
    "ConformanceError",
    "ConformanceReport",
    "MethodConformance",
    "check_backend",
    "check_method",
    "SolverConformance",
    "check_solver",
)


def __getattr__(name: str) -> Any:
    if name not in _WITH_HYPOTHESIS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import conformance

    return getattr(conformance, name)
