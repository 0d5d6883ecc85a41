"""Weights that others have published, to a run that can be sampled: read without executing anything, checked tensor by tensor."""

import argparse
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises: the name of an error, nothing that reads
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from maskdit.artifacts.atomic import digest, read_json, sha256, write_json
from maskdit.artifacts.manifest import publishing
from maskdit.config.base import UserError
from maskdit.config.training import Released
from maskdit.images.download import download, name_of
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.model import checkpoint
from maskdit.model.transformer import MaskDiT, positions
from maskdit.runtime.environment import FINISHED, demand_own, scratch
from maskdit.runtime.progress import say
from maskdit.weights import names
from maskdit.weights.names import Tensors

SCALE = 0.18215  # of the latents of DiT and MaskDiT, without a shift
STEPS_KNOWN_AS = ("step", "train_steps", "global_step")


@dataclass(frozen=True)
class Found:
    """What a file holds: averaged weights, raw ones if there are any, under the names of its format, and the step it tells."""

    format: str
    ema: Tensors
    net: Tensors | None
    step: int | None
    heads: list[int]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file before a refusal that names a tensor only."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def tensors_of(path: Path, where: str, tree: Any) -> Tensors:
    """A state dict without the wrappers' names; raises UserError if it is none."""
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"{path}: {where} holds no tensors")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {where} holds {name!r}, which is no tensor")
    with naming(path):
        return names.unwrapped(dict(tree))


def read_torch(path: Path) -> Any:
    """What a torch file holds, memory-mapped.

    Nothing in it is executed: of what is not a tensor or a plain value only argparse.Namespace is allowed, and its attributes.
    Raises UserError for anything else, naming it, and for a file that is truncated or older than torch 1.6.
    """
    demand_own(path)
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a file of torch.save, or truncated; get it again")
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            if unsafe:
                raise UserError(f"{path}: refused, for reading it would need {', '.join(sorted(unsafe))}, which may run code")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, ValueError, EOFError, TypeError, AttributeError, LookupError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a whole file of torch.save ({line[:120]}); get it again") from None


def step_of(tree: Mapping[str, Any]) -> int | None:
    """The step that a checkpoint or its arguments tell; None if they do not."""
    arguments = tree.get("args")
    known = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    for place in (tree, known):
        for name in STEPS_KNOWN_AS:
            if isinstance(place.get(name), int):
                return place[name]
    return None


def read_file(path: Path) -> Found:
    """A checkpoint of MaskDiT or DiT: a dictionary of model, ema, opt and args, or a bare state dict."""
    tree = read_torch(path)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: holds no dictionary of tensors")
    whole = "ema" in tree or "model" in tree
    ema = tensors_of(path, "ema" if "ema" in tree else "model", tree.get("ema", tree.get("model"))) if whole else None
    net = tensors_of(path, "model", tree["model"]) if "model" in tree and "ema" in tree else None
    ema = tensors_of(path, "it", tree) if ema is None else ema
    with naming(path):
        dit = names.is_dit(ema)
    return Found("dit" if dit else "upstream", ema, net, step_of(tree) if whole else None, [])


def read_folder(path: Path) -> Found:
    """DiT as diffusers has it: a folder with config.json and safetensors, or one with such a folder named transformer."""
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("_class_name") not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise UserError(f"{folder}: holds no DiTTransformer2DModel; only that is read")
    stem = "diffusion_pytorch_model"
    files = [folder / f"{stem}.safetensors"]
    files = files if files[0].exists() else sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no {stem}.safetensors; only safetensors are read")
    tensors: Tensors = {}
    for file in files:
        demand_own(file)
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file}: damaged ({error}); get it again") from None
    with naming(folder):
        tensors = names.from_diffusers(tensors, config)
        width = names.shape(tensors, "x_embedder.proj.weight", 4)[0]
    try:
        side, heads = int(config["sample_size"]) // int(config["patch_size"]), int(config["num_attention_heads"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{folder / 'config.json'}: needs sample_size, patch_size and num_attention_heads") from None
    return Found("diffusers", {**tensors, "pos_embed": positions(side, width)}, None, None, [heads])


def check(path: Path, tensors: Tensors, architecture: dict[str, Any]) -> int:
    """How many parameters the network has.

    Raises UserError, naming the tensor, unless each is there, has the network's shape and type, and is finite.
    """
    with torch.device("meta"):
        wanted = MaskDiT(**architecture).state_dict()
    for name in sorted(tensors.keys() ^ wanted.keys()):
        raise UserError(f"{path}: {name} is {'not a tensor of this network' if name in tensors else 'missing'}")
    for name, like in wanted.items():
        found = tensors[name]
        for ours, theirs in ((tuple(like.shape), tuple(found.shape)), (like.dtype, found.dtype)):
            if ours != theirs:
                raise UserError(f"{path}: {name} is {theirs}, the network wants {ours}")
        if not found.isfinite().all():
            raise UserError(f"{path}: {name} holds a number that is not finite")
    return sum(tensor.numel() for tensor in wanted.values())


