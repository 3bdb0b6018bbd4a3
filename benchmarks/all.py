"""All benchmarks by one command, beside their last figures, and the page that shows them.

    python benchmarks/all.py --quick            # every script in short; what is slower than stored is printed
    python benchmarks/all.py --save             # in full (an hour): stores the results, writes docs/performance.md
    python benchmarks/all.py --page             # the page and its pictures from what is stored
    python benchmarks/all.py --quick --only cg krylov

A ratio that is a tenth above the stored one, and whose lower quartile is above it too, is called slower. Each
script runs in a process of its own, with one thread.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib
from figures import SECTIONS, Figure, Section, figures, stored
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from linop_gn.app.files import update_page, with_table, write_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "performance.md"
README = HERE.parent / "README.md"
FRONT = ("GGN product", "Hessian product", "Gauss-Newton step")
"""What the README shows of the products and steps on PyTorch."""
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
SLOWER = 1.1


def run(section: Section, arguments: tuple[str, ...], folder: Path) -> str | None:
    """Run a script, which saves into ``folder``; returns the last lines of what it said if it failed."""
    script, *always = section.script
    command = [sys.executable, str(HERE / script), *always, *arguments, "--save"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LINOP_GN_RESULTS": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()[-12:]
    return None if stored(section.name, folder) is not None else "\n".join(said)


def kept(section: Section) -> list[Figure]:
    """The figures that are stored; none, and a sentence, where an older script wrote the file in another format."""
    try:
        return figures(section, RESULTS)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        warnings.warn(
            f"results/{section.name}.json is left out: it is not in the format that {section.script[0]} writes "
            f"({type(error).__name__}: {error}). Write it anew: python benchmarks/all.py --save --only {section.name}.",
            stacklevel=2,
        )
        return []


def compared(section: Section, new: list[Figure], old: list[Figure]) -> tuple[Table, list[str]]:
    """New figures beside the stored ones of the same work, and a sentence for each that is slower."""
    table, slower, known = Table("", "now", "stored", "floor", title=section.title), [], {f.work: f for f in old}
    for figure in new:
        before = known.get(figure.work)
        surely = figure.ours if figure.low is None else figure.low
        worse = before is not None and figure.ours > SLOWER * before.ours and surely > before.ours
        if before is not None and worse:
            slower.append(f"{section.name}: {figure.work}: {figure.ours:.2f}, stored {before.ours:.2f}")
        colour = "red" if worse else "default"
        was = "" if before is None else f"{before.ours:.2f}"
        table.add_row(figure.work, f"[{colour}]{figure.ours:.2f}[/{colour}]", was, _number(figure.floor))
    return table, slower


def page() -> str:
    """The tables of the page, from what is stored."""
    parts = []
    for section in SECTIONS:
        found, file = kept(section), stored(section.name, RESULTS)
        if not found or file is None:
            continue
        about = file["machine"]
        parts += [f"## {section.title}", ""]
        parts += [f"In multiples of {section.unit}. Taken on {about['date']} ({about['cpu']}, one thread).", ""]
        parts += [f"![{section.title}](performance_{section.name}.svg)", ""]
        floored = any(figure.floor is not None for figure in found)
        heads = ["work", "linop_gn", "quartiles", "others", *["floor"] * floored]
        parts += ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
        for figure in found:
            spread = "" if figure.low is None else f"{figure.low:.2f} .. {figure.high:.2f}"
            others = ", ".join(f"{name} {value:.2f}" for name, value in figure.peers)
            cells = [figure.work, f"**{figure.ours:.2f}**", spread, others, *[_number(figure.floor)] * floored]
            parts.append("| " + " | ".join(cells) + " |")
        parts += ["", f"`python benchmarks/{' '.join(section.script)}`", ""]
    return "\n".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _svg(drawing: Picture) -> bytes:
    """The same bytes for the same figures."""
    matplotlib.rcParams["svg.hashsalt"] = "linop_gn"
    made = io.BytesIO()
    drawing.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()


def picture(section: Section) -> bytes:
    """Ours, the others' and the floor of each work, on one logarithmic axis; in SVG."""
    found = kept(section)[:24][::-1]
    drawing = Picture(figsize=(8, 0.9 + 0.28 * len(found)), layout="constrained")
    axes = drawing.subplots()
    for place, figure in enumerate(found):
        if figure.floor is not None:
            axes.plot([figure.floor] * 2, [place - 0.36, place + 0.36], color="black", linewidth=1.6)
        for _, value in figure.peers:
            axes.plot(value, place, "D", color="#d1661c", markersize=5)
        if figure.low is not None:
            axes.plot([figure.low, figure.high], [place, place], color="#2f6fb0", linewidth=2.4, alpha=0.5)
        axes.plot(figure.ours, place, "o", color="#2f6fb0", markersize=6)
    axes.plot([], [], "o-", color="#2f6fb0", markersize=6, label="linop_gn, median and quartiles")
    axes.plot([], [], "D", color="#d1661c", markersize=5, label="others")
    if any(figure.floor is not None for figure in found):
        axes.plot([], [], color="black", linewidth=1.6, label="floor")
    axes.set_yticks(range(len(found)), [figure.work for figure in found], fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"multiples of {section.unit}; less is better", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    return _svg(drawing)


def front_figures() -> tuple[list[Figure], str]:
    """Those of FRONT with a peer, and when and where they were taken."""
    section, file = SECTIONS[0], stored(SECTIONS[0].name, RESULTS)
    about = (file or {}).get("machine", {})
    shown = [figure for figure in kept(section) if figure.peers and figure.work.split(": ")[1] in FRONT]
    return shown, f"Taken on {about.get('date')} ({about.get('cpu')}, one thread)"


def front() -> str:
    """The README's picture and ratios."""
    shown, taken = front_figures()
    lines = ["![Products and Gauss-Newton steps beside curvlinops and the floor](docs/front.svg)", ""]
    lines += [
        f"In multiples of a gradient on PyTorch. {taken}; all of it is in [performance](docs/performance.md).",
        "Arithmetic is counted in multiplications; a convolution's time is not proportional to these, so that ours is "
        "below it there.",
        "",
    ]
    lines += ["| | linop_gn | curvlinops | arithmetic alone |", "| --- | --- | --- | --- |"]
    for figure in shown:
        (_, theirs), *_ = figure.peers
        lines.append(f"| {figure.work} | **{figure.ours:.2f}** | {theirs:.2f} | {_number(figure.floor)} |")
    return "\n".join([*lines, ""])


def front_picture() -> bytes:
    """A panel of bars for each network: the floor, ours and theirs, in SVG."""
    shown, _ = front_figures()
    networks = list(dict.fromkeys(figure.work.split(": ")[0] for figure in shown))
    drawing = Picture(figsize=(9, 2.7), layout="constrained", facecolor="white")
    for axes, network in zip(drawing.subplots(1, len(networks), sharey=True), networks, strict=True):
        found = [figure for figure in shown if figure.work.startswith(f"{network}: ")]
        for place, figure in enumerate(found):
            steps = 20 if figure.work.endswith("step") else 1  # of CG, so that one axis serves
            bars = (figure.ours, "#2f6fb0"), (figure.peers[0][1], "#d1661c")
            for side, (value, colour) in zip((-0.2, 0.2), bars, strict=True):
                drawn = axes.bar(place + side, value / steps, 0.38, color=colour)
                axes.bar_label(drawn, fmt="%.2f", fontsize=7)
            if figure.floor is not None:
                axes.plot([place - 0.4, place + 0.4], [figure.floor / steps] * 2, color="black", linewidth=1.2)
        names = [figure.work.split(": ")[1] for figure in found]
        axes.set_xticks(
            range(len(found)), ["GN step\n/ 20 of CG" if "step" in n else n.replace(" ", "\n") for n in names]
        )
        axes.tick_params(labelsize=7)
        axes.set_title(network, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.supylabel("gradients; less is better", fontsize=8)
    axes.bar(0, 0, color="#2f6fb0", label="linop_gn")
    axes.bar(0, 0, color="#d1661c", label="curvlinops")
    axes.plot([], [], color="black", linewidth=1.2, label="arithmetic alone")
    drawing.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    return _svg(drawing)


def write_page() -> None:
    """The page and its pictures, and those of the README."""
    write_whole(PAGE.with_name("front.svg"), front_picture())
    update_page(README, front(), BEGIN, END)
    for section in SECTIONS:
        if kept(section):
            write_whole(PAGE.with_name(f"performance_{section.name}.svg"), picture(section))
    update_page(PAGE, page(), BEGIN, END)


def is_fresh() -> bool:
    """Whether the page and the README say what is stored."""
    shown = (PAGE, page()), (README, front())
    return all(file.read_text(encoding="utf-8") == with_table(file, text, BEGIN, END) for file, text in shown)


def main() -> int:
    """Run, compare, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short runs, which are compared and not stored")
    parser.add_argument("--save", action="store_true", help="full runs, stored, and the page")
    parser.add_argument("--page", action="store_true", help="the page from what is stored")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS], metavar="NAME")
    parser.add_argument("--check", action="store_true", help="fail where something is slower")
    options = parser.parse_args()
    if options.quick + options.save + options.page != 1:
        parser.error("choose one of --quick, --save and --page")
    console, slower, failed = Console(), [], []
    chosen = [s for s in SECTIONS if not options.page and (options.only is None or s.name in options.only)]
    with tempfile.TemporaryDirectory() as scratch:
        for section in track(chosen, "measuring", console=Console(stderr=True), disable=options.page):
            said = run(section, section.quick if options.quick else (), Path(scratch))
            if said is not None:
                failed.append(section.name)
                console.print(f"{' '.join(section.script)} did not finish:\n{said}", style="red", markup=False)
                continue
            new, old = figures(section, Path(scratch)), kept(section)
            table, found = compared(section, new, old)
            console.print(table)
            slower += found
            if options.save:
                write_whole(RESULTS / f"{section.name}.json", (Path(scratch) / f"{section.name}.json").read_bytes())
    if not options.quick:
        write_page()
        console.print(f"wrote {PAGE}")
    if not options.page:
        console.print("Slower than stored by more than a tenth:" if slower else "Nothing is slower than stored.")
    for line in slower:
        console.print(f"  {line}", style="red")
    return 1 if failed or (options.check and slower) else 0


if __name__ == "__main__":
    sys.exit(main())
