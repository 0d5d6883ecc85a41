"""The plot of quality against each training cost."""

from collections.abc import Iterable
from itertools import cycle
from math import ceil

import pandas as pd
from matplotlib.figure import Figure

from maskdit.reporting.figures import COLOURS, fitted, scaled, wide
from maskdit.reporting.records import BEFORE_FINETUNING

OTHERS = ("#2471a3", "#1e8449", "#af601a", "#7d3c98", "#117a65")
MARKS = "s^Dv<>pP*X"
PANEL = 3.6  # inches across
UNITS = {  # column -> its label, and its units, the largest first: how many of them are one of the column
    "tflop": ("training compute ({})", {"EFLOP": 1e-6, "PFLOP": 1e-3, "TFLOP": 1.0, "GFLOP": 1e3, "MFLOP": 1e6}),
    "seconds": ("training time ({})", {"h": 1 / 3600, "min": 1 / 60, "s": 1.0}),
    "device_hours": ("{}", {"device-hours": 1.0, "device-minutes": 60.0, "device-seconds": 3600.0}),
}


def unit(column: str, largest: float, label: str) -> tuple[str, float]:
    """The label of a cost and the factor to its unit: the largest unit of which there is at least a tenth."""
    pattern, units = UNITS.get(column, ("{}", {label: 1.0}))
    name = next((name for name, factor in units.items() if largest * factor >= 0.1), list(units)[-1])
    return pattern.format(name), units[name]


def coloured(series: Iterable[str]) -> dict[str, str]:
    """A colour for each series, whatever their order; the points before finetuning have that of their model."""
    others, found = cycle(OTHERS), dict[str, str]()
    for model in sorted({name.removesuffix(BEFORE_FINETUNING) for name in series}):
        colour = COLOURS.get(model) or next(others)
        found |= {model: colour, model + BEFORE_FINETUNING: colour}
    return found


def plot(frame: pd.DataFrame, theirs: pd.DataFrame, quality: str, axes: dict[str, str], title: str) -> Figure:
    """A panel for each cost (column -> label); `theirs` are the published points, which have no line.

    The costs are logarithmic if one of them spans more than a decade, and else start at 0. So is the quality, which does not.
    """
    across = max(PANEL * len(axes), 5.0)
    figure = Figure(figsize=(across, 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    colours = coloured(frame["series"].unique())
    costs = {column: pd.concat([points[column] for points in (frame, theirs) if column in points]) for column in axes}
    logarithmic = any(wide(values) for values in costs.values())
    for panel, (column, label) in zip(panels, axes.items(), strict=True):
        named, factor = unit(column, costs[column].max(), label)
        for series, rows in frame[frame[column].notna()].groupby("series"):
            groups = rows.assign(cost=rows[column] * factor).groupby(["steps", "phase"])[["cost", quality]]
            middle, low, high = groups.mean(), groups.min(), groups.max()
            colour, thin = colours[str(series)], str(series).endswith(BEFORE_FINETUNING)
            style = {"linewidth": 0.7, "markersize": 3} if thin else {}
            panel.plot(middle["cost"], middle[quality], "o-", color=colour, label=series, **style)
            if rows["seed"].nunique() > 1 and not thin:
                panel.fill_between(middle["cost"], low[quality], high[quality], color=colour, alpha=0.2, linewidth=0)
            hollow = middle[middle.index.get_level_values("phase") == "finetune"]
            panel.plot(hollow["cost"], hollow[quality], "o", color=colour, markerfacecolor="white")
        for mark, (series, rows) in zip(cycle(MARKS), theirs.groupby("series"), strict=False):
            if column in rows and rows[column].notna().any():
                panel.plot(rows[column] * factor, rows[quality], mark, color="#999999", fillstyle="none", label=series)
        scaled(panel.xaxis, costs[column] * factor, logarithmic, whole=column in ("steps", "images"), brief=True)
        if panel.get_xscale() == "linear" and costs[column].min() > 0:
            panel.set_xlim(left=0)
        panel.set_xlabel(named)
        panel.grid(alpha=0.3)
    qualities = pd.concat([frame[quality], theirs[quality]])
    scaled(panels[0].yaxis, qualities, wide(qualities))
    panels[0].set_ylabel(f"{quality} (lower is better)")
    handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(panels), frameon=False)
    figure.set_figheight(figure.get_figheight() + 0.25 * ceil(len(handles) / len(panels)))
    figure.suptitle(fitted(title, across))
    return figure
