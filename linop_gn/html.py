"""What notebooks show of an object: its text, a table, a small picture, in colours that light and dark pages have.

Everything is in the page itself: no script, no style sheet, nothing that is fetched.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["page", "picture", "table"]

_WIDTH, _HEIGHT, _LINES, _POINTS = 240, 64, 8, 400


def page(text: str, *parts: str) -> str:
    """``text`` as it is printed, escaped, and parts of a page below it.

    >>> page("a < b")
    '<div><pre>a &lt; b</pre></div>'
    """
    return f"<div><pre>{html.escape(text)}</pre>{''.join(parts)}</div>"


def table(rows: Iterable[Sequence[str]], headings: Sequence[str] = ()) -> str:
    """Rows of cells, each escaped.

    >>> table([("shape", "2 x 2")])
    '<table><tr><td>shape</td><td>2 x 2</td></tr></table>'
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    made = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{''.join(made)}</table>"


def picture(columns: Mapping[str, Any]) -> str:
    """Curves over the steps as SVG, a panel for each column (steps,) or (steps, k): logarithmic where all is positive.

    The first and the last number stand below. Of many columns the first eight are drawn; of many steps a part.
    """
    many = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    curves = {name: v.reshape(len(v), -1)[:, :_LINES] for name, v in many.items() if v.size}
    return "".join(_panel(name, v) for name, v in curves.items() if len(v) > 1 and np.isfinite(v).any())


def _panel(name: str, values: Any) -> str:
    ends = " .. ".join(
        f"{np.max(row[np.isfinite(row)] if np.isfinite(row).any() else row):.3g}" for row in values[[0, -1]]
    )
    finite = np.where(np.isfinite(values), values, np.nan)
    log = bool(np.nanmin(finite) > 0)
    y = np.log10(finite) if log else 0.25 * finite  # of which differences do not overflow
    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    steps = np.unique(np.linspace(0, len(y) - 1, min(len(y), _POINTS)).astype(int))
    across = 4 + (_WIDTH - 8) * steps / max(1, len(y) - 1)
    up = _HEIGHT - 4 - (_HEIGHT - 8) * (y[steps] - low) / (high - low if high > low else 1.0)
    lines = []
    for column in up.T:
        known = np.isfinite(column)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across[known], column[known], strict=True))
        lines.append(f'<polyline fill="none" stroke="currentColor" stroke-width="1.5" points="{points}"/>')
    said = html.escape(f"{name}{', log' if log else ''}: {ends}")
    box = f'<rect x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" fill="none" stroke="#888"/>'
    svg = f'<svg role="img" aria-label="{said}" width="{_WIDTH}" height="{_HEIGHT}">{box}{"".join(lines)}</svg>'
    return f'<figure style="display:inline-block;margin:4px">{svg}<figcaption>{said}</figcaption></figure>'
