"""Features of samples beside those of real images: every metric, under the name that it deserves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.config.base import UserError
from maskdit.evaluation.metrics import (
    NEAR,
    SPLIT,
    SUBSET,
    SUBSETS,
    frechet_at_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    overlap,
)
from maskdit.runtime.random import generator

# sha256 of the weights of Inception of 2015, as torch-fidelity publishes them
OFFICIAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FULL = 50_000  # images of an FID
NEIGHBOURS = 3  # of precision and recall in ADM's evaluator
SEED = 2020  # of KID's subsets, as in torch-fidelity, whose number is the same
METRICS = ("fid", "sfid", "is", "precision", "recall", "kid", "density", "coverage", "fid_infinity")
SUFFIXES = {"mobilenet-v2": "_mobilenet", "dinov2": "_dinov2"}


def suffix(family: str, sha256: str, images: int) -> str:
    """What is put after a metric's name; '' is for Inception of 2015 with its own weights on 50,000 images only."""
    if family != "inception-2015":
        return SUFFIXES[family]
    if sha256 != OFFICIAL:
        return f"_inception_{sha256[:8]}"
    return "" if images == FULL else "_inception"


def protocol(neighbours: int) -> dict[str, Any]:
    """What a record says of how its metrics were computed."""
    return {
        "neighbours": neighbours,
        "is_split": SPLIT,
        "is_order": "by number",
        "kid_subsets": f"{SUBSETS} of {SUBSET}",
        "near": NEAR,
    }


def scored(found: dict[str, Array], known: dict[str, Array], neighbours: int, name: str, of: Path) -> dict[str, float]:
    """Metrics of generated images from what a network says of them, against a reference; `name` is their suffix.

    Fréchet distance (fid, else fd), the same on spatial features (sfid), Inception Score, precision and recall as ADM's evaluator
    has them (another number of neighbours shows in the name), KID, density and coverage; where a tenth of the images is more than
    the features are wide also the distance that unboundedly many would have.
    Raises UserError, naming `of`, for features that are no numbers, too few, or not as wide as the reference's.
    """
    features, real = found["features"], known["features"]
    for what, array in found.items():
        if broken := int((~np.isfinite(array).all(1)).sum()):
            raise UserError(f"{of}: {what} of {broken} images are not finite; look at the images, make them again")
    for what, mean in (("features", "mu"), ("spatial", "mu_s")):
        if what in found and mean in known and found[what].shape[1:] != known[mean].shape:
            raise UserError(f"{of}: {what} {found[what].shape[1]} wide, the reference's {len(known[mean])}; make both again")
    if (count := min(len(features), len(real))) <= max(neighbours, NEAR):
        raise UserError(f"{of}: {count} images are too few for {max(neighbours, NEAR)} neighbours")
    fd, k = "fid" if not name else "fd", "" if neighbours == NEIGHBOURS else f"_k{neighbours}"
    gaussian = (known["mu"], known["sigma"])
    metrics = {f"{fd}{name}": frechet_distance(moments(features), gaussian)}
    if "spatial" in found and "mu_s" in known:
        metrics[f"s{fd}{name}"] = frechet_distance(moments(found["spatial"]), (known["mu_s"], known["sigma_s"]))
    if "logits" in found:
        metrics[f"is{name}"] = inception_score(found["logits"])
    shared = overlap(features, real, neighbours)
    metrics |= {f"precision{k}{name}": shared.precision, f"recall{k}{name}": shared.recall}
    metrics[f"kid{name}"] = kernel_distance(features, real, np.random.RandomState(SEED))
    metrics |= {f"density{name}": shared.density, f"coverage{name}": shared.coverage}
    if len(features) > 10 * features.shape[1]:
        metrics[f"{fd}_infinity{name}"] = frechet_at_infinity(features, gaussian, generator(0, "infinity"))
    return metrics


def gathered(paths: Sequence[Path]) -> dict[str, Array]:
    """The arrays of several npz of the same names, one after another."""
    parts = [read_arrays(path) for path in paths]
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
