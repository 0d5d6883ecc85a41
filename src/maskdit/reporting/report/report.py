"""The report of a study as one HTML page: its results, provenance and costs."""

from math import isnan, log, nan
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from markupsafe import Markup

from maskdit.artifacts.compute_log import LEDGER, rows
from maskdit.artifacts.freshness import Freshness
from maskdit.config.base import UserError
from maskdit.config.graph import study
from maskdit.config.load import load
from maskdit.config.params import Params
from maskdit.config.reporting import Report
from maskdit.config.training import HELDOUT_LOSS
from maskdit.reporting.records import BEFORE_FINETUNING, Records, distance_of, read
from maskdit.reporting.report.dag import draw
from maskdit.reporting.report.nearest import nearest
from maskdit.reporting.report.page import PIECES, page, picture, rows_of, short, table
from maskdit.reporting.report.provenance_tables import ABSENT, STALE, costs, left_out, manifests, provenance, refuse_mixed, states
from maskdit.reporting.report.summary import summary
from maskdit.reporting.sample_size import notes, origins, setting

TABLES = {  # file -> its caption; shown if params.yaml has an entry of the verb, or if the file exists
    "table_{}": "Evaluations",
    "efficiency_{}": "Speed and memory of the trainings",
    "curves_{}_crossing": "When one model is as good as the other",
    "recon_{}": "Reconstructions by the autoencoders",
    "calibrate_{}": "Published samples through this evaluator",
}
LOSSES = "The denoising loss of held-out images, of the averaged weights and without a mask, at each noise level"
AXES = {  # column -> its label, and its unit in a sentence
    "steps": ("training steps", "training steps"),
    "images": ("training images", "training images"),
    "tflop": ("training compute (TFLOP)", "TFLOP of training"),
    "seconds": ("training time (s)", "seconds of training"),
    "device_hours": ("device-hours", "device-hours"),
    "cost": ("cost", "units of cost"),
}
KEY = {  # CSS class -> what a box of the graph means
    "": "made",
    "not-here": "not here, but recorded by a later artifact",
    "stale": "stale: not as params.yaml and its inputs are today; point at it for the reason",
    "not-run": "not run",
}
UNMADE = {"Not run": ABSENT, "Stale": STALE}  # word -> the state
CLAIMED = {  # beginning of a verdict -> its explanation above the claims
    "SCALED-DOWN ONLY": "SCALED-DOWN ONLY: the claim itself, at the paper's size and on its images, was not measured here. A "
    'smaller study was; the column "from" names it. Supports: its result goes in the claimed direction, by however much.',
    "UNTESTABLE HERE": "UNTESTABLE HERE: a smaller study was measured, but its control, a comparison whose result is known, does "
    "not come out as known. So its result says nothing about the claim.",
    "NOT RUN": "NOT RUN: not measured here, so the claim is not judged.",
}

Spot = tuple[float, float]  # cost and quality


