"""Metrics of samples against real images, each under the name that its protocol allows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.config.base import UserError
from maskdit.evaluation import metrics
from maskdit.evaluation.metrics import NEAR, frechet_distance, moments
from maskdit.runtime.random import generator

# The weights of Inception of 2015, as torch-fidelity publishes them, and their sha256
WEIGHTS = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
OFFICIAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FULL = 50_000  # images of an FID
NEIGHBOURS = 3  # of precision and recall in ADM's evaluator
SEED = 2020  # of KID's subsets; the same subsets as torch-fidelity draws
PLACED = 1000  # real images, at most, whose nearest neighbours samples are compared with
PAIRS = 8  # samples kept with their nearest training image
METRICS = ("fid", "sfid", "is", "precision", "recall", "kid", "mind", "density", "coverage", "fid_infinity")
SPACES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # names of the statistics in ADM's reference batches
SUFFIXES = {"mobilenet-v2": "_mobilenet", "dinov2": "_dinov2"}


def suffix(family: str, sha256: str, images: int) -> str:
    """Suffix of a metric's name; it is empty only for Inception of 2015 with its own weights and 50,000 images."""
    if family != "inception-2015":
        return SUFFIXES[family]
    if sha256 != OFFICIAL:
        return f"_inception_{sha256[:8]}"
    return "" if images == FULL else "_inception"


def scored(
    found: dict[str, Array], known: dict[str, Array], neighbours: int, name: str, of: Path, mind: bool = False
) -> dict[str, float]:
    """Metrics of generated images: a network's outputs for them (`found`) against a reference (`known`); `name` is their suffix.

    Fréchet distance (named fid without a suffix, else fd), the same on spatial features (sfid), Inception Score, precision and
    recall as in ADM's evaluator (another number of neighbours shows in the name), KID, density and coverage, and, if there are
    over ten times as many images as features, the distance extrapolated to infinitely many images; MIND if it is asked for.
    What one of the two lacks is left out: a reference of statistics alone has no features. In place of outputs `found` may hold
    what has been computed of them: mu and sigma, mu_s and sigma_s, is.
    Raises UserError, naming `of`, for features that are not finite, too few, or of another width than the reference's.
    """
    demand_finite(found, of)
    fd, k = "fd" if name else "fid", "" if neighbours == NEIGHBOURS else f"_k{neighbours}"
    scores: dict[str, float] = {}
    for before, (what, (mean, spread)) in zip(("", "s"), SPACES.items(), strict=True):
        if mean in known and (mean in found or what in found):
            mine = (found[mean], found[spread]) if mean in found else moments(found[what])
            if mine[0].shape != known[mean].shape:
                raise UserError(
                    f"{of}: {what} have width {len(mine[0])}, the reference {len(known[mean])}; use one network for both"
                )
            scores[f"{before}{fd}{name}"] = frechet_distance(mine, (known[mean], known[spread]))
    if "is" in found or "logits" in found:
        scores[f"is{name}"] = float(found["is"]) if "is" in found else metrics.inception_score(found["logits"])
    if "features" in found and "features" in known:
        features, real = found["features"], known["features"]
        demand_neighbours(min(len(features), len(real)), neighbours, of)
        shared = metrics.overlap(features, real, neighbours)
        scores |= {f"precision{k}{name}": shared.precision, f"recall{k}{name}": shared.recall}
        scores[f"kid{name}"] = metrics.kernel_distance(features, real, np.random.RandomState(SEED))
        if mind:
            scores[f"mind{name}"] = metrics.monge_distance(features, real, generator(SEED, "mind"))
        scores |= {f"density{name}": shared.density, f"coverage{name}": shared.coverage}
    if "mu" in known and "features" in found and len(found["features"]) > 10 * found["features"].shape[1]:
        gaussian = (known["mu"], known["sigma"])
        scores[f"{fd}_infinity{name}"] = metrics.frechet_at_infinity(found["features"], gaussian, generator(0, "infinity"))
    return scores


def demand_finite(found: dict[str, Array], of: Path) -> None:
    """Raise UserError, naming `of`, unless all that a network says of images are finite numbers."""
    for what in (*SPACES, "logits"):
        if what in found and (broken := int((~np.isfinite(found[what]).all(1)).sum())):
            raise UserError(f"{of}: {what} of {broken} images are not finite; check the images and extract the features again")


def demand_neighbours(count: int, neighbours: int, of: Path) -> None:
    """Raise UserError, naming `of`, unless so many images have neighbours enough."""
    if count <= max(neighbours, NEAR):
        most = max(neighbours, NEAR)
        raise UserError(f"{of}: {count} images are too few for {most} neighbours; add images, to {most + 1} at least")


def floor(known: dict[str, Array], most: int, name: str, mind: bool) -> dict[str, float]:
    """The distances between two halves of a reference's images, at most `most` each, which no sampler is expected to undercut.

    `name` is their suffix, not that of an FID; `images` is the number in each half. Empty if the halves have fewer than two images.
    """
    one, other = metrics.halves(known["features"], most, generator(SEED, "halves"))
    if len(one) < 2:
        return {}
    return {"images": len(one), **distances(one, other, moments(other), name, mind)}


