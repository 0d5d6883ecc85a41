"""Step `encode`: encodes images to the moments of their latents, or converts published moments."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskdit.artifacts.arrays import Array, read_array
from maskdit.artifacts.atomic import read_json, save_array, sha256, write_json
from maskdit.artifacts.shards import Shards
from maskdit.config.base import UserError
from maskdit.config.latents import Encode
from maskdit.images.dataset import Images
from maskdit.latents.autoencoder import factors, geometry, identity, load, to_unit
from maskdit.latents.dataset import HELDOUT, Space
from maskdit.latents.published import READERS
from maskdit.model.diffusion import SIGMA_DATA
from maskdit.runtime.device import device
from maskdit.runtime.progress import progress, say

Shape = tuple[int, int, int, int]  # of the moments of one image: mirrors, 2 C, H, W
Batch = tuple[Array, Array]  # moments (n, mirrors, 2 C, H, W) in float16, labels (n,)
Maker = Callable[[Array], Iterator[Batch]]  # makes the moments of images, given by their indices
CONVERTED = 1024  # moments converted at once


def encode(config: Encode, *, images: Path, vae: Path, out: Path) -> None:
    """Encode the training images, and their mirrored images if set, to posterior moments (N, mirrors, 2 C, H, W) in float16.

    Any number of processes can make the shards, which are the files of the artifact. The index has the class names, the hashes of
    the VAE and of each file, and shift and scale per channel: as published with the VAE, or such that latents have mean 0 and
    standard deviation 0.5. Moments of held-out images, which no training learns from, are in files of their own.
    Raises UserError for moments that do not fit float16, and if the disk has no room for all of them.
    """
    index = read_json(images / "index.json", "kind", "classes")
    rows, shape, make = (converted if index["kind"] == "latents" else encoded)(config, images, vae)
    if config.shards > len(rows):
        raise UserError(f"encode.shards: {config.shards} shards for {len(rows)} images; lower it")
    pieces = np.array_split(rows, config.shards)
    names = [f"part-{number:04d}" for number in range(config.shards)]
    work = Shards("encode", [config.model_dump(), sha256(images / "manifest.json"), identity(vae)], names, out)
    work.demand_room(2 * len(rows) * math.prod(shape))
    if not work.fill(lambda number, folder: store(folder, pieces[number], make(pieces[number]))):
        return
    files = []
    for name, piece in zip(names, pieces, strict=True):
        file = f"{name.replace('part', 'moments')}.npy"
        work.give(f"{name}/moments.npy", out / file)
        files.append({"file": file, "count": len(piece), "sha256": work.checksums(name)["moments.npy"]})
    save_array(out / "labels.npy", np.concatenate([read_array(work.home / name / "labels.npy") for name in names]))
    shift, scale = factors(vae) or fitted([read_json(work.home / name / "facts.json") for name in names])
    space = Space(shape[1] // 2, shape[2], tuple(shift), tuple(scale), identity(vae), tuple(index["classes"]))
    whole = [len(rows), *shape]
    write_json(out / "index.json", {"shape": whole, "dtype": "float16", "space": space.__dict__, "shards": files})
    unseen = Images.load(images).rows(heldout=True) if config.heldout and index["kind"] != "latents" else rows[:0]
    if len(unseen):
        spread = np.linspace(0, len(unseen) - 1, min(config.heldout, len(unseen))).round().astype(int)
        moments, labels = map(np.concatenate, zip(*make(unseen[spread]), strict=True))
        save_array(out / HELDOUT[0], moments[:, :1])
        save_array(out / HELDOUT[1], labels)
    work.forget()
    say(f"encode: {len(rows)} images, moments {shape} float16, {2 * math.prod(whole) / 2**20:.1f} MiB")


def store(folder: Path, rows: Array, made: Iterator[Batch]) -> None:
    """Write a part batch by batch: moments, labels, and facts: sums for shift and scale."""
    folder.mkdir()
    labels: list[Array] = []
    found: list[dict[str, Any]] = []
    with (folder / "moments.npy").open("wb") as stream:
        for moments, known in made:
            if wrong := np.flatnonzero(~np.isfinite(moments).reshape(len(moments), -1).all(1)).tolist():
                number = rows[sum(map(len, labels)) + wrong[0]]
                raise UserError(f"encode: the moments of image {number} do not fit float16; check the image and the VAE")
            if not labels:
                shape = (len(rows), *moments.shape[1:])
                np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
            stream.write(np.ascontiguousarray(moments, "<f2").data)
            labels.append(known)
            found.append(sums(moments))
    save_array(folder / "labels.npy", np.concatenate(labels))
    totals = {name: np.asarray(sum(batch[name] for batch in found)).tolist() for name in found[0]}
    write_json(folder / "facts.json", totals)


def sums(moments: Array) -> dict[str, Any]:
    """Float64 sums per channel for `fitted`: of the mean, its square and the variance, and how many numbers were summed."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=2)
    axes = (0, 1, 3, 4)
    variance = np.exp(np.clip(logvar, -30, 20)).sum(axes)
    return {"numbers": mean[:, :, 0].size, "mean": mean.sum(axes), "square": np.square(mean).sum(axes), "variance": variance}


