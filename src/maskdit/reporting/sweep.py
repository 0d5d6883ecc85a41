"""Sweeps: which guidance, EMA width or learning rate is best for each arm, on samples that no table reports."""

import statistics
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from maskdit.artifacts.manifest import config_of
from maskdit.config.base import UserError
from maskdit.config.reporting import Reported, Sweep
from maskdit.reporting.curve_plot import OTHERS
from maskdit.reporting.figures import COLOURS, fitted, save, scaled, wide
from maskdit.reporting.records import COMPARABLE, Records, distance_of, independent, model_of, read, seeds, steps_of, twins
from maskdit.reporting.sample_size import notes, setting
from maskdit.reporting.table_formats import latex, rounded, write

SWEPT = {"guidance": ("guidance", "ema_width"), "lr": ("lr",)}  # axis -> the values that are chosen
NAMES = {"lr": "learning rate", "guidance": "guidance", "ema_width": "EMA width"}
OTHER = {"guidance": ("ema_width",), "lr": ("guidance", "ema_width")}  # axis -> the values that have lines of their own
LABELS = {"arm": "Arm", "eval": "Samples", "lr": "Rate", "guidance": "Guidance", "ema_width": "EMA width", "verdict": "Verdict"}
OPTIMUM, REPORTED = "optimum", "reported:"  # the beginnings of verdicts on points and on reported samples
ACROSS = 6.4  # inches of the figure
STYLES = ("-", "--", ":", "-.")  # of lines


def points(records: Records, config: Sweep, quality: str) -> list[dict[str, Any]]:
    """A row for each point that was run, in the order of the entry; points that differ only in the seed are one, with the mean."""
    rows: list[dict[str, Any]] = []
    for names in twins(records):
        record = records[names[0]]
        trainings = seeds(records, names)
        values = independent([[records[name]["metrics"][quality] for name in training] for training in trainings])
        row: dict[str, Any] = {"arm": config.arms[names[0]], "eval": " ".join(names), "model": model_of(record)}
        row |= {"lr": config_of(record, "pretrain").get("lr"), "guidance": record["protocol"]["guidance"]}
        row |= {"ema_width": config_of(record, "sample").get("ema_width"), "steps": steps_of(record)}
        row |= {quality: statistics.mean(values), "low": min(values), "high": max(values)}
        if len(values) > 1:
            row |= {f"{quality}_spread": statistics.stdev(values), "seeds": len(trainings), "samplings": sum(map(len, trainings))}
        rows.append(row)
    return rows


def edges(row: dict[str, Any], arm: list[dict[str, Any]], axis: str) -> list[str]:
    """The values of an arm's best point that are the least or greatest of those that were tried; guidance has an end at 1."""
    found = []
    for name in SWEPT[axis]:
        tried = sorted({other[name] for other in arm if other[name] is not None})
        at_end = row[name] is not None and len(tried) > 1 and row[name] in (tried[0], tried[-1])
        if at_end and (name, row[name]) != ("guidance", 1.0):
            found.append(NAMES[name])
    return found


def words(name: str, value: float | None) -> str:
    """A swept value in words."""
    return "own EMA" if value is None else f"{NAMES[name]} {value:g}"


def judged(reported: Reported, best: dict[str, dict[str, Any]], unrun: set[str], axis: str) -> str:
    """Whether a reported sample has the values that are best for its arm."""
    if reported.arm in unrun or reported.arm not in best:
        return f"{REPORTED} undecided, points of {reported.arm} are not run"
    row = best[str(reported.arm)]
    if all(getattr(reported, name) == row[name] for name in SWEPT[axis]):
        return f"{REPORTED} at the optimum"
    told = ", ".join(words(name, row[name]) for name in SWEPT[axis])
    return f"{REPORTED} the sweep's optimum is {told}; write it there"


