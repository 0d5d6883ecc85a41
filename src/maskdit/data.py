"""The formats of images and latents on disk, and the seeded order in which training visits them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.config import UserError
from maskdit.files import read_json, save_array, write_json

Array = NDArray[Any]


def generator(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """A random generator that is a function of (seed, purpose, step, index) alone: Philox, keyed and counted by them."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, index]))


def order(seed: int, count: int, start: int, stop: int) -> Array:
    """Numbers of the samples visited from position `start` to `stop`: each pass goes through all in a new permutation."""
    passes = range(start // count, (stop - 1) // count + 1)
    whole = np.concatenate([generator(seed, "order", epoch).permutation(count) for epoch in passes])
    return whole[start - passes[0] * count : stop - passes[0] * count]


@dataclass(frozen=True)
class Images:
    """Labelled images: pixels (N, H, W, 3) uint8, labels (N,) int64, class names; heldout marks the validation split."""

    pixels: Array
    labels: Array
    heldout: Array
    classes: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write images.npy, labels.npy, heldout.npy and index.json into a folder."""
        save_array(folder / "images.npy", self.pixels)
        save_array(folder / "labels.npy", self.labels)
        save_array(folder / "heldout.npy", self.heldout)
        write_json(folder / "index.json", {"classes": self.classes, "shape": self.pixels.shape})

    @classmethod
    def load(cls, folder: Path) -> "Images":
        """Read a folder written by `save`; pixels are memory-mapped."""
        classes = tuple(read_json(folder / "index.json")["classes"])
        pixels = np.load(folder / "images.npy", mmap_mode="r")
        return cls(pixels, np.load(folder / "labels.npy"), np.load(folder / "heldout.npy"), classes)

    def part(self, heldout: bool) -> tuple[Array, Array]:
        """Pixels and labels of one split."""
        rows = self.heldout == heldout
        return self.pixels[rows], self.labels[rows]


@dataclass(frozen=True)
class Space:
    """What a latent is: channels, side in positions, shift and scale per channel, and the hash of the VAE that decodes it.

    A network sees (latent - shift) * scale.
    """

    channels: int
    side: int
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    vae: str
    classes: tuple[str, ...]

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> "Space":
        """From its JSON form."""
        lists = {name: tuple(tree[name]) for name in ("shift", "scale", "classes")}
        return cls(channels=tree["channels"], side=tree["side"], vae=tree["vae"], **lists)

    def factors(self) -> tuple[Array, Array]:
        """Shift and scale as float32 arrays that broadcast over (B, C, H, W)."""
        shape = (1, self.channels, 1, 1)
        return np.array(self.shift, np.float32).reshape(shape), np.array(self.scale, np.float32).reshape(shape)


@dataclass(frozen=True)
class Latents:
    """Posterior moments of a data set: (N, mirrors, 2 C, H, W) float16, mean then log variance; labels (N,)."""

    moments: Array
    labels: Array
    space: Space
    sha256: str

    @classmethod
    def load(cls, folder: Path) -> "Latents":
        """Read a folder written by the encode step; moments are memory-mapped.

        Raises UserError if the array's shape is not what the index says.
        """
        index = read_json(folder / "index.json")
        moments = np.load(folder / "moments.npy", mmap_mode="r")
        if list(moments.shape) != index["shape"]:
            raise UserError(f"{folder}: moments.npy has shape {moments.shape}, its index says {index['shape']}; encode it again")
        identity = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
        return cls(moments, np.load(folder / "labels.npy"), Space.parse(index["space"]), identity)

    def draw(self, rows: Array, mirrors: Array, normal: Array) -> Array:
        """Latents z = (mean + std * normal - shift) * scale, float32 (B, C, H, W), read in one indexed access."""
        shift, scale = self.space.factors()
        mean, logvar = np.split(self.moments[rows, mirrors].astype(np.float32), 2, axis=1)
        return (mean + np.exp(0.5 * np.clip(logvar, -30, 20)) * normal - shift) * scale