def report(config: Report, *, results: Path, out: Path) -> None:
    """Write results, claims, curves, speed, samples, graph, provenance and costs of a study as one HTML file.

    The file needs no network, and marks what was not run or is stale. Raises UserError if artifacts were made at different commits,
    unless the entry sets mixed, or if `results` is not that of the current folder.
    """
    if results.resolve() != Path("results").resolve():
        raise UserError(
            f"{results}: the report is about the project in the current folder; run it in the folder that has {results}"
        )
    params = load()
    bench = params.evaluate[params.grid[config.grids[0]].sample].bench
    edges = study(params, f"report/{bench}")
    fresh = Freshness(params)
    found = manifests(fresh, edges)
    if not config.mixed:
        refuse_mixed(params, found, bench)
    records = read(results / "metrics" / bench, params.of(bench), ())
    curves = rows_of(results / f"curves_{bench}.csv") or []
    points = drawn(curves)
    spent = rows(results.parent / LEDGER)
    told = states(fresh, edges, found)
    lists = {word: [node for node, state in told.items() if state.startswith(kind)] for word, kind in UNMADE.items()}
    unmade = [f"{word}: {', '.join(nodes)}." for word, nodes in lists.items() if nodes]
    alt = "Left: held-out real images; right: samples of {}; one row per class"
    likenesses = dict.fromkeys(params.grid[name].sample for name in config.grids)
    grids = {name: alt.format(params.grid[name].sample) for name in config.grids}
    parts = {
        "Summary": summary(params, config, bench, points, records, results),
        "Claims": claims(results / f"{config.ledger}.csv"),
        "Tables": tables(params, bench, records, results),
        "Curves": charts(points, curves, results, bench),
        **({"Sweeps": sweeps(params, config, results)} if config.sweeps else {}),
        "Speed": speeds(params, results),
        "Samples": Markup("").join(picture(results / f"grid_{name}.png", alt, alt) for name, alt in grids.items())
        + Markup("").join(nearest(name, records[name], results) for name in likenesses if name in records),
        "Graph": PIECES.items(unmade or ["Everything in this study was run."])
        + PIECES.boxes(KEY)
        + PIECES.scrolled("Graph", draw(edges, told, bench)),
        "Provenance": left_out(params, found) + provenance(edges, found, told, spent),
        "Costs": costs(edges, spent),
    }
    out.write_text(page(params.table[bench].title, bench, parts, points), encoding="utf-8")


def ahead(points: list[dict[str, Any]], axis: str, unit: str, quality: str) -> str:
    """Which series is best at the total cost of the cheapest one, as a sentence; '' for fewer than two series."""
    series: dict[str, dict[str, list[Spot]]] = {}
    for point in points:
        if point["compared"] and axis in point["x"]:
            seeds = series.setdefault(point["series"], {})
            seeds.setdefault(point["seed"], []).append((float(point["x"][axis]), float(point["y"])))
    if len(series) < 2:
        return ""
    budget = min(max(spent for spots in seeds.values() for spent, _ in spots) for seeds in series.values())
    values = {name: mean(at(spots, budget) for spots in seeds.values()) for name, seeds in series.items()}
    order = sorted((name for name in values if not isnan(values[name])), key=lambda name: values[name])
    told = [f"{name} {values[name]:.5g}" for name in order] + [f"{name} no milestone yet" for name in values if name not in order]
    return f"After {short(f'{budget:.12g}')} {unit} the curve of {order[0]} has the best {quality}: {', '.join(told)}."


def at(spots: list[Spot], budget: float) -> float:
    """The quality of one curve at a cost; NaN before its first milestone.

    Between two milestones it is linear in the logarithm of the cost, as in crossings; after the last it is constant.
    """
    spent, quality = zip(*sorted(spots), strict=True)
    return float(np.interp(log(budget), np.log(spent), quality, left=nan))


def shown(path: Path, caption: str) -> Markup:
    """A CSV file as a table, or a note that it does not exist."""
    found = rows_of(path)
    return PIECES.missing(path.name) if found is None else table(found, caption, path.name)


def claims(path: Path) -> Markup:
    """The verdicts on the claims of the paper, below what those on claims that were not measured here mean."""
    verdicts = {row.get("verdict", "").split(":")[0] for row in rows_of(path) or []}
    told = [words for verdict, words in CLAIMED.items() if verdict in verdicts]
    return (PIECES.items(told) if told else Markup("")) + shown(path, "Claims of the paper")


