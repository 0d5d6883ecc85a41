"""Images to features, shard by shard."""

from pathlib import Path

import numpy as np

from maskdit.config import Features
from maskdit.extractor import SHA256, demand, extract
from maskdit.files import read_json, save_array, write_json


def features(config: Features, *, samples: Path, out: Path) -> None:
    """Features (n, F) and class probabilities (n, C) of each shard of images, and the index of the samples with the extractor's."""
    demand(config.family)
    index = read_json(samples / "index.json")
    names = []
    for shard in index["shards"]:
        vectors, probabilities = extract(np.load(samples / shard), config.batch)
        names.append(shard.replace("images", "features"))
        save_array(out / names[-1], vectors)
        save_array(out / shard.replace("images", "probabilities"), probabilities)
    save_array(out / "labels.npy", np.load(samples / "labels.npy"))
    index["protocol"] |= {"family": config.family, "extractor_sha256": SHA256}
    write_json(out / "index.json", {**index, "shards": names})
