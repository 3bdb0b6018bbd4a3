"""Curvature of objectives: Hessian, generalised Gauss-Newton and its blocks, as linear operators."""

from . import losses
from .at_point import GGN, BlockGGN, Hessian, Jacobian, LossHessian
from .fisher import EmpiricalFisher, Fisher
from .gram import Gram
from .kfac import EKFAC, KFAC
from .norms import gradient_norms
from .objective import Objective
from .point import Point
from .supplied import MissingDerivativeError

__all__ = [
    "EKFAC",
    "GGN",
    "KFAC",
    "BlockGGN",
    "EmpiricalFisher",
    "Fisher",
    "Gram",
    "Hessian",
    "Jacobian",
    "LossHessian",
    "MissingDerivativeError",
    "Objective",
    "Point",
    "gradient_norms",
    "losses",
]
