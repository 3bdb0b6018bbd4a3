"""Methods that minimise an objective: pure functions without a loop, run by :func:`linop_gn.minimize`."""

from .base import Method
from .damping import ConstantDamping, Marquardt, Nielsen
from .least_squares import LeastSquares
from .levenberg_marquardt import LevenbergMarquardt
from .problem import MinimizeProblem

__all__ = ["ConstantDamping", "LeastSquares", "LevenbergMarquardt", "Marquardt", "Method", "MinimizeProblem", "Nielsen"]
