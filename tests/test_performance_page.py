"""The page of figures says what is stored, and its floors are the multiplications that are counted."""

from __future__ import annotations

import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import linop_gn as lg

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "results").is_dir(), reason="runs from the sources")


@pytest.fixture
def benchmarks(monkeypatch):
    """Import from the folder of scripts, which is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and "benchmarks" in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_the_page_says_what_is_stored(benchmarks):
    page, shown = benchmarks("all"), benchmarks("figures")
    assert page.is_fresh(), "run: python benchmarks/all.py --page"
    drawn = [section for section in shown.SECTIONS if shown.figures(section, page.RESULTS)]
    assert len(drawn) > 5
    for section in drawn:
        assert page.PAGE.with_name(f"performance_{section.name}.svg").is_file()


def test_what_is_slower_is_told(benchmarks):
    page, shown = benchmarks("all"), benchmarks("figures")
    old = [shown.Figure("a", 1.0, 0.9, 1.1), shown.Figure("b", 1.0, 0.9, 1.1), shown.Figure("c", 2.0)]
    new = [shown.Figure("a", 1.2, 1.1, 1.3), shown.Figure("b", 1.2, 0.8, 1.9), shown.Figure("c", 2.3)]
    slower = page.compared(shown.SECTIONS[0], [*new, shown.Figure("new", 9.0)], old)[1]
    assert [line.split(": ")[1] for line in slower] == ["a", "c"]  # b is within its spread, and the last is new


def test_a_stored_file_of_an_older_format_is_left_out(benchmarks, monkeypatch, tmp_path):
    page, shown = benchmarks("all"), benchmarks("figures")
    whole = page.page()
    for path in page.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    section = next(section for section in shown.SECTIONS if section.name == "cross_entropy")
    for results in ({"linop_gn": {}}, [], None):
        (tmp_path / "cross_entropy.json").write_text(json.dumps({"machine": {}, "results": results}))
        with pytest.warns(UserWarning, match=r"cross_entropy\.json is left out.*all\.py --save --only cross_entropy"):
            left = page.page()
        assert section.title in whole
        assert section.title not in left
        assert len(left) > len(whole) // 2


def test_products_take_the_multiplications_of_the_floor(benchmarks):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    shown = benchmarks("figures")

    def counted(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    sizes, batch = (784, 512, 512, 10), 4
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    x, y = torch.randn(batch, 784), torch.arange(batch)
    params = dict(model.named_parameters())
    loss = torch.nn.CrossEntropyLoss()
    gradient = counted(lambda: torch.autograd.grad(loss(model(x), y), list(params.values())))
    fit, floor = lg.Objective(model, lg.losses.CrossEntropy(), (x, y)), shown.floors("MLP")
    for kind, name in ((lg.GGN, "GGN product"), (lg.Hessian, "Hessian product")):
        A = kind(fit, params).prepare()
        v = A.domain.random(0)
        assert counted(lambda A=A, v=v: A @ v) == pytest.approx(floor[name] * gradient, rel=1e-12)
