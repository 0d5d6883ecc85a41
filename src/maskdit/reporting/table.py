"""Tables of evaluations and of reconstructions."""

import statistics
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.atomic import replacing
from maskdit.artifacts.manifest import config_of
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.params import rescored
from maskdit.config.reporting import Recon, Table
from maskdit.reporting.records import (
    COMPARABLE,
    SAMPLING,
    counted,
    hours_of,
    independent,
    model_of,
    published,
    read,
    seeds,
    steps_of,
    twins,
)
from maskdit.reporting.sample_size import notes, origins, setting
from maskdit.reporting.table_formats import latex, markdown, rounded, write

RECONSTRUCTED = ("family", "extractor_sha256", "images", "images_sha256", "resolution", "crop", "posterior", "quantisation")
APART = ("density", "coverage", "fid_infinity", "fd_infinity")  # only in the records
LOWER = ("fid", "fd", "sfid", "sfd", "kid", "mind")  # lower is better
METRICS = (*LOWER, "is", "precision", "recall", "memorised", "probe")
FIRST = ("eval", "model", "phase", "guidance")
SAMPLED = {field: "sampling_precision" if field == "precision" else field for field in SAMPLING}  # field -> column
LAST = ("sampler", "nfe", *SAMPLED.values(), "images")
SWEPT = ("guidance", "weights")  # columns of what a sweep chooses
LABELS = {"guidance": "Guidance", "fid": "FID", "sfid": "sFID", "kid": "KID", "mind": "MIND", "is": "IS"}
LABELS |= {"precision": "Precision", "recall": "Recall"}
UNITS = {  # column -> its label and unit in Markdown and LaTeX
    "parameters": ("Parameters (M)", 1e6),
    "gmac_forward": ("GMACs", 1.0),
    "train_images": ("Images (M)", 1e6),
    "steps": ("Steps (K)", 1e3),
    "device_hours": ("Device-hours", 1.0),
}


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """One evaluation as a row: the model, its training, its sampling and its metrics.

    gmac_forward is 10^9 multiply-adds of a forward pass with all tokens, which the papers call GFLOPs.
    """
    checkpoint, protocol = record["checkpoint"], record["protocol"]
    model = {"model": model_of(record), **{field: checkpoint[field] for field in ("phase", "parameters")}}
    training = {"steps": steps_of(record), "train_images": checkpoint["images"], "train_precision": checkpoint.get("precision")}
    cost = {"device_hours": in_units(hours_of(record), 1.0, 4), "train_seconds": in_units(checkpoint["seconds"])}
    cost |= {"train_tflop": in_units(checkpoint["flops"], 1e12), "gmac_forward": in_units(checkpoint.get("forward_flops"), 2e9, 2)}
    sampling = {field: protocol[field] for field in ("guidance", "sampler", "nfe", "images")}
    sampling |= {column: protocol.get(field) for field, column in SAMPLED.items()}
    scored = {name: value for name, value in record["metrics"].items() if not name.startswith(APART)}
    return {**model, **training, **cost, **sampling, **scored}


def in_units(value: float | None, unit: float = 1.0, digits: int = 1) -> float | None:
    """A quantity in a unit, rounded; None if unknown, as for released weights."""
    return None if value is None else round(value / unit, digits)


def scores(columns: Iterable[str]) -> list[str]:
    """The columns that are metrics."""
    return [name for name in columns if name.split("_")[0] in METRICS and not name.endswith(("_spread", "_deviation"))]


