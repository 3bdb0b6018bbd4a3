"""Compiled programs that an objective keeps, where it was asked for them (``compile=True``).

They belong to the objective and to what ``with_data`` makes of it, and to nobody else: what is kept ends with these.
"""

from __future__ import annotations

from typing import Any

from ..protocols import Backend

__all__ = ["Programs"]


class Programs:
    """What linearises by compiled programs, for each framework; copies and pickles of an objective compile anew."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def of(self, ops: Backend) -> Any:
        """What linearises by programs for arrays of ``ops``; None where it does so without being asked."""
        if ops.name not in self._made:
            made = None if ops.calculus is None else ops.calculus.compiled()
            if made is None:
                raise ValueError(
                    f"compile=True: {ops.name} compiles no products. Leave it out, or name a framework that does with "
                    "derivatives=."
                )
            self._made[ops.name] = None if made is ops.calculus else made
        return self._made[ops.name]

    def __reduce__(self) -> Any:
        return Programs, ()
