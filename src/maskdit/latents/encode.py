"""Images to latent moments."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskdit.artifacts.arrays import Array, read_array
from maskdit.artifacts.atomic import read_json, save_array, sha256, write_json
from maskdit.artifacts.shards import Shards, place
from maskdit.config.base import UserError
from maskdit.config.latents import Encode
from maskdit.images.dataset import Images
from maskdit.latents.autoencoder import factors, geometry, identity, load, to_unit
from maskdit.latents.dataset import Space
from maskdit.latents.published import READERS
from maskdit.model.diffusion import SIGMA_DATA
from maskdit.runtime.device import device
from maskdit.runtime.progress import progress, say

Batch = tuple[Array, Array]  # moments (n, mirrors, 2 C, H, W) in float16, labels (n,)
Maker = Callable[[Array], Iterator[Batch]]  # makes the moments of the images of some numbers
CONVERTED = 1024  # published latents read at once
FILE = 2**36  # bytes of moments in one file


def encode(config: Encode, *, images: Path, vae: Path, out: Path) -> None:
    """Encode the training images, and their mirror images if asked, to posterior moments (N, mirrors, 2 C, H, W) in float16.

    In shards by the image's number, that any number of processes make, a batch at a time; the one that takes them together checks
    that each image is there once. The index holds shift and scale per channel, those that are published with the VAE or else such
    that latents have mean 0 and standard deviation 0.5; the class names, the hash of the VAE and of each shard. Published moments
    are converted. Raises UserError for moments that are no float16 numbers, and for a shard that is damaged.
    """
    index = read_json(images / "index.json", "kind", "classes")
    rows, make = (converted if index["kind"] == "latents" else encoded)(config, images, vae)
    if config.shards > len(rows):
        raise UserError(f"encode.shards: {config.shards} shards of {len(rows)} images; lower it")
    parts = np.array_split(rows, config.shards)
    names = [f"part-{number:04d}" for number in range(config.shards)]
    work = Shards("encode", [config.model_dump(), sha256(images / "manifest.json"), identity(vae)], names)
    if not work.fill(lambda number, folder: store(folder, parts[number], make(parts[number]))):
        return
    facts = [checked(work.home / name, part) for name, part in zip(names, parts, strict=True)]
    listed = [joined(work.home, group, out / f"moments-{number:04d}.npy") for number, group in enumerate(grouped(names, facts))]
    save_array(out / "labels.npy", np.concatenate([read_array(work.home / name / "labels.npy") for name in names]))
    shape = [len(rows), *facts[0]["shape"][1:]]
    shift, scale = factors(vae) or fitted(facts)
    space = Space(shape[2] // 2, shape[3], tuple(shift), tuple(scale), identity(vae), tuple(index["classes"]))
    write_json(out / "index.json", {"shape": shape, "dtype": "float16", "space": space.__dict__, "shards": listed})
    work.forget()
    say(f"encode: {shape[0]} images, moments {tuple(shape[1:])} float16, {2 * np.prod(shape) / 2**20:.1f} MiB")


def store(folder: Path, rows: Array, made: Iterator[Batch]) -> None:
    """Write a part as it is made: moments, labels, the images' numbers, and facts: hashes, and sums for shift and scale."""
    folder.mkdir()
    labels: list[Array] = []
    total: dict[str, Any] = {"numbers": 0, "mean": 0.0, "square": 0.0, "variance": 0.0}
    with (folder / "moments.npy").open("wb") as stream:
        for moments, known in made:
            if wrong := np.flatnonzero(~np.isfinite(moments).reshape(len(moments), -1).all(1)).tolist():
                number = rows[sum(map(len, labels)) + wrong[0]]
                raise UserError(f"encode: the moments of image {number} are no float16 numbers; look at the image and at the VAE")
            if not labels:
                shape = (len(rows), *moments.shape[1:])
                np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
            stream.write(np.ascontiguousarray(moments, "<f2").data)
            labels.append(known)
            for name, value in sums(moments).items():
                total[name] = total[name] + value
    save_array(folder / "labels.npy", np.concatenate(labels))
    save_array(folder / "rows.npy", rows)
    hashes = {name: sha256(folder / name) for name in ("moments.npy", "labels.npy", "rows.npy")}
    write_json(
        folder / "facts.json", {"shape": shape, "sha256": hashes, **{name: np.asarray(total[name]).tolist() for name in total}}
    )


Named = list[tuple[str, dict[str, Any]]]  # parts and their facts


def grouped(names: list[str], facts: list[dict[str, Any]]) -> list[Named]:
    """Parts that share a file, in order: a batch is read at random several times faster from one file than from many."""
    groups: list[Named] = []
    room = 0
    for name, known in zip(names, facts, strict=True):
        size = 2 * int(np.prod(known["shape"]))
        if size > room:
            groups.append([])
            room = FILE
        groups[-1].append((name, known))
        room -= size
    return groups


