"""Records of evaluations, which are compared only if their protocols agree, and published results."""

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maskdit.artifacts.atomic import named, read_json
from maskdit.artifacts.manifest import config_of
from maskdit.config.base import UserError
from maskdit.methods.tread import Tread

COMPARABLE: tuple[str, ...] = ("family", "extractor_sha256", "reference_sha256", "images", "labels", "quantisation", "neighbours")
COMPARABLE += ("statistics", "is_split", "is_order", "kid_subsets", "near", "resize", "resolution")
BEFORE_FINETUNING = " before finetuning"  # the end of the name of a series that branches continue; it is drawn thin
Records = dict[str, dict[str, Any]]  # evaluation -> its record
SAMPLING = ("weights", "precision", "vae_precision", "guidance_channels", "guidance_interval")  # shown if rows differ in it


def read(metrics: Path, evals: tuple[str, ...], same: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The records of those evaluations that have been run.

    Raises UserError, naming two evaluations and the difference, if they differ in a protocol field of `same`, and for a metric that
    is no finite number.
    """
    files = named(metrics, evals)
    records = {name: read_json(path, "metrics", *(("protocol",) if same else ())) for name, path in files.items()}
    for name, record in records.items():
        for metric, value in record["metrics"].items():
            if not all(
                isinstance(each, int | float) and math.isfinite(each) for each in (value if isinstance(value, list) else [value])
            ):
                raise UserError(f"{files[name]}: {metric} is {value}, not a number; delete the record and rerun the evaluation")
        first = next(iter(records))
        for field in same:
            ours, theirs = record["protocol"].get(field), records[first]["protocol"].get(field)
            if ours != theirs:
                raise UserError(f"{metrics}: {name} has {field} {ours}, {first} has {theirs}: they cannot share a column")
    return records


def demand_alike(records: dict[str, dict[str, Any]]) -> None:
    """Raise UserError, naming two evaluations, if their trainings differ in precision, device or number of threads.

    Unrecorded facts, as for released weights, are not compared.
    """
    known: dict[str, tuple[str, Any]] = {}
    for name, record in records.items():
        checkpoint = record["checkpoint"]
        arithmetic = checkpoint.get("arithmetic") or {}
        facts = {"precision": checkpoint.get("precision"), "device": arithmetic.get("device")}
        if facts["device"] == "cpu":  # on a GPU, the number of threads does not matter
            facts["threads"] = arithmetic["threads"]
        for what, value in facts.items():
            if value is not None and known.setdefault(what, (name, value))[1] != value:
                other, before = known[what]
                raise UserError(f"{other} was trained with {what} {before}, {name} with {value}: train them alike to compare them")


def distance_of(names: Iterable[str]) -> str:
    """The first column or metric that is a Fréchet distance; '' if there is none."""
    return next((name for name in names if name.startswith(("fd_", "fid"))), "")


def recipe(name: str, record: dict[str, Any]) -> str:
    """The configuration behind a record as text, without seeds and run names: equal for records that differ only in the seed."""
    kept = {}
    for node, origin in record.get("manifest", {}).get("lineage", {}).items():
        verb = node if node.startswith("released/") else node.split("/")[0]
        kept[verb] = {field: value for field, value in origin["config"].items() if field not in ("seed", "run")}
    return json.dumps(kept, sort_keys=True) if kept else name


def twins(records: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The names of the records in groups that differ only in the seed."""
    groups: dict[str, list[str]] = {}
    for name, record in records.items():
        groups.setdefault(recipe(name, record), []).append(name)
    return list(groups.values())


def origin_of(record: dict[str, Any], *verbs: str) -> str:
    """The digest of the artifact of the first of these steps that a record descends from; '' if there is none."""
    lineage = record.get("manifest", {}).get("lineage", {})
    return next((lineage[node]["digest"] for verb in verbs for node in lineage if node.startswith(f"{verb}/")), "")


def seeds(records: dict[str, dict[str, Any]], names: Iterable[str]) -> list[list[str]]:
    """The names of records that differ only in the seed: a list for each training, with one name for each of its samplings.

    Records of the same samples count once.
    """
    trainings: dict[str, dict[str, str]] = {}
    for name in names:
        training = origin_of(records[name], "finetune", "pretrain", "released") or name
        trainings.setdefault(training, {}).setdefault(origin_of(records[name], "sample") or name, name)
    return [list(samplings.values()) for samplings in trainings.values()]


def independent(values: list[list[float]]) -> list[float]:
    """The values whose spread counts: the mean of each training's samplings, or the samplings of a single training."""
    return [statistics.mean(each) for each in values] if len(values) > 1 else values[0]


def counted(trainings: int, samplings: int) -> str:
    """The number of seeds in words."""
    return f"{trainings} seeds" if trainings > 1 else f"1 seed, {samplings} samplings"


def model_of(record: dict[str, Any]) -> str:
    """The name of the method behind a record. A checkpoint of TREAD has that of its network, which does not show the route."""
    entry = config_of(record, "pretrain")
    return Tread.name if entry.get("route") and not entry.get("method") else record["checkpoint"]["model"]


def steps_of(record: dict[str, Any]) -> int:
    """Training steps behind a record, over all phases."""
    start = config_of(record, "finetune").get("start", "final")
    if start == "final":
        start = config_of(record, "pretrain").get("milestones", [0])[-1]
    return (start if record["checkpoint"]["phase"] == "finetune" else 0) + record["checkpoint"]["step"]


def hours_of(record: dict[str, Any]) -> float | None:
    """Device-hours behind a record, over all phases; None if unknown, as for released weights."""
    seconds = record["checkpoint"].get("device_seconds")
    return None if seconds is None else seconds / 3600


def published(bench: str | None) -> list[dict[str, Any]]:
    """The published rows of a benchmark, with their sources; `phase` is reported for the paper's own rows, published for others."""
    import pandas as pd  # the report, which needs no published rows, does without

    every = pd.read_csv(Path(__file__).with_name("published.csv"), dtype=object)
    rows = every[every.bench == bench].drop(columns="bench").rename(columns={"method": "eval"})
    rows["phase"] = rows["eval"].map(lambda name: "reported" if name.startswith("MaskDiT") else "published")
    for name, unit, new in (
        ("parameters_m", 1e6, "parameters"),
        ("train_images_m", 1e6, "train_images"),
        ("steps_k", 1e3, "steps"),
    ):
        rows[new] = rows.pop(name).map(lambda value, unit=unit: round(float(value) * unit), na_action="ignore")
    return [{str(name): value for name, value in row.items() if pd.notna(value)} for row in rows.to_dict("records")]
