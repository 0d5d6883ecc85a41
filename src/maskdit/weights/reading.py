"""Weights of others in files and folders: what they are, read without executing anything."""

import argparse
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # an exception of torch.load; nothing is unpickled here
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from maskdit.artifacts.atomic import read_json
from maskdit.config.base import UserError
from maskdit.config.images import INDEX, VAE_WEIGHTS, WEIGHTS
from maskdit.model.checkpoint import backend, is_ours
from maskdit.model.transformer import positions
from maskdit.runtime.environment import demand_own, maps_files
from maskdit.runtime.progress import say
from maskdit.weights import names
from maskdit.weights.names import Tensors

STEPS_KNOWN_AS = ("step", "train_steps", "global_step")
EMA = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict")  # names of averaged weights in a checkpoint
NET = ("model", "net", "state_dict", "module", "model_state_dict")  # of raw ones
SWAPPED = "current_model_state"  # of raw ones where Lightning's WeightAveraging puts averaged ones in their place
SD_FACTOR = 8  # pixels per latent of SD's autoencoder, by which DiT's code divides its image_size
BEGINNINGS = {  # of files that are no weights -> what they are
    b"version https://git-lfs": "a pointer of Git LFS, not the file; run git lfs pull where it comes from",
    b"<": "a web page, not weights; download the file itself",
    b"\x80": "torch's format before 1.6, or a plain pickle; load it with torch where you trust it, and save it again",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"PK": "truncated; get it again",
}


@dataclass(frozen=True)
class Found:
    """Averaged and raw weights under the names of their format; step, heads and side of the latents if stated; `kind`: in words.

    Weights of which only one kind is there stand in `ema`.
    """

    format: str
    ema: Tensors
    net: Tensors | None = None
    step: int | None = None
    heads: Sequence[int] = ()
    side: int | None = None
    kind: str = "weights"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's path before an error that names only a tensor."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def files_of(path: Path) -> list[Path]:
    """The files of which weights are read: of an index all that it names, of a folder an index's or the only ones with weights."""
    if path.name.endswith(INDEX):
        shards = {str(name) for name in dict(read_json(path, "weight_map")["weight_map"]).values()}
        found = [path.parent / name for name in sorted(shards)]
        if absent := [file for file in found if not file.is_file() or file.parent != path.parent]:
            raise UserError(f"{absent[0]}: missing, although {path.name} names it; get it again")
        return found
    if not path.is_dir():
        return [path]
    if (path / "transformer").is_dir():
        return files_of(path / "transformer")
    kinds = (INDEX, VAE_WEIGHTS, "", *WEIGHTS)
    for kind in kinds:
        found = sorted(path.glob(f"*{kind}" if kind else VAE_WEIGHTS.replace(".", "-*-of-*.")))
        if len(found) > 1 and kind:
            raise UserError(f"{path}: contains several files of weights, {found[0].name} and others; name one of them")
        if found:
            return files_of(found[0]) if kind else found
    raise UserError(f"{path}: contains no weights, no {VAE_WEIGHTS} for one")


def read(path: Path) -> Found:
    """What a file or folder holds. Raises UserError if that is neither MaskDiT nor DiT, or cannot be read without running code."""
    return read_folder(path) if path.is_dir() else read_file(path)


