"""Features and a reference to metrics, with the whole protocol beside them."""

from pathlib import Path

from maskdit.artifacts.arrays import read_array, read_arrays
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.config.base import UserError
from maskdit.config.evaluation import Evaluate
from maskdit.evaluation.protocol import gathered, protocol, scored, suffix
from maskdit.runtime.progress import say

SAME = {  # what features and reference must agree in -> what to do
    "family": "make both with one extractor",
    "extractor_sha256": "make both with one extractor",
    "resize": "make both with one extractor",
    "resolution": "take the reference for images of this side",
}


def evaluate(config: Evaluate, *, features: Path, reference: Path, out: Path) -> None:
    """The metrics of samples; where the reference has a class probe also how often it names the intended class.

    Raises UserError if the features are of another network than the reference, or of images of another side, or are not all there.
    """
    index, real = (
        read_json(features / "index.json", "protocol", "shards", "checkpoint"),
        read_json(reference / "real.json", "statistics"),
    )
    made = index["protocol"]
    for field, hint in SAME.items():
        if made.get(field) != real.get(field):
            raise UserError(f"{features}: {field} {made.get(field)}, the reference {reference} has {real.get(field)}; {hint}")
    found = gathered([features / shard for shard in index["shards"]])
    labels = read_array(features / "labels.npy")
    if not len(found["features"]) == len(labels) == made["images"]:
        raise UserError(f"{features}: {len(found['features'])} features of {made['images']} images; make them again")
    known = read_arrays(reference / "reference.npz")
    name = suffix(made["family"], made["extractor_sha256"], len(labels))
    metrics = scored(found, known, config.neighbours, name, features)
    if "probe_weight" in known:
        guessed = (found["features"] @ known["probe_weight"].T + known["probe_bias"]).argmax(1)
        metrics["probe_accuracy"] = float((guessed == labels).mean())
    made |= protocol(config.neighbours) | {
        "reference_sha256": sha256(reference / "reference.npz"),
        "statistics": real["statistics"],
        "neighbours_from": len(known["features"]),
    }
    write_json(out, {"metrics": metrics, "checkpoint": index["checkpoint"], "protocol": made, "real": real})
    say("evaluate: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
