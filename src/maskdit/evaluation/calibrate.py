"""Comparison of this evaluator with metrics that others have published for images that they have published."""

from pathlib import Path

import numpy as np
import pandas as pd

from maskdit.artifacts.arrays import read_arrays
from maskdit.artifacts.atomic import read_json, replacing, sha256
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError
from maskdit.config.evaluation import Calibrate
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.protocol import METRICS, gathered, scored, suffix
from maskdit.images.dataset import Images
from maskdit.runtime.progress import say


def calibrate(config: Calibrate, *, images: Path, reference: Path, extractor: Path, out: Path) -> None:
    """Extract the features of published samples, compute their metrics, and compare these with the authors' values.

    Writes a table of metric, expected and found value, difference, tolerance and verdict. Raises UserError, naming the metrics, if
    any is out of its tolerance, because this evaluator's values then cannot be compared with theirs.
    """
    if unknown := sorted(config.expected.keys() - set(METRICS)):
        raise UserError(f"calibrate.expected: no metric {unknown[0]}; known: {', '.join(METRICS)}")
    data, net, real = Images.load(images), Network(extractor), read_json(reference / "real.json", "extractor_sha256")
    if real["extractor_sha256"] != net.sha256:
        raise UserError(f"{reference}: made with another network than {extractor}; rerun the reference step")
    if real.get("resolution") != data.pixels.shape[1]:
        raise UserError(f"{images}: {data.pixels.shape[1]} pixels, but the reference {reference} has {real.get('resolution')}")
    if config.shards > len(data.pixels):
        raise UserError(f"calibrate.shards: {config.shards} shards for {len(data.pixels)} images; lower it")
    parts = np.array_split(np.arange(len(data.pixels)), config.shards)
    names = [f"features-{number:04d}.npz" for number in range(config.shards)]
    work = Shards("calibrate", [config.batch, config.shards, net.sha256, sha256(images / "manifest.json")], names)
    if not work.fill(lambda number, path: savez(path, net.extract(data.pixels, parts[number], config.batch))):
        return
    found, known = gathered([work.home / name for name in names]), read_arrays(reference / "reference.npz")
    name = suffix(net.family, net.sha256, len(data.pixels))
    metrics = scored(found, known, config.neighbours, name, images)
    plain = {metric.removesuffix(name).replace("fd", "fid"): value for metric, value in metrics.items()}
    if absent := sorted(config.expected.keys() - plain.keys()):
        raise UserError(f"calibrate.expected: {absent[0]} cannot be computed for these images, only {', '.join(plain)}")
    frame = compared(config, plain)
    for line in frame.to_string(index=False).splitlines():
        say(f"calibrate: {line}")
    demand_within(frame)
    with replacing(out) as temporary:
        frame.to_csv(temporary, index=False)
    work.forget()


def compared(config: Calibrate, found: dict[str, float]) -> pd.DataFrame:
    """One row per metric: expected and found value, difference, tolerance, and a verdict, within or outside."""
    names = list(config.expected)
    frame = pd.DataFrame({"metric": names, "expected": config.expected.values(), "found": [found[name] for name in names]})
    frame["difference"] = frame["found"] - frame["expected"]
    frame["tolerance"] = [config.tolerance[name] for name in names]
    frame["verdict"] = np.where(frame["difference"].abs() <= frame["tolerance"], "within", "outside")
    return frame


def demand_within(frame: pd.DataFrame) -> None:
    """Raise UserError, naming each metric that is out of its tolerance, if there is one."""
    outside = frame[frame["verdict"] == "outside"]
    if len(outside):
        said = "; ".join(f"{row.metric} is {row.found:.6g}, published {row.expected:.6g}" for row in outside.itertuples())
        raise UserError(f"calibrate: {said}: values of this evaluator are not comparable with theirs")
