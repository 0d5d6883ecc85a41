"""Published weights to a run that can be sampled: read without executing anything, and checked tensor by tensor."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from maskdit.artifacts.atomic import digest, read_json, sha256, write_json
from maskdit.artifacts.publish import publishing
from maskdit.config.base import UserError
from maskdit.config.training import Released
from maskdit.images.download import download, name_of
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.methods.plugins import of_facts
from maskdit.model import checkpoint
from maskdit.model.transformer import MaskDiT
from maskdit.runtime.environment import FINISHED, scratch
from maskdit.runtime.progress import say
from maskdit.weights import names
from maskdit.weights.names import Tensors
from maskdit.weights.reading import files_of, naming, read

SCALE = 0.18215  # of the latents of DiT and MaskDiT, which have no shift


def check(path: Path, tensors: Tensors, architecture: dict[str, Any]) -> int:
    """Number of parameters. Raises UserError, naming the tensor, unless all are known, present, finite and of the right form."""
    with torch.device("meta"):
        wanted = MaskDiT(**architecture).state_dict()
    if strange := min(tensors.keys() ^ wanted.keys(), default=None):
        raise UserError(f"{path}: {strange} is {'not a tensor of this network' if strange in tensors else 'missing'}")
    for name, like in wanted.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (like.shape, like.dtype):
            ours, theirs = (f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (like, found))
            raise UserError(f"{path}: {name} is {theirs}, the network needs {ours}")
        if not found.isfinite().all():
            raise UserError(f"{path}: {name} contains a number that is not finite")
    return sum(tensor.numel() for tensor in wanted.values())


def space_of(vae: Path, architecture: dict[str, Any]) -> Space:
    """The latent space of the published models, with the autoencoder in a folder. Raises UserError if it has other channels."""
    channels = architecture["channels"]
    if (found := read_json(vae / "config.json", "latent_channels")["latent_channels"]) != channels:
        raise UserError(f"{vae}: the autoencoder has {found} latent channels, the weights need {channels}")
    classes = tuple(map(str, range(architecture["classes"])))
    return Space(channels, architecture["side"], (0.0,) * channels, (SCALE,) * channels, autoencoder.identity(vae), classes)


def write_run(
    source: Path,
    out: Path,
    *,
    vae: Path,
    wanted: str | None,
    step: int | None,
    heads: Sequence[int],
    origin: dict[str, Any],
    side: int | None = None,
) -> None:
    """Published weights as a run: ema-*.safetensors, net-*.safetensors if there are raw weights, and index.json.

    The cost of the training is unknown and stored as null. Raises UserError unless the tensors are exactly those of the network
    that their shapes imply, and if neither the file nor `step` states the training step. `side` is that of the latents, of which
    weights without positions tell nothing.
    """
    found = read(source)
    if wanted not in (None, found.format):
        raise UserError(f"{source}: contains weights in the format {found.format}, not {wanted}")
    step = found.step if step is None else step
    if step is None or step < 1:
        raise UserError(f"{source}: does not state its training step; set it with --step N")
    dit = found.format != "upstream"
    spent = {"step": step, "images": None, "seconds": None, "device_seconds": None, "flops": None}
    files: dict[str, str] = {}
    for kind, tensors in {"ema": found.ema, "net": found.net}.items():
        if tensors is None:
            continue
        with naming(source):
            ours = names.placed(names.from_dit(tensors) if dit else tensors, side or found.side)
            architecture = names.architecture(ours, heads or found.heads)
        facts = {
            "model": of_facts({"architecture": architecture}).model,
            "phase": "released",
            **spent,
            "parameters": check(source, ours, architecture),
            "precision": None,
            "architecture": architecture,
            "space": asdict(space_of(vae, architecture)),
            "config": {},
            "preconditioning": "vp" if dit else "edm",
            "source": {**origin, "format": found.format},
        }
        files[kind] = f"{kind}-{step:07d}.safetensors"
        checkpoint.save(out / files[kind], ours, facts)
    milestones = [{"file": files["ema"], **spent}]
    write_json(out / "index.json", {"milestones": milestones, "final": files.get("net"), "source": facts["source"]})
    say(f"import: {facts['model']} with {facts['parameters']} parameters at step {step}, {found.format} format: {found.kind}")


def bring(file: Path, vae: Path, out: Path, format: str | None, step: int | None, heads: list[int], side: int | None) -> None:  # noqa: A002, an option
    """`maskdit import`: published weights to a new run folder. The sha256 of several files is that of their names and hashes."""
    if out.exists() or out.suffix:
        raise UserError(f"{out}: {'already exists' if out.exists() else 'has a dot in its name'}; choose a new folder")
    if not file.exists():
        raise UserError(f"{file}: no such file")
    parts = files_of(file)
    hashed = sha256(file) if parts == [file] else digest({part.name: sha256(part) for part in parts})
    origin = {"file": file.resolve().name if file.is_dir() else file.name, "sha256": hashed}
    with publishing(out, f"import/{out.name}", {"step": step, "heads": heads, **origin}, {}) as place:
        write_run(file, place, vae=vae, wanted=format, step=step, heads=heads, origin=origin, side=side)


def released(config: Released, *, vae: Path, out: Path) -> None:
    """Download published weights, check them, and turn them into a run.

    If the entry has no sha256, any file is accepted; its hash is printed and kept in index.json and in each checkpoint.
    """
    home = scratch(f"released-{digest(config.url)[:16]}")
    path = home / name_of(config.url)
    found = download(config.url, path, config.sha256)
    if config.sha256 is None:
        say(f"released: TRUSTED UNSEEN, because the entry has no sha256; add sha256: {found}")
    origin = {"file": path.name, "sha256": found, "url": config.url}
    write_run(path, out, vae=vae, wanted=config.format, step=config.step, heads=config.heads, origin=origin)
    FINISHED.append(home)
