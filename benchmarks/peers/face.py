"""What a solver of another library is to a benchmark: a call, and a way to read what it returned."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from peer_cases import Case

__all__ = ["STOPS", "Answer", "Case", "Peer", "Run"]

STOPS = (
    "x = 0 is the solution",
    "A x - b is small enough",
    "the least-squares solution is good enough",
    "the condition number exceeds conlim",
    "A x - b is at rounding",
    "the least-squares solution is at rounding",
    "the condition number is at rounding",
    "steps ran out",
)
"""What SciPy's least-squares codes mean, and matfree's, which follow them."""


class Answer(NamedTuple):
    """x on the host in float64, whether the library claims that it solves the system, and its own words."""

    x: np.ndarray | None
    claim: bool | None
    """None where the library has no flag."""
    says: str
    steps: int | None = None
    products: int | None = None
    """With the operator and its adjoint, where the library tells or its source does."""


class Run(NamedTuple):
    """``call`` does the work; ``read`` makes an answer of what it returned."""

    call: Callable[[], Any]
    read: Callable[[Any], Answer]
    program: Any = None
    """What JAX compiles, called with ``arguments``."""
    arguments: tuple[Any, ...] = ()


class Peer(NamedTuple):
    """A solver of another library, for one family of systems."""

    name: str
    package: str
    families: tuple[str, ...]
    prepare: Callable[[Case], Run]
