"""Images to features, shard by shard."""

from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array, read_array
from maskdit.artifacts.atomic import read_json, save_array, sha256, write_json
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError
from maskdit.config.evaluation import Features
from maskdit.evaluation.extractors import Network


def features(config: Features, *, samples: Path, extractor: Path, out: Path) -> None:
    """A network's outputs for each shard of images as one npz, and the samples' index, extended by the extractor's protocol.

    Raises UserError as `opened` does.
    """
    index, shards = opened(samples)
    net = Network(extractor)
    names = [f"features-{number:04d}.npz" for number in range(len(shards))]
    work = Shards("features", [config.model_dump(), net.sha256, sha256(samples / "manifest.json")], names, out)
    if not work.fill(lambda number, path: savez(path, net.extract(shards[number], np.arange(len(shards[number])), config.batch))):
        return
    work.take(out)
    save_array(out / "labels.npy", read_array(samples / "labels.npy"))
    protocol = index["protocol"] | net.protocol() | {"resolution": shards[0].shape[1]}
    write_json(out / "index.json", {**index, "shards": names, "protocol": protocol})


def opened(samples: Path) -> tuple[dict[str, Any], list[Array]]:
    """The index of samples, and their shards of images (N, H, W, 3) in uint8, mapped.

    Raises UserError if a shard does not hold images of the same size, or if the number of images differs from the index.
    """
    index = read_json(samples / "index.json", "shards", "protocol")
    shards = [read_array(samples / name, mapped=True) for name in index["shards"]]
    for name, pixels in zip(index["shards"], shards, strict=True):
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shards[0].shape[1:]:
            raise UserError(f"{samples / name}: {pixels.dtype} {pixels.shape}, not images like the others; rerun the sample step")
    if (count := sum(map(len, shards))) != index["protocol"]["images"]:
        raise UserError(f"{samples}: {count} images, the index lists {index['protocol']['images']}; rerun the sample step")
    return index, shards
