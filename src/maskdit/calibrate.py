"""The evaluator against numbers that others have published of images that they have published."""

from pathlib import Path

import numpy as np
import pandas as pd

from maskdit.config import Calibrate, UserError
from maskdit.data import Images
from maskdit.extractor import Network
from maskdit.files import read_json, replacing, sha256
from maskdit.runtime import say
from maskdit.scores import METRICS, loaded, scored, suffix
from maskdit.shards import Shards, savez


def calibrate(config: Calibrate, *, images: Path, reference: Path, extractor: Path, out: Path) -> None:
    """Extract the features of a published batch of samples, score them, and compare with what its authors say.

    Writes a table of metric, published and found value, difference and tolerance. Raises UserError, naming each metric that is out
    of its tolerance, for then no number of this evaluator is comparable with theirs.
    """
    unknown = sorted(config.expected.keys() - set(METRICS))
    if unknown:
        raise UserError(f"calibrate.expected: no metric {unknown[0]}; known: {', '.join(METRICS)}")
    data, net = Images.load(images), Network(extractor)
    parts = np.array_split(np.arange(len(data.pixels)), config.shards)
    names = [f"features-{number:04d}.npz" for number in range(config.shards)]
    work = Shards("calibrate", [config.batch, config.shards, net.sha256, sha256(images / "manifest.json")], names)
    if not work.fill(lambda number, path: savez(path, net.extract(data.pixels, parts[number], config.batch))):
        return
    if read_json(reference / "real.json")["extractor_sha256"] != net.sha256:
        raise UserError(f"{reference}: of another network than {extractor}; make it again")
    stored = [loaded(work.home / name) for name in names]
    found = {name: np.concatenate([part[name] for part in stored]) for name in stored[0]}
    name = suffix(net.family, net.sha256, len(data.pixels))
    metrics = scored(found, loaded(reference / "reference.npz"), config.neighbours, name)
    plain = {metric.removesuffix(name).replace("fd", "fid"): value for metric, value in metrics.items()}
    frame = compared(config, plain)
    for line in frame.to_string(index=False).splitlines():
        say(f"calibrate: {line}")
    demand_within(frame)
    with replacing(out) as temporary:
        frame.to_csv(temporary, index=False)
    work.forget()


def compared(config: Calibrate, found: dict[str, float]) -> pd.DataFrame:
    """A row a metric: published and found value, difference, tolerance, and whether it is within it."""
    names = list(config.expected)
    frame = pd.DataFrame({"metric": names, "published": config.expected.values(), "found": [found[name] for name in names]})
    frame["difference"] = frame["found"] - frame["published"]
    frame["tolerance"] = [config.tolerance[name] for name in names]
    frame["verdict"] = np.where(frame["difference"].abs() <= frame["tolerance"], "within", "outside")
    return frame


def demand_within(frame: pd.DataFrame) -> None:
    """Raise UserError, naming each metric that is out of its tolerance, if there is one."""
    outside = frame[frame["verdict"] == "outside"]
    if len(outside):
        said = "; ".join(f"{row.metric} is {row.found:.6g}, published {row.published:.6g}" for row in outside.itertuples())
        raise UserError(f"calibrate: {said}: numbers of this evaluator are not comparable with theirs")
