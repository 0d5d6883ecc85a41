"""Statistics of the real images in a feature space; of a small set also what held-out images score there, and a class probe."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError
from maskdit.config.evaluation import Reference
from maskdit.evaluation.extractors import Arrays, Network
from maskdit.evaluation.metrics import PART, Sums, frechet_distance, inception_score, moments
from maskdit.evaluation.protocol import suffix
from maskdit.images.dataset import Images
from maskdit.runtime.progress import say
from maskdit.runtime.random import generator

SPACES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # as ADM's reference batches name their statistics
PROBED = 50_000  # images that a class probe is fitted on, at most


def reference(config: Reference, *, images: Path, extractor: Path, out: Path) -> None:
    """Mean and covariance of the training images' features, and the features that precision and recall compare with.

    An npz batch that brings its statistics, as ADM's do, is believed. Of a small set with classes and held-out images real.json
    holds what these score: their distance is the floor of the metric at their number, and the probe's accuracy what a perfect
    sampler would reach. Raises UserError if there are no two images, or more shards than images.
    """
    data, net = Images.load(images), Network(extractor)
    rows = data.rows(heldout=False)
    if len(rows) < max(2, config.shards):
        raise UserError(f"{images}: {len(rows)} training images are too few for statistics in {config.shards} shards")
    given = brought(images)
    for space, (mean, _) in SPACES.items():
        if mean in given and len(given[mean]) != net.net.WIDTHS.get(space):
            raise UserError(f"{images / 'batch.npz'}: {mean} {given[mean].shape} is not of {net.family}; take the batch for it")
    kept = np.sort(generator(0, "neighbours").permutation(rows)[: config.neighbours_from or len(rows)])
    parts = np.array_split(rows, config.shards)
    names = [f"reference-{number:04d}.npz" for number in range(config.shards)]
    work = Shards("reference", [config.model_dump(), net.sha256, sha256(images / "manifest.json")], names)

    def make(number: int, path: Path) -> None:
        savez(path, summed(net.stream(data.pixels, parts[number], config.batch), np.isin(parts[number], kept), not given))

    if not work.fill(make):
        return
    tree = joined(work.home / name for name in names)
    tree |= given
    real: dict[str, Any] = {
        **net.protocol(),
        "resolution": data.pixels.shape[1],
        "train_images": len(rows),
        "statistics": "given" if given else "computed",
        "heldout": None,
    }
    unseen = data.rows(heldout=True)
    if len(unseen) > 1 and len(tree["features"]) == len(rows) <= PROBED and len(np.unique(data.labels[rows])) > 1:
        tree |= fitted(tree["features"], data.labels[rows])
        real["heldout"] = held(net, net.extract(data.pixels, unseen, config.batch), data.labels[unseen], tree)
    savez(out / "reference.npz", tree)
    write_json(out / "real.json", real)
    work.forget()
    say(f"reference: {len(rows)} images, statistics {real['statistics']}" + (f"; {real['heldout']}" if real["heldout"] else ""))


def summed(seen: Iterator[Arrays], keep_N: Array, statistics: bool) -> dict[str, Array]:
    """Features of the images to keep, and if statistics are wanted the sums of all in each space; few are held at once."""
    kept: list[Array] = []
    sums: dict[str, Sums] = {}
    waiting: list[Arrays] = []

    def fold() -> None:
        for space in SPACES.keys() & waiting[0].keys():
            more = Sums.of(np.concatenate([found[space] for found in waiting]))
            sums[space] = sums[space] + more if space in sums else more
        waiting.clear()

    at = 0
    for found in seen:
        count = len(found["features"])
        kept.append(found["features"][keep_N[at : at + count]])
        at += count
        if statistics:
            waiting.append(found)
            if at % PART < count or at == len(keep_N):
                fold()
    tree = {"kept": np.concatenate(kept)}
    for space, total in sums.items():
        tree |= {f"count_{space}": np.array(total.count), f"mean_{space}": total.mean, f"scatter_{space}": total.scatter}
    return tree


def joined(paths: Iterable[Path]) -> dict[str, Array]:
    """Kept features, and mean and covariance of each space, of all shards; one is held at a time."""
    kept: list[Array] = []
    sums: dict[str, Sums] = {}
    for path in paths:
        part = read_arrays(path)
        kept.append(part["kept"])
        for space in SPACES:
            if f"count_{space}" in part:
                more = Sums(int(part[f"count_{space}"]), part[f"mean_{space}"], part[f"scatter_{space}"])
                sums[space] = sums[space] + more if space in sums else more
    tree = {"features": np.concatenate(kept)}
    for space, total in sums.items():
        tree |= dict(zip(SPACES[space], total.moments(), strict=True))
    return tree


def brought(images: Path) -> dict[str, Array]:
    """The statistics that a batch brings, in float64; none if it brings none.

    Raises UserError if one of a pair is missing, or they are no mean and covariance.
    """
    if read_json(images / "index.json", "kind")["kind"] != "npz":
        return {}
    path, given = images / "batch.npz", dict[str, Array]()
    stored = read_arrays(path, *(name for pair in SPACES.values() for name in pair))
    for pair in SPACES.values():
        here = [name for name in pair if name in stored]
        if len(here) == 1:
            raise UserError(f"{path}: holds {here[0]} without its fellow of {' and '.join(pair)}; get it again")
        try:
            given |= {name: stored[name].astype(np.float64) for name in here}
        except ValueError as error:
            raise UserError(f"{path}: {' or '.join(pair)} is no array of numbers ({error}); get it again") from None
        if here:
            mean, spread = (given[name] for name in pair)
            if spread.shape != mean.shape * 2 or not (np.isfinite(mean).all() and np.isfinite(spread).all()):
                raise UserError(f"{path}: {pair[0]} {mean.shape} and {pair[1]} {spread.shape} are no mean and covariance")
    if given and "mu" not in given:
        raise UserError(f"{path}: holds mu_s without mu; get it again")
    return given


def held(net: Network, found: Arrays, labels_N: Array, known: dict[str, Array]) -> dict[str, Any]:
    """What held-out images score."""
    features, name = found["features"], suffix(net.family, net.sha256, len(labels_N))
    guessed = (features @ known["probe_weight"].T + known["probe_bias"]).argmax(1)
    return {
        "images": len(labels_N),
        f"{'fd' if name else 'fid'}{name}": frechet_distance(moments(features), (known["mu"], known["sigma"])),
        **({f"is{name}": inception_score(found["logits"])} if "logits" in found else {}),
        "probe_accuracy": float((guessed == labels_N).mean()),
    }


def fitted(features_NF: Array, labels_N: Array) -> dict[str, Array]:
    """A logistic probe for the class."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = features_NF.mean(0), features_NF.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=300).fit((features_NF - mean) / spread, labels_N)
    coefficients, intercept = fit.coef_, fit.intercept_
    if len(coefficients) == 1:  # of two classes scikit-learn keeps one
        coefficients, intercept = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = coefficients / spread
    return {"probe_weight": weight, "probe_bias": intercept - weight @ mean}
