"""Preconditioners for operators that are damped: recipes that keep the expensive part while the damping changes.

============================ ================================================= ==================================
recipe                       what it applies                                   products, for each point
============================ ================================================= ==================================
:class:`Jacobi`              1 / (diagonal + damping)                          0, n, or the number of probes
:class:`EmpiricalFisher`     1 / (sum_i g_i^2 / N + damping)^(3/4)             half of one for each probe
:class:`SquaredGradient`     1 / (gradient^2 + damping)^(3/4)                  0
:class:`Nystrom`             the inverse of a low-rank sketch + damping        the rank
:class:`BlockJacobi`         the inverse of the diagonal blocks + damping      n with blocks, or their ranks
:class:`KFAC`                the inverse of Kronecker factors + damping        half of one for each output
============================ ================================================= ==================================

Each is used as ``lg.CG(preconditioner=lg.preconditioners.Jacobi())``, alone or
inside a method. A recipe of your own is a record with ``prepare`` and
``finish``: see :class:`linop_gn.solvers.problem.Recipe`.
"""

from ..solvers.problem import Recipe
from .block import BlockJacobi
from .empirical_fisher import EmpiricalFisher, SquaredGradient
from .jacobi import Jacobi
from .kfac import KFAC
from .nystrom import Nystrom

__all__ = ["KFAC", "BlockJacobi", "EmpiricalFisher", "Jacobi", "Nystrom", "Recipe", "SquaredGradient"]
