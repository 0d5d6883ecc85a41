"""Checks of images, latents, weights, reference batches, training logs and this machine, with advice on what is wrong."""

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.artifacts.atomic import read_json
from maskdit.artifacts.manifest import MANIFEST, inputs_of, lineage
from maskdit.config.base import UserError
from maskdit.config.images import INDEX, WEIGHTS
from maskdit.config.load import load
from maskdit.images.dataset import Images, npz_shape
from maskdit.latents.dataset import Latents
from maskdit.runtime.device import demand_kernels, gpus, native
from maskdit.runtime.random import generator
from maskdit.runtime.variables import variable
from maskdit.tools.contact_sheet import ContactSheet
from maskdit.tools.folder import Finding, pictures

SEEN = 256  # samples that a check reads
SPREAD = (0.3, 1.6)  # accepted standard deviation of a network's input: 0.5 here, near 1 with the scale of SD's autoencoder
LOGGED = ("data_wait", "mfu", "skipped")
WAIT, BUSY = 0.05, 0.25  # the loader limits a training if more of its time waits for data; launches do if its MFU is lower
WIDTHS = {"mu": 2048, "sigma": 2048, "mu_s": 2023, "sigma_s": 2023}  # statistics of FID and sFID


def doctor(path: Path | None, classes: str = "auto", sheet: Path | None = None, resolution: int | None = None) -> bool:
    """`maskdit doctor [PATH]`: print all findings; returns whether nothing is wrong. classes: as in `layouts.classes_of`.

    sheet, resolution: of the contact sheet. Raises UserError if one is asked for of something else than images.
    """
    fine, drawing = True, ContactSheet(path, sheet, resolution) if path else None
    for finding in machine() if path is None else examine(path, classes, drawing):
        print(finding, flush=True)
        fine = fine and not finding.fix
    if (sheet or resolution) and not (drawing and drawing.drawn):
        told = "" if path is None else f"{path}: "
        raise UserError(f"{told}there are no images to draw; leave --sheet and --resolution out")
    return fine