def joined(home: Path, group: Named, out: Path) -> dict[str, Any]:
    """Put the moments of some parts into one file, and describe it; a part alone is not copied."""
    shape = (sum(known["shape"][0] for _, known in group), *group[0][1]["shape"][1:])
    if len(group) == 1:
        place(home / group[0][0] / "moments.npy", out)
        return {"file": out.name, "count": shape[0], "sha256": group[0][1]["sha256"]["moments.npy"]}
    with out.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for number in progress(range(len(group)), "join", len(group)):
            part = read_array(home / group[number][0] / "moments.npy", mapped=True)
            for at in range(0, len(part), CONVERTED):
                stream.write(np.ascontiguousarray(part[at : at + CONVERTED]).data)
    return {"file": out.name, "count": shape[0], "sha256": sha256(out)}


def sums(moments: Array) -> dict[str, Any]:
    """What shift and scale need, per channel, in float64: numbers, sum and sum of squares of the mean, sum of the variance."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=2)
    axes = (0, 1, 3, 4)
    variance = np.exp(np.clip(logvar, -30, 20)).sum(axes)
    return {"numbers": mean[:, :, 0].size, "mean": mean.sum(axes), "square": np.square(mean).sum(axes), "variance": variance}


def checked(folder: Path, rows: Array) -> dict[str, Any]:
    """The facts of a part; raises UserError, naming it, if it is damaged or does not hold each of its images once."""
    facts: dict[str, Any] = read_json(folder / "facts.json", "shape", "sha256")
    for name, wanted in facts["sha256"].items():
        if not (folder / name).is_file() or sha256(folder / name) != wanted:
            raise UserError(f"{folder / name}: damaged (sha256 differs); remove {folder} and encode again")
    found, labels = read_array(folder / "rows.npy"), read_array(folder / "labels.npy")
    whole = read_array(folder / "moments.npy", mapped=True).shape == tuple(facts["shape"])
    if not (whole and np.array_equal(found, rows) and len(labels) == facts["shape"][0] == len(rows)):
        raise UserError(f"{folder}: does not hold each of its {len(rows)} images once; remove it and encode again")
    return facts


def fitted(facts: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Shift and scale per channel that give samples from the posteriors mean 0 and standard deviation 0.5."""
    names = ("numbers", "mean", "square", "variance")
    numbers, mean, square, variance = (np.array([part[name] for part in facts]).sum(0) for name in names)
    spread = square / numbers - np.square(mean / numbers) + variance / numbers
    return (mean / numbers).tolist(), (SIGMA_DATA / np.sqrt(spread)).tolist()


def encoded(config: Encode, images: Path, vae: Path) -> tuple[Array, Maker]:
    """Numbers of the training images, and what encodes some of them; a thread reads the next batch meanwhile.

    Batches are filled up to one size, so that the moments of an image do not depend on how the work is cut.
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
            for number in progress(range(len(batches)), "encode", len(batches)):
                pixels = coming.result()
                if number + 1 < len(batches):
                    coming = pool.submit(read, number + 1)
                clean = to_unit(pixels.to(where, non_blocking=True))
                views = (clean, clean.flip(-1)) if config.mirror else (clean,)
                found = [net.encode(view).latent_dist.parameters.half().cpu() for view in views]
                mine = batches[number]
                yield torch.stack(found, dim=1).numpy()[: len(mine)], data.labels[mine]

    return data.rows(heldout=False), make


def converted(config: Encode, images: Path, vae: Path) -> tuple[Array, Maker]:
    """The same of moments that others have encoded; if there are twice as many as images, the second half is their mirrors."""
    index = read_json(images / "index.json", "resolution", "images", "classes", "root", "format")
    factor, channels = geometry(vae)
    side, count, classes = index["resolution"] // factor, index["images"], len(index["classes"])
    root = Path(index["root"])
    reader = READERS[index["format"]](root, (2 * channels, side, side))
    if reader.count not in (count, 2 * count):
        raise UserError(f"{root}: holds {reader.count} latents, params.yaml declares {count} images; correct it")
    if config.mirror and reader.count == count:
        raise UserError(f"encode.mirror: {root} holds no mirrors; set it to false")
    views = (0, count) if config.mirror else (0,)

    def make(rows: Array) -> Iterator[Batch]:
        for start in range(0, len(rows), CONVERTED):
            mine = rows[start : start + CONVERTED]
            found = [reader.read(mine + offset) for offset in views]
            labels = found[0][1]
            if any(not np.array_equal(labels, other) for _, other in found):
                raise UserError(f"{root}: the second half are no mirrors, their classes differ; set encode.mirror to false")
            if labels.min() < 0 or labels.max() >= classes:
                raise UserError(f"{root}: has classes {labels.min()} to {labels.max()}, params.yaml declares {classes}; correct it")
            with np.errstate(over="ignore"):  # what is no float16 is refused where it is stored
                yield np.stack([moments.astype(np.float16) for moments, _ in found], axis=1), labels

    return np.arange(count), make
