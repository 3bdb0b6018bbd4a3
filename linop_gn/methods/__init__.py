"""Methods that minimise an objective: pure functions without a loop, run by :func:`linop_gn.minimize`."""

from . import controls, descents, optimisers, searches
from .averaging import averaged
from .base import Method
from .damping import ConstantDamping, Marquardt, Nielsen
from .first_order import FirstOrder
from .inner import InnerGaussNewton, Linearised, ProxLinear
from .least_squares import LeastSquares
from .named import (
    EGN,
    SGN,
    GaussNewton,
    HessianFree,
    LayerwiseGaussNewton,
    LevenbergMarquardt,
    Newton,
    NewtonCG,
    TrustRegion,
)
from .problem import MinimizeProblem, StepData
from .second_order import SecondOrder
from .stopping import Facts

__all__ = ["ConstantDamping", "LeastSquares", "LevenbergMarquardt", "Marquardt", "Method", "MinimizeProblem", "Nielsen"]
__all__ += ["EGN", "SGN", "GaussNewton", "HessianFree", "Newton", "NewtonCG", "SecondOrder", "TrustRegion"]
__all__ += ["Facts", "FirstOrder", "InnerGaussNewton", "Linearised", "ProxLinear", "StepData", "averaged"]
__all__ += ["LayerwiseGaussNewton", "controls", "descents", "optimisers", "searches"]
