"""What a run gives back, and how it reads.

A :class:`Solution` is a record: inside a compiled program its fields are traced
arrays and it can be returned; outside, ``status`` and ``history`` explain it.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np

from .. import html
from ..arguments import needed
from ..protocols import Scalar
from ..records import record, static
from .plot import plot_runs
from .status import Status, status_of, succeeded

__all__ = ["History", "Outcome", "Result", "Solution", "brief"]


_BLOCKS_SHOWN = 20
_DRAWN = ("value", "residual", "gradient_norm")
_COUNTS = ("evaluations", "gradients", "linearisations", "refused")


class History(dict[str, Any]):
    """Columns by name, each an array (steps + 1,), or (steps + 1, k) for k right-hand sides.

    >>> History(residual=np.array([1.0, 0.1]))
    History of 2 rows: residual 1 .. 0.1
    """

    first = 0
    """The step that the first row is of."""

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``: a row for each step, a column for each name, or (name, j) of k right-hand sides.

        >>> History(residual=np.array([1.0, 0.1])).to_pandas().loc[1, "residual"].item()  # doctest: +SKIP
        0.1

        Raises
        ------
        ImportError
            Without pandas.
        """
        pandas = needed("pandas", "tables are made by pandas", "notebook")
        columns: dict[Any, Any] = {}
        for name, column in self.items():
            flat = np.reshape(column, (len(column), math.prod(np.shape(column)[1:])))
            columns |= {name if np.ndim(column) == 1 else (name, j): flat[:, j] for j in range(flat.shape[1])}
        rows = len(next(iter(self.values()), ()))
        steps = pandas.RangeIndex(self.first, self.first + rows, name="step")
        return pandas.DataFrame(columns, index=steps)

    def __repr__(self) -> str:
        rows = len(next(iter(self.values()), ()))
        ends = ", ".join(f"{name} {brief(column[0])} .. {brief(column[-1])}" for name, column in self.items() if rows)
        return f"History of {rows} rows: {ends}"


def brief(value: Any) -> str:
    """A number, or the first four of an array, as a table shows them."""
    array = np.asarray(value)
    return (
        f"{float(array):.6g}"
        if array.ndim == 0
        else "[" + ", ".join(f"{v:.3g}" for v in array[:4]) + ", ..." * (len(array) > 4) + "]"
    )


@record
class Outcome:
    """What runs have in common: status, steps, products and history."""

    code: Scalar
    """Status code, one for each column."""
    steps: Scalar
    """Steps taken, one for each column."""
    products: Scalar
    """Products with the operator, one for each column."""
    rows: Any
    names: tuple[str, ...] = static()
    method: str = static()

    @property
    def status(self) -> Any:
        """Why the run stopped: a :class:`~linop_gn.Status`, or a list of them for columns."""
        return status_of(self.code)

    @property
    def succeeded(self) -> Any:
        """Whether every column's status is a success: a bool, or a traced one inside a compiled program."""
        if self._traced:
            return succeeded(self.code).all()
        return all(status.succeeded for status in self._statuses())

    @property
    def _traced(self) -> bool:
        try:
            np.asarray(self.code)
        except TypeError:
            return True
        return False

    @property
    def history(self) -> History:
        """What was observed at step 0, 1, ..., by name."""
        last = int(np.max(np.asarray(self.steps)))
        rows = np.asarray(self.rows)[: last + 1]
        return History({name: rows[:, i] for i, name in enumerate(self.names)})

    def plot(self, figure: Any = None) -> Any:
        """A picture of the run, by :func:`linop_gn.plot_runs`: a matplotlib figure."""
        return plot_runs({self.method: self}, figure)

    def _repr_html_(self) -> str:
        drawn = {}
        if not self._traced:
            with suppress(TypeError):  # many runs have no history in common
                drawn = {name: column for name, column in self.history.items() if name in _DRAWN}
        return html.page(repr(self), html.picture(drawn))

    def _require_one(self, what: str) -> None:
        """Raise where the fields are those of many runs, as ``jax.vmap`` returns them."""
        if np.ndim(self.code):
            raise TypeError(
                f"{what} is of one run, and these are {len(self.code)}. Choose one, jax.tree.map(lambda leaf: leaf[0], "
                "results), or ask each, inside the function that is mapped or by jax.vmap(lambda one: ...)(results)."
            )

    def __repr__(self) -> str:
        return f"{self.method} in a program that is being traced" if self._traced else "\n".join(self._lines())

    def _lines(self) -> list[str]:
        return [self._headline(), *self._sentences()]

    def _headline(self) -> str:
        steps, products = np.asarray(self.steps), np.asarray(self.products)
        if steps.ndim:
            return f"{self.method}: {self._tally()}; at most {steps.max()} steps, {products.sum()} products"
        return f"{self.method}: {self.status.name.lower()} after {int(steps)} steps, {int(products)} products"

    def _statuses(self) -> list[Status]:
        return self.status if isinstance(self.status, list) else [self.status]

    def _tally(self) -> str:
        return ", ".join(f"{count} {status.name.lower()}" for status, count in Counter(self._statuses()).items())

    def _sentences(self) -> list[str]:
        return list(dict.fromkeys(status.sentence for status in self._statuses()))


