"""What came out: one HTML page that needs no other file, and the tables of the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape as plain
from rich.table import Table

from .pictures import svg
from .plan import HELD, NOT_HELD, NOT_REACHABLE, NOT_RUN, Results, Study, Verdict

__all__ = ["html", "markdown", "table"]

COLORS = {HELD: "#2f7d3b", NOT_HELD: "#b3261e", NOT_REACHABLE: "#6b6b6b", NOT_RUN: "#6b6b6b"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35em .7em; border-bottom: 1px solid #d5d9de; }
svg { max-width: 100%; height: auto; } h2 { margin-top: 2.2em; } .small { color: #57606a; font-size: 13px; }
"""
Found = Sequence[tuple[Study, Results]]


def table(study: Study, results: Results) -> Table:
    """The verdicts for the terminal."""
    made = Table(title=f"{study.name}: {study.title}", box=SIMPLE_HEAD, title_justify="left")
    for head in ("claim", "paper", "here", ""):
        made.add_column(head, overflow="fold")
    for v in study.claims(results):
        color = {HELD: "green", NOT_HELD: "red"}.get(v.outcome, "dim")
        why = f"\n[dim]{plain(v.why)}[/dim]" if v.why else ""
        made.add_row(plain(v.claim) + why, plain(v.paper), plain(v.ours), f"[{color}]{v.outcome}[/{color}]")
    return made


def html(found: Found) -> str:
    """The page of these studies."""
    body = "".join(_section(study, results) for study, results in found)
    title = "Published experiments, re-run with linop_gn"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body><h1>{title}</h1>{body}</body></html>\n"


def _section(study: Study, results: Results) -> str:
    rows = "".join(_row(v) for v in study.claims(results))
    drawn = "".join(f"<h3>{escape(p.title)}</h3>{svg(results, p)}" for p in study.pictures(results))
    return (
        f"<h2>{escape(study.title)}</h2><p>{escape(study.about)}</p><p class=small>{escape(study.paper)}</p>"
        f"<table><tr><th>claim<th>paper<th>here<th></tr>{rows}</table>{drawn}{_figures(results)}{_made_with(results)}"
    )


def _row(v: Verdict) -> str:
    why = f"<div class=small>{escape(v.why)}</div>" if v.why else ""
    outcome = f'<b style="color: {COLORS[v.outcome]}">{v.outcome}</b>'
    return f"<tr><td>{escape(v.claim)}{why}<td>{escape(v.paper)}<td>{escape(v.ours)}<td>{outcome}</tr>"


def _figures(results: Results) -> str:
    """What each entry came to, means over its seeds: those of others among them."""
    made = ""
    for case in results.cases():
        found = results.of(case)
        numbers = (int, float, type(None))
        names = list(dict.fromkeys(n for r in found for n, v in r["figures"].items() if isinstance(v, numbers)))
        rows = ""
        for entry in dict.fromkeys(r["entry"] for r in found):
            known = {n for r in found if r["entry"] == entry and r.get("status") != "NONFINITE" for n in r["figures"]}
            # such as a ratio of no trial
            bare = {n for n in known if all(v is None for v in results.figure(case, entry, n))}
            means = {n: float("nan") if n in bare else results.mean(case, entry, n) for n in names}
            cells = "".join("<td>" if v != v else f"<td>{v:.4g}" for v in means.values())
            ends = Counter(r.get("status") or "" for r in found if r["entry"] == entry)
            ended = ", ".join(f"{end} {n}" if len(ends) > 1 else end for end, n in ends.items())
            rows += f"<tr><td>{escape(entry)}<td>{ends.total()}<td>{ended}{cells}</tr>"
        heads = "".join(f"<th>{escape(n.replace('_', ' '))}" for n in names)
        made += f"<table class=small><tr><th>{escape(case)}<th>runs<th>ended{heads}</tr>{rows}</table>"
    return f"<details><summary>What the runs came to</summary>{made}</details>" if made else ""


