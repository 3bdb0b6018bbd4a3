"""A picture of runs: what was observed at each step, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_runs"]

_PANELS = (
    ("residual", ("residual",)),
    ("value", ("value",)),
    ("gradient norm", ("gradient_norm",)),
    ("damping or radius", ("damping", "level")),
    ("rate", ("rate",)),
    ("gain ratio", ("ratio",)),
)


def plot_runs(runs: Mapping[str, Any] | Iterable[Any], figure: Any = None) -> Figure:
    """Value, gradient norm, damping or radius, and gain ratio over the steps of runs: a dict by name, or a list.

    Of solutions of linear systems the residual, a curve for each right-hand side. What a method does not observe has no
    panel. Crosses are steps that were refused. Axes are logarithmic where all is
    positive, but for the ratio. ``figure`` is a matplotlib one to draw on; None: a new one, without a window.

    >>> import numpy as np, linop_gn as lg
    >>> line = lg.Objective.from_residuals(lambda p: p - 3.0, jacobian=lambda p: np.eye(2))
    >>> runs = {f"{d}": lg.minimize(line, np.zeros(2), lg.LevenbergMarquardt(damping=d)) for d in (0.1, 1.0)}
    >>> lg.plot_runs(runs).savefig("runs.png")  # doctest: +SKIP

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    Figure = needed("matplotlib.figure", "plots are drawn by matplotlib", "plots").Figure
    if not isinstance(runs, Mapping):
        runs = [runs] if hasattr(runs, "history") else list(runs)
        runs = {f"{run.method} {i}" if len(runs) > 1 else run.method: run for i, run in enumerate(runs, 1)}
    histories = {name: run.history for name, run in runs.items()}
    observed = set().union(*histories.values())
    panels = [(title, names) for title, names in _PANELS if observed.intersection(names)]
    figure = Figure(figsize=(3.6 * max(1, len(panels)), 3.2), layout="constrained") if figure is None else figure
    for axes, (title, names) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        positive = title != "gain ratio"
        for label, history in histories.items():
            column = next((history[name] for name in names if name in history), None)
            if column is None:
                continue
            drawn = np.where(np.isfinite(column), column, np.nan)
            steps = history.first + np.arange(len(drawn))
            labels = [label, *["_"] * (drawn[0].size - 1)] if drawn.ndim > 1 else label
            line, *_ = axes.plot(steps, drawn, label=labels, linewidth=1.4, marker="." if len(drawn) < 40 else "")
            count = history.get("refused", np.zeros(len(drawn)))
            refused = np.diff(count, prepend=count[:1]) > 0
            if refused.any():
                axes.plot(steps[refused], drawn[refused], "x", color=line.get_color(), label="_refused")
            positive = positive and bool((drawn[np.isfinite(drawn)] > 0).all())
        axes.set(title=title, xlabel="step", yscale="log" if positive else "linear")
        axes.grid(True, linewidth=0.4, alpha=0.5)
    if len(runs) > 1 and panels:
        figure.axes[0].legend()
    return figure
