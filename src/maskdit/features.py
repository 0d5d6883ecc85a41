"""Images to features, shard by shard."""

from pathlib import Path

import numpy as np

from maskdit.config import Features
from maskdit.extractor import Network
from maskdit.files import read_json, save_array, sha256, write_json
from maskdit.shards import Shards, savez


def features(config: Features, *, samples: Path, extractor: Path, out: Path) -> None:
    """What the network says of each shard of images, as one npz a shard, and the index of the samples with the extractor's."""
    index, net = read_json(samples / "index.json"), Network(extractor)
    names = [f"features-{number:04d}.npz" for number in range(len(index["shards"]))]
    work = Shards("features", [config.model_dump(), net.sha256, sha256(samples / "manifest.json")], names)

    def make(number: int, path: Path) -> None:
        pixels = np.load(samples / index["shards"][number], mmap_mode="r")
        savez(path, net.extract(pixels, np.arange(len(pixels)), config.batch))

    if not work.fill(make):
        return
    work.take(out)
    save_array(out / "labels.npy", np.load(samples / "labels.npy"))
    write_json(out / "index.json", {**index, "shards": names, "protocol": index["protocol"] | net.protocol()})
