"""The same samples measured by another network, for further columns of their row."""

from pathlib import Path

import numpy as np

from maskdit.artifacts.arrays import read_arrays
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.evaluation import Rescore
from maskdit.evaluation.evaluate import demand_alike
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.features import opened
from maskdit.evaluation.metrics import DIRECTIONS, SUBSET, SUBSETS
from maskdit.evaluation.protocol import demand_finite, distances, floor, gathered, suffix
from maskdit.runtime.progress import say


def rescore(config: Rescore, *, samples: Path, reference: Path, extractor: Path, out: Path) -> None:
    """Fréchet distance, KID and, if it is asked for, MIND of samples by another network, recorded with their protocol.

    Of DINOv2 the Fréchet distance, fd_dinov2, is known as FDD (Stein et al., arXiv 2306.04675). The features are not kept.
    Raises UserError if the reference is of another network or resolution, or the samples are damaged.
    """
    index, shards = opened(samples)
    net, real = Network(extractor), read_json(reference / "real.json", "statistics")
    made = index["protocol"] | net.protocol() | {"resolution": shards[0].shape[1]}
    demand_alike(samples, made, reference, real)
    names = [f"features-{number:04d}.npz" for number in range(len(shards))]
    work = Shards("rescore", [config.batch, net.sha256, sha256(samples / "manifest.json")], names)
    if not work.fill(lambda number, path: savez(path, net.extract(shards[number], np.arange(len(shards[number])), config.batch))):
        return
    found, known = gathered([work.home / name for name in names]), read_arrays(reference / "reference.npz")
    demand_finite(found, samples)
    count, short = len(found["features"]), suffix(net.family, net.sha256, 0)
    name = suffix(net.family, net.sha256, count)
    metrics = distances(found["features"], known["features"], (known["mu"], known["sigma"]), name, config.mind)
    made |= {
        "kid_subsets": f"{SUBSETS} of {SUBSET}",
        "reference_sha256": sha256(reference / "reference.npz"),
        "statistics": real["statistics"],
        "neighbours_from": len(known["features"]),
    }
    if config.mind:
        made |= {"mind_directions": DIRECTIONS, "mind_images": min(count, len(known["features"]))}
    if config.floor:
        real["floor"] = floor(known, count, short, config.mind)
    write_json(out, {"metrics": metrics, "protocol": made, "real": real})
    work.forget()
    say("rescore: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
