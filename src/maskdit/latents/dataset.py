"""Latents on disk: posterior moments in memory-mapped shards, read at random a whole batch at a time."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array, read_array
from maskdit.artifacts.atomic import read_json
from maskdit.config.base import UserError

PIECE = 64  # samples copied at once: what lies between memory and a batch stays in the cache


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
    """Posterior moments of a data set, (N, mirrors, 2 C, H, W) float16 in shards, mean then log variance; labels (N,)."""

    shards: tuple[Array, ...]  # (n * mirrors,) each: the moments of one image or mirror image are one element
    bounds: Array  # number of the first sample of each shard, and of them all
    shape: tuple[int, ...]  # N, mirrors, 2 C, H, W
    labels: Array
    space: Space
    sha256: str

    @classmethod
    def of(cls, moments: Sequence[Array], labels: Array, space: Space, sha256: str = "") -> "Latents":
        """From the moments (n, mirrors, 2 C, H, W) of each shard."""
        shape = moments[0].shape[1:]
        whole = np.dtype((np.void, 2 * math.prod(shape[1:])))
        shards = tuple(np.asarray(part).reshape(-1).view(whole) for part in moments)
        return cls(shards, np.cumsum([0, *map(len, moments)]), (len(labels), *shape), labels, space, sha256)

    @classmethod
    def load(cls, folder: Path) -> "Latents":
        """Read a folder written by the encode step; shards are memory-mapped.

        Raises UserError if a shard is missing, cut, or not of the shape that the index says.
        """
        index = read_json(folder / "index.json", "space", "shape", "shards")
        try:
            space, shape = Space.parse(index["space"]), tuple(index["shape"])
            listed = [(folder / known["file"], known["count"]) for known in index["shards"]]
        except (LookupError, TypeError):
            raise UserError(f"{folder / 'index.json'}: not the index of latents; encode it again") from None
        shards = []
        for path, count in listed:
            shards.append(read_array(path, mapped=True))
            if shards[-1].shape != (count, *shape[1:]) or shards[-1].dtype != np.float16:
                raise UserError(f"{path}: holds {shards[-1].dtype} {shards[-1].shape}, its index says otherwise; encode it again")
        labels = read_array(folder / "labels.npy")
        if not (count := sum(map(len, shards))) == len(labels) == shape[0]:
            raise UserError(f"{folder}: {count} moments and {len(labels)} labels of {shape[0]}; encode it again")
        identity = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
        return cls.of(shards, labels, space, identity)

    @property
    def mirrors(self) -> int:
        """1, or 2 if the moments of the mirrored images are there, too."""
        return self.shape[1]

    def read(self, rows: Array, mirrors: Array) -> Array:
        """Moments (B, 2 C, H, W) in float16: one indexed access to each shard that has some of them, or to each piece of them."""
        places = np.searchsorted(self.bounds, rows, side="right") - 1
        elements = (rows - self.bounds[places]) * self.mirrors + mirrors
        if len(self.shards) == 1:
            found = self.shards[0].take(elements)
        else:
            by = np.argsort(places, kind="stable")
            places, elements = places[by], elements[by]
            begins = np.diff(places, prepend=-1) != 0
            begins[::PIECE] = True
            starts = np.flatnonzero(begins)
            found = np.empty(len(rows), self.shards[0].dtype)
            for start, stop, place in zip(starts, [*starts[1:], len(rows)], places[starts], strict=True):
                found[by[start:stop]] = self.shards[place].take(elements[start:stop])
        return found.view(np.float16).reshape(len(rows), *self.shape[2:])

    def draw(self, rows: Array, mirrors: Array, normal: Array) -> Array:
        """Latents z = (mean + std * normal - shift) * scale, float32 (B, C, H, W)."""
        shift, scale = self.space.factors()
        mean, logvar = np.split(self.read(rows, mirrors).astype(np.float32), 2, axis=1)
        return (mean + np.exp(0.5 * np.clip(logvar, -30, 20)) * normal - shift) * scale
