"""The curves of stored results: each entry's mean over its seeds, and the range of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from linop_gn.app.files import MissingDataError

from .plan import Picture, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["svg"]

COLORS = ("#0b62c4", "#c2571a", "#2f7d3b", "#8a3ffc", "#b0135a", "#6b6b00", "#007d79", "#525252")
STYLES: Any = ("-", (0, (5, 2)), (0, (1.2, 1.6)))
FAINT = "#d5d9de"
WIDE = {"gradients": 10, "products": 10, "sequential": 10, "seconds": 0.1, "tokens": 1000}
"""Axes that are logarithmic from these numbers on."""
AXES = {
    "step": "steps",
    "epoch": "epochs",
    "products": "products",
    "sequential": "sequential steps (gradients, products, evaluations)",
    "gradients": "gradient equivalents",
    "tokens": "tokens",
    "seconds": "seconds of the steps",
    "train_loss": "training loss",
    "held_out_loss": "held-out loss",
    "held_out_accuracy": "held-out accuracy",
    "train_accuracy": "training accuracy",
    "train_squared_error": "training squared error",
    "held_out_squared_error": "held-out squared error",
    "ratio": "gain ratio",
    "inner_steps": "steps of CG",
    "held_out_rmse": "held-out RMSE",
}


def svg(results: Results, picture: Picture) -> str:
    """The picture as SVG, to stand inside of a page."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDataError(
            "the pictures need matplotlib, which is not installed; the runs are kept.\n"
            "Get it by:  pip install 'linop-gn[studies]'"
        ) from error

    figure = Figure(figsize=(3.9 * len(picture.xs), 3.4), layout="constrained")
    panels: Sequence[Axes] = np.atleast_1d(figure.subplots(1, len(picture.xs), sharey=True)).tolist()
    found, measured = results.of(picture.case), picture.y.endswith(("loss", "error", "rmse", "accuracy", "ritz"))
    names = [n for n in dict.fromkeys(r["entry"] for r in found) if _is_of(found, n, picture.entries)]
    for i, name in enumerate(names):
        runs = [r["curves"] for r in found if r["entry"] == name and picture.y in r["curves"]]
        look: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "linestyle": STYLES[i // len(COLORS) % len(STYLES)]}
        for axes, x in zip(panels, picture.xs, strict=True):
            _draw(axes, [(c[x], c[picture.y]) for c in runs if x in c], name, look, measured)
    for axes, x in zip(panels, picture.xs, strict=True):
        axes.set_xlabel(AXES.get(x, x))
        axes.grid(True, color=FAINT, linewidth=0.6)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, which="both")
        if picture.log:
            axes.set_yscale("log")
        if x in WIDE:
            axes.set_xscale("symlog", linthresh=WIDE[x])
            axes.set_xlim(left=0)
    starts = [v for r in found for v in r["curves"].get(picture.y, [])[:1] if v is not None]
    if measured and starts and not picture.y.endswith("accuracy"):
        panels[0].set_ylim(top=min(panels[0].get_ylim()[1], 3 * max(starts)))  # what diverges leaves the picture
    panels[0].set_ylabel(AXES.get(picture.y, picture.y))
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8
        )
    drawn = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing above zero on a logarithmic axis
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _is_of(found: list[dict[str, Any]], name: str, entries: Sequence[str] | None) -> bool:
    return entries is None or any(r["entry"] == name and (name in entries or r.get("of") in entries) for r in found)


def _draw(axes: Axes, runs: list[tuple[list[Any], list[Any]]], name: str, look: dict[str, Any], whole: bool) -> None:
    """The mean of the runs over their common part, with the range.

    Of losses until one of them is not finite; of what a method does not always know (a gain ratio), those that do.
    """
    if not runs:
        return
    length = min(len(y) for _, y in runs)
    x = np.mean([np.array(x[:length], float) for x, _ in runs], axis=0)
    y = np.array([[np.nan if v is None else v for v in y[:length]] for _, y in runs], float)
    known = np.isfinite(y).all(0) if whole else np.isfinite(y).any(0)
    x, y = x[known], y[:, known]
    axes.plot(x, np.nanmean(y, axis=0), label=name, linewidth=1.5, **look)
    if len(runs) > 1:
        axes.fill_between(x, np.nanmin(y, axis=0), np.nanmax(y, axis=0), color=look["color"], alpha=0.15, linewidth=0)
