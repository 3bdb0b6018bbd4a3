"""Curvature of objectives: Hessian, generalised Gauss-Newton and its blocks, as linear operators."""

from . import losses
from .block_ggn import BlockGGN
from .ggn import GGN
from .gram import Gram
from .hessian import Hessian
from .jacobian import Jacobian, LossHessian
from .objective import Objective
from .point import Point
from .supplied import MissingDerivativeError

__all__ = [
    "GGN",
    "BlockGGN",
    "Gram",
    "Hessian",
    "Jacobian",
    "LossHessian",
    "MissingDerivativeError",
    "Objective",
    "Point",
    "losses",
]
