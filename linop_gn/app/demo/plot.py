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


def draw(curves: Mapping[str, Sequence[Run]], drift: Mapping[str, Any], fits: Mapping[str, Sequence[Run]]) -> Figure:
    """A figure of six panels; a colour is a method, a line style is a backend.

    ``curves`` holds each backend's runs, ``drift`` the relative difference of each backend's
    Levenberg-Marquardt losses from the first backend's, step by step, ``fits`` the two runs of each fit.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MissingDataError(
            "the plot is drawn by matplotlib, which is not installed.\nGet it by:  pip install 'linop-gn[studies]'"
        ) from error
    figure = Figure(figsize=(12.5, 7.6), dpi=150, layout="constrained")
    by_steps, by_passes, by_seconds, *of_fits, apart = panels = figure.subplots(2, 3).ravel()
    methods = list(dict.fromkeys(run.method for runs in curves.values() for run in runs))
    colors = dict(zip(methods, COLORS, strict=False))
    styles = dict(zip(curves, STYLES, strict=False))
    for backend, runs in curves.items():
        for run in runs:
            look: dict[str, Any] = {"color": colors[run.method], "linestyle": styles[backend], "linewidth": 1.6}
            by_steps.plot(np.linspace(0, run.steps, len(run.losses))[1:], run.losses[1:], **look)
            by_passes.plot(run.passes[1:], run.losses[1:], **look)
            by_seconds.plot(run.seconds[1:], run.losses[1:], **look)
    for backend, difference in drift.items():
        steps = np.arange(len(difference))
        worst = np.maximum.accumulate(np.maximum(difference, 1e-17))
        apart.plot(steps, worst, color=INK, linestyle=styles[backend], linewidth=1.4)
    for axes, (name, runs) in zip(of_fits, fits.items(), strict=True):
        for run in runs:
            color = colors.get("LM-GN-CG" if run.method == "Gauss-Newton" else run.method, COLORS[-1])
            axes.plot(run.seconds[1:], run.losses[1:], color=color, linewidth=1.6)
        axes.set(title=f"Fit: {name}", xlabel="seconds", ylabel="half the sum of squares", xscale="log")
    by_steps.set(title="Digits: loss by steps", xlabel="steps", ylabel="loss", xscale="log")
    by_passes.set(title="Digits: loss by work", xlabel="passes (gradients)", ylabel="loss", xscale="log")
    by_seconds.set(title="Digits: loss by time", xlabel="seconds, compilation excluded", ylabel="loss", xscale="log")
    apart.set(
        title=f"Digits: losses of LM-GN-CG, from {next(iter(curves))}'s",
        xlabel="step",
        ylabel="relative difference so far",
    )
    for axes in panels:
        axes.set_yscale("log")
        axes.grid(True, color=FAINT, linewidth=0.6)
        axes.tick_params(length=0, which="both")
        axes.spines[:].set_visible(False)
    keys = [Line2D([], [], color=color, linewidth=2.4, label=name) for name, color in colors.items()]
    keys += [Line2D([], [], color=INK, linestyle=styles[name], label=name) for name in curves]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    return figure
