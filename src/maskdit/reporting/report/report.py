"""What a study found, how it was made and what it cost, as one page that needs no network."""

from math import isnan, log, nan
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup

from maskdit.artifacts.compute_log import LEDGER, rows
from maskdit.config.graph import study
from maskdit.config.load import load
from maskdit.config.params import Params
from maskdit.config.reporting import Report
from maskdit.reporting.report.dag import draw
from maskdit.reporting.report.page import PIECES, page, picture, rows_of, short, table, waterfall
from maskdit.reporting.report.provenance_tables import ABSENT, costs, manifests, provenance, refuse_mixed, states
from maskdit.reporting.report.summary import summary

TABLES = {  # file -> what it is; shown where params.yaml has an entry of the verb, or the file is there
    "table_{}": "Evaluations",
    "efficiency_{}": "Speed and memory of the trainings",
    "curves_{}_crossing": "When one model is as good as the other",
    "recon_{}": "Reconstructions by the autoencoders",
    "calibrate_{}": "Published samples through this evaluator",
}
AXES = {  # column -> its label, and how a sentence counts it
    "steps": ("training steps", "training steps"),
    "images": ("training images", "training images"),
    "tflop": ("training compute (TFLOP)", "TFLOP of training"),
    "seconds": ("training time (s)", "seconds of training"),
    "device_hours": ("device-hours", "device-hours"),
    "cost": ("cost", "units of cost"),
}
KEY = {"": "here", "not-here": "not here, known from what was made of it", "not-run": "not run, or made anew since"}

Spot = tuple[float, float]  # what was spent, and the quality


def report(config: Report, *, results: Path, out: Path) -> None:
    """Write results, claims, curves, speed, samples, graph, provenance and costs of a study as one HTML file.

    It needs no network; what was not run says so. Raises UserError if artifacts were made at different commits, unless the
    entry says mixed.
    """
    params = load()
    bench = params.evaluate[params.grid[config.grids[0]].sample].bench
    edges = study(params, f"report/{bench}")
    found = manifests(params, edges, results)
    if not config.mixed:
        refuse_mixed(found, bench)
    curves = rows_of(results / f"curves_{bench}.csv") or []
    points = drawn(curves)
    spent = rows(results.parent / LEDGER)
    told = states(edges, found, results)
    title = params.table[bench].title
    parts = {
        "Summary": summary(params, config, bench, points, results),
        "Claims": shown(results / f"{config.ledger}.csv", "Claims of the paper"),
        "Tables": tables(params, bench, results),
        "Curves": charts(points, curves, results, bench),
        "Speed": speeds(params, results),
        "Samples": Markup("").join(sampled(params, name, results) for name in config.grids),
        "Graph": PIECES.paragraph(unmade(told)) + PIECES.boxes(KEY) + PIECES.scrolled("Graph", draw(edges, told, bench)),
        "Provenance": provenance(edges, found, told, spent, results),
        "Costs": costs(edges, spent),
    }
    out.write_text(page(title, bench, parts, points), encoding="utf-8")


def ahead(points: list[dict[str, Any]], axis: str, unit: str, quality: str) -> str:
    """Which series is best for what the one that has spent least has spent; '' with less than two."""
    series: dict[str, dict[str, list[Spot]]] = {}
    for point in points:
        if point["ours"] and axis in point["x"]:
            seeds = series.setdefault(point["series"], {})
            seeds.setdefault(point["seed"], []).append((float(point["x"][axis]), float(point["y"])))
    if len(series) < 2:
        return ""
    budget = min(max(spent for spots in seeds.values() for spent, _ in spots) for seeds in series.values())
    values = {name: mean(at(spots, budget) for spots in seeds.values()) for name, seeds in series.items()}
    order = sorted((name for name in values if not isnan(values[name])), key=lambda name: values[name])
    told = [f"{name} {values[name]:.5g}" for name in order] + [f"{name} no milestone yet" for name in values if name not in order]
    return f"After {short(f'{budget:.12g}')} {unit} {order[0]} has the best {quality}, read off the curves: {', '.join(told)}."


def at(spots: list[Spot], budget: float) -> float:
    """The quality of one curve after what a budget pays for; NaN before its first milestone.

    Between two milestones it is linear in the logarithm of what was spent, as in crossings; after the last it stays.
    """
    spots = sorted(spots)
    paid = [spot for spot in spots if spot[0] <= budget]
    if not paid or len(paid) == len(spots):
        return paid[-1][1] if paid else nan
    (before, high), (after, low) = paid[-1], spots[len(paid)]
    return high + (low - high) * log(budget / before) / log(after / before)


