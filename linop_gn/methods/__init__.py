"""Methods that minimise an objective: pure functions without a loop, run by :func:`linop_gn.minimize`."""

from .base import Method
from .damping import ConstantDamping, Marquardt, Nielsen
from .levenberg_marquardt import LevenbergMarquardt
from .problem import MinimizeProblem

__all__ = ["ConstantDamping", "LevenbergMarquardt", "Marquardt", "Method", "MinimizeProblem", "Nielsen"]
