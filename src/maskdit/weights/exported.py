"""What `maskdit export --format diffusers` has written, read back without running the code in the folder."""

from pathlib import Path
from typing import Any

from maskdit.artifacts.atomic import read_json
from maskdit.config.base import UserError
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.methods.plugins import of_facts
from maskdit.weights.importing import check
from maskdit.weights.names import Tensors
from maskdit.weights.reading import files_of, read_safetensors

SIZES = ("side", "channels", "classes", "encoder", "decoder")  # what MaskDiT's architecture is made of


def exported(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """The weights in an exported folder, and what it states of the facts of a checkpoint.

    Raises UserError if it holds another network, or tensors that are not those of the network that its config.json describes.
    """
    file = folder / "transformer" / "config.json"
    config = read_json(file, "_class_name")
    if (kind := config["_class_name"]) != "MaskDiTNetwork":
        raise UserError(f"{folder}: holds a {kind}, not a folder of maskdit export; run maskdit import on it first")
    try:
        architecture = {name: config[name] for name in SIZES}
        latent = {"shift": config["latent_shift"], "scale": config["latent_scale"], "classes": config["class_names"]}
        space = {**architecture, **latent, "vae": autoencoder.identity(folder / "vae")}
        shift, scale = Space.parse(space).factors()
        if not shift.size == scale.size == config["channels"] or len(config["class_names"]) != config["classes"]:
            raise ValueError
        tensors = {name.removeprefix("net."): tensor for name, tensor in read_safetensors(files_of(folder)).items()}
        check(file.parent, tensors, architecture)
    except (LookupError, TypeError, ValueError, RuntimeError):
        raise UserError(f"{file}: not as maskdit export writes it; export the run again") from None
    return tensors, {"model": of_facts({"architecture": architecture}).model, "architecture": architecture, "space": space}