def examine(path: Path, classes: str = "auto", sheet: ContactSheet | None = None) -> Iterator[Finding]:
    """Findings about a path, by its contents; raises UserError if they are of no known kind."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    folder = path.is_dir()
    names = {file.name for file in path.iterdir()} if folder else {path.name}
    made = folder and MANIFEST in names
    if made:
        found = list(artifact(path))
        yield from found
        if found[0].fix:
            return  # damaged files allow no further conclusions
    if folder and not made and any(file.is_dir() for file in path.iterdir()):
        names -= {"index.json", "config.json"}  # the user's own, beside the classes
    if "log.jsonl" in names:
        yield from training(path / "log.jsonl" if folder else path)
    elif folder and "index.json" in names:
        index = read_json(path / "index.json")
        if not isinstance(index, dict):
            raise UserError(f"{path / 'index.json'}: not the index of an artifact; rerun the step that makes it")
        if "space" in index:
            yield from latents(Latents.load(path))
        elif "classes" in index:
            data = Images.load(path)
            yield from images(data)
            report = read_json(path / "report.json") if "report.json" in names else {}
            for reason, known in report.get("left_out", {}).items():
                yield Finding(f"left out: {known['count']:,} {reason}")
            if sheet and data.classes:
                drawn = sheet.draw(data.pixels, data.labels, data.rows(heldout=False), data.classes, "as they are trained on")
                yield from map(Finding, drawn)
        else:
            yield Finding(f"{path}: {index.get('kind', 'an artifact')}")
    elif path.suffix == ".npz":
        yield from batch(path)
    elif path.name.endswith(WEIGHTS) or {"config.json", "model_index.json"} & names or any(name.endswith(INDEX) for name in names):
        yield from weights(path)
    elif path.suffix.lower() in (".tar", ".zip") or (folder and not made):
        yield from pictures(path, classes, sheet)
    elif not made:
        raise UserError(f"{path}: not images, latents, weights, a reference batch or a run; name one of these")


def artifact(path: Path) -> Iterator[Finding]:
    """Whether every file of an artifact is present, intact, and made with the current params.yaml."""
    try:
        found = inputs_of(path, largest=math.inf)
        yield Finding(f"{path}: all {len(found[0][1].files)} files are present and intact")
        if Path("params.yaml").exists():
            lineage(found, load())
            yield Finding(f"{path}: made with the current params.yaml")
    except UserError as error:
        told, *advice = re.split("[:;] (?=[^:;]*$)", str(error))  # the advice comes last
        yield Finding(told, "".join(advice))


def sampled(count: int) -> Array:
    """Indices of at most SEEN samples, ascending, always the same ones."""
    return np.sort(generator(0, "doctor").permutation(count)[:SEEN])


def labels(known: Array, classes: int) -> Iterator[Finding]:
    """Whether all labels name a class, and each class has a sample."""
    outside = (known < 0) | (known >= classes)
    if outside.any():
        yield Finding(f"{outside.sum()} labels are outside 0 to {classes - 1}", "encode the images again; labels count from 0")
        return
    counts = np.bincount(known, minlength=classes)
    if (counts == 0).any():
        yield Finding(f"{(counts == 0).sum()} of {classes} classes have no sample", "look for folders that were not copied")
    else:
        yield Finding(f"{classes} classes of {counts.min()} to {counts.max()} samples")


def images(data: Images) -> Iterator[Finding]:
    """Whether images can be read, are more than one colour, and have labels and classes in order."""
    rows = sampled(len(data.labels))
    pixels = data.pixels[rows]
    size, heldout = pixels.shape[1], data.heldout.sum()
    yield Finding(f"{len(data.labels)} images of {size} pixels, {heldout} held out; {len(rows)} of them read")
    if (flat := pixels.reshape(len(rows), -1).std(1) == 0).any():
        yield Finding(f"{flat.sum()} of {len(rows)} images have a single colour", "look at them; they may be decoded wrongly")
    yield from labels(data.labels[data.rows(heldout=False)], len(data.classes))
    if list(data.classes) != sorted(data.classes) and all(name.startswith(("n0", "n1")) for name in data.classes):
        yield Finding("the classes are not in the order of their WordNet ids", "fetch again; published weights use this order")


def latents(data: Latents) -> Iterator[Finding]:
    """Whether latents are moments, have the scale that a network expects, and mirrors of mirrored images."""
    rows = sampled(len(data.labels))
    plain = np.zeros(len(rows), int)
    moments = data.read(rows, plain).astype(np.float32)
    yield from latent_values(moments, data.read(rows, plain + 1).astype(np.float32) if data.mirrors == 2 else None)
    normal = generator(0, "doctor", 1).standard_normal((len(rows), *moments.shape[1:]), np.float32)
    yield scaled(data.draw(rows, plain, normal[:, : data.space.channels]))
    yield from labels(data.labels, len(data.space.classes))


def latent_values(moments: Array, mirrored: Array | None) -> Iterator[Finding]:
    """Whether moments (n, 2 C, H, W) are finite, mean before log variance, and those of mirrored images are not flipped latents."""
    channels = moments.shape[1]
    if not np.isfinite(moments).all():
        yield Finding("some moments are not finite", "encode again in fp32")
    if channels % 8:
        text = f"{channels} channels: these are sampled latents, not moments (mean and log variance, 8 channels for SD's VAE)"
        yield Finding(text, "encode again and store the posterior's moments; training draws a new sample at each step")
        return
    mean, logvar = np.split(moments, 2, axis=1)
    if np.median(mean) < -4 and abs(np.median(logvar)) < 2:
        yield Finding("the first half looks like a log variance, the second like a mean", "store mean first, then log variance")
    else:
        yield Finding(f"{channels} channels: mean and log variance (median {np.median(logvar):.1f})")
    if mirrored is None:
        return
    if np.array_equal(mirrored, moments[..., ::-1]):
        yield Finding("the mirrors are flipped latents, not latents of flipped images", "encode again with mirror: true")
    elif np.array_equal(mirrored, moments):
        yield Finding("the mirrors equal the images", "encode again with mirror: true")
    else:
        yield Finding("both mirrors are present, each encoded")


def scaled(latent: Array) -> Finding:
    """Whether the network's input has an expected standard deviation; if not, how its scale is wrong."""
    spread = float(latent.std())
    if SPREAD[0] < spread < SPREAD[1]:
        return Finding(f"standard deviation {spread:.2f} after scaling")
    hint = "the scale is missing (0.18215 for SD's VAE)" if spread > SPREAD[1] else "the scale was applied twice"
    return Finding(f"standard deviation {spread:.2f} after scaling, neither 0.5 nor 1", f"{hint}; encode again")


