"""Errors and what is allowed of them.

An error is relative, in the 2-norm, and compared with the tolerance of the
narrowest dtype among the vectors' leaves:

=========== ========== =====================================================
dtype       tolerance  what it leaves room for
=========== ========== =====================================================
float64     1e-12      4500 units of round-off
float32     1e-5       84 units
float16     2e-2       20 units
bfloat16    1e-1       13 units
=========== ========== =====================================================

The checks that compare with an oracle, where the rounding of a whole pass through
a model counts, allow ten times that below float64 (measured: 1e-7 for perceptrons,
up to 1e-5 for the Hessian behind a convolution and a layer norm). Where the oracle
is itself uncertain, being made of differences, ten times its own estimate of that
is added, and never less than 1e-8 is allowed. A check whose oracle is not known to
a tenth is skipped: it could not tell right from wrong.

Products that are ill-conditioned lose more. How much is measured, by changing the
last bits of the parameters: twice what that changes is allowed, if it is more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spaces import Space

__all__ = ["DIFFERENCES", "NotApplicableError", "base_tolerance", "largest", "leafwise", "norm", "relative"]

NDArray = np.ndarray[Any, Any]

BASE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
BELOW_FLOAT64 = 10.0
DIFFERENCES = 1e-8
USELESS = 0.1
SMALL_PART = 1e-2


def base_tolerance(*spaces: Space) -> float:
    """The tolerance for vectors of these spaces; that of float64 for none."""
    return max((BASE[dtype] for space in spaces for dtype in (*space.dtypes, space.dtype)), default=BASE["float64"])


class NotApplicableError(Exception):
    """There is nothing to check, for the reason given."""


def largest(errors: list[float]) -> float:
    """The largest error; NaN if there is one."""
    return float(np.max(np.asarray(errors, dtype=float))) if errors else 0.0


def norm(x: Any) -> float:
    """The 2-norm of all entries."""
    return float(np.linalg.norm(np.asarray(x, dtype=np.float64).reshape(-1)))


def relative(value: NDArray, expected: NDArray) -> float:
    """|value - expected| over the larger of both norms; 0 for two zeros.

    >>> relative(np.array([1.0, 1.0]), np.array([1.0, 1.0])), relative(np.array([1.0]), np.array([2.0]))
    (0.0, 0.5)
    """
    difference, scale = norm(value - expected), max(norm(value), norm(expected))
    return difference / scale if difference else 0.0


def leafwise(value: NDArray, expected: NDArray, groups: list[NDArray]) -> tuple[float, int]:
    """The largest relative error of a group of columns, and which group that is.

    Each group is judged by its own norm, so that a wrong layer is not hidden by one with larger curvature,
    or, where it is smaller than that, by a hundredth of the norm of the whole.
    """
    floor = SMALL_PART * norm(expected)
    errors = []
    for columns in groups:
        difference = norm(value[:, columns] - expected[:, columns])
        errors.append(difference / max(norm(expected[:, columns]), floor) if difference else 0.0)
    worst = int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
    return errors[worst], worst
