"""The page of verdicts says what the stored results say."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from linop_gn_studies.plan import Form
from linop_gn_studies.report import markdown
from linop_gn_studies.store import Store

from linop_gn.app import study

ROOT = Path(__file__).parents[2]
STORED = ROOT / "benchmarks" / "results" / "studies"


@pytest.mark.skipif(not STORED.is_dir(), reason="runs from the sources")
def test_the_page_is_made_of_the_stored_results():
    studies = [entry.load() for entry in sorted(entry_points(group=study.GROUP), key=lambda entry: entry.name)]
    form = Form("cpu", "jax")
    found = [(s, Store(STORED, s.name, form).results()) for s in studies]
    told = [(s, results) for s, results in found if len(results)]
    wanted = markdown(told, study._elsewhere(STORED, told, form))
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert page.split(study.BEGIN)[1].split(study.END)[0].strip() == wanted.strip()