def fitted(facts: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Shift and scale per channel such that samples of the posteriors have mean 0 and standard deviation 0.5."""
    names = ("numbers", "mean", "square", "variance")
    numbers, mean, square, variance = (np.array([part[name] for part in facts]).sum(0) for name in names)
    spread = square / numbers - np.square(mean / numbers) + variance / numbers
    return (mean / numbers).tolist(), (SIGMA_DATA / np.sqrt(spread)).tolist()


def encoded(config: Encode, images: Path, vae: Path) -> tuple[Array, Shape, Maker]:
    """Indices of the training images, the shape of one's moments, and a function that encodes some of them.

    A thread reads the next batch meanwhile. Batches are padded to one size: moments do not depend on how images are split.
    """
    data = Images.load(images)
    where = device()
    net = load(vae, where)
    gpu = where.type == "cuda"
    net.to(memory_format=torch.channels_last if gpu else torch.contiguous_format)

    def make(rows: Array) -> Iterator[Batch]:
        batches = [rows[at : at + config.batch] for at in range(0, len(rows), config.batch)]

        def read(number: int) -> torch.Tensor:
            pixels = data.pixels[batches[number]]
            whole = torch.from_numpy(pixels[np.resize(np.arange(len(pixels)), config.batch)])
            return whole.pin_memory() if gpu else whole

        with ThreadPoolExecutor(1) as pool, torch.inference_mode():
            coming = pool.submit(read, 0)
            for number in progress(range(len(batches)), "encode", len(batches), unit="batches"):
                pixels = coming.result()
                if number + 1 < len(batches):
                    coming = pool.submit(read, number + 1)
                clean = to_unit(pixels.to(where, non_blocking=True))
                views = (clean, clean.flip(-1)) if config.mirror else (clean,)
                found = [net.encode(view).latent_dist.parameters.half().cpu() for view in views]
                mine = batches[number]
                yield torch.stack(found, dim=1).numpy()[: len(mine)], data.labels[mine]

    factor, channels = geometry(vae)
    side = data.pixels.shape[1] // factor
    return data.rows(heldout=False), (1 + config.mirror, 2 * channels, side, side), make


def converted(config: Encode, images: Path, vae: Path) -> tuple[Array, Shape, Maker]:
    """The same for published moments. If there are twice as many as images, the second half is of the mirrored images."""
    index = read_json(images / "index.json", "resolution", "images", "classes", "root", "format")
    factor, channels = geometry(vae)
    side, count, classes = index["resolution"] // factor, index["images"], len(index["classes"])
    root = Path(index["root"])
    reader = READERS[index["format"]](root, (2 * channels, side, side))
    if reader.count not in (count, 2 * count):
        raise UserError(f"{root}: holds {reader.count} latents, params.yaml declares {count} images; correct it")
    if config.mirror and reader.count == count:
        raise UserError(f"encode.mirror: {root} has no mirrored latents; set it to false")
    views = (0, count) if config.mirror else (0,)

    def make(rows: Array) -> Iterator[Batch]:
        for start in range(0, len(rows), CONVERTED):
            mine = rows[start : start + CONVERTED]
            found = [reader.read(mine + offset) for offset in views]
            labels = found[0][1]
            if any(not np.array_equal(labels, other) for _, other in found):
                raise UserError(
                    f"{root}: the classes of the two halves differ, so these are no mirrors; set encode.mirror to false"
                )
            if labels.min() < 0 or labels.max() >= classes:
                raise UserError(f"{root}: has classes {labels.min()} to {labels.max()}, params.yaml declares {classes}; correct it")
            with np.errstate(over="ignore"):  # `store` refuses infinite numbers
                yield np.stack([moments.astype(np.float16) for moments, _ in found], axis=1), labels

    return np.arange(count), (len(views), 2 * channels, side, side), make
