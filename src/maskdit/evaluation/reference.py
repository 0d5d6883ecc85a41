"""Statistics of the real images in a feature space; for small data sets also the scores of held-out images and a class probe."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError
from maskdit.config.evaluation import Reference
from maskdit.evaluation.extractors import Arrays, Network
from maskdit.evaluation.metrics import Sums, frechet_distance, inception_score, moments
from maskdit.evaluation.protocol import SPACES, probe_accuracy, statistics, suffix, summed
from maskdit.images.dataset import Images
from maskdit.runtime.progress import say
from maskdit.runtime.random import generator

KEPT = {"kept": "features", "every": "every"}  # array of a shard -> array of the reference
PROBED = 50_000  # largest number of images that a class probe is fitted to


def reference(config: Reference, *, images: Path, extractor: Path, out: Path) -> None:
    """Mean and covariance of the training images' features, and the features for precision and recall.

    With `memorisation` the features of all images are kept, as `every`. Statistics in an npz batch, such as ADM's, are used as they
    are. For a small data set with classes and held-out images real.json also contains the scores of these: their Fréchet distance
    is the floor of that metric for this number of images, and the probe's accuracy is that of a perfect sampler. Raises UserError
    if there are fewer than two images, or more shards than images.
    """
    data, net = Images.load(images), Network(extractor)
    rows = data.rows(heldout=False)
    if len(rows) < max(2, config.shards):
        raise UserError(f"{images}: {len(rows)} training images are too few for statistics in {config.shards} shards")
    given = brought(images)
    for space, (mean, _) in SPACES.items():
        if mean in given and len(given[mean]) != net.net.WIDTHS.get(space):
            raise UserError(f"{images / 'batch.npz'}: {mean} {given[mean].shape} does not fit {net.family}; use another batch")
    kept = drawn(rows, config.neighbours_from or len(rows))
    parts = np.array_split(rows, config.shards)
    names = [f"reference-{number:04d}.npz" for number in range(config.shards)]
    work = Shards("reference", [config.model_dump(), net.sha256, sha256(images / "manifest.json")], names)

    def make(number: int, path: Path) -> None:
        seen = net.stream(data.pixels, parts[number], config.batch)
        savez(path, summed(seen, np.isin(parts[number], kept), not given, config.memorisation and len(kept) < len(rows)))

    if not work.fill(make):
        return
    tree = joined(work.home / name for name in names) | given
    real: dict[str, Any] = {**net.protocol(), "resolution": data.pixels.shape[1], "train_images": len(rows)}
    real |= {"statistics": "given" if given else "computed", "heldout": None}
    unseen = data.rows(heldout=True)
    if len(unseen) > 1 and len(tree["features"]) == len(rows) <= PROBED and len(np.unique(data.labels[rows])) > 1:
        tree |= fitted(tree["features"], data.labels[rows])
        real["heldout"] = held(net, net.extract(data.pixels, unseen, config.batch), data.labels[unseen], tree)
    savez(out / "reference.npz", tree)
    write_json(out / "real.json", real)
    work.forget()
    say(f"reference: {len(rows)} images, statistics {real['statistics']}" + (f"; {real['heldout']}" if real["heldout"] else ""))


def drawn(rows_N: Array, count: int) -> Array:
    """The rows of the images whose features are kept, if they are so many."""
    return np.sort(generator(0, "neighbours").permutation(rows_N)[:count])


def joined(paths: Iterable[Path]) -> dict[str, Array]:
    """Kept features, and mean and covariance in each space, of all shards; one shard is held at a time."""
    kept: dict[str, list[Array]] = {}
    sums: dict[str, Sums] = {}
    for path in paths:
        part = read_arrays(path)
        for name, final in KEPT.items():
            if name in part:
                kept.setdefault(final, []).append(part[name])
        for space in SPACES:
            if f"count_{space}" in part:
                more = Sums(int(part[f"count_{space}"]), part[f"mean_{space}"], part[f"scatter_{space}"])
                sums[space] = sums[space] + more if space in sums else more
    tree = {name: np.concatenate(found) for name, found in kept.items()}
    for space, total in sums.items():
        tree |= dict(zip(SPACES[space], total.moments(), strict=True))
    return tree


def brought(images: Path) -> dict[str, Array]:
    """Statistics in an npz batch; empty for other images. Raises UserError if they are incomplete or invalid."""
    return statistics(images / "batch.npz") if read_json(images / "index.json", "kind")["kind"] == "npz" else {}


def held(net: Network, found: Arrays, labels_N: Array, known: dict[str, Array]) -> dict[str, Any]:
    """Scores of held-out images."""
    features, name = found["features"], suffix(net.family, net.sha256, len(labels_N))
    return {
        "images": len(labels_N),
        f"{'fd' if name else 'fid'}{name}": frechet_distance(moments(features), (known["mu"], known["sigma"])),
        **({f"is{name}": inception_score(found["logits"])} if "logits" in found else {}),
        "probe_accuracy": probe_accuracy(features, labels_N, known),
    }


def fitted(features_NF: Array, labels_N: Array) -> dict[str, Array]:
    """A logistic class probe: weight (classes, F) and bias for features as they are, fitted to standardised ones."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = features_NF.mean(0), features_NF.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=300).fit((features_NF - mean) / spread, labels_N)
    coefficients, intercept = fit.coef_, fit.intercept_
    if len(coefficients) == 1:  # for two classes scikit-learn keeps one row
        coefficients, intercept = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = coefficients / spread
    return {"probe_weight": weight, "probe_bias": intercept - weight @ mean}
