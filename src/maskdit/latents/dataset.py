"""Latents on disk: posterior moments in memory-mapped shards, with random access to whole batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array, Stored, read_array
from maskdit.artifacts.atomic import digest, read_json
from maskdit.config.base import UserError

HELDOUT = ("heldout-moments.npy", "heldout-labels.npy")  # (N, 1, 2 C, H, W) float16, and (N,)
PIECE = 64  # samples copied at once, few enough for the CPU cache


@dataclass(frozen=True)
class Space:
    """Describes latents: channels, side in positions, shift and scale per channel, hash of the VAE, and class names.

    The network's input is (latent - shift) * scale.
    """

    channels: int
    side: int
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    vae: str
    classes: tuple[str, ...]

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> "Space":
        """Make a Space from its JSON form. Raises LookupError or TypeError for anything else."""
        shift, scale, classes = (tuple(tree[name]) for name in ("shift", "scale", "classes"))
        return cls(tree["channels"], tree["side"], shift, scale, tree["vae"], classes)

    def factors(self) -> tuple[Array, Array]:
        """Shift and scale as float32 arrays that broadcast over (B, C, H, W)."""
        shape = (1, self.channels, 1, 1)
        return np.array(self.shift, np.float32).reshape(shape), np.array(self.scale, np.float32).reshape(shape)


@dataclass(frozen=True)
class Latents:
    """Posterior moments of a dataset, (N, mirrors, 2 C, H, W) float16 in shards: mean, then log variance. Labels (N,)."""

    shards: tuple[Array | Stored, ...]  # (n * mirrors,) each; one element is all moments of one image or mirrored image
    bounds: Array  # index of the first sample of each shard, then the number of samples
    shape: tuple[int, ...]  # N, mirrors, 2 C, H, W
    labels: Array
    space: Space
    sha256: str
    heldout: "Latents | None" = None  # of held-out images, whose loss is measured

    @classmethod
    def of(
        cls, moments: Sequence[Array | Stored], labels: Array, space: Space, sha256: str = "", heldout: "Latents | None" = None
    ) -> "Latents":
        """Make Latents from the moments (n, mirrors, 2 C, H, W) of each shard."""
        shape = moments[0].shape[1:]
        whole = np.dtype((np.void, 2 * math.prod(shape[1:])))
        shards = tuple(
            part.elements(whole) if isinstance(part, Stored) else np.asarray(part).reshape(-1).view(whole) for part in moments
        )
        return cls(shards, np.cumsum([0, *map(len, moments)]), (len(labels), *shape), labels, space, sha256, heldout)

    @classmethod
    def load(cls, folder: Path) -> "Latents":
        """Read a folder written by the encode step; of its shards only what a batch needs is read.

        Raises UserError if a shard is missing, truncated, or has another shape than the index says.
        """
        index = read_json(folder / "index.json", "space", "shape", "shards")
        try:
            space, shape = Space.parse(index["space"]), tuple(index["shape"])
            listed = [(folder / known["file"], known["count"]) for known in index["shards"]]
        except (LookupError, TypeError):
            raise UserError(f"{folder / 'index.json'}: not an index of latents; run encode again") from None
        shards = [read_array(path, mapped=True) for path, _ in listed]
        for (path, count), shard in zip(listed, shards, strict=True):
            if shard.shape != (count, *shape[1:]) or shard.dtype != np.float16:
                raise UserError(f"{path}: holds {shard.dtype} {shard.shape}, but its index does not; run encode again")
        labels = read_array(folder / "labels.npy")
        if not (count := sum(map(len, shards))) == len(labels) == shape[0]:
            raise UserError(f"{folder}: {count} moments and {len(labels)} labels for {shape[0]} samples; run encode again")
        unseen = None
        if (folder / HELDOUT[0]).exists():
            few, theirs = (read_array(folder / name) for name in HELDOUT)
            if few.shape != (len(theirs), 1, *shape[2:]) or few.dtype != np.float16:
                raise UserError(f"{folder / HELDOUT[0]}: holds {few.dtype} {few.shape}, which does not fit; run encode again")
            unseen = cls.of([few], theirs, space)
        return cls.of(shards, labels, space, digest(index), unseen)

    @property
    def mirrors(self) -> int:
        """1, or 2 if the moments of mirrored images are stored, too."""
        return self.shape[1]

    def read(self, rows: Array, mirrors: Array) -> Array:
        """Moments (B, 2 C, H, W) in float16. Raises IndexError if a sample does not exist."""
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
