"""The record of a run on a GPU, with the stand-in for one."""

import functools
import importlib.util
import json
from pathlib import Path

import pytest
from systems import in_full

from linop_gn.app.doctor import last_runs

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "on_gpu.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="runs from the sources")


@pytest.fixture
def script(stand_in, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("on_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "gpu.json")
    monkeypatch.setattr(module, "command_line", lambda arguments: 0)
    monkeypatch.setattr(module, "measured", lambda *arguments: {})  # tried below, on the CPU
    return module


def test_a_run_that_passes_is_recorded_beside_those_of_others(script):
    script.RESULTS.write_text(json.dumps({"runs": {"torch": {"date": "2030-01-02", "device": "Abacus 3000"}}}))
    assert script.main(["--backends", "cupy", "--save"]) == 0
    runs = last_runs(script.RESULTS)
    assert runs["torch"]["device"] == "Abacus 3000"
    assert runs["cupy"]["device"] == "a stand-in"
    assert runs["cupy"]["version"] == "stand-in"
    assert runs["cupy"]["laws"] > 80


@pytest.mark.parametrize("broken", ["kit", pytest.param("demo", marks=in_full), "device"])
def test_a_run_that_fails_is_not(script, monkeypatch, broken):
    from linop_gn_cupy import CupyBackend

    if broken == "kit":
        monkeypatch.setattr(CupyBackend, "max_abs", lambda self, x: 0.0)
    elif broken == "demo":
        monkeypatch.setattr(script, "command_line", lambda arguments: 1)
    else:

        def nothing():
            raise RuntimeError("no device")

        monkeypatch.setitem(script.DEVICES, "cupy", nothing)
    assert script.main(["--backends", "cupy", "--save"]) == 1
    assert not script.RESULTS.exists()


@pytest.mark.parametrize("name", ["torch", pytest.param("jax", marks=in_full), "cupy"])
def test_what_is_timed_on_a_gpu_runs_on_the_host_at_small_size(name, monkeypatch):
    if name != "cupy":
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    bench = importlib.import_module("bench_accelerator")
    monkeypatch.setattr(bench, "_installed", lambda name: False)
    monkeypatch.setattr(bench, "interleaved", functools.partial(bench.interleaved, least=0.0))
    title, found = bench.BACKENDS[name](True, 1)
    assert title.startswith("CPU")
    assert len(found) > 2
    assert all(figure["seconds"] > 0 for figure in found.values())