@record
class Solution(Outcome):
    """Of :func:`linop_gn.solve`: ``x`` in the format of the right-hand side, and how it was reached.

    ``residual`` is the 2-norm of b - A x as the method knows it: recomputed
    from x where the status is ``CONVERGED`` (by Lanczos methods only where rounding
    might matter: it comes on top of what they report). ``products`` are those of the
    method; what a preconditioner took to be made is not among them (``lg.cost`` says
    it). Inside a compiled program ``code`` stands for the status. ``model`` is the value of
    1/2 x^T A x - b^T x, which no extra product was spent on. ``blocks`` names what
    the entries of the status belong to where the operator was solved with block by
    block, and ``iterates`` are those that the method was asked to keep.
    """

    x: Any = None
    residual: Scalar = None
    model: Scalar = None
    iterates: Any = None
    blocks: tuple[str, ...] | None = static(default=None)

    def _headline(self) -> str:
        if self.blocks is None:
            return f"{super()._headline()}; residual {brief(self.residual)}"
        most = f"at most {np.asarray(self.steps).max()} steps, {np.asarray(self.products).max()} products"
        return f"{self.method}, {len(self.blocks)} blocks: {self._tally()}; {most}"

    def _of_blocks(self) -> list[str]:
        """A line for each block, as many as can be read at a glance."""
        if self.blocks is None:
            return []
        rows = zip(self.blocks, self.status, np.asarray(self.steps), np.asarray(self.residual), strict=True)
        width = max(map(len, self.blocks))
        lines = [
            f"  {name:{width}}  {status.name.lower()} after {steps} steps; residual {brief(residual)}"
            for name, status, steps, residual in rows
        ]
        left = len(lines) - _BLOCKS_SHOWN
        return lines if left <= 0 else [*lines[:_BLOCKS_SHOWN], f"  and {left} more"]

    def _lines(self) -> list[str]:
        iterates = [] if self.iterates is None else [f"Kept: {self.iterates!r}."]
        return [self._headline(), *self._of_blocks(), *self._sentences(), *iterates]


@record
class Result(Outcome):
    """Of :func:`linop_gn.minimize`: ``params`` in the user's format, and how they were reached.

    ``products`` are those of the inner solver with the curvature; gradients, values, and what a preconditioner's
    recipe took at each point are not among them. ``state`` is what ``lg.minimize(..., state=)`` and ``lg.advance`` go
    on from; there is none inside a compiled program. ``first`` is the step that the first row of the history is of: 0,
    or where the run went on from.
    """

    params: Any = None
    value: Scalar = None
    gradient_norm: Scalar = None
    damping: Scalar = None
    state: Any = None
    first: Scalar = 0

    @property
    def history(self) -> History:
        """What was observed at the steps ``first``, ``first`` + 1, ..., by name."""
        self._require_one("a history")
        rows = np.asarray(self.rows)[: int(np.asarray(self.steps)) - int(np.asarray(self.first)) + 1]
        made = History({name: rows[:, i] for i, name in enumerate(self.names)})
        made.first = int(np.asarray(self.first))
        return made

    def load_into(self, module: Any) -> Any:
        """Write the parameters into what holds them in their framework, in place, and return it: an ``nn.Module``.

        Raises
        ------
        TypeError, ValueError
            Where the framework has no such objects, or this one has other parameters; ``result.params`` are then what
            to go on with.
        """
        if self.state is None:
            raise TypeError("load_into: inside a compiled program nothing is written into: go on with result.params.")
        return self.state.space.backend.load_into(module, self.params)

    def _table(self) -> list[str]:
        """What counts, a line each."""
        told = {"value": self.value, "gradient norm": self.gradient_norm, "damping": self.damping}
        rows = [(name, brief(value)) for name, value in told.items() if value is not None]
        if np.ndim(self.code) == 0 and len(self.rows):
            last = {name: column[-1] for name, column in self.history.items()}
            rows += [(name.replace("_", " "), f"{int(last[name])}") for name in _COUNTS if name in last]
        width = max(len(name) for name, _ in rows)
        return [f"  {name:{width}}  {value}" for name, value in rows]

    def _remarks(self) -> list[str]:
        """What a status does not say: that a run without control over the value ended far above its start."""
        if np.ndim(self.code) or "value" not in self.names or (self.succeeded and self.status is not Status.COMPLETED):
            return []
        values = np.asarray(self.history["value"], float)
        values = values[np.isfinite(values)]
        rises = int(np.sum(np.diff(values) > 0))
        if not rises or not (rises == len(values) - 1 >= 10 or values[-1] - values[0] > 10 * abs(values[0]) > 0):
            return []
        return [
            f"The value rose from {brief(values[0])} to {brief(values[-1])}, in {rises} of {len(values) - 1} steps: "
            "the gradient's sign may be wrong, or it may belong to another function (lg.validate tells), or the steps "
            "are too long (a smaller rate or length, or a method with a search)."
        ]

    def _lines(self) -> list[str]:
        return [self._headline(), *self._table(), *self._sentences(), *self._remarks()]
