"""What is wrong with a folder of images, latents, weights, an evaluator's file, a training or this machine, and how to mend it."""

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.artifacts.atomic import read_json
from maskdit.artifacts.manifest import MANIFEST, inputs_of
from maskdit.config.base import UserError
from maskdit.images.dataset import Images, npz_shape
from maskdit.latents.dataset import Latents
from maskdit.runtime.device import native
from maskdit.runtime.random import generator

SEEN = 256  # samples that a check reads
SPREAD = (0.3, 1.6)  # of what a network sees: its standard deviation is 0.5 here, near 1 with the factor of SD's autoencoder
LOGGED = ("data_wait", "mfu", "skipped")
WAIT, BUSY = 0.05, 0.25  # share of time spent waiting for data, and MFU, from which on a training is bound by something else


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do, '' if it is well."""

    text: str
    mend: str = ""


def doctor(path: Path | None) -> bool:
    """`maskdit doctor [PATH]`: print what was found; whether all is well."""
    found = list(machine() if path is None else examine(path))
    for finding in found:
        print(f"{'problem' if finding.mend else 'ok'}: {finding.text}" + (f"\n  mend: {finding.mend}" if finding.mend else ""))
    return not any(finding.mend for finding in found)


def examine(path: Path) -> Iterator[Finding]:
    """What there is to say of a path, by what it holds; raises UserError if that is nothing that is known here."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir() and (path / MANIFEST).exists():
        found = list(artifact(path))
        yield from found
        if found[0].mend:
            return  # what is damaged tells nothing more
    names = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
    if "log.jsonl" in names:
        yield from training(path / "log.jsonl" if path.is_dir() else path)
    elif path.is_dir() and "index.json" in names:
        index = read_json(path / "index.json")
        if not isinstance(index, dict):
            raise UserError(f"{path / 'index.json'}: not the index of an artifact; rerun the step that makes it")
        if "space" in index:
            yield from latents(Latents.load(path))
        elif "classes" in index:
            yield from images(Images.load(path))
        else:
            yield Finding(f"{path}: {index.get('kind', 'an artifact')}")
    elif path.suffix == ".npz":
        yield from batch(path)
    elif path.suffix in (".pt", ".pth", ".safetensors") or "config.json" in names:
        yield from weights(path)
    elif path.suffix.lower() in (".tar", ".zip") or (path.is_dir() and MANIFEST not in names):
        yield from folder(path)
    elif MANIFEST not in names:
        raise UserError(f"{path}: not images, latents, weights, a reference batch or a run; nothing to examine")


def artifact(path: Path) -> Iterator[Finding]:
    """Whether every file of an artifact is there, whole, and made with today's params.yaml."""
    from maskdit.artifacts.manifest import lineage
    from maskdit.config.load import load

    try:
        found = inputs_of(path, largest=math.inf)
        yield Finding(f"{path}: all {len(found[0][1].files)} files are there and whole")
        if Path("params.yaml").exists():
            lineage(found, load())
            yield Finding(f"{path}: made with the numbers of today's params.yaml")
    except UserError as error:
        yield Finding(*re.split("[:;] (?=[^:;]*$)", str(error)))  # what to do stands last


def sampled(count: int) -> Array:
    """Numbers of at most SEEN samples, ascending, the same each time."""
    return np.sort(generator(0, "doctor").permutation(count)[:SEEN])


def labels(known: Array, classes: int) -> Iterator[Finding]:
    """Whether labels are of the classes, and each class has some."""
    outside = (known < 0) | (known >= classes)
    if outside.any():
        yield Finding(f"{outside.sum()} labels are outside 0 to {classes - 1}", "encode again from the images; labels count from 0")
        return
    counts = np.bincount(known, minlength=classes)
    if (counts == 0).any():
        yield Finding(f"{(counts == 0).sum()} of {classes} classes have no sample", "look for folders that were not copied")
    else:
        yield Finding(f"{classes} classes of {counts.min()} to {counts.max()} samples")


