"""Metrics at milestones to curves: quality against what was spent."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from maskdit.artifacts.atomic import replacing
from maskdit.artifacts.manifest import config_of
from maskdit.config.base import UserError
from maskdit.config.reporting import Curves
from maskdit.reporting.curve_crossings import crossings
from maskdit.reporting.records import COMPARABLE, SAMPLING, demand_alike, hours_of, published, read, seeds_of, steps_of

AXES = {
    "steps": "training steps",
    "images": "training images",
    "tflop": "training compute (TFLOP)",
    "seconds": "training time (s)",
    "device_hours": "device-hours",
    "cost": "cost",
}
COLOURS = {"DiT": "#555555", "MaskDiT": "#c0392b"}
OTHERS = ("#2471a3", "#1e8449", "#af601a", "#7d3c98", "#117a65")
MARKS = "s^Dv<>pP*X"


def known(value: Any) -> Any:
    """The value, or not a number where released weights do not tell: an empty cell, and no mark."""
    return math.nan if value is None else value


def curve_of(name: str, record: dict[str, Any]) -> str:
    """What all points of one curve have in common, whatever their seed: how they were pretrained."""
    config = {field: value for field, value in config_of(record, "pretrain").items() if field not in ("seed", "milestones")}
    return json.dumps([record["checkpoint"]["model"], config], sort_keys=True)


def points(metrics: Path, config: Curves) -> pd.DataFrame:
    """One row per evaluation: series, phase, steps, what was spent, and the metrics; raises UserError if none was run.

    A series is a model, or a model and a run where the curves show several recipes of that model.
    """
    rows: list[dict[str, Any]] = []
    price = known(config.price_per_device_hour)
    names: dict[str, str] = {}
    records = read(metrics, config.evals, (*COMPARABLE, *SAMPLING, "sampler", "nfe", "guidance"))
    demand_alike(records)
    for name, record in records.items():
        checkpoint = record["checkpoint"]
        hours = known(hours_of(record))
        names.setdefault(curve_of(name, record), config_of(record, "sample").get("run", name))
        rows.append(
            {
                "eval": name,
                "series": curve_of(name, record),
                "model": checkpoint["model"],
                "phase": checkpoint["phase"],
                "point": f"{checkpoint['phase']} {steps_of(record)}",
                "seed": "/".join(map(str, seeds_of(record))),
                "steps": steps_of(record),
                "images": known(checkpoint["images"]),
                "seconds": known(checkpoint["seconds"]),
                "tflop": known(checkpoint["flops"]) / 1e12,
                "device_hours": hours,
                "cost": hours * price,
                "guidance": record["protocol"]["guidance"],
                **record["metrics"],
            }
        )
    if not rows:
        raise UserError(f"{metrics}: none of the evaluations of these curves has been run")
    frame = pd.DataFrame(rows).sort_values(["model", "series", "steps"], ignore_index=True)
    alone = frame.groupby("model")["series"].nunique() == 1
    frame["series"] = [
        model if alone[model] else f"{model} {names[key]}" for model, key in zip(frame.model, frame.series, strict=True)
    ]
    return frame


def reported(config: Curves, quality: str, guidance: float) -> pd.DataFrame:
    """Published points with the same metric and guidance, and what is known of what was spent for them."""
    rows = [row for bench in config.published for row in published(bench)]
    found = [
        {
            "eval": row["eval"],
            "series": f"{row['eval']} ({row['phase']})",
            "phase": row["phase"],
            "steps": row.get("steps", math.nan),
            "images": row.get("train_images", math.nan),
            "device_hours": float(row.get("device_hours", math.nan)),
            "cost": float(row.get("device_hours", math.nan)) * known(config.price_per_device_hour),
            quality: float(row[quality]),
        }
        for row in rows
        if quality in row and row.get("guidance", "1") in ("1", str(guidance), f"{guidance:g}")
    ]
    frame = pd.DataFrame(found, columns=["eval", "series", "phase", "steps", "images", "device_hours", "cost", quality])
    return frame[frame[["steps", "images", "device_hours"]].notna().any(axis=1)]


def curves(config: Curves, *, metrics: Path, out: Path) -> None:
    """Write the points as CSV, and beside it a picture (PNG and SVG) of the distance against each thing that is spent.

    All are drawn from the same kind of evaluation; several seeds of a curve are its mean and a band from the worst to the best, a
    hollow mark is a finetuned checkpoint, and points that others have published stand alone. OUT_crossing.csv says what each
    model has spent when it reaches DiT's quality.
    """
    frame = points(metrics, config)
    quality = next(column for column in frame.columns if column.startswith(("fd_", "fid")))
    theirs = reported(config, quality, frame["guidance"].iloc[0])
    axes = {column: label for column, label in AXES.items() if frame[column].notna().any()}
    if "device_hours" in axes:
        axes.pop("seconds", None)
    draw(frame, theirs, quality, axes, config.title, out)
    columns = [
        "baseline",
        "model",
        "axis",
        "at",
        "quality",
        "status",
        "reached",
        "ratio",
        "low",
        "high",
        "seeds",
        "interval",
        "reads",
    ]
    crossed = pd.DataFrame(crossings(frame, axes, quality), columns=columns)
    every = pd.concat([frame, theirs], ignore_index=True) if len(theirs) else frame
    shown = every.drop(columns=["point", *(["cost"] if config.price_per_device_hour is None else [])])
    for name, table in ((f"{out.stem}_crossing.csv", crossed), (out.name, shown)):
        with replacing(out.with_name(name)) as temporary:
            table.to_csv(temporary, index=False)


def draw(frame: pd.DataFrame, theirs: pd.DataFrame, quality: str, axes: dict[str, str], title: str, out: Path) -> None:
    """A panel for each axis, as PNG and SVG."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "maskdit"  # the same picture has the same bytes
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, max(1, len(axes)), figsize=(3.6 * max(1, len(axes)), 3.6), sharey=True, layout="constrained", squeeze=False
    )
    others = (colour for colour in OTHERS * len(frame))
    colours = {series: COLOURS.get(str(series)) or next(others) for series in frame["series"].unique()}
    for panel, (column, label) in zip(panels[0], axes.items(), strict=False):
        for series, rows in frame[frame[column].notna()].groupby("series"):
            groups = rows.groupby(["steps", "phase"])[[column, quality]]
            middle, low, high = groups.mean(), groups.min(), groups.max()
            panel.plot(middle[column], middle[quality], color=colours[series], label=series)
            if rows["seed"].nunique() > 1:
                panel.fill_between(middle[column], low[quality], high[quality], color=colours[series], alpha=0.2, linewidth=0)
            for phase, marks in middle.groupby("phase"):
                fill = "white" if phase == "finetune" else colours[series]
                panel.plot(marks[column], marks[quality], "o", color=colours[series], markerfacecolor=fill)
        if column in theirs:
            for mark, (series, rows) in zip(MARKS * len(theirs), theirs.groupby("series"), strict=False):
                if rows[column].notna().any():
                    panel.plot(rows[column], rows[quality], mark, color="#999999", fillstyle="none", label=series)
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"{quality} (lower is better)")
    panels[0][0].set_ylim(bottom=0)
    handles = {label: handle for panel in panels[0] for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    panels[0][-1].legend(handles.values(), handles.keys(), fontsize="small" if len(handles) > 3 else None)
    figure.suptitle(title)
    for suffix in (".png", ".svg"):
        with replacing(out.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, dpi=150, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)
