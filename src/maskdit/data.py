"""The formats of images and latents on disk, the seeded order in which training visits them, and its batches."""

import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskdit.arrays import DAMAGE, array_header, read_array
from maskdit.config import Training, UserError
from maskdit.diffusion import Draw
from maskdit.files import read_json, save_array, write_json
from maskdit.latents import Latents
from maskdit.store import Encoded, Found, header_length

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
    """Labelled images: pixels (N, H, W, 3) uint8, labels (N,) int64, class names; heldout marks the validation split.

    pixels is an array, or what reads each image where it lies when it is indexed, by a number, a slice or an array of numbers.
    """

    pixels: Any
    labels: Array
    heldout: Array
    classes: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write images.npy, labels.npy, heldout.npy and index.json into a folder."""
        save_array(folder / "images.npy", self.pixels)
        save_array(folder / "labels.npy", self.labels)
        save_array(folder / "heldout.npy", self.heldout)
        write_json(folder / "index.json", {"kind": "array", "classes": self.classes, "shape": self.pixels.shape})

    @classmethod
    def load(cls, folder: Path) -> "Images":
        """Read what `fetch` made; pixels stay on the disk until they are asked for. Raises UserError if it is not images."""
        index = read_json(folder / "index.json", "kind")
        shape = tuple(index.get("shape", ()))
        match index["kind"]:
            case "array":
                pixels: Any = read_array(folder / "images.npy", mapped=True)
            case "store":
                pixels = Encoded(Found.load(folder), shape[1])
            case "npz":
                pixels = npz_images(folder / "batch.npz")
                return cls(pixels, np.full(len(pixels), -1), np.zeros(len(pixels), bool), ())
            case other:
                raise UserError(f"{folder}: holds {other}, not images; name an entry of fetch with images")
        if tuple(pixels.shape) != shape:
            raise UserError(f"{folder}: holds images {pixels.shape}, its index says {shape}; fetch again")
        labels, heldout = read_array(folder / "labels.npy"), read_array(folder / "heldout.npy")
        return cls(pixels, labels, heldout, tuple(read_json(folder / "index.json", "classes")["classes"]))

    def rows(self, heldout: bool) -> Array:
        """Numbers of the images of one split, ascending."""
        return np.flatnonzero(self.heldout == heldout)


def _npz_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int, bool]:
    """Shape and type of arr_0, where its numbers begin in the file, and whether they lie there as they are."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            member = archive.getinfo("arr_0.npy")
            with archive.open(member) as stream:
                shape, fortran, kind = array_header(stream)
                long = stream.tell()
            file.seek(member.header_offset)
            start = member.header_offset + header_length(file.read(30)) + long
            return shape, kind, start, member.compress_type == zipfile.ZIP_STORED and not fortran
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: no batch of images as ADM's evaluator stores it ({error}); get it again") from None


def npz_shape(path: Path) -> tuple[int, ...]:
    """Shape of the images of an npz, which are not read; raises UserError if they are not uint8 (N, H, W, 3)."""
    shape, kind, _, _ = _npz_header(path)
    if kind != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"{path}: arr_0 is {kind} {shape}, not uint8 (N, H, W, 3)")
    return shape


def npz_images(path: Path) -> Array:
    """arr_0 of an npz, memory-mapped if it is stored as it is."""
    shape = npz_shape(path)
    _, kind, start, plain = _npz_header(path)
    try:
        if plain:
            return np.memmap(path, kind, "r", start, shape)
        with np.load(path, allow_pickle=False) as stored:
            return stored["arr_0"]
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: arr_0 cannot be read ({error}); get it again") from None


@dataclass(frozen=True)
class Batch:
    """Clean latents, labels, and everything random that one step does with them."""

    clean: Tensor  # B, C, H, W
    labels: Tensor  # B
    draw: Draw

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Batch":
        """The samples from `start` to `stop`."""
        return self._each(lambda tensor: tensor[start:stop])

    def to(self, where: torch.device) -> "Batch":
        """The batch on a device; to a GPU without waiting for the copy."""
        if where.type == "cpu":
            return self

        def put(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(where, non_blocking=True)

        return self._each(put)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        parts = {field.name: getattr(self.draw, field.name) for field in fields(Draw)}
        draw = {name: change(part) for name, part in parts.items() if part is not None}
        return Batch(change(self.clean), change(self.labels), Draw(**draw))


def batch_at(step: int, config: Training, latents: Latents, patches: int, rank: int = 0, world: int = 1) -> Batch:
    """A rank's share of a step's global batch.

    Each sample, its noise, mask, mirror and dropped label are a function of (seed, step, place in the global batch) alone:
    whatever ran before, and however many ranks share the batch.
    """
    share = config.batch // world
    first = step * config.batch + rank * share
    rows = order(config.seed, len(latents.labels), first, first + share)
    shape = (latents.space.channels, latents.space.side, latents.space.side)
    posterior, noise = np.empty((2, share, *shape), np.float32)
    uniform = np.empty((share, patches + 2), np.float32)  # mask scores, label drop, mirror
    normal = np.empty(share, np.float32)
    for place in range(share):
        source = generator(config.seed, "step", step, rank * share + place)
        normal[place] = source.standard_normal(dtype=np.float32)
        source.standard_normal(dtype=np.float32, out=posterior[place])
        source.standard_normal(dtype=np.float32, out=noise[place])
        source.random(dtype=np.float32, out=uniform[place])
    mirrors = (uniform[:, -1] * latents.mirrors).astype(int)
    clean = latents.draw(rows, mirrors, posterior)
    parts = [normal, noise, uniform[:, :patches].copy(), uniform[:, patches].copy()]
    if config.route:  # by draws of its own: noise and dropped labels are those of a training that routes nothing
        sources = (generator(config.seed, "route", step, rank * share + place) for place in range(share))
        parts.append(np.stack([source.random(patches, dtype=np.float32) for source in sources]))
    draw = Draw(*map(torch.from_numpy, parts))
    return Batch(torch.from_numpy(clean), torch.from_numpy(latents.labels[rows]), draw)


def ahead(make: Callable[[int], Batch], start: int, stop: int) -> Iterator[tuple[Batch, float]]:
    """The batches of the steps from `start` to `stop`, each made while the one before is used, and the seconds waited for it."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, start)
        for step in range(start, stop):
            began = time.perf_counter()
            batch = coming.result()
            waited = time.perf_counter() - began
            if step + 1 < stop:
                coming = pool.submit(make, step + 1)
            yield batch, waited
