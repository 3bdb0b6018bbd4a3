"""Ten architectures of the zoo, which need no library beside the frameworks; `nox -s zoo` runs all of them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from . import cases, measured

ROOT = Path(__file__).parents[2]
TEN = {
    "recurrent": ("LSTM of packed sequences", "S4D"),
    "attention": ("Latent attention", "Mixture of experts, two of four"),
    "graphs": ("MPNN, edge network and set2set",),
    "densities": ("Glow, LU", "Critic with gradient penalty"),
    "physics": ("PINN of Poisson's equation", "Neural ODE, adjoint"),
    "refused": ("CTC loss",),
}
CHOSEN = [(family, name) for family in cases.FAMILIES for name in TEN.get(family.module, ())]


@pytest.mark.parametrize(("family", "name"), CHOSEN, ids=[name for _, name in CHOSEN])
def test_it_is_as_declared(family, name):
    for library in family.needs:
        pytest.importorskip(library)
    with cases.made(family, name) as case:
        assert not measured.faults(case, measured.measure(case))


@pytest.mark.skipif(not (ROOT / "benchmarks" / "results").is_dir(), reason="runs from the sources")
def test_the_page_says_what_is_stored(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds to it
    before = set(sys.modules)
    script = import_module("run_zoo")
    try:
        assert script.is_fresh(), "run: python benchmarks/run_zoo.py --page"
        stored = script.stored()
        assert list(stored) == [family.title for family in cases.FAMILIES]
        assert sum(len(file["architectures"]) for file in stored.values()) >= 60
    finally:
        for name in set(sys.modules) - before:
            if name == "run_zoo" or name.partition(".")[0] == "zoo":
                del sys.modules[name]
