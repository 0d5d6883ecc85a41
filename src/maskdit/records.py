"""The records of evaluations, read together: two protocols never share a column; and how a table is written."""

from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.config import UserError
from maskdit.files import read_json

COMPARABLE = (
    "family",
    "extractor_sha256",
    "reference_sha256",
    "images",
    "labels",
    "quantisation",
    "neighbours",
    "statistics",
    "is_split",
    "is_order",
    "kid_subsets",
    "near",
    "resize",
    "resolution",
)
SAMPLING = ("weights", "precision", "guidance_channels", "guidance_interval")  # shown where rows differ in it


def read(metrics: Path, evals: tuple[str, ...], same: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The records of those evaluations that have been run.

    Raises UserError, naming the evaluation and the difference, if two of them differ in a field of `same`.
    """
    records = {name: read_json(path) for name in evals if (path := metrics / f"{name}.json").exists()}
    for name, record in records.items():
        first = next(iter(records))
        for field in same:
            ours, theirs = record["protocol"].get(field), records[first]["protocol"].get(field)
            if ours != theirs:
                raise UserError(f"{metrics}: {name} has {field} {ours}, {first} has {theirs}: they cannot share a column")
    return records


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.fillna("").astype(str).values.tolist()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
