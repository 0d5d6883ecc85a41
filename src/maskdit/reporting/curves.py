"""Curves of quality against training cost, from evaluations at milestones."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.atomic import replacing
from maskdit.artifacts.manifest import config_of
from maskdit.config.base import UserError
from maskdit.config.reporting import Curves
from maskdit.reporting.curve_crossings import COLUMNS, crossings
from maskdit.reporting.curve_plot import plot
from maskdit.reporting.figures import save
from maskdit.reporting.records import (
    BEFORE_FINETUNING,
    COMPARABLE,
    SAMPLING,
    demand_alike,
    distance_of,
    hours_of,
    model_of,
    published,
    read,
    steps_of,
)
from maskdit.reporting.report.report import AXES


def known(value: Any) -> Any:
    """The value, or NaN if it is unknown, as for released weights: an empty cell and no mark."""
    return math.nan if value is None else value


def points(metrics: Path, config: Curves) -> pd.DataFrame:
    """One row per evaluation: series, phase, steps, costs and metrics. Raises UserError if no evaluation has been run.

    A series is a model, or a model and a run if the curves show several recipes of that model. If finetunings branch off at several
    milestones, they are the series, and the points before them one of their own.
    """
    rows: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    price = known(config.price_per_device_hour)
    records = read(metrics, config.evals, (*COMPARABLE, *SAMPLING, "sampler", "nfe", "guidance"))
    demand_alike(records)
    for name, record in records.items():
        checkpoint, steps, hours = record["checkpoint"], steps_of(record), known(hours_of(record))
        model, phase = model_of(record), checkpoint["phase"]
        first = next((verb for verb in ("pretrain", "released") if config_of(record, verb)), "")
        start = {field: value for field, value in config_of(record, first).items() if field not in ("seed", "milestones")}
        series = json.dumps([model, start], sort_keys=True)  # what the points of one curve have in common
        names.setdefault(series, config_of(record, "sample").get("run", name))
        seeds = [str(config_of(record, verb).get("seed", 0)) for verb in ("finetune" if first == "released" else first, "sample")]
        point = {
            "eval": name,
            "series": series,
            "model": model,
            "phase": phase,
            "point": f"{phase} {steps}",
            "seed": "/".join(seeds),
        }
        cost = {"images": known(checkpoint["images"]), "seconds": known(checkpoint["seconds"])}
        cost |= {"tflop": known(checkpoint["flops"]) / 1e12, "device_hours": hours, "cost": hours * price}
        cost["mfu"] = known((checkpoint.get("speed") or {}).get("mfu"))
        rows.append({**point, "steps": steps, **cost, "guidance": record["protocol"]["guidance"], **record["metrics"]})
        rows[-1] |= checkpoint.get("heldout") or {}
    if not rows:
        raise UserError(f"{metrics}: none of the evaluations of these curves has been run; run one first")
    frame = pd.DataFrame(rows).sort_values(["model", "series", "steps"], ignore_index=True)
    alone = frame.groupby("model")["series"].transform("nunique") == 1
    frame["series"] = frame["model"].where(alone, frame["model"] + " " + frame["series"].map(names))
    ends = frame["phase"] == "finetune"
    branches = frame[ends].groupby("series")["point"].nunique()
    before = ~ends & frame["series"].isin(branches.index[branches > 1])
    frame["series"] = frame["series"].where(~before, frame["series"] + BEFORE_FINETUNING)
    return frame


def reported(config: Curves, quality: str, guidance: float) -> pd.DataFrame:
    """Published points with the same metric and guidance, and their costs as far as they are known."""
    columns = ["eval", "series", "phase", "steps", "images", "device_hours", "cost", quality]
    rows, price = [], known(config.price_per_device_hour)
    for row in (row for bench in config.published for row in published(bench)):
        if quality in row and row.get("guidance", "1") in ("1", str(guidance), f"{guidance:g}"):
            name, phase, hours = row["eval"], row["phase"], float(row.get("device_hours", math.nan))
            spent = row.get("steps", math.nan), row.get("train_images", math.nan), hours, hours * price
            rows.append((name, f"{name} ({phase})", phase, *spent, float(row[quality])))
    frame = pd.DataFrame(rows, columns=columns)
    return frame[frame[["steps", "images", "device_hours"]].notna().any(axis=1)]


def curves(config: Curves, *, metrics: Path, out: Path) -> None:
    """Write the points of the curves as CSV, and plots of quality against each cost (PNG and SVG).

    All points are evaluated by the same protocol. Several seeds of a curve are drawn as their mean and a band from worst to best.
    A hollow mark is a finetuned checkpoint; published points have no line. OUT_crossing.csv has the cost at which each model
    reaches DiT's quality.
    """
    frame = points(metrics, config)
    if not (quality := distance_of(frame.columns)):
        raise UserError(f"{metrics}: none of these evaluations has a Fréchet distance; add an extractor of one")
    theirs = reported(config, quality, frame["guidance"].iloc[0])
    axes = {column: label for column, (label, _) in AXES.items() if frame[column].notna().any()}
    if "device_hours" in axes:
        axes.pop("seconds", None)
    save(plot(frame, theirs, quality, axes, config.title), out, ".png", ".svg", dpi=150)
    methods = frame[~frame["series"].str.endswith(BEFORE_FINETUNING)]
    crossed = pd.DataFrame(crossings(methods, axes, quality), columns=COLUMNS)
    every = pd.concat([frame, theirs], ignore_index=True) if len(theirs) else frame
    shown = every.drop(columns=["point", *(["cost"] if config.price_per_device_hour is None else [])])
    for name, table in ((f"{out.stem}_crossing.csv", crossed), (out.name, shown)):
        with replacing(out.with_name(name)) as temporary:
            table.to_csv(temporary, index=False)
