"""Metrics to the table that people read."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.atomic import replacing
from maskdit.artifacts.manifest import config_of
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.reporting import Recon, Table
from maskdit.reporting.records import COMPARABLE, SAMPLING, hours_of, published, read, steps_of, twins
from maskdit.reporting.table_formats import latex, markdown, write

RECONSTRUCTED = ("family", "extractor_sha256", "images", "images_sha256", "resolution", "crop", "posterior", "quantisation")
APART = ("kid", "density", "coverage", "fid_infinity", "fd_infinity")  # in the records only
LOWER = ("fid", "fd", "sfid", "sfd")  # is better
METRICS = (*LOWER, "is", "precision", "recall", "probe")
FIRST = ("eval", "model", "phase", "guidance")
SAMPLED = {field: "sampling_precision" if field == "precision" else field for field in SAMPLING}  # field -> column
LAST = ("sampler", "nfe", *SAMPLED.values(), "images")
LABELS = {"guidance": "Guidance", "fid": "FID", "sfid": "sFID", "is": "IS", "precision": "Precision", "recall": "Recall"}
UNITS = {  # of the twins for readers
    "parameters": ("Parameters (M)", 1e6),
    "gmac_forward": ("GMACs", 1.0),
    "train_images": ("Images (M)", 1e6),
    "steps": ("Steps (K)", 1e3),
    "device_hours": ("Device-hours", 1.0),
}


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """One evaluation as a row: what was trained and how long, how it was sampled, what it scores.

    gmac_forward counts 10^9 multiply-adds of a forward pass with every token, as the papers do under the name of GFLOPs.
    """
    checkpoint, protocol = record["checkpoint"], record["protocol"]
    return {
        "model": checkpoint["model"],
        "phase": checkpoint["phase"],
        "guidance": protocol["guidance"],
        "parameters": checkpoint["parameters"],
        "gmac_forward": in_units(checkpoint.get("forward_flops"), 2e9, 2),
        "train_images": checkpoint["images"],
        "steps": steps_of(record),
        "train_precision": checkpoint.get("precision"),
        "device_hours": in_units(hours_of(record), 1.0, 4),
        "train_seconds": in_units(checkpoint["seconds"]),
        "train_tflop": in_units(checkpoint["flops"], 1e12),
        **{field: protocol[field] for field in ("sampler", "nfe", "images")},
        **{column: protocol.get(field) for field, column in SAMPLED.items()},
        **{name: value for name, value in record["metrics"].items() if not name.startswith(APART)},
    }


def in_units(value: float | None, unit: float = 1.0, digits: int = 1) -> float | None:
    """A quantity in a unit, rounded; unknown stays unknown: released weights do not tell what they cost."""
    return None if value is None else round(value / unit, digits)


def scores(columns: Iterable[str]) -> list[str]:
    """The names among those of columns that are metrics."""
    return [name for name in columns if name.split("_")[0] in METRICS and not name.endswith(("_spread", "_deviation"))]


def joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows that differ in their seed only as one: means, the number of seeds, and the standard deviation of each metric."""
    if len(rows) == 1:
        return rows[0]
    names = [*scores(rows[0]), "device_hours", "train_seconds"]
    known = {name: [row[name] for row in rows] for name in names if all(row.get(name) is not None for row in rows)}
    means = {name: statistics.mean(values) for name, values in known.items()}
    spread = {f"{name}_spread": statistics.stdev(values) for name, values in known.items() if name in scores(names)}
    return {**rows[0], **means, "eval": " ".join(row["eval"] for row in rows), "seeds": len(rows), **spread}


def number(record: dict[str, Any], place: str) -> Any:
    """A number of params.yaml behind a record, as pretrain.decoder.depth; None if it has none."""
    verb, *path = place.split(".")
    found: Any = config_of(record, verb)
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found


