"""The Python blocks of the README and the documentation run, top to bottom."""

import re
from pathlib import Path

import pytest
from systems import FULL, in_full

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "backends" / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

LONG = "curvature", "differentiating_solves", "many_devices"  # JAX compiles for over ten seconds what other tests hold


def marked(page):
    return pytest.param(page, marks=in_full if page.stem in LONG else (), id=page.name)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if page.exists()])
def test_blocks_run(page, capsys, monkeypatch):
    blocks = BLOCK.findall(page.read_text())
    for framework in ("torch", "jax", "autograd", "sklearn", "optax", "lineax", "lmfit", "pandas"):
        needed = rf"^\s*(import|from) {framework}\b|derivatives=\"{framework}\""
        if any(re.search(needed, block, re.MULTILINE) for block in blocks):
            pytest.importorskip(framework)
    for library, mark in (("matplotlib", ".plot("), ("pandas", ".to_pandas(")):
        if any(mark in block for block in blocks):
            pytest.importorskip(library)
    if page.stem == "compiled" and not FULL:  # inductor takes half a minute for it
        monkeypatch.setattr("linop_gn_torch.programs.COMPILER", "eager")
    scope = {"__name__": f"page_{page.stem}"}
    for block in blocks:
        exec(compile(block, f"{page.name}: {block.splitlines()[0]}", "exec"), scope)


def test_links_lead_somewhere():
    for page in PAGES:
        if page.exists():
            for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_there_are_pages():
    assert len([page for page in PAGES if page.exists() and BLOCK.search(page.read_text())]) >= 5
