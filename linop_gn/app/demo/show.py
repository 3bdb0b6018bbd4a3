"""A table on the terminal."""

from __future__ import annotations

from typing import Any

import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape

from .tables import Table

__all__ = ["show"]

WIDE = 125


def show(table: Table, console: Console) -> None:
    """Print ``table``, with its note below; a narrow terminal is shown fewer columns.

    >>> show(Table("Sizes", ["what", "size"], [["a", "1"], ["b", "10"]], "Small ones."), Console(width=40))
    Sizes
    what  size
    ──────────
    a        1
    b       10
    Small ones.
    """
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD}
    style |= {"pad_edge": False, "collapse_padding": True}
    made = rich.table.Table(title=escape(table.title), **style)
    kept = [i for i in range(len(table.headings)) if console.width >= WIDE or i not in table.left_out]
    for i in kept:
        made.add_column(table.headings[i], justify="right" if i >= table.numbers_from else "left")
    for i, row in enumerate(table.rows):
        made.add_row(*(escape(row[j]) for j in kept), style="bold" if i in table.strong else None)
    console.print()
    console.print(made)
    if table.note:
        console.print(escape(table.note), style="dim")
