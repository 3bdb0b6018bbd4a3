"""Systems on which solvers fail: what each library returns and says, and what ours does.

    python benchmarks/peer_failures.py [--families definite symmetric rectangular] [--save]

The systems are in tests/support/peer_systems.py, the calls in peers/. Nothing is
timed. ``--save`` writes benchmarks/results/peer_failures.json and the page
docs/peers.md, which is made from it. An answer is compared in float64 with what
was asked for; what counts as right is ten times the tolerance, since libraries
measure with different norms. A library that says that it failed is held to its
word only where its answer is worse than the tolerance itself.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np
from peers import PEERS, Answer, Peer, absent, versions
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import save

import linop_gn as lg

from peer_cases import Case, error, right, solve  # isort: skip  (found through peers)
from peer_systems import cases  # isort: skip

PAGE = Path(__file__).parent.parent / "docs" / "peers.md"
OURS = "linop_gn"

WORDS = {
    "right": "the answer, to ten times the tolerance",
    "right, told": "the least-squares solution, and word that no x solves the system",
    "right, called a failure": "the answer, with a flag that says failure",
    "told": "no answer, and the flag (or an exception) says so; the x that comes with it is finite",
    "NaN, told": "NaN or infinity, and the flag says failure",
    "NaN": "NaN or infinity, with a flag of success or without any",
    "wrong": "not the answer, with a flag of success or without any",
    "error": "an exception although there is an answer",
}
BAD = ("NaN", "wrong", "error")

HEADINGS = {
    "definite": "Conjugate gradients",
    "symmetric": "Indefinite and singular systems",
    "rectangular": "Least squares",
    "spectrum": "Lanczos processes",
    "region": "Trust regions",
}

MEASURES = {
    "solution": "norm of b - A x, over that of b",
    "least squares": "norm of A^T r, over those of A and r",
    "eigenvalues": "largest distance to an eigenvalue, over the norm of A",
    "step": "part of the decrease that is missed",
    "nothing": "",
}

NOTES = {
    "definite": "Where the operator or the preconditioner is indefinite, conjugate gradients may still arrive, as "
    "several do here. Ours ends at the first sign of it: MINRES is the method for such operators.",
    "symmetric": "Neither JAX library has MINRES; GMRES is what they have for indefinite operators. SciPy's `minres` "
    "stops on estimates relative to the norms of A and x, so that its tolerance is not one on the residual.",
    "rectangular": "The limit on the condition number is 1e8 for everybody, the default of SciPy, lineax and matfree.",
    "spectrum": "Forty eigenvalues or fewer; what a library returns has to be eigenvalues, each as often as it occurs. "
    "`eigsh` restarts from random vectors and is asked for the six largest.",
    "region": "Ours stops where the residual is small in the Krylov space of b, and says inside the region that it has "
    "not looked for negative curvature that b has no part in; with `rtol=0`, or when asked (`explore=True`), it looks, "
    "be b zero. SciPy's methods are called through the first step of `minimize`, `trust-krylov` with `inexact=False`. "
    "`trust-exact` factors A, and promises a step that is nearly exact. A tenth of the decrease is forgiven to "
    "everybody. Steihaug's method (`trust-ncg`) promises no minimum, and isn't here.",
}


def verdict(case: Case, answer: Answer) -> str:
    """One of ``WORDS``."""
    claim = None if case.fixed else answer.claim  # a run of so many steps is not asked to converge
    if answer.x is None or not answer.x.size:
        return "told" if case.truth == "nothing" else "error"
    if not np.isfinite(answer.x).all():
        return "NaN, told" if claim is False else "NaN"
    if claim is not False:
        found = "told" if answer.says.startswith("UNEXPLORED") else "wrong"
        return "right" if right(case, answer.x) else found
    if not right(case, answer.x, slack=1.0):
        return "told"
    return "right, told" if case.truth == "least squares" else "right, called a failure"


def ask(case: Case, peer: Peer) -> Answer:
    """A peer's answer; what it raises is an answer too."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            run = peer.prepare(case)
            return run.read(run.call())
        except Exception as raised:
            return Answer(None, False, f"{type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''}")


def ours(case: Case, name: str) -> Answer:
    """Our answer on NumPy arrays."""
    x, status, steps = solve(case, name, lg.load("numpy"))
    return Answer(x, status.succeeded, f"{status.name}: {status.sentence}", steps)


def entry(case: Case, answer: Answer) -> dict[str, Any]:
    """What is kept of an answer."""
    off = math.nan if answer.x is None else error(case, answer.x)
    return {
        "verdict": verdict(case, answer),
        "error": off if math.isfinite(off) else None,
        "says": answer.says,
        "steps": answer.steps,
    }


