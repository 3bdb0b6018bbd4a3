"""One HTML file that needs no other: tables, the plot in two shades, and what it was made with."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from .tables import Table

__all__ = ["page"]

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --soft: #59636e; --line: #d5d9de; --mark: #eef4fb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #dfe3e8; --soft: #9aa4af; --line: #363c44; --mark: #1b2735; }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; } p.note, footer { color: var(--soft); font-size: .875rem; }
img { width: 100%; height: auto; margin: 1rem 0; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); white-space: normal; vertical-align: bottom; }
td.n, th.n { text-align: right; } tr.strong td { background: var(--mark); }
summary { cursor: pointer; margin-top: 2.5rem; font-weight: 600; }
code { background: var(--mark); padding: .1rem .3rem; border-radius: .2rem; }
"""


def page(
    lead: Sequence[str], pictures: tuple[bytes, bytes], tables: Sequence[Table], folded: Table, made_with: Sequence[str]
) -> str:
    """The document: paragraphs, the plot (light, dark), tables, one folded away, and versions.

    >>> html = page(["One & two."], (b"", b""), [Table("T", ["a"], [["<1>"]])], Table("F", ["b"], []), ["x 1"])
    >>> "One &amp; two." in html, "<td>&lt;1&gt;</td>" in html, "http" in html
    (True, True, False)
    """
    light, dark = (base64.b64encode(picture).decode() for picture in pictures)
    body = "\n".join(
        [
            "<h1>linop_gn: curvature products validated and put to work</h1>",
            *(f"<p>{escape(paragraph)}</p>" for paragraph in lead),
            "<picture>",
            f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">',
            f'<img alt="Training loss against passes and seconds" src="data:image/png;base64,{light}">',
            "</picture>",
            *map(_section, tables),
            f"<details><summary>{escape(folded.title)}</summary>{_table(folded)}</details>" if folded.rows else "",
            f"<footer><p>{escape(' · '.join(made_with))}</p></footer>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>linop_gn demo</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _section(table: Table) -> str:
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2>{_table(table)}{note}"


def _table(table: Table) -> str:
    kinds = ["" if i < table.numbers_from else ' class="n"' for i in range(len(table.headings))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, table.headings, strict=True))
    rows = []
    for i, row in enumerate(table.rows):
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True))
        rows.append(f'<tr class="strong">{cells}</tr>' if i in table.strong else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
