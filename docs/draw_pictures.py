"""Draws the pictures of pages by what the pages compute: python docs/draw_pictures.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def computed(page: str) -> dict[str, Any]:
    """What the page's blocks leave behind."""
    scope: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", (HERE / page).read_text(), re.MULTILINE | re.DOTALL):
        exec(block, scope)
    return scope


def uses(found: dict[str, Any]) -> Any:
    """The four panels of ``uses.md``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    (sure, done), (speak, go) = figure.subplots(2, 2)
    grid = found["grid"].numpy()[:, 0]
    middle = found["net"](found["grid"]).detach().numpy()[:, 0]
    for name, label in (("whole", "all parameters"), ("of_factors", "EKFAC"), ("of_last", "the last layer")):
        edges = middle - 2 * found[name], middle + 2 * found[name]
        sure.fill_between(grid, *edges, alpha=0.3, label=f"two deviations, {label}", linewidth=0)
    sure.plot(grid, middle, linewidth=1.4)
    sure.plot(found["x"].numpy(), found["y"].numpy(), "k.", markersize=3)
    sure.set(ylim=(-4, 4), title="How sure a network is")
    done.plot(found["influences"], found["retrained"], ".")
    ends = [min(found["retrained"]), max(found["retrained"])]
    done.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
    done.set(xlabel="influence", ylabel="retrained without it", title="What an example has done")
    speak.semilogx(found["precisions"], found["dimensions"], marker=".", label="by a density")
    exact, c = found["exact"], found["precisions"][:, None]
    speak.semilogx(found["precisions"], (exact / (exact + c)).sum(axis=1), "--", label="by all eigenvalues")
    speak.set(xlabel="the prior's precision", title="The effective dimension")
    for name, label in (("by_saliency", "least saliency first"), ("by_size", "smallest weights first")):
        go.semilogy(found["counts"], found[name], marker=".", label=label)
    go.set(xlabel="weights taken out", ylabel="loss", title="Which weights may go")
    for axes in (sure, speak, go):
        axes.legend(frameon=False)
    return figure


def findings(found: dict[str, Any]) -> Any:
    """The three panels of ``network_spectra.md``: densities beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    first = {name: density for name, (_, _, _, density) in found["found"].items()}
    titles = "Batch normalisation", "Blocks of a dense net", "Blocks of a transformer"
    shown = first, found["blocks"]["dense"], found["blocks"]["transformer"]
    for axes, title, densities in zip(panels, titles, shown, strict=True):
        for name, density in densities.items():
            curve = density.smooth(log=True)
            up = curve.x > 0
            axes.loglog(curve.x[up], curve.mean[up], label=name.removesuffix(".weight"), linewidth=1.2)
        axes.set(title=title, xlabel="eigenvalue", ylim=(1e-4, 1e3), xlim=(1e-7, 50))
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left")
    panels[0].set_ylabel("density per decade")
    return figure


def why_stopped(found: dict[str, Any]) -> Any:
    """The eight panels of ``results.md``: a run for each status."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    for axes, (name, end) in zip(figure.subplots(2, 4).ravel(), found["ends"].items(), strict=True):
        column = "residual" if "residual" in end.history else "value"
        axes.semilogy(end.history[column], marker="." if end.steps < 60 else "", linewidth=1.2)
        axes.set_title(name, fontsize=9, color="tab:green" if end.succeeded else "tab:red")
        axes.set_ylabel(column, fontsize=8)
        axes.tick_params(labelsize=7)
    return figure


def main() -> None:
    """Draw all of them."""
    spectra = computed("network_spectra.md")
    pictures = {"network_spectra": spectra["figure"], "network_findings": findings(spectra)}
    pictures["uses"] = uses(computed("uses.md"))
    pictures["why_stopped"] = why_stopped(computed("results.md"))
    for name, figure in pictures.items():
        figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
