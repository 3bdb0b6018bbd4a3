"""The checks in order."""

from . import algebra, conduct, curvature

__all__ = ["LAWS"]

PRODUCTS = algebra.finite, conduct.determinism, conduct.inputs, conduct.aliasing  # others rest on these
MATRIX = algebra.linearity, algebra.adjoint, algebra.symmetry, algebra.psd, conduct.columns, conduct.formats
DERIVATIVES = curvature.dense, curvature.differences, curvature.gradient, curvature.batches
LAWS = (*PRODUCTS, *MATRIX, *DERIVATIVES)
