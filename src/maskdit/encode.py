"""Images to latent moments."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from maskdit.autoencoder import factors, identity, load, to_unit
from maskdit.config import Encode, UserError
from maskdit.data import Array, Images
from maskdit.diffusion import SIGMA_DATA
from maskdit.files import read_json, save_array, sha256, write_json
from maskdit.latents import Space
from maskdit.published_latents import READERS
from maskdit.runtime import device, progress, say
from maskdit.shards import Shards, place

Part = tuple[Array, Array]  # moments (n, mirrors, 2 C, H, W) in float16, labels (n,)


def encode(config: Encode, *, images: Path, vae: Path, out: Path) -> None:
    """Encode the training images, and their mirror images if asked, to posterior moments (N, mirrors, 2 C, H, W) in float16.

    In shards by the image's number, that any number of processes make; the one that takes them together checks that each image is
    there once. The index holds shift and scale per channel, those that are published with the VAE or else such that latents have
    mean 0 and standard deviation 0.5; the class names, the hash of the VAE and of each shard. Published moments are converted.
    """
    index = read_json(images / "index.json")
    rows, classes, make = (converted if index["kind"] == "latents" else encoded)(config, index, images, vae)
    parts = np.array_split(rows, config.shards)
    names = [f"part-{number:04d}" for number in range(config.shards)]
    work = Shards("encode", [config.model_dump(), sha256(images / "manifest.json"), identity(vae)], names)

    def shard(number: int, folder: Path) -> None:
        made = list(make(parts[number]))
        moments, labels = (np.concatenate(column) for column in zip(*made, strict=True))
        folder.mkdir()
        save_array(folder / "moments.npy", moments)
        save_array(folder / "labels.npy", labels)
        save_array(folder / "rows.npy", parts[number])
        write_json(folder / "facts.json", {**sums(moments), "count": len(moments), "sha256": sha256(folder / "moments.npy")})

    if not work.fill(shard):
        return
    facts = [read_json(work.home / name / "facts.json") for name in names]
    seen = np.concatenate([np.load(work.home / name / "rows.npy") for name in names])
    if not np.array_equal(np.sort(seen), rows):
        raise UserError(f"{work.home}: holds {len(seen)} images of {len(rows)}, or one twice; remove the folder and encode again")
    listed = []
    for number, (name, known) in enumerate(zip(names, facts, strict=True)):
        file = f"moments-{number:04d}.npy"
        place(work.home / name / "moments.npy", out / file)
        listed.append({"file": file, "count": known["count"], "sha256": known["sha256"]})
    save_array(out / "labels.npy", np.concatenate([np.load(work.home / name / "labels.npy") for name in names]))
    shape = np.load(out / "moments-0000.npy", mmap_mode="r").shape
    shift, scale = factors(vae) or fitted(facts)
    space = Space(shape[2] // 2, shape[3], tuple(shift), tuple(scale), identity(vae), classes)
    write_json(
        out / "index.json", {"shape": [len(seen), *shape[1:]], "dtype": "float16", "space": space.__dict__, "shards": listed}
    )
    work.forget()
    say(f"encode: {len(seen)} images, moments {shape[1:]} float16, {2 * len(seen) * int(np.prod(shape[1:])) / 2**20:.1f} MiB")


def sums(moments: Array) -> dict[str, list[float]]:
    """What shift and scale need of a part, per channel: numbers, sum and sum of squares of the mean, sum of the variance."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=2)
    axes = (0, 1, 3, 4)
    numbers = mean.size // mean.shape[2]
    first, second = mean.sum(axes), np.square(mean).sum(axes)
    return {
        "numbers": [numbers] * mean.shape[2],
        "mean": first.tolist(),
        "square": second.tolist(),
        "variance": np.exp(np.clip(logvar, -30, 20)).sum(axes).tolist(),
    }


def fitted(facts: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Shift and scale per channel that give samples from the posteriors mean 0 and standard deviation 0.5."""
    names = ("numbers", "mean", "square", "variance")
    numbers, mean, square, variance = (np.array([part[name] for part in facts]).sum(0) for name in names)
    spread = square / numbers - np.square(mean / numbers) + variance / numbers
    return (mean / numbers).tolist(), (SIGMA_DATA / np.sqrt(spread)).tolist()


Maker = Callable[[Array], Iterator[Part]]


def encoded(config: Encode, index: dict[str, Any], images: Path, vae: Path) -> tuple[Array, tuple[str, ...], Maker]:
    """Training rows, classes, and what encodes some of them: images are decoded in a thread while the one before is encoded."""
    data = Images.load(images)
    where = device()
    net: AutoencoderKL | None = None

    def make(rows: Array) -> Iterator[Part]:
        nonlocal net
        net = net or load(vae, where)
        starts = range(0, len(rows), config.batch)

        def read(number: int) -> torch.Tensor:
            chosen = np.resize(rows[starts[number] : starts[number] + config.batch], config.batch)  # one size: the same sums
            return torch.from_numpy(np.ascontiguousarray(data.pixels[chosen]))

        with ThreadPoolExecutor(1) as pool, torch.inference_mode():
            coming = pool.submit(read, 0)
            for number in progress(range(len(starts)), "encode", len(starts)):
                pixels = coming.result()
                if number + 1 < len(starts):
                    coming = pool.submit(read, number + 1)
                clean = to_unit(pixels.to(where, non_blocking=True))
                views = (clean, clean.flip(-1)) if config.mirror else (clean,)
                found = [net.encode(view).latent_dist.parameters.half().cpu() for view in views]
                labels = data.labels[rows[starts[number] : starts[number] + config.batch]]
                yield torch.stack(found, dim=1)[: len(labels)].numpy(), labels

    return data.rows(heldout=False), data.classes, make


def converted(config: Encode, index: dict[str, Any], images: Path, vae: Path) -> tuple[Array, tuple[str, ...], Maker]:
    """The same of moments that others have encoded; they have no mirrors."""
    if config.mirror:
        raise UserError("encode.mirror: published latents hold no mirrors; set it to false")
    side = index["resolution"] // 8
    reader = READERS[index["format"]](Path(index["root"]), (8, side, side))
    if reader.count != index["images"]:
        raise UserError(f"{index['root']}: holds {reader.count} latents, params.yaml declares {index['images']}; correct it")

    def make(rows: Array) -> Iterator[Part]:
        for start in range(0, len(rows), 1024):
            moments, labels = reader.read(rows[start : start + 1024])
            yield moments.astype(np.float16)[:, None], labels

    return np.arange(reader.count), tuple(index["classes"]), make
