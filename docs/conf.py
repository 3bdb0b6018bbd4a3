"""The site: Sphinx with MyST. `nox -s docs` builds it into site/; nothing on it is fetched from elsewhere.

The pages are read on their own as well, and the docstrings at a prompt. So both stay plain text: what reStructuredText
would take for markup in a docstring is escaped here, and a paragraph after a list of parameters is told from it.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.util.fileutil import copy_asset

import linop_gn

ROOT = Path(__file__).parent.parent
for name in ("controls", "descents", "losses", "optimisers", "searches"):
    sys.modules[f"linop_gn.{name}"] = getattr(linop_gn, name)  # under the name that users write

project = "linop_gn"
author = copyright = "The linop_gn authors"  # noqa: A001
release = version = linop_gn.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["browse.py", "draw_*.py", "_templates", "gallery/*.py", "gallery/*.ipynb", "sg_execution_times.rst"]
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # shapes, dtypes and units are in the text, where types say Any
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Methods", "params_style")]  # described by members, too
default_role = "literal"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
# `nox -s gallery` runs the scripts; in the site of `nox -s docs` they have no pictures, and are built in a moment.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "show_signature": False,
    "download_all_examples": False,
    "min_reported_time": 1,
    "write_computation_times": False,
}
mathjax_path = "mathjax/tex-chtml.js"

html_theme = "pydata_sphinx_theme"
html_title = "linop_gn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["version-switcher", "theme-switcher"],
    "switcher": {"json_url": "_static/versions.json", "version_match": release},
    "check_switcher": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": ["page-toc"],
}

FRONT = {"docs/": "", "backends/README.md": "write_a_backend.md", "benchmarks/README.md": "benchmarks.md"}
FRONT["CHANGELOG.md"] = "changelog.md"
"""Where the README's links lead on the site."""
ELSEWHERE = {"write_a_backend": "backends/README.md", "benchmarks": "benchmarks/README.md", "changelog": "CHANGELOG.md"}
"""Pages of the site that are files of the repository outside of docs/."""


def with_files(_: Any, page: str, source: list[str]) -> None:
    """Put README.md, and the others, where pages name them."""
    if page == "index":
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        for target, here in FRONT.items():
            text = text.replace(f"]({target}", f"]({here}")
        source[0] = text + source[0]
    elif page in ELSEWHERE:
        text = (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")
        source[0] = re.sub(r"\]\((?:\.\./)?docs/", "](", text)


_LITERAL = re.compile(r"(``.+?``|:\w+:`.+?`|\*\*\w.*?\w\*\*)")


def as_plain_text(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Escape what is no markup, and end the list of parameters where a paragraph begins."""
    made: list[str] = []
    block = False  # a doctest, or what is shown after ::
    for i, line in enumerate(lines):
        text, indented = line.strip(), line.startswith(" ")
        begins = text and not (made and made[-1])
        if begins:
            before = next((earlier for earlier in reversed(made) if earlier.strip()), "")
            block = text.startswith(">>>") or (before.endswith("::") and indented) or (block and indented)
            following = lines[i + 1] if i + 1 < len(lines) else ""
            field = following.startswith(" ") and following.strip()
            header = following and not following.strip("-=")
            if not indented and not field and not header:
                made.append("")  # two empty lines end a section
        if not block and not (text and not text.strip("-=+~^| ")):
            bullet = re.match(r" *(\* )?", line)
            start = bullet.end() if bullet else 0
            parts = _LITERAL.split(line[start:])
            parts[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", part) for part in parts[::2]]
            line = line[:start] + "".join(parts)
            line = re.sub(r"(?<=\w)_(?=[\s,.;:)]|$)", r"\\_", line)
        made.append(line)
    lines[:] = made


def is_skipped(_app: Any, _what: str, name: str, _obj: Any, skip: bool, _options: Any) -> bool | None:
    """Leave out what scikit-learn adds to its estimators."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def with_mathjax(app: Any, failed: Exception | None) -> None:
    """Put a copy of MathJax into the site."""
    if failed is None:
        package = Path(importlib.import_module("sphinx-mathjax-offline").__file__ or "").parent
        copy_asset(package / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax")


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx asks of an extension, which this file is one of."""
    app.connect("source-read", with_files)
    app.connect("autodoc-process-docstring", as_plain_text, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", is_skipped)
    app.connect("build-finished", with_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
