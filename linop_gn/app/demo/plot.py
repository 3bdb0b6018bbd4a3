"""The picture: training loss against steps, passes and seconds, and how far the backends drift apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .problem import MissingDataError
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "draw", "png"]

LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "faint": "#d5d9de", "colors": ("#0b62c4", "#c2571a", "#2f7d3b")}
DARK = {"paper": "#14171b", "ink": "#dfe3e8", "faint": "#363c44", "colors": ("#6cb1ff", "#f0935a", "#7fce8b")}
STYLES: Any = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1, 2)))


def draw(curves: Mapping[str, Sequence[Run]], drift: Mapping[str, Any], theme: Mapping[str, Any] = LIGHT) -> Figure:
    """A figure of four panels; a colour is a method, a line style is a backend.

    ``curves`` holds each backend's runs, ``drift`` the relative difference of each backend's
    Levenberg-Marquardt losses from the first backend's, step by step.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MissingDataError(
            "the plot is drawn by matplotlib, which is not installed.\nGet it by:  pip install 'linop-gn[studies]'"
        ) from error
    figure = Figure(figsize=(11, 7.6), dpi=150, facecolor=theme["paper"], layout="constrained")
    by_steps, by_passes, by_seconds, apart = panels = figure.subplots(2, 2).ravel()
    methods = list(dict.fromkeys(run.method for runs in curves.values() for run in runs))
    colors = dict(zip(methods, theme["colors"], strict=False))
    styles = dict(zip(curves, STYLES, strict=False))
    for backend, runs in curves.items():
        for run in runs:
            look: dict[str, Any] = {"color": colors[run.method], "linestyle": styles[backend], "linewidth": 1.6}
            by_steps.plot(np.linspace(0, run.steps, len(run.losses)), run.losses, **look)
            by_passes.plot(run.passes, run.losses, **look)
            by_seconds.plot(run.seconds[1:], run.losses[1:], **look)
    for backend, difference in drift.items():
        steps = np.arange(len(difference))
        worst = np.maximum.accumulate(np.maximum(difference, 1e-17))
        apart.plot(steps, worst, color=theme["ink"], linestyle=styles[backend], linewidth=1.4)
    by_steps.set(title="Loss by steps", xlabel="steps", ylabel="loss")
    by_steps.set_xscale("symlog", linthresh=10)
    by_passes.set(title="Loss by work", xlabel="passes over the data (gradients)", ylabel="loss")
    by_seconds.set(title="Loss by time", xlabel="seconds, compilation excluded", ylabel="loss", xscale="log")
    apart.set(title=f"LM-GN-CG: how far from {next(iter(curves))}", xlabel="step", ylabel="relative difference so far")
    for axes in panels:
        _dress(axes, theme)
    keys = [Line2D([], [], color=color, linewidth=2.4, label=name) for name, color in colors.items()]
    keys += [Line2D([], [], color=theme["ink"], linestyle=styles[name], label=name) for name in curves]
    legend = figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    for text in legend.get_texts():
        text.set_color(theme["ink"])
    return figure


def _dress(axes: Any, theme: Mapping[str, Any]) -> None:
    axes.set_yscale("log")
    axes.set_facecolor(theme["paper"])
    axes.grid(True, color=theme["faint"], linewidth=0.6)
    axes.tick_params(colors=theme["ink"], which="both", length=0)
    axes.title.set(color=theme["ink"], fontsize=11)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme["ink"])
    for spine in axes.spines.values():
        spine.set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    made = io.BytesIO()
    figure.savefig(made, format="png", facecolor=figure.get_facecolor())
    return made.getvalue()
