"""Operations of which torch gets a derivative as NaN, the second although the first is a number among them.

J v by double backward is NaN then where J is finite, and so is H v where H may be. The usual ones are replaced
(:mod:`linop_gn_torch.safe_ops`); of others the user is told, by name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from linop_gn.distributed import OtherProcessError

__all__ = ["has_nan", "operation_of_nan", "tell_of_nan"]


def has_nan(arrays: Sequence[Tensor | None]) -> bool:
    """Whether there is a NaN."""
    return any(a is not None and bool(a.isnan().any()) for a in arrays)


def operation_of_nan(backward: Callable[..., Any], **options: Any) -> str:
    """The node in which NaN first appears in a backward, as torch names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autograd.detect_anomaly():
                backward(**options)
    except OtherProcessError:
        raise
    except RuntimeError as error:
        if found := re.search(r"Function '(\w+?)(?:Backward\d*)+' returned nan", str(error)):
            return found.group(1)
    return "an operation of the model"


def tell_of_nan(operation: str, what: str, instead: str | None = None, order: str = "second") -> None:
    """Warn of a NaN, and say whose it is."""
    advice = f"Write {operation} in the model so that its {order} derivative is finite here, or keep away from here."
    beside = ", while the gradient is finite" if order == "second" else ", and so has the gradient"
    warnings.warn(
        f"linop_gn: {what} has NaN at this point, because torch's {order} derivative of {operation} has{beside}. "
        f"{instead or advice}",
        RuntimeWarning,
        stacklevel=2,
    )
