"""Features and a reference to metrics, with the whole protocol beside them."""

from pathlib import Path

import numpy as np

from maskdit.config import Evaluate, UserError
from maskdit.files import read_json, sha256, write_json
from maskdit.metrics import frechet_distance, inception_score, moments, precision_recall
from maskdit.runtime import say


def evaluate(config: Evaluate, *, features: Path, reference: Path, out: Path) -> None:
    """Distance, score, precision and recall in the family's features, and how often the probe names the intended class.

    Raises UserError if the features are of another family or network than the reference, or are not all there.
    """
    index, real = read_json(features / "index.json"), read_json(reference / "real.json")
    protocol = index["protocol"]
    if (protocol["family"], protocol["extractor_sha256"]) != (real["family"], real["weights_sha256"]):
        raise UserError(
            f"{features}: features of {protocol['family']}, the reference {reference} has another network; make both again"
        )
    vectors = np.concatenate([np.load(features / shard) for shard in index["shards"]])
    probabilities = np.concatenate([np.load(features / shard.replace("features", "probabilities")) for shard in index["shards"]])
    labels = np.load(features / "labels.npy")
    if not len(vectors) == len(probabilities) == len(labels) == protocol["images"]:
        raise UserError(f"{features}: {len(vectors)} features of {protocol['images']} images; make them again")
    with np.load(reference / "reference.npz", allow_pickle=False) as stored:
        known = dict(stored)
    guessed = (vectors @ known["probe_weight"].T + known["probe_bias"]).argmax(1)
    precision, recall = precision_recall(vectors, known["features"], config.neighbours)
    metrics = {
        "fd_mobilenet": frechet_distance(moments(vectors), (known["mu"], known["sigma"])),
        "is_mobilenet": inception_score(probabilities),
        "precision_mobilenet": precision,
        "recall_mobilenet": recall,
        "probe_accuracy": float((guessed == labels).mean()),
    }
    protocol |= {"reference_sha256": sha256(reference / "reference.npz"), "neighbours": config.neighbours}
    write_json(out, {"metrics": metrics, "checkpoint": index["checkpoint"], "protocol": protocol, "real": real})
    say("evaluate: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
