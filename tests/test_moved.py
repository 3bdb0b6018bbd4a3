"""Old paths lead to the new ones, and say so."""

import importlib

import pytest

from linop_gn.moved import MOVED


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("linop_gn.array_api", "ArrayApiBackend", "linop_gn.backend"),
        ("linop_gn.capabilities", "declared", "linop_gn.backend"),
        ("linop_gn.capabilities", "markdown", "linop_gn.app.doctor"),
        ("linop_gn.drive", "drive", "linop_gn.run.loop"),
        ("linop_gn.drive", "solve", "linop_gn.solve"),
        ("linop_gn.eager", "EagerLoops", "linop_gn.backend"),
        ("linop_gn.solution", "Solution", "linop_gn.run.solution"),
        ("linop_gn.status", "Status", "linop_gn.run.status"),
        ("linop_gn.watch", "ProgressBar", "linop_gn.run.watch"),
    ],
)
def test_an_old_path_gives_what_stands_at_the_new_one(old, name, new):
    with pytest.warns(DeprecationWarning, match=rf"{old}\.{name} is {new}\.{name} now; the old path goes in") as told:
        exec(f"from {old} import {name}", found := {})
    assert found[name] is getattr(importlib.import_module(new), name)
    assert told[0].filename == "<string>", "the warning points to the line that imports"


@pytest.mark.parametrize("old", MOVED)
def test_every_old_path_leads_somewhere(old):
    module = importlib.import_module(old)
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'nothing_of_the_kind'"):
        _ = module.nothing_of_the_kind


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_names_of_an_old_path_can_be_imported_at_once():
    exec("from linop_gn.array_api import *", found := {})
    assert found["ArrayApiBackend"] is importlib.import_module("linop_gn.backend").ArrayApiBackend
