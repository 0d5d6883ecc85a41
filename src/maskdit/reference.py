"""Statistics of the real images in a feature space; of a small set also what held-out images score there, and a class probe."""

from pathlib import Path
from typing import Any

import numpy as np

from maskdit.config import Reference, UserError
from maskdit.data import Array, Images, generator
from maskdit.extractor import Network
from maskdit.files import read_json, sha256, write_json
from maskdit.metrics import frechet_distance, inception_score, merged, moments, softmax
from maskdit.runtime import say
from maskdit.scores import suffix
from maskdit.shards import Shards, savez

SPACES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # as ADM's reference batches name their statistics


def reference(config: Reference, *, images: Path, extractor: Path, out: Path) -> None:
    """Mean and covariance of the training images' features, and the features that precision and recall compare with.

    An npz batch that brings its statistics, as ADM's do, is believed. real.json holds what the held-out images score, if there are
    any: their distance is the floor of the metric at their number, and the probe's accuracy what a perfect sampler would reach.
    """
    data, net = Images.load(images), Network(extractor)
    rows = data.rows(heldout=False)
    count = config.neighbours_from or len(rows)
    kept = np.sort(generator(0, "neighbours").permutation(rows)[:count])
    parts = np.array_split(rows, config.shards)
    names = [f"reference-{number:04d}.npz" for number in range(config.shards)]
    work = Shards("reference", [config.model_dump(), net.sha256, sha256(images / "manifest.json")], names)

    def make(number: int, path: Path) -> None:
        found = net.extract(data.pixels, parts[number], config.batch)
        chosen = np.isin(parts[number], kept)
        tree = {"count": np.array(len(parts[number])), "kept": found["features"][chosen]}
        for space, (mean, spread) in SPACES.items():
            if space in found:
                tree[mean], tree[spread] = moments(found[space])
        savez(path, tree)

    if not work.fill(make):
        return
    stored = [dict(np.load(work.home / name, allow_pickle=False)) for name in names]
    tree = {"features": np.concatenate([part["kept"] for part in stored])}
    for mean, spread in SPACES.values():
        if mean in stored[0]:
            tree[mean], tree[spread] = merged([(int(part["count"]), part[mean], part[spread]) for part in stored])
    given = brought(images, tree)
    real: dict[str, Any] = {
        **net.protocol(),
        "train_images": len(rows),
        "statistics": "given" if given else "computed",
        "heldout": None,
    }
    unseen = data.rows(heldout=True)
    if len(unseen) and config.neighbours_from is None:
        found = net.extract(data.pixels, unseen, config.batch)
        probe = fitted(tree["features"], data.labels[rows])
        tree |= probe
        guessed = (found["features"] @ probe["probe_weight"].T + probe["probe_bias"]).argmax(1)
        name = suffix(net.family, net.sha256, len(unseen))
        real["heldout"] = {
            "images": len(unseen),
            f"fd{name}": frechet_distance(moments(found["features"]), (tree["mu"], tree["sigma"])),
            **({f"is{name}": inception_score(softmax(found["logits"]))} if "logits" in found else {}),
            "probe_accuracy": float((guessed == data.labels[unseen]).mean()),
        }
    savez(out / "reference.npz", tree)
    write_json(out / "real.json", real)
    work.forget()
    say(f"reference: {len(rows)} images, statistics {real['statistics']}" + (f"; {real['heldout']}" if real["heldout"] else ""))


def brought(images: Path, tree: dict[str, Array]) -> bool:
    """Take statistics that a batch brings in place of those of its images; whether there are any.

    Raises UserError if they are of another width, or not numbers.
    """
    if read_json(images / "index.json")["kind"] != "npz":
        return False
    with np.load(images / "batch.npz", allow_pickle=False) as stored:
        for name in [name for pair in SPACES.values() for name in pair if name in stored.files]:
            value = stored[name]
            if name not in tree or value.shape != tree[name].shape or not np.isfinite(value).all():
                raise UserError(f"{images / 'batch.npz'}: {name} {value.shape} is not of this network; take the batch for it")
            tree[name] = value.astype(np.float64)
        return "mu" in stored.files


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