def read_safetensors(files: Sequence[Path]) -> Tensors:
    """The tensors of some safetensors files. Raises UserError if one is damaged, or a checkpoint of this project."""
    tensors: Tensors = {}
    for file in files:
        demand_own(file)
        try:
            tensors |= load_file(file, backend=backend())
        except SafetensorError as error:
            raise UserError(f"{file}: damaged or truncated ({error}); get it again") from None
        if is_ours(file):
            raise UserError(f"{file}: a checkpoint of maskdit, which needs no import; name its run, {file.parent}")
    return tensors


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the format of safetensors, whatever its name: a header in JSON after its length."""
    with path.open("rb") as stream:
        head = stream.read(9)
    return path.suffix == ".safetensors" or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size)


def read_torch(path: Path) -> Any:
    """Contents of a torch file, memory-mapped.

    Nothing in it is executed: besides tensors and plain values only argparse.Namespace and its attributes are allowed.
    Raises UserError for anything else, naming it, and for a file that is truncated or in another format, which is named.
    """
    demand_own(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            head = stream.read(32)
        what = next((what for begin, what in BEGINNINGS.items() if head.lstrip().startswith(begin)), "not a file of torch.save")
        raise UserError(f"{path}: {what if head else 'empty; get it again'}")
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            if unsafe:
                line = f"refused, because reading it would need {', '.join(sorted(unsafe))}, which may run code"
                raise UserError(f"{path}: {line}; save the tensors alone, where you trust the file")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=maps_files())
    except (UnpicklingError, RuntimeError, ValueError, EOFError, TypeError, AttributeError, LookupError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a complete file of torch.save ({line[:120]}); download it again") from None


def stated(tree: Mapping[str, Any], *known_as: str) -> int | None:
    """A whole number that a checkpoint or its arguments state, or None."""
    arguments = tree.get("args")
    known = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    numbers = [place.get(name) for place in (tree, known) for name in known_as]
    return next((number for number in numbers if isinstance(number, int)), None)


def networks(path: Path, where: str, tree: Any, others: bool) -> dict[str, Tensors]:
    """The networks in a state dict, see `names.networks`. Raises UserError if it is not a state dict."""
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"{path}: {where} contains no tensors")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {where} contains {name!r}, which is not a tensor")
    with naming(path):
        found = names.networks(dict(tree), others)
    if left := len(tree) - sum(map(len, found.values())):
        say(f"{path}: {left} tensors beside the network are left out")
    return found


def read_file(path: Path) -> Found:
    """A checkpoint of MaskDiT or DiT: safetensors, an index of them, or a torch file.

    A torch file is a bare state dict, or has them under one of the names EMA and NET, as MaskDiT's, DiT's, timm's and Lightning's.
    """
    if path.name.endswith(INDEX) or is_safetensors(path):
        tree: Any = read_safetensors(files_of(path))
    else:
        tree = read_torch(path)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: contains no dictionary of tensors")
    if any(str(name).startswith("transformer_blocks.") for name in tree):
        raise UserError(f"{path}: diffusers' DiT; name its folder, which must have its config.json, in place of the file")
    lightning, swapped = "pytorch-lightning_version" in tree, "averaging_state" in tree
    averages, raw = ((*EMA, "state_dict"), (SWAPPED,)) if swapped else (EMA, NET)
    holders = [name for known in (averages, raw) for name in [each for each in known if isinstance(tree.get(each), Mapping)][:1]]
    states = {name: tree[name] for name in holders} or {"it": tree}
    if not holders and (others := [name for name, value in tree.items() if isinstance(value, Mapping)]):
        raise UserError(f"{path}: has no weights under {', '.join((*EMA, *NET))}; it holds {', '.join(map(str, others[:5]))}")
    found: dict[bool, Tensors] = {}  # by whether they are averaged
    for name, state in states.items():
        for head, tensors in networks(path, name, state, lightning).items():
            average = name in averages or names.is_average(head)
            if average in found:
                raise UserError(f"{path}: holds several networks; save the one to import alone")
            found[average] = tensors
    if swapped or any("n_averaged" in state for state in states.values()):
        kind = "averaged weights, as torch's AveragedModel saves them"
    elif len(found) == 2:
        kind = "EMA and raw weights"
    elif True in found:
        kind = "EMA weights alone"
    else:
        kind = "raw weights without EMA" if holders else "weights that may be raw or averaged"
    kind = "a Lightning checkpoint: " * lightning + kind
    ema, net = found.get(True, found.get(False, {})), found.get(False) if True in found else None
    with naming(path):  # DiT's label table is an embedding (N + 1, W), MaskDiT's a linear layer (W, N)
        dit = names.shape(ema, names.TABLE, 2)[0] != names.shape(ema, names.PROJECTION, 4)[0]
    pixels = stated(tree, "image_size")
    side = pixels // SD_FACTOR if pixels else None
    return Found("dit" if dit else "upstream", ema, net, stated(tree, *STEPS_KNOWN_AS), side=side, kind=kind)


def read_folder(path: Path) -> Found:
    """DiT in diffusers' layout: a folder with config.json and safetensors, or one that contains such a folder named transformer.

    A folder without the config.json of diffusers must have one file of weights, or one index of them.
    """
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    kind = str(config.get("_class_name", "")) if isinstance(config, dict) else ""
    if kind.startswith("Autoencoder"):
        raise UserError(f"{folder}: an autoencoder, {kind}; name it by --vae, beside the weights of a network")
    files = files_of(folder)
    if not kind:
        return read_file(next(iter([*folder.glob(f"*{INDEX}"), files[0]])))
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise UserError(f"{folder}: contains no DiTTransformer2DModel, the only class that can be imported")
    if not all(map(is_safetensors, files)):
        raise UserError(f"{folder}: contains no {VAE_WEIGHTS}; only safetensors are read")
    tensors = read_safetensors(files)
    with naming(folder):
        tensors = names.from_diffusers(names.unwrapped(tensors), config)
        width = names.shape(tensors, names.PROJECTION, 4)[0]
    try:
        side, heads = int(config["sample_size"]) // int(config["patch_size"]), int(config["num_attention_heads"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{folder / 'config.json'}: needs sample_size, patch_size and num_attention_heads") from None
    tensors["pos_embed"] = positions(side, width)
    return Found("diffusers", tensors, heads=(heads,), kind="weights that may be raw or averaged")
