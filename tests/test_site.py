"""The site has every public name in its reference, and on a page that shows what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import linop_gn as lg

DOCS = Path(__file__).parent.parent / "docs"
pytestmark = pytest.mark.skipif(not (DOCS / "api").is_dir(), reason="runs from the sources")
PARTS = ("controls", "descents", "distributed", "losses", "optimisers", "preconditioners", "searches", "tree")
NAMES = sorted(
    {f"linop_gn.{name}" for name in lg.__all__ if name not in (*PARTS, "__version__")}
    | {f"linop_gn.{part}.{name}" for part in PARTS for name in getattr(lg, part).__all__}
)


def in_reference() -> set[str]:
    """The names that the pages of the reference list."""
    found = set()
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.split()[-1]
            elif re.fullmatch(r"   [\w.]+", line):
                found.add(f"{module}.{line.strip()}")
    return found


def test_every_public_name_is_in_the_reference_and_nothing_else_is():
    found = in_reference()
    assert not sorted(set(NAMES) - found)
    own = {name for name in found if not name.startswith(("linop_gn.testing.", "linop_gn.backend."))}
    assert not sorted(own - set(NAMES))


def test_every_public_name_is_on_a_page():
    root = DOCS.parent
    pages = [*DOCS.glob("*.md"), root / "README.md", root / "backends" / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages if page.name != "glossary.md")
    missing = [name for name in NAMES if not re.search(rf"\b{re.escape(name.rpartition('.')[2])}\b", text)]
    assert not missing


def test_every_status_is_explained():
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    for status in lg.Status:
        sentence = status.sentence.replace("|", chr(92) + "|")
        assert f"| `{status.name}` | {'yes' if status.succeeded else ''} | {sentence} |" in text