def _made_with(results: Results) -> str:
    return "".join(f"<p class=small>{escape(line)}</p>" for line in origins(results))


def origins(results: Results) -> list[str]:
    """What the results were made with: a line for each mixture of form, machine and versions, of seeds, of data."""
    kinds: dict[str, Counter[str]] = {}
    for r in results:
        versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
        line = f"form {r['form']}, {r['backend']} on {r['device']} ({r['machine']}); {versions}"
        kinds.setdefault(line, Counter())[r["date"]] += 1
    made = [f"{sum(dates.values())} runs, {min(dates)} to {max(dates)}: {line}." for line, dates in kinds.items()]
    return made + [f"{case}: {words}." for case in results.cases() if (words := _spread(results.of(case)))]


def _spread(found: Sequence[dict[str, Any]]) -> str:
    """From how many seeds the runs of a case are, and whether they had one set of data."""
    found = [r for r in found if r["curves"]]
    entries: dict[int, list[str]] = {}
    for entry, count in Counter(r["entry"] for r in found).items():
        entries.setdefault(count, []).append(entry)
    words = {n: f"{n} seed{'s' * (n > 1)}" for n in entries}
    told = [f"{words[n]} of {', '.join(of)}" if len(entries) > 1 else words[n] for n, of in entries.items()]
    sources = {f"{r['data']['source']} ({r['data'].get('train')} to train on)" for r in found if "data" in r}
    mixed = [f"not all on the same data, so that they do not compare: {'; '.join(sorted(sources))}"]
    return "; ".join([*told, *(mixed if len(sources) > 1 else [])])


def markdown(found: Found, others: Mapping[str, Mapping[str, Results]] | None = None) -> str:
    """The tables for the documentation; ``others``: by study and backend, the results on other backends."""
    made = []
    for study, results in found:
        verdicts = study.claims(results)
        held = Counter(v.outcome for v in verdicts)
        told = ", ".join(f"{held[o]} {o}" for o in (HELD, NOT_HELD, NOT_REACHABLE, NOT_RUN) if held[o])
        rows = [" | ".join(["", *map(_cell, (v.claim, v.paper, v.ours)), _outcome(v), ""]).strip() for v in verdicts]
        made += [
            f"## `{study.name}`: {study.title}",
            "",
            f"{study.about} {study.paper}.",
            "",
            f"{len(verdicts)} claims: {told}.",
            "",
            "| claim | paper | here | |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"{line}\n" for line in origins(results)),
        ]
        for backend, theirs in (others or {}).get(study.name, {}).items():
            made += _beside(results, backend, theirs)
    return "\n".join(made)


def _beside(ours: Results, backend: str, theirs: Results) -> list[str]:
    """Runs that were made on another backend too, from the same description and seed: where they end."""
    twins = {(r["case"], r["entry"], r["seed"]): r for r in ours}
    pairs = [(twins.get((r["case"], r["entry"], r["seed"])), r) for r in theirs if "train_loss" in r["figures"]]
    rows = [_twins(one, other) for one, other in pairs if one is not None and one["key"] == other["key"]]
    if not rows:
        return []
    here = next(iter(ours))["backend"]
    head = f"| run | training loss on {here} | on {backend} | ms a step on {here} | on {backend} |"
    return [f"The same on {backend}, one seed, at the best rates:", "", head, "|---|---|---|---|---|", *rows, ""]


def _twins(one: dict[str, Any], other: dict[str, Any]) -> str:
    cells = [f"{one['case']}: {one['entry']}"]
    cells += [f"{r['figures']['train_loss']:.4g}" for r in (one, other)]
    for r in (one, other):
        steps, seconds = r["figures"].get("step"), r["figures"].get("seconds")
        cells.append(f"{1000 * seconds / steps:.2g}" if steps and seconds else "")
    return f"| {' | '.join(map(_cell, cells))} |"


def _outcome(v: Verdict) -> str:
    return f"**{v.outcome}**: {_cell(v.why)}" if v.why else f"**{v.outcome}**"


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")
