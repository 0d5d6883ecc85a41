"""Fashion-MNIST (Xiao et al. 2017, MIT licence): 70,000 grey photographs of clothes."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from maskdit.artifacts.arrays import Array
from maskdit.config.base import UserError
from maskdit.config.images import Fashion
from maskdit.images.dataset import Images, demand_count
from maskdit.images.download import download
from maskdit.runtime.progress import say

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
SIDE, BORDER = 28, 2
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts the files
HEADERS = {"images": 16, "labels": 8}  # bytes of the IDX header
CONTENTS = {  # sha256 of the uncompressed files, because Debian compresses them differently
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def numbers(config: Fashion, name: str) -> Array:
    """The contents of one of the four files, as uint8: images (N, 28, 28) or labels (N,). Downloads it if it is missing."""
    places = [folder / f"{name}.gz" for folder in (Path(config.root), DEBIAN)]
    path = next((place for place in places if place.exists()), places[0])
    if not path.exists():
        if config.url is None:
            raise UserError(f"{path}: no such file; install Debian's dataset-fashion-mnist, or set url")
        download(f"{config.url}/{name}.gz", path, None)
    try:
        with gzip.open(path) as stream:
            data = stream.read(64 * 2**20)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and fetch it again") from None
    if hashlib.sha256(data).hexdigest() != CONTENTS[name]:
        raise UserError(f"{path}: is not Fashion-MNIST's {name}; delete it and fetch it again")
    flat = np.frombuffer(data, np.uint8, offset=HEADERS[name.split("-")[1]])
    return flat.reshape(-1, SIDE, SIDE) if "images" in name else flat


def lay(config: Fashion, out: Path) -> None:
    """Save both parts as images (70000, 32, 32, 3) with a black border of two pixels; the test images are held out.

    Raises UserError if a file is not the official one, or has another number of images than declared.
    """
    read = {name: numbers(config, name) for name in CONTENTS}
    train, test = (read[f"{part}-labels-idx1-ubyte"] for part in ("train", "t10k"))
    demand_count("images", len(train), config.images)
    pixels = np.zeros((len(train) + len(test), config.resolution, config.resolution, 3), np.uint8)
    inside = slice(BORDER, BORDER + SIDE)
    pixels[: len(train), inside, inside] = read["train-images-idx3-ubyte"][..., None]
    pixels[len(train) :, inside, inside] = read["t10k-images-idx3-ubyte"][..., None]
    labels = np.concatenate([train, test]).astype(np.int64)
    Images(pixels, labels, np.arange(len(labels)) >= len(train), CLASSES).save(out)
    say(f"fetch: {len(train)} images, {len(test)} held out; Fashion-MNIST, MIT licence")
