"""Features and a reference to metrics, with the whole protocol beside them."""

from pathlib import Path

import numpy as np

from maskdit.config import Evaluate, UserError
from maskdit.files import read_json, sha256, write_json
from maskdit.metrics import SPLIT
from maskdit.runtime import say
from maskdit.scores import loaded, scored, suffix


def evaluate(config: Evaluate, *, features: Path, reference: Path, out: Path) -> None:
    """The metrics of samples; where the reference has a class probe also how often it names the intended class.

    Raises UserError if the features are of another network than the reference, or are not all there.
    """
    index, real = read_json(features / "index.json"), read_json(reference / "real.json")
    protocol = index["protocol"]
    if any(protocol[field] != real[field] for field in ("family", "extractor_sha256")):
        raise UserError(
            f"{features}: features of {protocol['family']}, the reference {reference} has another network; make both again"
        )
    parts = [loaded(features / shard) for shard in index["shards"]]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    labels = np.load(features / "labels.npy")
    if not len(found["features"]) == len(labels) == protocol["images"]:
        raise UserError(f"{features}: {len(found['features'])} features of {protocol['images']} images; make them again")
    known = loaded(reference / "reference.npz")
    metrics = scored(found, known, config.neighbours, suffix(protocol["family"], protocol["extractor_sha256"], len(labels)))
    if "probe_weight" in known:
        guessed = (found["features"] @ known["probe_weight"].T + known["probe_bias"]).argmax(1)
        metrics["probe_accuracy"] = float((guessed == labels).mean())
    protocol |= {
        "reference_sha256": sha256(reference / "reference.npz"),
        "statistics": real["statistics"],
        "neighbours": config.neighbours,
        "is_split": SPLIT,
    }
    write_json(out, {"metrics": metrics, "checkpoint": index["checkpoint"], "protocol": protocol, "real": real})
    say("evaluate: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
