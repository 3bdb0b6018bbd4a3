"""Validation: an operator held against the laws of linear algebra and against its own definition.

================== ==========================================================
:mod:`.validate`   ``lg.validate``
:mod:`.laws`       the checks in order, and what their failures mean
:mod:`.run`        one check after the other
:mod:`.report`     the table, and what a test asserts on
:mod:`.measure`    errors, tolerances
:mod:`.algebra`    linear, adjoint, symmetric, definite
:mod:`.conduct`    the same each time, in every format, touching nothing
:mod:`.curvature`  against the dense oracle and central differences
:mod:`.union`      many batches against one
:mod:`.oracle`     the matrix that an operator ought to be
:mod:`.at_point`   J, H_L and the Hessian in float64
:mod:`.twin`       the objective in float64
================== ==========================================================
"""

from .report import Check, Report, ValidationError
from .validate import validate

__all__ = ["Check", "Report", "ValidationError", "validate"]