def batch(path: Path) -> Iterator[Finding]:
    """Whether an npz is a batch or reference of ADM's evaluator."""
    stored = {name: len(np.atleast_1d(array)) for name, array in read_arrays(path, *WIDTHS).items()}
    for name, width in stored.items():
        if width != WIDTHS[name]:
            yield Finding(f"{name} is {width} wide, not {WIDTHS[name]}", "use statistics of ADM's Inception network")
    if missing := sorted(WIDTHS.keys() - stored.keys()):
        yield Finding(f"contains no {', '.join(missing)}: statistics must be computed from its images")
    else:
        yield Finding("contains the statistics of FID (2048) and sFID (2023)")
    with zipfile.ZipFile(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            yield Finding("contains no arr_0: no images for precision and recall", "use ADM's complete reference batch")
            return
    try:
        count, high, across, _ = npz_shape(path)
        yield Finding(f"{count} images of {high} x {across} pixels: compare it only with samples of this size")
    except UserError as error:
        yield Finding(str(error).removeprefix(f"{path}: ").rpartition("; ")[0], "save images as uint8, channels last")


def weights(path: Path) -> Iterator[Finding]:
    """What the weights in a file or folder are, their number, and whether they are finite."""
    import torch

    from maskdit.latents import autoencoder
    from maskdit.model import checkpoint
    from maskdit.weights.reading import is_safetensors, read

    if path.is_file() and is_safetensors(path) and checkpoint.is_ours(path):
        facts = checkpoint.facts(path)
        yield Finding(f"{facts['model']}, {facts['phase']}, step {facts['step']}, {facts['parameters']:,} parameters")
        return
    if autoencoder.is_one(path):
        factor, channels = autoencoder.geometry(path)
        tensors = autoencoder.load(path, torch.device("cpu")).state_dict()
        size = f"{factor} pixels per latent, {channels} channels"
        yield Finding(f"an autoencoder: {size}, {sum(tensor.numel() for tensor in tensors.values()):,} numbers")
    else:
        found = read(path)
        tensors = found.ema
        count = sum(tensor.numel() for tensor in tensors.values())
        yield Finding(f"{found.format}, {found.kind}: {len(tensors)} tensors, {count:,} numbers; maskdit import can read it")
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        yield Finding(f"{broken[0]} and {len(broken) - 1} other tensors are not finite", "get the file again, or an earlier step")


def training(path: Path) -> Iterator[Finding]:
    """What limits the speed of a training (data loading, kernel launches or the device), and whether steps were skipped."""
    try:
        rows = [{name: float(json.loads(line)[name]) for name in LOGGED} for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{path}: not the log of a training, or damaged; name another one") from None
    if not rows:
        yield Finding(f"{path}: empty, because the training had fewer than ten steps")
        return
    late = rows[len(rows) // 2 :]
    wait, busy = (float(np.median([row[name] for row in late])) for name in ("data_wait", "mfu"))
    if wait > WAIT:
        yield Finding(f"{wait:.0%} of the time waits for data: bound by the loader", "put artifacts/latents on a local disk")
    elif busy < BUSY:
        text = f"MFU {busy:.2f} without waiting for data: bound by launches"
        yield Finding(text, "set compile: true and precision: auto, and increase micro_batch if it is small")
    else:
        yield Finding(f"MFU {busy:.2f}, {wait:.1%} of the time waits for data: bound by the device")
    if rows[-1]["skipped"]:
        yield Finding(f"{rows[-1]['skipped']:.0f} steps had no finite gradient", "use bf16 or tf32 instead of fp16, or a lower lr")


def machine() -> Iterator[Finding]:
    """Device, precision, disk and credentials of this machine."""
    import torch

    try:
        gpu = gpus() > 0
        if gpu:
            demand_kernels(torch.device("cuda"))
    except UserError as error:
        what, _, advice = str(error).rpartition("; ")
        yield Finding(what, advice)
        gpu = False
    if gpu:
        name = torch.cuda.get_device_name()
        yield Finding(f"{torch.cuda.device_count()} GPU(s): {name}; torch {torch.__version__}")
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Finding(f"{name} does not support bf16", "set precision: auto in pretrain, finetune and sample")
    else:
        yield Finding(f"no GPU; torch {torch.__version__} on {os.cpu_count()} cores: enough for the demo, not for ImageNet")
    yield Finding(f"precision: auto computes in {native(torch.device('cuda' if gpu else 'cpu'))} here")
    free = shutil.disk_usage(".").free / 2**30
    advice = "link artifacts/ to a larger disk; the demo needs 1 GiB, and maskdit plan prints the needs of a study"
    yield Finding(f"{free:.0f} GiB free here", "" if free > 10 else advice)
    token = "set" if variable("HF_TOKEN") else "not set; only downloading ImageNet from the Hugging Face Hub needs it"
    yield Finding(f"HF_TOKEN is {token}")
