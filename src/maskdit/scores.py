"""Features of samples beside those of real images: every metric, under the name that it deserves."""

import zipfile
from pathlib import Path

import numpy as np

from maskdit.config import UserError
from maskdit.data import Array, generator
from maskdit.inception import OFFICIAL
from maskdit.metrics import (
    SPLIT,
    density_coverage,
    frechet_at_infinity,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
    softmax,
)

FULL = 50_000  # images of an FID
METRICS = ("fid", "sfid", "is", "precision", "recall", "kid", "density", "coverage", "fid_infinity")
SUFFIXES = {"mobilenet-v2": "_mobilenet", "dinov2": "_dinov2"}


def suffix(family: str, sha256: str, images: int) -> str:
    """What is put after a metric's name; '' is for Inception of 2015 with its own weights on 50,000 images only."""
    if family != "inception-2015":
        return SUFFIXES[family]
    if sha256 != OFFICIAL:
        return f"_inception_{sha256[:8]}"
    return "" if images == FULL else "_inception"


def scored(found: dict[str, Array], known: dict[str, Array], neighbours: int, name: str) -> dict[str, float]:
    """Metrics of generated images from what a network says of them, against a reference; `name` is their suffix.

    Fréchet distance (fid, else fd), the same on spatial features (sfid), Inception Score, precision and recall as ADM's evaluator
    has them, KID, density and coverage; from 10,000 images on also the distance that unboundedly many would have.
    Raises UserError for features that are no numbers, or too few.
    """
    features, real = found["features"], known["features"]
    for what, array in found.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{what} of {(~np.isfinite(array).all(1)).sum()} images are not finite; look at the images, make them again"
            )
    if min(len(features), len(real)) <= max(neighbours, 5):
        raise UserError(f"{min(len(features), len(real))} images are too few for {max(neighbours, 5)} neighbours")
    fd = "fid" if not name else "fd"
    metrics = {f"{fd}{name}": frechet_distance(moments(features), (known["mu"], known["sigma"]))}
    if "spatial" in found and "mu_s" in known:
        metrics[f"s{fd}{name}"] = frechet_distance(moments(found["spatial"]), (known["mu_s"], known["sigma_s"]))
    if "logits" in found:
        metrics[f"is{name}"] = inception_score(softmax(found["logits"]))
    metrics[f"precision{name}"], metrics[f"recall{name}"] = precision_recall(features, real, neighbours)
    metrics[f"kid{name}"] = kernel_distance(features, real, generator(0, "kid"))
    metrics[f"density{name}"], metrics[f"coverage{name}"] = density_coverage(features, real)
    if len(features) >= 2 * SPLIT:
        metrics[f"{fd}_infinity{name}"] = frechet_at_infinity(features, (known["mu"], known["sigma"]), generator(0, "infinity"))
    return metrics


def loaded(path: Path) -> dict[str, Array]:
    """The arrays of an npz, which holds no pickles; raises UserError if it is damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); make it again") from None
