"""Features and a reference to metrics, recorded with their whole protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskdit.artifacts.arrays import read_array, read_arrays
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.config.base import UserError
from maskdit.config.evaluation import Evaluate
from maskdit.evaluation.metrics import DIRECTIONS, NEAR, SPLIT, SUBSET, SUBSETS
from maskdit.evaluation.protocol import floor, gathered, memorisation, probe_accuracy, scored, suffix
from maskdit.runtime.progress import say


def evaluate(config: Evaluate, *, features: Path, reference: Path, out: Path) -> None:
    """The metrics of samples, and if the reference has a class probe, the share of samples that it assigns to the intended class.

    Raises UserError if features and reference differ in network or resolution, or if features are missing.
    """
    index = read_json(features / "index.json", "protocol", "shards", "checkpoint")
    real = read_json(reference / "real.json", "statistics")
    made = index["protocol"]
    demand_alike(features, made, reference, real)
    found = gathered([features / shard for shard in index["shards"]])
    labels = read_array(features / "labels.npy")
    if not len(found["features"]) == len(labels) == made["images"]:
        raise UserError(f"{features}: {len(found['features'])} features for {made['images']} images; rerun the features step")
    known = read_arrays(reference / "reference.npz")
    name = suffix(made["family"], made["extractor_sha256"], len(labels))
    metrics = scored(found, known, config.neighbours, name, features, config.mind)
    if "probe_weight" in known:
        metrics["probe_accuracy"] = probe_accuracy(found["features"], labels, known)
    made |= {
        "neighbours": config.neighbours,
        "is_split": SPLIT,
        "is_order": "by number",
        "kid_subsets": f"{SUBSETS} of {SUBSET}",
        "near": NEAR,
        "reference_sha256": sha256(reference / "reference.npz"),
        "statistics": real["statistics"],
        "neighbours_from": len(known["features"]),
    }
    if config.mind:
        made |= {"mind_directions": DIRECTIONS, "mind_images": min(len(labels), len(known["features"]))}
    record = {"metrics": metrics, "checkpoint": index["checkpoint"], "protocol": made, "real": real}
    if config.memorisation:
        every, short = known.get("every", known["features"]), suffix(made["family"], made["extractor_sha256"], 0)
        told, real["memorisation"], record["nearest"] = memorisation(found["features"], every, short)
        metrics |= told
        made["memorised_from"] = len(every)
    if config.floor:
        real["floor"] = floor(known, len(labels), suffix(made["family"], made["extractor_sha256"], 0), config.mind)
    write_json(out, record)
    say("evaluate: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


def demand_alike(ours: Path, made: Mapping[str, Any], reference: Path, real: Mapping[str, Any]) -> None:
    """Raise UserError, naming both, unless features (with the protocol `made`) and a reference are of one network and size."""
    for field in ("family", "extractor_sha256", "resize", "resolution"):
        if made.get(field) != real.get(field):
            hint = "use the reference for this resolution" if field == "resolution" else "make both with one extractor"
            raise UserError(f"{ours}: {field} {made.get(field)}, the reference {reference} has {real.get(field)}; {hint}")
