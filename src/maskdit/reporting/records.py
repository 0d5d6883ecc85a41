"""The records of evaluations, read together: two protocols never share a column; and what others have published."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.atomic import named, read_json
from maskdit.artifacts.manifest import config_of
from maskdit.config.base import UserError

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
    records = {name: read_json(path) for name, path in named(metrics, evals).items()}
    for name, record in records.items():
        first = next(iter(records))
        for field in same:
            ours, theirs = record["protocol"].get(field), records[first]["protocol"].get(field)
            if ours != theirs:
                raise UserError(f"{metrics}: {name} has {field} {ours}, {first} has {theirs}: they cannot share a column")
    return records


def demand_alike(records: dict[str, dict[str, Any]]) -> None:
    """Raise UserError, naming two, for trainings that are compared and computed in another precision, device or number of threads.

    What is not recorded, as of weights of others, is not compared.
    """
    known: dict[str, tuple[str, Any]] = {}
    for name, record in records.items():
        for what, value in computed(record).items():
            other, before = known.setdefault(what, (name, value))
            if value != before:
                raise UserError(f"{other} was trained with {what} {before}, {name} with {value}: train them alike to compare them")


def computed(record: dict[str, Any]) -> dict[str, Any]:
    """How the training behind a record computed, as far as it is known; threads matter on a CPU only."""
    checkpoint = record["checkpoint"]
    arithmetic = checkpoint.get("arithmetic") or {}
    found = {"precision": checkpoint.get("precision"), "device": arithmetic.get("device")}
    if found["device"] == "cpu":
        found["threads"] = arithmetic["threads"]
    return {what: value for what, value in found.items() if value is not None}


def seeds_of(record: dict[str, Any]) -> tuple[int, int]:
    """The seeds of a record's pretraining (0 for weights of others) and of its sampling."""
    return config_of(record, "pretrain").get("seed", 0), config_of(record, "sample").get("seed", 0)


def recipe(name: str, record: dict[str, Any]) -> str:
    """All numbers behind a record but its seeds and the names of its runs: equal for what differs in the seed only."""
    lineage = record.get("manifest", {}).get("lineage", {})
    kept = {
        node if node.startswith("released/") else node.split("/")[0]: {
            field: value for field, value in origin["config"].items() if field not in ("seed", "run")
        }
        for node, origin in lineage.items()
    }
    return json.dumps(kept, sort_keys=True) if kept else name


def twins(records: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The names of the records, those that differ in their seed only together."""
    groups: dict[str, list[str]] = {}
    for name, record in records.items():
        groups.setdefault(recipe(name, record), []).append(name)
    return list(groups.values())


def steps_of(record: dict[str, Any]) -> int:
    """Training steps of all phases behind a record."""
    before = config_of(record, "pretrain").get("milestones", [0])[-1] if record["checkpoint"]["phase"] == "finetune" else 0
    return before + record["checkpoint"]["step"]


def hours_of(record: dict[str, Any]) -> float | None:
    """Device-hours of all phases behind a record; None if not known, as for weights of others."""
    seconds = record["checkpoint"].get("device_seconds")
    return None if seconds is None else seconds / 3600


def published(bench: str | None) -> list[dict[str, Any]]:
    """What has been published of a benchmark, with its source; `phase` tells the authors' own rows from those of others."""
    every = pd.read_csv(Path(__file__).with_name("published.csv"), dtype=object)
    rows = every[every.bench == bench].drop(columns="bench").rename(columns={"method": "eval"})
    rows["phase"] = rows["eval"].map(lambda name: "reported" if name.startswith("MaskDiT") else "published")
    for name, unit, new in (
        ("parameters_m", 1e6, "parameters"),
        ("train_images_m", 1e6, "train_images"),
        ("steps_k", 1e3, "steps"),
    ):
        rows[new] = rows.pop(name).map(lambda value, unit=unit: round(float(value) * unit), na_action="ignore")
    known = [{name: value for name, value in row.items() if pd.notna(value)} for row in rows.to_dict("records")]
    return [{"eval": row.pop("eval"), **row} for row in known]