def beside(row: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Which published row this one reproduces, and by what share each metric of both deviates from it."""
    shared = [name for name in scores(row) if name in theirs and row[name] is not None]
    return {"reproduces": theirs["eval"], **{f"{name}_deviation": row[name] / float(theirs[name]) - 1 for name in shared}}


def theirs_of(method: str, guidance: float, known: list[dict[str, Any]], bench: str | None) -> dict[str, Any]:
    """The published row of a method, of several that with this guidance; raises UserError if there is none."""
    rows = [row for row in known if row["eval"] == method]
    rows = [row for row in rows if len(rows) == 1 or row.get("guidance", "1") in (str(guidance), f"{guidance:g}")]
    if not rows:
        raise UserError(f"table: reproduces '{method}', which is no row of {bench} in published.csv with guidance {guidance:g}")
    return rows[0]


def table(config: Table, *, metrics: Path, out: Path) -> None:
    """Write the evaluations as CSV, and as Markdown and LaTeX in the papers' layout beside it; what was not run says so.

    Evaluations that differ in their seed only are one row: the mean, and the standard deviation. A row that reproduces a published
    one tells by how much it deviates. Below them come the rows that others report, if the entry names their benchmark.
    The last row is how well the probe names held-out real images. How images were sampled has a column where rows differ in it.
    Raises UserError if rows were measured by different protocols.
    """
    records = read(metrics, config.evals, COMPARABLE)
    reported = published(config.published)
    groups = {names[0]: names for names in twins(records)}
    rows: list[dict[str, Any]] = []
    for name in config.evals:
        if name not in records:
            rows.append({"eval": name, "model": "not run"})
        elif name in groups:
            row = joined([{"eval": each, **row_of(records[each])} for each in groups[name]])
            row |= {place: number(records[name], place) for place in config.numbers}
            for method in {config.reproduces[each] for each in groups[name] if each in config.reproduces}:
                row |= beside(row, theirs_of(method, row["guidance"], reported, config.published))
            rows.append(row)
    alike = [field for field in SAMPLED.values() if len({str(row.get(field)) for row in rows if row["model"] != "not run"}) < 2]
    for record in [record for record in records.values() if record["real"]["heldout"]][:1]:
        real = {name: record["real"]["heldout"][name] for name in ("images", "probe_accuracy")}  # a distance is over their number
        rows.append({"eval": "real, held out", **real})
    frame = ordered([rounded(row) for row in rows] + reported).drop(columns=[*alike, "batch"], errors="ignore")
    shown, marks, rules = laid_out(frame, [*config.numbers, *(field for field in SAMPLED.values() if field not in alike)])
    write(frame, config.title, out, latex(shown, config.title, marks, rules), markdown(shown.join(frame.filter(["source"])), marks))
    write_scores(records, out.parent / "scores" / out.stem.removeprefix("table_"))


def write_scores(records: dict[str, dict[str, Any]], folder: Path) -> None:
    """The metrics of each record as a file of its own, without its provenance: what `dvc metrics` shows and compares."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        with replacing(folder / f"{name}.yaml") as temporary:
            temporary.write_text(yaml_subset.write(record["metrics"]))


def ordered(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with its columns in the papers' order: what, its metrics, its size and cost, how it was sampled, the rest."""
    frame = pd.DataFrame(rows, dtype=object)
    wanted = [*FIRST, *scores(frame), *UNITS, "train_seconds", "train_tflop", "train_precision", *LAST]
    return frame[[name for name in wanted if name in frame] + [name for name in frame if name not in wanted]]


def best(frame: pd.DataFrame, columns: list[str]) -> set[tuple[int, str]]:
    """The best of each metric among rows of ours that were sampled alike, if there are two or more: no others compare."""
    ours = frame[frame["sampler"].notna()] if "sampler" in frame else frame[:0]
    found = set()
    for _, rows in ours.groupby([name for name in ("guidance", *LAST) if name in frame], dropna=False):
        for name in columns if len(rows) > 1 else []:
            values = pd.to_numeric(rows[name])
            if values.notna().any():
                found.add((int(values.idxmin() if name.split("_")[0] in LOWER else values.idxmax()), name))
    return found


def laid_out(frame: pd.DataFrame, more: Iterable[str]) -> tuple[pd.DataFrame, set[tuple[int, int]], list[int]]:
    """A table in the papers' layout, the cells that are best, and the rows above which another kind begins.

    Method, guidance, metrics, by how much the first deviates from what is reproduced, parameters, cost, and `more` columns; ours,
    what authors report, others.
    """
    columns, rows = scores(frame), frame.to_dict("records")
    marks = best(frame, columns)
    shown = pd.DataFrame({"Method": [method(row) for row in rows]})
    for name in [*(name for name in ("guidance",) if name in frame), *columns]:
        shown[LABELS.get(name, name)] = [spread(row, name) for row in rows]
    if columns and (deviation := f"{columns[0]}_deviation") in frame:
        told = frame[deviation].map("{:+.1%}".format, na_action="ignore")
        shown[f"{LABELS.get(columns[0], columns[0])} beside the reported"] = told
    for name, (label, unit) in UNITS.items():
        if name in frame:
            shown[label] = frame[name].map(lambda value, unit=unit: f"{float(value) / unit:.4g}", na_action="ignore")
    if "train_precision" in frame:
        shown["Trained in"] = frame["train_precision"]
    shown = shown.join(frame[[name for name in more if name in frame]])
    if "model" in frame and columns:
        shown.loc[frame["model"] == "not run", LABELS.get(columns[0], columns[0])] = "not run"
    kinds = frame.get("phase", pd.Series("", frame.index)).isin(["published", "reported"])
    rules = [row for row in range(1, len(frame)) if kinds.iloc[row] != kinds.iloc[row - 1]]
    return shown, {(row, shown.columns.get_loc(LABELS.get(name, name))) for row, name in marks}, rules


def method(row: dict[str, Any]) -> str:
    """The name of a row; of several seeds that of the first, and their number."""
    return f"{row['eval'].split()[0]} ({row['seeds']} seeds)" if row.get("seeds", 0) > 1 else row["eval"]


def spread(row: dict[str, Any], name: str) -> str:
    """A cell, with its standard deviation over seeds if there is one; empty where nothing is known."""
    value, deviation = row.get(name), row.get(f"{name}_spread")
    if value is None or value != value:
        return ""
    return f"{value} ± {deviation:.2g}" if isinstance(deviation, float) and not math.isnan(deviation) else str(value)


def recon(config: Recon, *, metrics: Path, out: Path) -> None:
    """Write the reconstructions as CSV, and as Markdown beside it; one that was not run says so. Below them what others report.

    Raises UserError if two were measured by different protocols.
    """
    records = read(metrics, config.evals, RECONSTRUCTED)
    rows = [{"eval": name, **(restored(records[name]) if name in records else {"phase": "not run"})} for name in config.evals]
    write(pd.DataFrame(rows + published(config.published), dtype=object), config.title, out)


def restored(record: dict[str, Any]) -> dict[str, Any]:
    """One reconstruction as a row: by which autoencoder and how, and what it scores."""
    protocol = record["protocol"]
    against = f"{protocol['images']} held-out images of {protocol['resolution']} pixels against themselves"
    made = f"crop {protocol['crop']}; uint8 by {protocol['quantisation']}; {protocol['family']}"
    shown = {"phase": "reconstructed", "vae": protocol["vae_sha256"][:12], "posterior": protocol["posterior"]}
    return {**shown, "protocol": f"{against}; {made}", **rounded(record["metrics"])}


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers to five significant digits, an interval as text; all else stays as it is."""
    shown = {name: " to ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in shown.items()}
