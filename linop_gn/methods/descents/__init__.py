"""Directions to step along, asked for once at each accepted point and then for each trial."""

from .base import Descent, Gradient, Model, Trial
from .dense import Eigen
from .momentum import Momentum
from .regions import Dogleg, Krylov, Steihaug, TrustRegion
from .solve import Solve

__all__ = ["Descent", "Dogleg", "Eigen", "Gradient", "Krylov", "Model", "Momentum", "Solve"]
__all__ += ["Steihaug", "Trial", "TrustRegion"]
