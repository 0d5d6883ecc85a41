"""The plot of the held-out denoising loss, at each noise level and their mean, against training time."""

import base64
from io import BytesIO
from math import ceil
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from maskdit.config.training import HELDOUT_LOSS
from maskdit.reporting.curve_plot import coloured
from maskdit.reporting.figures import scaled
from maskdit.reporting.records import BEFORE_FINETUNING

ACROSS = 3  # panels in a row


def heldout_png(curves: Path, cost: str, label: str) -> str:
    """The plot of the points in this CSV file, some of which have been measured, as a PNG in base64."""
    with BytesIO() as stream:
        heldout_plot(pd.read_csv(curves), cost, label).savefig(stream, format="png", dpi=150)
        return base64.b64encode(stream.getvalue()).decode()


def heldout_plot(frame: pd.DataFrame, cost: str, label: str) -> Figure:
    """A panel for the mean and for each level, of the points of curves that have been measured."""
    levels = [name for name in frame.columns if name.startswith(HELDOUT_LOSS)]
    frame = frame[frame[HELDOUT_LOSS].notna() & frame[cost].notna()]
    down = ceil(len(levels) / ACROSS)
    figure = Figure(figsize=(3.2 * ACROSS, 2.3 * down + 0.4), layout="constrained")
    colours = coloured(frame["series"].unique())
    for panel, level in zip(figure.subplots(down, ACROSS, sharex=True).flat, levels, strict=False):
        for series, rows in frame.groupby("series"):
            middle = rows.groupby(["phase", "steps"])[[cost, level]].mean().sort_values(cost)
            thin = str(series).endswith(BEFORE_FINETUNING)
            panel.plot(
                middle[cost], middle[level], "o-", color=colours[series], label=series, markersize=3, linewidth=0.7 if thin else 1.5
            )
        scaled(panel.xaxis, frame[cost], logarithmic=True)
        scaled(panel.yaxis, frame[level], logarithmic=False)
        name = level.removeprefix(f"{HELDOUT_LOSS}_")
        panel.set_title("mean" if name == HELDOUT_LOSS else f"sigma {float(name):.2g}", fontsize=10)
        panel.grid(alpha=0.3)
    figure.supxlabel(label, fontsize=10)
    figure.supylabel("held-out denoising loss", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure
