"""The picture: training loss against steps, passes and seconds, and how far the backends drift apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import MissingDataError
from .runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

COLORS = ("#0b62c4", "#c2571a", "#2f7d3b")
INK, FAINT = "#1f2328", "#d5d9de"
STYLES: Any = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1, 2)))


def draw(curves: Mapping[str, Sequence[Run]], drift: Mapping[str, Any]) -> Figure:
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
    figure = Figure(figsize=(11, 7.6), dpi=150, layout="constrained")
    by_steps, by_passes, by_seconds, apart = panels = figure.subplots(2, 2).ravel()
    methods = list(dict.fromkeys(run.method for runs in curves.values() for run in runs))
    colors = dict(zip(methods, COLORS, strict=False))
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
        apart.plot(steps, worst, color=INK, linestyle=styles[backend], linewidth=1.4)
    by_steps.set(title="Loss by steps", xlabel="steps", ylabel="loss")
    by_steps.set_xscale("symlog", linthresh=10)
    by_passes.set(title="Loss by work", xlabel="passes over the data (gradients)", ylabel="loss")
    by_seconds.set(title="Loss by time", xlabel="seconds, compilation excluded", ylabel="loss", xscale="log")
    apart.set(title=f"LM-GN-CG: how far from {next(iter(curves))}", xlabel="step", ylabel="relative difference so far")
    for axes in panels:
        axes.set_yscale("log")
        axes.grid(True, color=FAINT, linewidth=0.6)
        axes.tick_params(length=0, which="both")
        axes.spines[:].set_visible(False)
    keys = [Line2D([], [], color=color, linewidth=2.4, label=name) for name, color in colors.items()]
    keys += [Line2D([], [], color=INK, linestyle=styles[name], label=name) for name in curves]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    return figure
