"""Draw docs/rooms.svg from the table of docs/architecture.md: `python docs/draw_rooms.py`."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

PAGE, PICTURE = Path(__file__).with_name("architecture.md"), Path(__file__).with_name("rooms.svg")
WIDTH, ROW, LEFT = 860, 62, 110
COLOURS = {"params": "#3b6fb6", "b": "#b6553b", "damping": "#3b9a5f"}


def rows(page: str) -> list[tuple[str, list[str]]]:
    """The floors of the house, top first: a name, and the rooms on it."""
    table = page.partition("| floor |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return [(floor, re.findall(r"`([\w/]+)`", rooms)) for floor, rooms, _ in cells]


def ways(page: str) -> dict[str, list[str]]:
    """For each of params, b, damping the rooms that it passes, in order."""
    found = {}
    for name in COLOURS:
        section = page.partition(f"### {name}\n")[2].partition("\n##")[0]
        rooms = re.findall(r"^\d\. `linop_gn\.(\w+)", section, re.MULTILINE)
        found[name] = [room for room, before in zip(rooms, [None, *rooms], strict=False) if room != before]
    return found


def draw(page: str) -> str:
    """The picture: a row of boxes for each floor, and the three ways through them."""
    floors, spots, parts = rows(page), {}, []
    for level, (floor, rooms) in enumerate(floors):
        y, step = 20 + level * ROW, min((WIDTH - LEFT - 20) / len(rooms), 240)
        parts.append(f'<text x="8" y="{y + 24}" class="bold">{escape(floor)}</text>')
        for place, room in enumerate(rooms):
            x = LEFT + place * step
            spots[room] = x + step / 2, y + 29
            parts.append(f'<rect x="{x + 3:.0f}" y="{y}" width="{step - 6:.0f}" height="40" rx="6"/>')
            parts.append(f'<text x="{x + 10:.0f}" y="{y + 15}">{escape(room)}</text>')
    height = 20 + len(floors) * ROW + 30
    for lane, (name, rooms) in enumerate(ways(page).items()):
        colour, points = COLOURS[name], []
        for count, room in enumerate(rooms):  # beside one another where a way comes back
            x, y = spots[room]
            points.append((x + 44 * (lane - 1) + 14 * rooms[:count].count(room), y))
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        parts.append(f'<polyline points="{line}" stroke="{colour}"/>')
        for number, (x, y) in enumerate(points, 1):
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="6.5" fill="{colour}"/>')
            parts.append(f'<text x="{x:.0f}" y="{y + 3.5:.0f}" class="stop">{number}</text>')
        x, y = LEFT + 110 * lane, height - 10
        parts.append(f'<text x="{x}" y="{y}" style="fill:{colour}" class="bold">{escape(name)}</text>')
    style = (
        "text{font:12px sans-serif;fill:#222} .bold{font-weight:bold} "
        ".stop{font-size:9px;fill:#fff;text-anchor:middle} rect{fill:#f4f2ec;stroke:#b8b2a4} "
        ".paper{fill:#fff;stroke:none} polyline{fill:none;stroke-width:1.8;opacity:.8}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="The rooms">'
    return "\n".join(
        [
            head,
            f"<style>{style}</style>",
            '<rect x="0" y="0" width="100%" height="100%"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
