"""The checks in order."""

from . import algebra, conduct, curvature

__all__ = ["LAWS"]

LAWS = (
    algebra.finite,
    conduct.determinism,
    conduct.inputs,
    conduct.aliasing,
    algebra.linearity,
    algebra.adjoint,
    algebra.symmetry,
    algebra.psd,
    conduct.columns,
    conduct.formats,
    curvature.dense,
    curvature.differences,
    curvature.gradient,
    curvature.batches,
)
