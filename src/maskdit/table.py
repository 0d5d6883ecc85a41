"""Metrics to the table that people read."""

from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.config import Recon, Table
from maskdit.files import replacing
from maskdit.records import COMPARABLE, SAMPLING, markdown, read

RECONSTRUCTED = ("family", "extractor_sha256", "images", "images_sha256", "resolution", "crop", "posterior", "quantisation")
APART = ("kid", "density", "coverage", "fid_infinity", "fd_infinity")  # in the records only


def row_of(record: dict[str, Any], differing: list[str]) -> dict[str, Any]:
    """One evaluation as a row: what was trained and how long, how it was sampled, what it scores."""
    checkpoint, protocol = record["checkpoint"], record["protocol"]
    return {
        "model": checkpoint["model"],
        "phase": checkpoint["phase"],
        "guidance": protocol["guidance"],
        "step": checkpoint["step"],
        "train_images": checkpoint["images"],
        "train_seconds": tenths(checkpoint["seconds"]),
        "train_tflop": tenths(checkpoint["flops"], 1e12),
        "parameters": checkpoint["parameters"],
        "sampler": protocol["sampler"],
        "nfe": protocol["nfe"],
        **{field: protocol.get(field) for field in differing},
        "images": protocol["images"],
        **rounded({name: value for name, value in record["metrics"].items() if not name.startswith(APART)}),
    }


def tenths(value: float | None, unit: float = 1.0) -> float | None:
    """A quantity in a unit, to one decimal; unknown stays unknown: released weights do not tell what they cost."""
    return None if value is None else round(value / unit, 1)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Numbers to five significant digits; counts stay as they are."""
    return {name: value if isinstance(value, int) else float(f"{value:.5g}") for name, value in values.items()}


def published(bench: str | None) -> list[dict[str, Any]]:
    """What others report of a benchmark, with its source: rows that say so instead of naming a model."""
    every = pd.read_csv(Path(__file__).with_name("published.csv"), dtype=object)
    rows = every[every.bench == bench].drop(columns="bench").rename(columns={"method": "eval"})
    rows["phase"] = "published"
    rows["parameters"] = rows.pop("parameters_m").map(lambda millions: round(float(millions) * 1e6), na_action="ignore")
    known = [{name: value for name, value in row.items() if pd.notna(value)} for row in rows.to_dict("records")]
    return [{"eval": row.pop("eval"), **row} for row in known]


def table(config: Table, *, metrics: Path, out: Path) -> None:
    """Write the evaluations as CSV, and as Markdown beside it; an evaluation that was not run says so.

    Below them come the rows that others report, if the entry names their benchmark.
    The last row is how well the probe names held-out real images. How images were sampled has a column where rows differ in it.
    Raises UserError if rows were measured by different protocols.
    """
    records = read(metrics, config.evals, COMPARABLE)
    differing = [field for field in SAMPLING if len({str(record["protocol"].get(field)) for record in records.values()}) > 1]
    rows = [
        {"eval": name, **(row_of(records[name], differing) if name in records else {"model": "not run"})} for name in config.evals
    ]
    for record in [record for record in records.values() if record["real"]["heldout"]][:1]:
        real = {name: record["real"]["heldout"][name] for name in ("images", "probe_accuracy")}  # a distance is over their number
        rows.append({"eval": "real, held out", **rounded(real)})
    write(config.title, rows + published(config.published), out)


def recon(config: Recon, *, metrics: Path, out: Path) -> None:
    """Write the reconstructions as CSV, and as Markdown beside it; one that was not run says so. Below them what others report.

    Raises UserError if two were measured by different protocols.
    """
    records = read(metrics, config.evals, RECONSTRUCTED)
    rows = [{"eval": name, **(restored(records[name]) if name in records else {"phase": "not run"})} for name in config.evals]
    write(config.title, rows + published(config.published), out)


def restored(record: dict[str, Any]) -> dict[str, Any]:
    """One reconstruction as a row: by which autoencoder and how, and what it scores."""
    protocol = record["protocol"]
    against = f"{protocol['images']} held-out images of {protocol['resolution']} pixels against themselves"
    made = f"crop {protocol['crop']}; uint8 by {protocol['quantisation']}; {protocol['family']}"
    shown = {"phase": "reconstructed", "vae": protocol["vae_sha256"][:12], "posterior": protocol["posterior"]}
    return {**shown, "protocol": f"{against}; {made}", **rounded(record["metrics"])}


def write(title: str, rows: list[dict[str, Any]], out: Path) -> None:
    """Rows as CSV, and as Markdown with the title beside it."""
    frame = pd.DataFrame(rows, dtype=object)
    with replacing(out) as temporary:
        frame.to_csv(temporary, index=False)
    with replacing(out.with_suffix(".md")) as temporary:
        temporary.write_text(f"{title}\n\n{markdown(frame)}")
