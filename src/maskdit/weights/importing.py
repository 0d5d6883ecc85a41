"""Published weights to a run that can be sampled: read without executing anything, and checked tensor by tensor."""

import argparse
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError  # an exception of torch.load; nothing is unpickled here
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from maskdit.artifacts.atomic import digest, read_json, sha256, write_json
from maskdit.artifacts.publish import publishing
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

SCALE = 0.18215  # of the latents of DiT and MaskDiT, which have no shift
STEPS_KNOWN_AS = ("step", "train_steps", "global_step")


@dataclass(frozen=True)
class Found:
    """Contents of a file: averaged and raw weights under the names of its format, training step, and heads if it states them."""

    format: str
    ema: Tensors
    net: Tensors | None = None
    step: int | None = None
    heads: Sequence[int] = ()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's path before an error that names only a tensor."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def tensors_of(path: Path, where: str, tree: Any) -> Tensors:
    """A state dict under our names without wrappers. Raises UserError if it is not a state dict."""
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"{path}: {where} contains no tensors")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {where} contains {name!r}, which is not a tensor")
    with naming(path):
        return names.unwrapped(dict(tree))


def read_torch(path: Path) -> Any:
    """Contents of a torch file, memory-mapped.

    Nothing in it is executed: besides tensors and plain values only argparse.Namespace and its attributes are allowed.
    Raises UserError for anything else, naming it, and for a file that is truncated or was written before torch 1.6.
    """
    demand_own(path)
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a file written by torch.save, or truncated; download it again")
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            if unsafe:
                raise UserError(f"{path}: refused, because reading it would need {', '.join(sorted(unsafe))}, which may run code")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, ValueError, EOFError, TypeError, AttributeError, LookupError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a complete file of torch.save ({line[:120]}); download it again") from None


def step_of(tree: Mapping[str, Any]) -> int | None:
    """The training step that a checkpoint or its arguments state, or None."""
    arguments = tree.get("args")
    known = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    steps = [place.get(name) for place in (tree, known) for name in STEPS_KNOWN_AS]
    return next((step for step in steps if isinstance(step, int)), None)


def read_file(path: Path) -> Found:
    """A checkpoint of MaskDiT or DiT: a dictionary with model, ema, opt and args, or a bare state dict."""
    tree = read_torch(path)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: contains no dictionary of tensors")
    main = next((name for name in ("ema", "model") if name in tree), None)
    ema = tensors_of(path, main or "it", tree[main] if main else tree)
    net = tensors_of(path, "model", tree["model"]) if main == "ema" and "model" in tree else None
    with naming(path):  # DiT's label table is an embedding (N + 1, W), MaskDiT's a linear layer (W, N)
        dit = names.shape(ema, names.TABLE, 2)[0] != names.shape(ema, "x_embedder.proj.weight", 4)[0]
    return Found("dit" if dit else "upstream", ema, net, step_of(tree))


def read_folder(path: Path) -> Found:
    """DiT in diffusers' layout: a folder with config.json and safetensors, or one that contains such a folder named transformer."""
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("_class_name") not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise UserError(f"{folder}: contains no DiTTransformer2DModel, the only class that can be imported")
    stem = "diffusion_pytorch_model"
    whole = folder / f"{stem}.safetensors"
    files = [whole] if whole.exists() else sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not files:
        raise UserError(f"{folder}: contains no {stem}.safetensors; only safetensors are read")
    tensors: Tensors = {}
    for file in files:
        demand_own(file)
        try:
            tensors |= load_file(file, backend=checkpoint.backend())
        except SafetensorError as error:
            raise UserError(f"{file}: damaged ({error}); download it again") from None
    with naming(folder):
        tensors = names.from_diffusers(tensors, config)
        width = names.shape(tensors, "x_embedder.proj.weight", 4)[0]
    try:
        side, heads = int(config["sample_size"]) // int(config["patch_size"]), int(config["num_attention_heads"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{folder / 'config.json'}: needs sample_size, patch_size and num_attention_heads") from None
    return Found("diffusers", {**tensors, "pos_embed": positions(side, width)}, heads=(heads,))


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
    source: Path, out: Path, *, vae: Path, wanted: str | None, step: int | None, heads: Sequence[int], origin: dict[str, Any]
) -> None:
    """Published weights as a run: ema-*.safetensors, net-*.safetensors if there are raw weights, and index.json.

    The cost of the training is unknown and stored as null. Raises UserError unless the tensors are exactly those of the network
    that their shapes imply, and if neither the file nor `step` states the training step.
    """
    found = read_folder(source) if source.is_dir() else read_file(source)
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
            ours = names.from_dit(tensors) if dit else tensors
            architecture = names.architecture(ours, heads or found.heads)
        facts = {
            "model": "DiT" if architecture["decoder"] is None else "MaskDiT",
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
    say(f"import: {facts['model']} with {facts['parameters']} parameters at step {step}, {found.format} format")


def bring(file: Path, vae: Path, out: Path, format: str | None, step: int | None, heads: list[int]) -> None:  # noqa: A002, an option
    """`maskdit import`: published weights to a new run folder. A folder's sha256 is that of its safetensors files' hashes."""
    if out.exists() or out.suffix:
        raise UserError(f"{out}: {'already exists' if out.exists() else 'has a dot in its name'}; choose a new folder")
    if not file.exists():
        raise UserError(f"{file}: no such file")
    hashed = digest({part.name: sha256(part) for part in file.rglob("*.safetensors")}) if file.is_dir() else sha256(file)
    origin = {"file": file.resolve().name if file.is_dir() else file.name, "sha256": hashed}
    with publishing(out, f"import/{out.name}", {"step": step, "heads": heads, **origin}, {}) as place:
        write_run(file, place, vae=vae, wanted=format, step=step, heads=heads, origin=origin)


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
