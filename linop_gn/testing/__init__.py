"""What tests of the toolkit, of a backend or of an operator of your own are made of.

======================== =====================================================
:mod:`.oracles`          dense float64 NumPy answers
:mod:`.strategies`       Hypothesis strategies for any backend
:mod:`.poison`           arrays that spoil what has been consumed
:mod:`.strict`           array-api-strict off the host, as a backend
:mod:`.losses`           losses one example at a time
======================== =====================================================

``strategies`` needs Hypothesis and ``strict`` array-api-strict (both in the
extra ``testing``): import them as modules where they are wanted.
"""

from .device import device_of, use_device
from .oracles import (
    complex_step_jacobian,
    dense,
    finite_difference_gradient,
    finite_difference_hessian,
    finite_difference_jacobian,
    relative_error,
)
from .poison import Poison, PoisonArray, PoisonBackend, poison, poison_backend

__all__ = [
    "Poison",
    "PoisonArray",
    "PoisonBackend",
    "complex_step_jacobian",
    "dense",
    "device_of",
    "finite_difference_gradient",
    "finite_difference_hessian",
    "finite_difference_jacobian",
    "poison",
    "poison_backend",
    "relative_error",
    "use_device",
]