def distances(features_NF: Array, real_MF: Array, gaussian: tuple[Array, Array], name: str, mind: bool) -> dict[str, float]:
    """Fréchet distance to a mean and covariance, and KID and, if it is asked for, MIND to features; `name` is their suffix."""
    found = {f"{'fd' if name else 'fid'}{name}": frechet_distance(moments(features_NF), gaussian)}
    found[f"kid{name}"] = metrics.kernel_distance(features_NF, real_MF, np.random.RandomState(SEED))
    if mind:
        found[f"mind{name}"] = metrics.monge_distance(features_NF, real_MF, generator(SEED, "mind"))
    return found


def memorisation(samples_NF: Array, real_MF: Array, name: str) -> tuple[dict[str, float], dict[str, float], list[dict[str, float]]]:
    """Whether samples are copies of training images: `memorised` of the samples and of real images, and the most suspicious pairs.

    `memorised` is metrics.Nearest.copied; `name` is its suffix. The real images are at most PLACED of the training, each left out
    in turn: a sampler that has learnt nothing by heart is expected to have their number. A pair: the sample's number, the row of
    its nearest training image among `real`, its distance, and the distance of that image to its own nearest neighbour.
    """
    found = metrics.nearest(samples_NF, real_MF)
    rows = np.sort(generator(SEED, "memorisation").permutation(len(real_MF))[:PLACED])
    real = metrics.nearest(real_MF[rows], real_MF, rows)
    order = np.lexsort((found.distances_N, found.distances_N / np.maximum(found.own_N, np.finfo(np.float32).tiny)))[:PAIRS]
    pairs = [
        {"sample": int(at), "row": int(found.rows_N[at]), "distance": float(found.distances_N[at]), "own": float(found.own_N[at])}
        for at in order
    ]
    floor = {"images": len(rows), "of": len(real_MF), f"memorised{name}": real.copied}
    return {f"memorised{name}": found.copied}, floor, pairs


def probe_accuracy(features_NF: Array, labels_N: Array, known: dict[str, Array]) -> float:
    """Share of images that a reference's class probe assigns to their label."""
    guessed = (features_NF @ known["probe_weight"].T + known["probe_bias"]).argmax(1)
    return float((guessed == labels_N).mean())


def gathered(paths: Sequence[Path]) -> dict[str, Array]:
    """The arrays of several npz files with the same names, concatenated."""
    parts = [read_arrays(path) for path in paths]
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def summed(seen: Iterator[dict[str, Array]], keep_N: Array, statistics: bool, every: bool = False) -> dict[str, Array]:
    """Features to keep, and if wanted those of every image and the sums in each space; at most about PART images wait for these."""
    kept: list[Array] = []
    whole: list[Array] = []
    sums: dict[str, metrics.Sums] = {}
    waiting: list[dict[str, Array]] = []
    at = 0
    for found in seen:
        count = len(found["features"])
        kept.append(found["features"][keep_N[at : at + count]])
        if every:
            whole.append(found["features"])
        at += count
        if statistics:
            waiting.append(found)
        if waiting and (at % metrics.PART < count or at == len(keep_N)):
            for space in SPACES.keys() & found.keys():
                more = metrics.Sums.of(np.concatenate([each[space] for each in waiting]))
                sums[space] = sums[space] + more if space in sums else more
            waiting.clear()
    tree = {"kept": np.concatenate(kept), **({"every": np.concatenate(whole)} if every else {})}
    for space, total in sums.items():
        tree |= {f"count_{space}": np.array(total.count), f"mean_{space}": total.mean, f"scatter_{space}": total.scatter}
    return tree


def statistics(path: Path) -> dict[str, Array]:
    """Statistics in an npz, as ADM's and EDM's, in float64; empty if it has none.

    Raises UserError if they are incomplete or invalid.
    """
    names = [name for pair in SPACES.values() for name in pair]
    stored = read_arrays(path, *names)
    here = [name for name in names if name in stored]
    if here not in ([], names[:2], names):
        raise UserError(f"{path}: contains only {', '.join(here)} of the statistics {', '.join(names)}; download it again")
    try:
        given = {name: stored[name].astype(np.float64) for name in here}
    except ValueError as error:
        raise UserError(f"{path}: the statistics {', '.join(here)} are not all numbers ({error}); download it again") from None
    for name, other in SPACES.values():
        if name in given:
            mean, spread = given[name], given[other]
            if mean.ndim != 1 or spread.shape != mean.shape * 2:
                raise UserError(f"{path}: {name} {mean.shape} and {other} {spread.shape} are not a mean and a covariance")
            if not (np.isfinite(mean).all() and np.isfinite(spread).all()):
                raise UserError(
                    f"{path}: {name} and {other}, not all of them finite, are not a mean and a covariance; get it again"
                )
            least = -1e-5 * np.abs(spread).max(initial=0)  # less than float32 rounds
            if not np.allclose(spread, spread.T, rtol=1e-4, atol=-least) or np.diag(spread).min(initial=0) < least:
                raise UserError(f"{path}: {other} is no covariance, which is symmetric with a diagonal from 0; get it again")
    return given
