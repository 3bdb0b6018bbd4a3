"""Operations whose second derivative torch gets as NaN although the first is a number.

J v by double backward is NaN then where J is finite, and so is H v where H may be. The usual ones are replaced
(:mod:`linop_gn_torch.safe_ops`); of others the user is told, by name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["operation_of_nan", "tell_of_nan"]


def operation_of_nan(backward: Callable[..., Any], **options: Any) -> str:
    """The node in which NaN first appears in a backward, as torch names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autograd.detect_anomaly():
                backward(**options)
    except RuntimeError as error:
        if found := re.search(r"Function '(\w+?)(?:Backward\d*)+' returned nan", str(error)):
            return found.group(1)
    return "an operation of the model"


def tell_of_nan(operation: str, what: str, instead: str | None = None) -> None:
    """Warn of a NaN, and say whose it is."""
    advice = f"Write {operation} in the model so that its second derivative is finite here, or keep away from here."
    warnings.warn(
        f"linop_gn: {what} has NaN at this point, because torch's second derivative of {operation} has, while the "
        f"gradient is finite. {instead or advice}",
        RuntimeWarning,
        stacklevel=2,
    )