def space_of(vae: Path, architecture: dict[str, Any]) -> Space:
    """The latents of the published models, with the autoencoder of a folder; raises UserError if it has other channels."""
    channels = architecture["channels"]
    if (found := read_json(vae / "config.json", "latent_channels")["latent_channels"]) != channels:
        raise UserError(f"{vae}: an autoencoder of {found} latent channels, the weights are for {channels}")
    classes = tuple(str(label) for label in range(architecture["classes"]))
    return Space(channels, architecture["side"], (0.0,) * channels, (SCALE,) * channels, autoencoder.identity(vae), classes)


def write_run(
    source: Path, out: Path, *, vae: Path, wanted: str | None, step: int | None, heads: list[int], origin: dict[str, Any]
) -> None:
    """Weights of others as a run: ema-*.safetensors, net-*.safetensors if there are raw weights, and index.json.

    What the training cost is not known and null. Raises UserError for anything that is not wholly the network that its shapes
    imply, and if neither the file nor `step` tells the step.
    """
    found = read_folder(source) if source.is_dir() else read_file(source)
    if wanted not in (None, found.format):
        raise UserError(f"{source}: holds weights in the format {found.format}, not {wanted}")
    step = found.step if step is None else step
    if step is None or step < 1:
        raise UserError(f"{source}: does not tell its training step; name it with --step N")
    dit = found.format != "upstream"
    kept = {f"ema-{step:07d}.safetensors": found.ema, f"net-{step:07d}.safetensors": found.net}
    spent = {"step": step, "images": None, "seconds": None, "device_seconds": None, "flops": None}
    for name, tensors in kept.items():
        if tensors is None:
            continue
        with naming(source):
            ours = names.from_dit(tensors) if dit else tensors
            architecture = names.architecture(ours, heads or found.heads)
        facts = {
            "model": "DiT" if architecture["decoder"] is None else "MaskDiT",
            "phase": "released",
            **spent,
            "parameters": check(source, ours, architecture),
            "precision": None,
            "architecture": architecture,
            "space": space_of(vae, architecture).__dict__,
            "config": {},
            "preconditioning": "vp" if dit else "edm",
            "source": {**origin, "format": found.format},
        }
        checkpoint.save(out / name, ours, facts)
    ema, net = kept
    final = net if found.net is not None else None
    write_json(out / "index.json", {"milestones": [{"file": ema, **spent}], "final": final, "source": facts["source"]})
    say(f"import: {facts['model']} of {facts['parameters']} parameters at step {step}, {found.format} format")


def origin_of(file: Path) -> dict[str, Any]:
    """Name and sha256 of a file, or of all safetensors of a folder together."""
    if not file.exists():
        raise UserError(f"{file}: no such file")
    if file.is_dir():
        return {"file": file.resolve().name, "sha256": digest({part.name: sha256(part) for part in file.rglob("*.safetensors")})}
    return {"file": file.name, "sha256": sha256(file)}


def bring(file: Path, vae: Path, out: Path, format: str | None, step: int | None, heads: list[int]) -> None:  # noqa: A002, an option
    """`maskdit import`: a file or folder of others to a new run folder."""
    if out.exists() or out.suffix:
        raise UserError(f"{out}: {'is already there' if out.exists() else 'has a dot'}; name a new folder")
    origin = origin_of(file)
    with publishing(out, f"import/{out.name}", {"step": step, "heads": heads, **origin}, {}) as place:
        write_run(file, place, vae=vae, wanted=format, step=step, heads=heads, origin=origin)


def released(config: Released, *, vae: Path, out: Path) -> None:
    """Download weights that others have published, check them, and turn them into a run.

    Without a sha256 in the entry whatever comes is taken; its hash is said, and kept in index.json and in each checkpoint.
    """
    home = scratch(f"released-{digest(config.url)[:16]}")
    path = home / name_of(config.url)
    found = download(config.url, path, config.sha256)
    if config.sha256 is None:
        say(f"released: TRUSTED UNSEEN, for the entry has no sha256; from now on write sha256: {found}")
    origin = {"file": path.name, "sha256": found, "url": config.url}
    heads = list(config.heads)
    write_run(path, out, vae=vae, wanted=config.format, step=config.step, heads=heads, origin=origin)
    FINISHED.append(home)
