"""Validation: an operator held against the laws of linear algebra and against its own definition.

================== ==========================================================
:mod:`.validate`   ``lg.validate``
:mod:`.report`     the table, and what a test asserts on
:mod:`.laws`       the checks in order; :mod:`.law` what a check is
:mod:`.algebra`    linear, adjoint, symmetric, definite
:mod:`.conduct`    the same each time, in every format, touching nothing
:mod:`.curvature`  against the oracle, central differences, and one batch of all
:mod:`.subject`    the operator under validation, and what it is made of
:mod:`.oracle`     the matrix that an operator ought to be
:mod:`.matrices`   J, H_L, J^T H_L J and the Hessian at a point
:mod:`.twin`       the objective in float64
================== ==========================================================
"""

from .report import Check, Report, ValidationError
from .validate import validate

__all__ = ["Check", "Report", "ValidationError", "validate"]
