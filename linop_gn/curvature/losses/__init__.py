"""Losses on a model's outputs, with their Hessians in closed form.

A loss is a weighted sum over examples of l(z, y), where z are the model's
outputs and y its targets. Only its two derivatives with respect to z enter the
curvature of a model, J^T H_L J, so they are written down here rather than
differentiated:

============================  ======================  =====================  ==============================
loss                          l(z, y)                 gradient               H_L, for one example
============================  ======================  =====================  ==============================
:class:`SquaredError`         c |z - y|^2             2c (z - y)             2c I
:class:`CrossEntropy`         log sum_j e^z_j - z_y   p - e_y                diag(p) - p p^T, p = softmax(z)
:class:`BinaryCrossEntropy`   log(1 + e^z) - y z      p - y                  p (1 - p), p = sigmoid(z)
:class:`Poisson`              e^z - y z               e^z - y                e^z
:class:`FromFunction`         any callable            by the framework's automatic differentiation
============================  ======================  =====================  ==============================

The four closed forms are convex in z, so that J^T H_L J is positive
semidefinite whatever the model. :mod:`~linop_gn.curvature.losses.robust` has
losses of residuals with outliers, whose H_L is kept positive.
"""

from __future__ import annotations

from .base import Elementwise, Loss
from .binary_cross_entropy import BinaryCrossEntropy
from .cross_entropy import CrossEntropy
from .from_function import FromFunction, as_loss
from .hessians import OutputHessian, OutputRoot
from .poisson import Poisson
from .robust import Arctan, Cauchy, Huber, Robust, SoftL1
from .squared_error import SquaredError

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Elementwise", "FromFunction", "Loss", "OutputHessian", "OutputRoot"]
__all__ += ["Arctan", "Cauchy", "Huber", "Poisson", "Robust", "SoftL1", "SquaredError", "as_loss"]