def images(data: Images) -> Iterator[Finding]:
    """Whether images can be read, and what their classes are."""
    rows = sampled(len(data.labels))
    pixels = data.pixels[rows]
    yield Finding(
        f"{len(data.labels)} images of {pixels.shape[1]} pixels, {int(data.heldout.sum())} held out; {len(rows)} of them read"
    )
    if (flat := pixels.reshape(len(rows), -1).std(1) == 0).any():
        yield Finding(f"{flat.sum()} of {len(rows)} images are of one colour", "look at them: a reader may have failed")
    yield from labels(data.labels[data.rows(heldout=False)], len(data.classes))
    if list(data.classes) != sorted(data.classes) and all(name.startswith("n0") or name.startswith("n1") for name in data.classes):
        yield Finding("classes are not in the order of their wnids", "fetch again: class numbers of published weights follow it")


def latents(data: Latents) -> Iterator[Finding]:
    """Whether latents are moments, have the scale that a network expects, and mirrors that are mirrored images."""
    rows = sampled(len(data.labels))
    moments = data.read(rows, np.zeros(len(rows), int)).astype(np.float32)
    yield from latent_values(moments, data.read(rows, np.ones(len(rows), int)).astype(np.float32) if data.mirrors == 2 else None)
    normal = generator(0, "doctor", 1).standard_normal((len(rows), *moments.shape[1:]), np.float32)
    yield scaled(data.draw(rows, np.zeros(len(rows), int), normal[:, : data.space.channels]))
    yield from labels(data.labels, len(data.space.classes))


def latent_values(moments: Array, mirrored: Array | None) -> Iterator[Finding]:
    """Of moments (n, 2 C, H, W): finite, a mean and a log variance, and mirrors that no flip of a latent gives."""
    if not np.isfinite(moments).all():
        yield Finding("there are moments that are not finite", "encode again in fp32")
    if moments.shape[1] % 8:
        yield Finding(
            f"{moments.shape[1]} channels: these are sampled latents, not moments (mean and log variance, 8 channels for SD's VAE)",
            "encode again, storing the posterior's moments; a sample is drawn afresh at each step",
        )
        return
    mean, logvar = np.split(moments, 2, axis=1)
    if np.median(mean) < -4 and abs(np.median(logvar)) < 2:
        yield Finding("the first half looks like a log variance, the second like a mean", "store mean first, then log variance")
    else:
        yield Finding(f"{moments.shape[1]} channels: mean and log variance (median {np.median(logvar):.1f})")
    if mirrored is not None:
        if np.array_equal(mirrored, moments[..., ::-1]):
            yield Finding("the mirrors are flipped latents, not latents of flipped images", "encode again with mirror: true")
        elif np.array_equal(mirrored, moments):
            yield Finding("the mirrors equal the images", "encode again with mirror: true")
        else:
            yield Finding("both mirrors are there, each encoded")


def scaled(latent: Array) -> Finding:
    """Whether what a network would see has a standard deviation that a scale explains."""
    spread = float(latent.std())
    if SPREAD[0] < spread < SPREAD[1]:
        return Finding(f"standard deviation {spread:.2f} after scaling")
    hint = "the scale is missing (0.18215 for SD's VAE)" if spread > SPREAD[1] else "the scale was applied twice"
    return Finding(f"standard deviation {spread:.2f} after scaling, neither 0.5 nor 1", f"{hint}: encode again")