def plot(rows: list[dict[str, Any]], config: Sweep, quality: str) -> Figure:
    """The metric against the axis: a line with a band over seeds for each arm and other swept value; stars are optima."""
    axis = config.axis
    others = [name for name in OTHER[axis] if len({row[name] for row in rows}) > 1]
    models = {row["arm"]: row["model"] for row in rows}
    fresh, styles = cycle(OTHERS), cycle(STYLES)
    colours: dict[str, str] = {}
    dashes: dict[tuple[Any, ...], str] = {}
    figure = Figure(figsize=(ACROSS, 4.0), layout="constrained")
    panel = figure.subplots()
    lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["arm"], *(row[name] for name in others)), []).append(row)
    for (arm, *values), line in lines.items():
        alone = list(models.values()).count(models[arm]) == 1
        if arm not in colours:
            colours[arm] = COLOURS.get(models[arm] if alone else "") or next(fresh)
        if tuple(values) not in dashes:
            dashes[tuple(values)] = next(styles)
        label = ", ".join([models[arm] if alone else arm, *map(words, others, values)])
        frame = pd.DataFrame(line).sort_values(axis)
        style: dict[str, Any] = {"color": colours[arm], "linestyle": dashes[tuple(values)]}
        panel.plot(frame[axis], frame[quality], marker="o", markersize=4, label=label, **style)
        panel.fill_between(frame[axis], frame["low"], frame["high"], color=colours[arm], alpha=0.15, linewidth=0)
    for row in rows:
        if row["verdict"].startswith(OPTIMUM):
            panel.plot(row[axis], row[quality], "*", color=colours[row["arm"]], markersize=15, markeredgecolor="black", zorder=3)
    panel.plot([], [], "*", color="white", markersize=12, markeredgecolor="black", label="optimum of an arm")
    scaled(panel.xaxis, [row[axis] for row in rows], axis == "lr")
    scaled(panel.yaxis, qualities := [row[quality] for row in rows], wide(qualities))
    panel.set(xlabel=NAMES[axis], ylabel=f"{quality} (lower is better)")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    figure.set_figheight(figure.get_figheight() + 0.25 * ceil(len(lines) / 2))
    figure.suptitle(fitted(config.title, ACROSS))
    return figure


def sweep(config: Sweep, *, metrics: Path, out: Path) -> None:
    """Write the points of a sweep, the best one of each arm, and whether reported samples follow it: CSV, Markdown, LaTeX, plots.

    Best is the lowest first Fréchet distance, the mean over seeds. A point that was not run is marked, and so is a best value at
    the end of its range. Raises UserError if no point was run, if protocols differ, or if an arm's points have different lengths.
    """
    records = read(metrics, config.evals, (*COMPARABLE, "sampler", "nfe"))
    if not records:
        raise UserError(f"{metrics}: no point of the sweep has been run; run one first")
    if not (quality := distance_of(next(iter(records.values()))["metrics"])):
        raise UserError(f"{metrics}: these evaluations have no Fréchet distance; add an extractor of one")
    rows, best = points(records, config, quality), {}
    unrun = {config.arms[name] for name in config.evals if name not in records}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        if len(lengths := {row["steps"] for row in of_arm}) > 1:
            raise UserError(f"{metrics}: the points of {arm} have {sorted(lengths)} steps: compare them after equally many")
        best[arm] = min(of_arm, key=lambda row: row[quality])
        ends = edges(best[arm], of_arm, config.axis)
        best[arm]["verdict"] = OPTIMUM + f", at the edge of {' and '.join(ends)}; sweep further" * bool(ends)
        if arm in unrun:
            best[arm]["verdict"] += ", so far: some points are not run"
    for row in rows:
        row.setdefault("verdict", "")
    save(plot(rows, config, quality), out, ".png", ".svg", dpi=150)
    rows += [{"arm": config.arms[name], "eval": name, "model": "not run"} for name in config.evals if name not in records]
    for name, reported in config.reports.items():
        values = {field: getattr(reported, field) for field in ("lr", "guidance", "ema_width")}
        rows.append({"arm": reported.arm, "eval": name, **values, "verdict": judged(reported, best, unrun, config.axis)})
    frame = pd.DataFrame([rounded(row) for row in rows], dtype=object).drop(columns=["low", "high"])
    frame = frame[[*frame.columns.difference(["verdict"], sort=False), "verdict"]]
    shown = frame[[*list(LABELS)[:-1], quality, "verdict"]].rename(columns=LABELS)
    below = [*setting(records), *notes(records)]
    if not any("seeds" in row for row in rows):
        below.append("Each point has one seed: which of two close points is better is not decided.")
    kinds = frame["verdict"].fillna("").str.startswith(REPORTED)
    write(frame, config.title, out, latex(shown, config.title, (), kinds, below), notes=below)