def crossings(path: Path) -> Markup:
    """The crossings as one table per axis; the one for device-hours, or else the first, is open."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(path) or []:
        groups.setdefault(row.pop("axis"), []).append(row)
    parts: list[Markup] = []
    for axis in sorted(groups, key=lambda axis: axis != "device_hours"):
        caption = f"{TABLES['curves_{}_crossing']}, in {AXES[axis][1]}"
        inside = table(groups[axis], caption, path.name)
        parts.append(PIECES.folded(caption, inside) if parts else inside)
    return Markup("").join(parts)


def tables(params: Params, bench: str, records: Records, results: Path) -> Markup:
    """Every table of the study, and notes on the evaluations."""
    parts = []
    for pattern, caption in TABLES.items():
        path = results / f"{pattern.format(bench)}.csv"
        verb = pattern.split("_")[0]
        if path.exists() or (verb != "curves" and bench in getattr(params, verb, {})):
            parts.append(crossings(path) if verb == "curves" else shown(path, caption))
        if verb == "table":
            rows = {name: records[name] for name in params.table[bench].evals if name in records}
            parts += map(PIECES.paragraph, [*setting(rows), *origins(params.table[bench].chosen), *notes(rows)])
    return Markup("").join(parts)


def drawn(curves: list[dict[str, str]]) -> dict[str, Any]:
    """The data of the chart: points with their costs and quality, each number as in its file.

    Published points, and those before the finetuning that ends a curve, are drawn but not compared.
    """
    columns = list(curves[0]) if curves else []
    quality = distance_of(columns)
    hours = "device_hours" if "device_hours" in columns else "seconds"
    points = []
    for row in curves:
        if row.get(quality):
            series, ours = row.get("series") or row["model"], bool(row.get("model"))
            point = {"series": series, "ours": ours, "compared": ours and not series.endswith(BEFORE_FINETUNING)}
            point |= {"eval": row["eval"], "phase": row.get("phase", ""), "seed": row.get("seed", "")}
            points.append({**point, "x": {name: row[name] for name in AXES if row.get(name)}, "y": row[quality]})
    axes = [[name, *words] for name, words in AXES.items() if any(row.get(name) for row in curves)]
    return {"quality": quality, "axes": axes, "hours": [hours, 1.0 if hours == "device_hours" else 3600.0], "points": points}


def charts(points: dict[str, Any], curves: list[dict[str, str]], results: Path, bench: str) -> Markup:
    """The places where the script draws the chart and the budget, and the same in words and numbers."""
    if not points["points"]:
        return PIECES.missing(f"curves_{bench}.csv")
    numbers = table(curves, "Points of the curves", f"curves_{bench}.csv")
    hours, _ = points["hours"]
    losses = Markup("")
    if any(row.get(HELDOUT_LOSS) for row in curves):
        from maskdit.reporting.heldout_plot import heldout_png  # with pandas and Matplotlib, which the rest does without

        path = results / f"curves_{bench}.csv"
        losses = PIECES.figure(heldout_png(path, hours, AXES[hours][0]), LOSSES, LOSSES, path.name)
    line = ahead(points["points"], hours, AXES[hours][1], points["quality"])
    budget = PIECES.paragraph(line) if line else ""
    return (
        Markup('<div id="chart"></div><div id="budget"></div>') + budget + losses + PIECES.folded("The points in numbers", numbers)
    )


def sweeps(params: Params, config: Report, results: Path) -> Markup:
    """The figures of the sweeps that the report names, each with its points."""
    parts = []
    for key in config.sweeps:
        path, title = results / f"sweep_{key}.csv", params.sweep[key].title
        parts += [picture(path.with_suffix(".png"), f"{title}; the table below lists the points", title), shown(path, title)]
    return Markup("").join(parts)


def speeds(params: Params, results: Path) -> Markup:
    """The speed benchmarks, each with its machine."""
    parts = []
    for key in params.bench:
        path = results / f"bench_{key}.csv"
        pairs = rows_of(path)
        if pairs is None:
            parts.append(PIECES.missing(path.name))
            continue
        machine = pairs[0].get("machine", "") if pairs else ""
        if chain := rows_of(results / f"bench_{key}_waterfall.csv"):
            caption = f"Times faster per image than plain DiT in float32; {machine}"
            steps = "; ".join(f"{row['step']} x {short(row['ratio'])}" for row in chain)
            parts.append(picture(path.with_suffix(".png"), f"{caption}: {steps}", caption))
        brief = [{name: value for name, value in row.items() if name not in ("machine", "slow", "fast")} for row in pairs]
        parts.append(table(brief, f"Pairs: {machine}", path.name))
        for part in ("waterfall", "factorial"):
            other = results / f"bench_{key}_{part}.csv"
            parts.append(PIECES.folded(f"The {part} in numbers", shown(other, f"The {part}")))
    return Markup("").join(parts)