def batch(path: Path) -> Iterator[Finding]:
    """Whether an npz is a batch or reference of ADM's evaluator."""
    wide = {"mu": 2048, "sigma": 2048, "mu_s": 2023, "sigma_s": 2023}
    stored = read_arrays(path, *wide)
    for name, array in stored.items():
        if len(np.atleast_1d(array)) != wide[name]:
            yield Finding(
                f"{name} is {len(np.atleast_1d(array))} wide, not {wide[name]}", "these are statistics of another network"
            )
    missing = sorted(wide.keys() - stored.keys())
    if missing:
        yield Finding(f"holds no {', '.join(missing)}: images only; its statistics must be computed")
    else:
        yield Finding("holds the statistics of FID (2048) and sFID (2023)")
    with zipfile.ZipFile(path) as archive:
        pictures = "arr_0.npy" in archive.namelist()
    if not pictures:
        yield Finding("holds no arr_0: no images for precision and recall", "take ADM's whole reference batch")
        return
    try:
        count, high, across, _ = npz_shape(path)
        yield Finding(f"{count} images of {high} x {across} pixels: compare only samples of that side with it")
    except UserError as error:
        yield Finding(str(error).removeprefix(f"{path}: "), "save images as uint8, channels last")


def weights(path: Path) -> Iterator[Finding]:
    """Of which network, how large and how old the weights in a file are."""
    from maskdit.model import checkpoint
    from maskdit.weights.importing import read_file, read_folder

    if path.suffix == ".safetensors":
        facts = checkpoint.facts(path)
        yield Finding(f"{facts['model']}, {facts['phase']}, step {facts['step']}, {facts['parameters']:,} parameters")
        return
    found = read_folder(path) if path.is_dir() else read_file(path)
    count = sum(tensor.numel() for tensor in found.ema.values())
    yield Finding(f"{found.format}: {len(found.ema)} tensors, {count:,} numbers; maskdit import reads it")
    broken = [name for name, tensor in found.ema.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        yield Finding(f"{broken[0]} and {len(broken) - 1} other tensors are not finite", "get the file again, or an earlier step")


def training(path: Path) -> Iterator[Finding]:
    """What bounds a training: the loader, launches or the device; whether steps were lost."""
    try:
        rows = [{name: float(json.loads(line)[name]) for name in LOGGED} for line in path.read_text().splitlines()]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{path}: not the log of a training, or damaged; look at another one") from None
    if not rows:
        yield Finding(f"{path}: no line yet, for there were fewer than ten steps")
        return
    late = rows[len(rows) // 2 :]
    wait, busy = (float(np.median([row[name] for row in late])) for name in ("data_wait", "mfu"))
    if wait > WAIT:
        yield Finding(f"{wait:.0%} of the time waits for data: bound by the loader", "put artifacts/latents on a local disk")
    elif busy < BUSY:
        text = f"MFU {busy:.2f} without waiting for data: bound by launches"
        yield Finding(text, "set compile: true, precision: auto and, with a small micro_batch, a larger one")
    else:
        yield Finding(f"MFU {busy:.2f}, {wait:.1%} of the time waits for data: bound by the device")
    if rows[-1]["skipped"]:
        yield Finding(f"{rows[-1]['skipped']:.0f} steps had no finite gradient", "use bf16 or tf32 in place of fp16, or a lower lr")


def folder(path: Path) -> Iterator[Finding]:
    """Whether a folder of images can be a study: classes, damaged files, names that deceive."""
    from maskdit.images.index import scan

    found = scan(path)
    if not len(found):
        raise UserError(f"{path}: no images in it; wanted CLASS/image, tar or zip files")
    yield Finding(f"{len(found)} images of {len(found.classes)} classes: maskdit study NAME {path} makes a study of them")


def machine() -> Iterator[Finding]:
    """Device, precision, disk and credentials."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        yield Finding(f"{torch.cuda.device_count()} GPU(s): {name}; torch {torch.__version__}")
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Finding(f"{name} has no bf16", "set precision: auto in pretrain, finetune and sample")
    else:
        yield Finding(
            f"no GPU; torch {torch.__version__} on {os.cpu_count()} cores: the demo runs here, the paper's studies do not"
        )
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield Finding(f"precision: auto computes in {native(where)} here")
    free = shutil.disk_usage(".").free / 2**30
    much = "the demo takes 1 GiB; maskdit plan says what a study takes: link artifacts/ to a larger disk"
    yield Finding(f"{free:.0f} GiB free here", "" if free > 10 else much)
    yield Finding(
        "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set: needed only to fetch ImageNet from the hub"
    )
