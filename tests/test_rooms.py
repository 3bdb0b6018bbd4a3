"""The rooms of the house: who may import whom, and no circle among files.

Read from the source, so that imports inside functions count as well. Imports for type checkers alone are
no circle when the program runs; they obey the order of the rooms all the same.
"""

import ast
import re
import runpy
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name

import pytest

import linop_gn

ROOT = Path(linop_gn.__file__).parent
FILES = {path.relative_to(ROOT.parent).with_suffix("").parts: path for path in sorted(ROOT.rglob("*.py"))}
KNOWN = {name[:-1] if name[-1] == "__init__" else name: name for name in FILES}

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
# The page's table, from the program down: a room imports from floors below its own, never from its own or above it.
FLOORS = [["__main__"]] + [
    re.findall(r"`(\w+)`", line.split("|")[2])
    for line in PAGE.read_text(encoding="utf-8").partition("| floor |")[2].partition("\n\n")[0].splitlines()[2:]
]
LEVEL = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# What these may import is less than all that lies below them.
NARROW = {
    "run": {"arguments", "html", "records", "protocols"},
    "eager": {"dispatch", "protocols", "records", "run.status", "moved"},
    "moved": set(),
    "protocols": set(),
    "records": {"foreign"},
    "foreign": set(),
    "arguments": set(),
    "html": set(),
}


def room(file):
    return file[1]


def imports(file):
    """The files that ``file`` imports at run time, and those for type checkers only."""
    tree = ast.parse(FILES[file].read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    typing = {id(inner) for block in blocks for inner in ast.walk(block)}
    found = {False: set(), True: set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            base = (*file[: len(file) - node.level], *module) if node.level else module
            named = [(*base, alias.name) if (*base, alias.name) in KNOWN else base for alias in node.names]
        else:
            continue
        found[id(node) in typing].update(KNOWN[name] for name in named if name in KNOWN)
    return found[False] - {file}, found[True] - {file}


RUN_TIME = {file: imports(file)[0] for file in FILES}
TYPING = {file: imports(file)[1] for file in FILES}


def dotted(file):
    return ".".join(file[1:])


def test_imports_inside_functions_count():
    inside = KNOWN["linop_gn", "validation", "laws"]
    assert inside in RUN_TIME[KNOWN["linop_gn", "validation", "validate"]]


def test_every_room_has_its_place():
    assert set(map(room, FILES)) == set(LEVEL)


@pytest.mark.parametrize("here", sorted(LEVEL, key=LEVEL.__getitem__))
def test_a_room_imports_only_from_below(here):
    pairs = [(f, g) for f in FILES if room(f) == here for g in chain(RUN_TIME[f], TYPING[f]) if room(g) != here]
    assert not [f"{dotted(f)} imports {dotted(g)}" for f, g in pairs if LEVEL[room(g)] <= LEVEL[here]]
    allowed = NARROW.get(here)
    if allowed is not None:
        assert not [dotted(g) for _, g in pairs if room(g) not in allowed and dotted(g) not in allowed]


def test_no_circle_among_files():
    try:
        TopologicalSorter(RUN_TIME).prepare()
    except CycleError as circle:
        pytest.fail(" imports ".join(map(dotted, reversed(circle.args[1]))))


def test_type_annotations_close_one_circle_only():
    """The loops of the eager half are typed by the backend that has them."""
    graph = {file: RUN_TIME[file] | TYPING[file] for file in FILES}
    graph["linop_gn", "protocols", "loops"].discard(("linop_gn", "protocols", "backend"))
    TopologicalSorter(graph).prepare()


def test_the_ways_through_the_house_are_what_the_page_says():
    """Every station of params, b and damping is there."""
    stations = re.findall(r"^\d\. `(linop_gn[\w.]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(stations) > 15
    for station in stations:
        assert resolve_name(station) is not None


def test_the_picture_is_that_of_the_page():
    drawn = runpy.run_path(str(PAGE.with_name("draw_rooms.py")))
    again = "python docs/draw_rooms.py makes it anew"
    assert PAGE.with_name("rooms.svg").read_text() == drawn["draw"](PAGE.read_text(encoding="utf-8")), again