def measure(families: list[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every case with every solver that can run here; and why the others cannot."""
    missing = {peer.name: reason for peer in PEERS if (reason := absent(peer))}
    results = []
    for case in track([c for c in cases() if c.family in families], "asking", console=Console(stderr=True)):
        found = {f"{OURS} {name}": entry(case, ours(case, name)) for name in case.ours}
        for peer in PEERS:
            if case.family in peer.families and peer.name not in missing:
                found[peer.name] = entry(case, ask(case, peer))
        facts = {"truth": case.truth, "rtol": case.rtol, "dtype": case.dtype, "max_steps": case.max_steps}
        results.append({"family": case.family, "case": case.name, "what": case.what, **facts, "solvers": found})
    return results, missing


# printed and written


def table(family: str, results: list[dict[str, Any]]) -> Table:
    """One family, on the screen."""
    made = Table(title=HEADINGS[family])
    made.add_column("system")
    names = list(results[0]["solvers"])
    for name in names:
        made.add_column(name)
    for result in results:
        words = [result["solvers"][name]["verdict"] for name in names]
        made.add_row(result["case"], *[f"[red]{word}[/red]" if word in BAD else word for word in words])
    return made


def page(results: list[dict[str, Any]], used: dict[str, str], missing: dict[str, str]) -> str:
    """docs/peers.md."""
    told = ", ".join(f"{name} {number}" for name, number in sorted(used.items()))
    lines = [
        "# Where solvers fail",
        "",
        f"<!-- Made by benchmarks/peer_failures.py --save on {date.today().isoformat()}; edit that. -->",
        "",
        "Small systems on which iterative solvers may fail, handed to ours and to those of other libraries. "
        f"This page is generated (`python benchmarks/peer_failures.py --save`, {date.today()}), with {told}. "
        "Nothing here is a matter of speed or of chance: the systems are fixed, and a test holds our own column to it.",
        "",
        "Everybody gets the same tolerance, limit on steps and start, and otherwise the defaults of the library; "
        "`benchmarks/peers/` has each call. Answers are compared in float64 with what was asked for. Some words:",
        "",
        *[f"* **{word}**: {meaning}." for word, meaning in WORDS.items()],
        "",
        "jax.scipy and matfree's Lanczos have no flag. lineax is called with `throw=False`; by default it raises where "
        "its result is not `successful`. In float32 JAX runs with x64 off: with it on, the least-squares solvers of "
        "lineax and matfree raise `TypeError` for float32 arrays.",
    ]
    for reason in dict.fromkeys(missing.values()):
        lines += ["", f"Not run here: {', '.join(name for name in missing if missing[name] == reason)} ({reason})."]
    lines += ["", "## Summary", "", *summary(results)]
    for family in dict.fromkeys(result["family"] for result in results):
        lines += ["", *section(family, [result for result in results if result["family"] == family])]
    return "\n".join(lines) + "\n"


def summary(results: list[dict[str, Any]]) -> list[str]:
    """How often each solver gave which kind of answer, and where others answer and ours do not."""
    names = list(dict.fromkeys(name for result in results for name in result["solvers"]))
    lines = [
        "| solver | systems | right | told | NaN, told | NaN | wrong | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        words = [result["solvers"][name]["verdict"] for result in results if name in result["solvers"]]
        count = {word: words.count(word) for word in WORDS}
        good = count["right"] + count["right, told"]
        said = count["told"] + count["right, called a failure"]
        rest = " | ".join(str(count[word]) for word in ("NaN, told", "NaN", "wrong", "error"))
        lines.append(f"| {name} | {len(words)} | {good} | {said} | {rest} |")
    lines += ["", "Systems that another library answers and ours does not, with what ours is then:", ""]
    for result in results:
        words = {name: found["verdict"] for name, found in result["solvers"].items()}
        own = {name: word for name, word in words.items() if name.startswith(OURS)}
        others = [name for name, word in words.items() if word.startswith("right") and name not in own]
        short = [f"{name} {word}" for name, word in own.items() if not word.startswith("right")]
        if others and short:
            lines.append(f"* {result['case']}: {', '.join(others)} ({'; '.join(short)})")
    return lines


def section(family: str, results: list[dict[str, Any]]) -> list[str]:
    """A matrix of verdicts, and then every system with everybody's own words."""
    names = list(results[0]["solvers"])
    lines = [
        f"## {HEADINGS[family]}",
        "",
        NOTES[family],
        "",
        f"| system | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for result in results:
        words = [result["solvers"][name]["verdict"] for name in names]
        cells = [f"**{word}**" if word in BAD else word for word in words]
        lines.append(f"| {result['case']} | {' | '.join(cells)} |")
    for result in results:
        kept = f"tolerance {result['rtol']:g}, at most {result['max_steps']} steps, {result['dtype']}"
        measure = "&#124;&#124;A^T r&#124;&#124; / (&#124;&#124;A&#124;&#124; &#124;&#124;r&#124;&#124;)"
        measure = (
            measure
            if result["truth"] == "least squares"
            else "&#124;&#124;b - A x&#124;&#124; / &#124;&#124;b&#124;&#124;"
        )
        lines += ["", f"### {HEADINGS[family]}: {result['case']}", "", f"{result['what']} ({kept}.)", ""]
        lines += [f"| solver | | {measure} | steps | its own words |", "|---|---|---|---|---|"]
        for name, found in result["solvers"].items():
            off = "" if found["error"] is None else f"{found['error']:.1e}"
            steps = "" if found["steps"] is None else str(found["steps"])
            words = found["says"].replace("|", "&#124;").replace("<", "&lt;")
            lines.append(f"| {name} | {found['verdict']} | {off} | {steps} | {words} |")
    return lines


def main() -> int:
    """Ask, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=sorted(HEADINGS), default=list(HEADINGS))
    parser.add_argument("--save", action="store_true", help="write results/peer_failures.json and docs/peers.md")
    options = parser.parse_args()
    if options.save and set(options.families) != set(HEADINGS):
        parser.error("--save needs all families: the page is made of all of them.")
    console = Console(width=None if sys.stdout.isatty() else 160)
    results, missing = measure(options.families)
    for family in options.families:
        console.print(table(family, [result for result in results if result["family"] == family]))
    for line in summary(results):
        console.print(line, markup=False)
    for name, reason in missing.items():
        console.print(f"{name}: not run; {reason}")
    if options.save:
        console.print(f"saved to {save('peer_failures', {'cases': results, 'missing': missing})}")
        used = versions([peer for peer in PEERS if peer.name not in missing]) | {"linop_gn": lg.__version__}
        PAGE.write_text(page(results, used, missing))
        console.print(f"saved to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
