"""The laws of a backend: for authors who test theirs, with pytest or without.

======================== =====================================================
:mod:`.claims`           name, instance and capabilities
:mod:`.arrays`           from the host and back, dtype, device
:mod:`.spaces`           trees and vectors
:mod:`.vectors`          updates and reductions
:mod:`.scalars`          numbers that never raise
:mod:`.choices`          select, mask, branch
:mod:`.stores`           tables of scalars, shelves of vectors
:mod:`.factors`          dense factorisations
:mod:`.programs`         call, over_columns, over_rows, sums over stacked data
:mod:`.loops`            begin, advance, run, iterate, rows
:mod:`.machine`          the same in any order
:mod:`.operators`        adjoint, symmetry, dense matrix, columns
:mod:`.calculus`         first derivatives
:mod:`.curvature`        second derivatives
:mod:`.solvers`          CG and Levenberg-Marquardt against NumPy, every status
:mod:`.aliasing`         read-only, shared and consumed memory
:mod:`.method_kit`       what every minimisation method promises
:mod:`.solver_kit`       what every solver promises
======================== =====================================================

Hypothesis is needed (extra ``testing``); pytest only by those who use it.
"""

from .kit import BackendConformance, check_backend, laws
from .method_kit import MethodConformance, check_method
from .report import ConformanceError, ConformanceReport, Finding
from .solver_kit import SolverConformance, check_solver

__all__ = [
    "BackendConformance",
    "ConformanceError",
    "ConformanceReport",
    "Finding",
    "MethodConformance",
    "SolverConformance",
    "check_backend",
    "check_method",
    "check_solver",
    "laws",
]