def shown(path: Path, caption: str) -> Markup:
    """A CSV file as a table, or that it is not there."""
    found = rows_of(path)
    return PIECES.missing(path.name) if found is None else table(found, caption, path.name)


def crossings(path: Path) -> Markup:
    """When one model is as good as the other: a table for each axis, of which that of device-hours is open."""
    found = rows_of(path)
    if found is None:
        return PIECES.missing(path.name)
    groups: dict[str, list[dict[str, str]]] = {}
    for row in found:
        groups.setdefault(row.get("axis", ""), []).append({name: value for name, value in row.items() if name != "axis"})
    order = sorted(groups, key=lambda axis: axis != "device_hours")
    caption = TABLES["curves_{}_crossing"]
    names = {axis: f"{caption}, in {axis.replace('_', '-')}" for axis in order}
    parts = [(names[axis], table(groups[axis], names[axis], path.name)) for axis in order]
    return Markup("").join(inside if place == 0 else PIECES.folded(name, inside) for place, (name, inside) in enumerate(parts))


def unmade(told: dict[str, str]) -> str:
    """What is missing of the study."""
    absent = [node for node, what in told.items() if what == ABSENT]
    return f"Not run: {', '.join(absent)}." if absent else "Everything in this study was run."


def tables(params: Params, bench: str, results: Path) -> Markup:
    """Every table of the study."""
    parts = []
    for pattern, caption in TABLES.items():
        path = results / f"{pattern.format(bench)}.csv"
        verb = pattern.split("_")[0]
        if path.exists() or (verb != "curves" and bench in getattr(params, verb, {})):
            parts.append(crossings(path) if verb == "curves" else shown(path, caption))
    return Markup("").join(parts)


def drawn(curves: list[dict[str, str]]) -> dict[str, Any]:
    """What the charts draw: points with what was spent and the distance, each number as its file has it."""
    columns = list(curves[0]) if curves else []
    quality = next((name for name in columns if name.startswith(("fd_", "fid"))), "")
    hours = "device_hours" if "device_hours" in columns else "seconds"
    return {
        "quality": quality,
        "axes": [[name, *words] for name, words in AXES.items() if any(row.get(name) for row in curves)],
        "hours": [hours, 1.0 if hours == "device_hours" else 3600.0],
        "points": [
            {
                "series": row.get("series") or row.get("model") or row["eval"],
                "ours": bool(row.get("model")),
                "eval": row["eval"],
                "phase": row.get("phase", ""),
                "seed": row.get("seed", ""),
                "x": {name: row[name] for name in AXES if row.get(name)},
                "y": row[quality],
            }
            for row in curves
            if row.get(quality)
        ],
    }


def charts(points: dict[str, Any], curves: list[dict[str, str]], results: Path, bench: str) -> Markup:
    """The chart that the script draws, its budget, and the same as numbers; the picture is in the summary."""
    if not points["points"]:
        return PIECES.missing(f"curves_{bench}.csv")
    numbers = table(curves, "Points of the curves", f"curves_{bench}.csv")
    line = ahead(points["points"], points["hours"][0], AXES[points["hours"][0]][1], points["quality"])
    budget = PIECES.paragraph(line) if line else ""
    return Markup('<div id="chart"></div><div id="budget"></div>') + budget + PIECES.folded("The points in numbers", numbers)


def speeds(params: Params, results: Path) -> Markup:
    """The benchmarks that were run on some machine."""
    parts = []
    for key in params.bench:
        path = results / f"bench_{key}.csv"
        pairs = rows_of(path)
        if pairs is None:
            parts.append(PIECES.missing(path.name))
            continue
        machine = pairs[0].get("machine", "") if pairs else ""
        chain = rows_of(results / f"bench_{key}_waterfall.csv")
        if chain:
            caption = f"Times faster per image than plain DiT in float32; {machine}"
            parts.append(waterfall(chain, caption) + PIECES.paragraph(caption))
        brief = [{name: value for name, value in row.items() if name not in ("machine", "slow", "fast")} for row in pairs]
        parts.append(table(brief, f"Pairs: {machine}", path.name))
        for part in ("waterfall", "factorial"):
            other = results / f"bench_{key}_{part}.csv"
            parts.append(PIECES.folded(f"The {part} in numbers", shown(other, f"The {part}")))
    return Markup("").join(parts)


def sampled(params: Params, name: str, results: Path) -> Markup:
    """Samples of a model beside real images."""
    entry = params.grid[name]
    alt = f"Left: held-out real images; right: samples of {entry.sample}; a row a class"
    return picture(results / f"grid_{name}.png", alt, alt)