def joined(trainings: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Rows that differ only in the seed, given by training, as one: means, their numbers, and each metric's standard deviation.

    The deviation is that between trainings, each with the mean of its samplings; for a single training, between its samplings.
    """
    rows = [row for training in trainings for row in training]
    if len(rows) == 1:
        return rows[0]
    names = [*scores(rows[0]), "device_hours", "train_seconds"]
    known = {
        name: independent([[row[name] for row in training] for training in trainings])
        for name in names
        if all(row.get(name) is not None for row in rows)
    }
    means = {name: statistics.mean(values) for name, values in known.items()}
    spread = {f"{name}_spread": statistics.stdev(values) for name, values in known.items() if name in scores(names)}
    counts = {"seeds": len(trainings), "samplings": len(rows), "spread_over": "trainings" if len(trainings) > 1 else "samplings"}
    return {**rows[0], **means, "eval": " ".join(row["eval"] for row in rows), **counts, **spread}


def number(record: dict[str, Any], place: str) -> Any:
    """A setting behind a record, such as pretrain.decoder.depth; None if there is none."""
    verb, *path = place.split(".")
    found: Any = config_of(record, verb)
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found


def beside(row: dict[str, Any], method: str, known: list[dict[str, Any]], bench: str | None) -> dict[str, Any]:
    """The published row that a row reproduces, and the relative deviation of each metric that both have.

    If the method has several rows, the one with this guidance counts. Raises UserError if there is none.
    """
    guidance, rows = row["guidance"], [theirs for theirs in known if theirs["eval"] == method]
    if len(rows) != 1:
        rows = [theirs for theirs in rows if theirs.get("guidance", "1") in (str(guidance), f"{guidance:g}")]
    if not rows:
        raise UserError(
            f"table: reproduces names '{method}', but published.csv has no such row of {bench} with guidance {guidance:g}"
        )
    shared = [name for name in scores(row) if name in rows[0] and row[name] is not None]
    return {"reproduces": method, **{f"{name}_deviation": row[name] / float(rows[0][name]) - 1 for name in shared}}


def table(config: Table, *, metrics: Path, out: Path) -> None:
    """Write the evaluations as CSV, and in the papers' layout as Markdown and LaTeX; an evaluation that was not run is marked.

    Evaluations that differ only in the seed are one row, with mean and standard deviation; several of the same samples count once.
    A row that reproduces a published one has its deviation from it. A sampling setting is a column if rows differ in it. The
    probe's accuracy on held-out real images comes after the evaluations, and published rows come last. Notes below the Markdown
    and LaTeX name the rows that sweeps chose, and warn of few samples. Raises UserError if evaluation protocols differ.
    """
    records = read(metrics, config.evals, COMPARABLE)
    more = read(metrics, tuple(map(rescored, config.rescored)), COMPARABLE)
    for name in [name for name in config.rescored if name in records and rescored(name) in more]:
        records[name]["metrics"] |= more[rescored(name)]["metrics"]
    reported = published(config.published)
    groups = {names[0]: names for names in twins(records)}
    rows: list[dict[str, Any]] = []
    for name in config.evals:
        if name not in records:
            rows.append({"eval": name, "model": "not run"})
        elif name in groups:
            alike = seeds(records, groups[name])
            row = joined([[{"eval": each, **row_of(records[each])} for each in training] for training in alike])
            row |= {place: number(records[name], place) for place in config.numbers}
            for method in {config.reproduces[each] for each in groups[name] if each in config.reproduces}:
                row |= beside(row, method, reported, config.published)
            rows.append(row)
    equal = [field for field in SAMPLED.values() if len({str(row.get(field)) for row in rows if row["model"] != "not run"}) < 2]
    for record in [record for record in records.values() if record["real"]["heldout"]][:1]:
        real = {name: record["real"]["heldout"][name] for name in ("images", "probe_accuracy")}  # distances depend on their number
        rows.append({"eval": "real, held out", **real})
    frame = ordered([rounded(row) for row in rows] + reported).drop(columns=[*equal, "batch"], errors="ignore")
    shown, marks, kinds = laid_out(frame, [*config.numbers, *SAMPLED.values()], config.chosen)
    below = [*setting(records), *origins(config.chosen), *notes(records), *notes(more)]
    tex, table = latex(shown, config.title, marks, kinds, below), markdown(shown.join(frame.filter(["source"])), marks)
    write(frame, config.title, out, tex, table, below)
    for name, record in records.items():  # for `dvc metrics`
        with replacing(out.parent / "scores" / out.stem.removeprefix("table_") / f"{name}.yaml") as temporary:
            temporary.write_text(yaml_subset.write(record["metrics"]), encoding="utf-8")


def ordered(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with columns in the papers' order: the model, its metrics, its size and cost, its sampling, the rest."""
    frame = pd.DataFrame(rows, dtype=object)
    wanted = [*FIRST, *scores(frame), *UNITS, "train_seconds", "train_tflop", "train_precision", *LAST]
    return frame[[*frame.filter(wanted), *frame.columns.difference(wanted, sort=False)]]


def best(frame: pd.DataFrame, columns: list[str], chosen: Collection[str] = ()) -> set[tuple[int, str]]:
    """The best cells (row, column) of each metric among two or more of our rows that were sampled alike; all of a tie.

    Rows of `chosen` count as alike whatever guidance and weights a sweep chose for them.
    """
    ours = frame[frame["sampler"].notna()] if "sampler" in frame else frame[:0]
    alike = ours.filter(["guidance", *LAST]).astype(object)
    alike.loc[ours["eval"].str.split().str[0].isin(chosen), alike.columns.intersection(SWEPT)] = "chosen"
    found = set()
    for _, rows in ours.groupby([alike[name] for name in alike], dropna=False):
        for name in columns if len(rows) > 1 else []:
            if name.startswith("memorised"):  # to be compared with that of real images: neither higher nor lower is better
                continue
            values = pd.to_numeric(rows[name])
            value = values.min() if name.split("_")[0] in LOWER else values.max()
            found |= {(int(row), name) for row in values.index[values == value]}
    return found


def laid_out(
    frame: pd.DataFrame, more: list[str], chosen: Collection[str] = ()
) -> tuple[pd.DataFrame, set[tuple[int, int]], "pd.Series[bool]"]:
    """A table in the papers' layout, its best cells, and for each row whether others have published it.

    Columns: method, guidance, metrics, deviation of the first metric from the reproduced row, size and cost, and those of `more`
    that exist. `chosen`: the rows whose guidance and weights a sweep chose.
    """
    columns, rows = scores(frame), frame.to_dict("records")
    first = columns[0] if columns else ""
    shown = pd.DataFrame({"Method": [method(row) for row in rows]})
    for name in frame.filter(["guidance", *columns]):
        shown[LABELS.get(name, name)] = [spread(row, name) for row in rows]
    if f"{first}_deviation" in frame:
        told = frame[f"{first}_deviation"].map("{:+.1%}".format, na_action="ignore")
        shown[f"{LABELS.get(first, first)} beside the reported"] = told
    for name in frame.filter(list(UNITS)):
        label, unit = UNITS[name]
        shown[label] = frame[name].map(lambda value, unit=unit: f"{float(value) / unit:.4g}", na_action="ignore")
    if "train_precision" in frame:
        shown["Trained in"] = frame["train_precision"]
    shown = shown.join(frame.filter(more))
    if "model" in frame and columns:
        shown.loc[frame["model"] == "not run", LABELS.get(first, first)] = "not run"
    kinds = frame.get("phase", pd.Series("", frame.index)).isin(["published", "reported"])
    return shown, {(row, shown.columns.get_loc(LABELS.get(name, name))) for row, name in best(frame, columns, chosen)}, kinds


def method(row: dict[str, Any]) -> str:
    """The name of a row; for several seeds, the name of the first and their number."""
    several = row.get("samplings", 0) > 1
    return f"{row['eval'].split()[0]} ({counted(row['seeds'], row['samplings'])})" if several else row["eval"]


def spread(row: dict[str, Any], name: str) -> str:
    """A cell, with its standard deviation over seeds if there is one; empty if unknown."""
    value, deviation = row[name], row.get(f"{name}_spread")
    if pd.isna(value):
        return ""
    return str(value) if deviation is None or pd.isna(deviation) else f"{value} ± {deviation:.2g}"


def recon(config: Recon, *, metrics: Path, out: Path) -> None:
    """Write the reconstructions as CSV and Markdown, followed by published rows; a reconstruction that was not run is marked.

    Raises UserError if evaluation protocols differ.
    """
    records = read(metrics, config.evals, RECONSTRUCTED)
    rows = [{"eval": name, **(restored(records[name]) if name in records else {"phase": "not run"})} for name in config.evals]
    write(pd.DataFrame(rows + published(config.published), dtype=object), config.title, out)


def restored(record: dict[str, Any]) -> dict[str, Any]:
    """One reconstruction as a row: the autoencoder, the protocol and the metrics."""
    protocol = record["protocol"]
    against = f"{protocol['images']} held-out images of {protocol['resolution']} pixels against themselves"
    made = f"crop {protocol['crop']}; uint8 by {protocol['quantisation']}; {protocol['family']}"
    shown = {"phase": "reconstructed", "vae": protocol["vae_sha256"][:12], "posterior": protocol["posterior"]}
    return {**shown, "protocol": f"{against}; {made}", **rounded(record["metrics"])}
