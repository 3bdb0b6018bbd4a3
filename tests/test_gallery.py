"""The gallery's scripts run, in a small form: a number with the comment ``# quick: N`` is N here."""

import re
from pathlib import Path

import pytest
from systems import FULL

SCRIPTS = sorted((Path(__file__).parent.parent / "examples" / "gallery").glob("*.py"))
LONG = "bundle_adjustment", "eight_devices"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_run(script, monkeypatch, capsys):
    text = script.read_text(encoding="utf-8")
    if script.stem in LONG and not FULL:
        pytest.skip("compiles for long: in tests_full, and in the site's gallery")
    for needed in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE):
        pytest.importorskip(needed)
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    quick = re.sub(r"^(.*= ).*( +# quick: )(.*)$", r"\1\3\2", text, flags=re.MULTILINE)
    exec(compile(quick, str(script), "exec"), {"__name__": script.stem})
    drawn = [plt.figure(number) for number in plt.get_fignums()]
    plt.close("all")
    assert drawn
    assert all(axes.has_data() for figure in drawn for axes in figure.axes)


def test_scripts_are_short():
    assert len(SCRIPTS) >= 14
    assert all(len(script.read_text(encoding="utf-8").splitlines()) <= 60 for script in SCRIPTS)
