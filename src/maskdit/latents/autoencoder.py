"""The frozen autoencoder: diffusers' AutoencoderKL, loaded from a folder with its configuration and weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from maskdit.artifacts.atomic import read_json, sha256
from maskdit.config.base import UserError
from maskdit.config.images import VAE_WEIGHTS
from maskdit.config.latents import Vae
from maskdit.runtime.device import autocast
from maskdit.runtime.environment import demand_own, maps_files

KIND = "AutoencoderKL"  # of diffusers' autoencoders, the one whose latents are understood


def build(config: Vae) -> AutoencoderKL:
    """A new autoencoder with random weights, without attention."""
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # shift and scale per channel are stored with the latents
    )


def load(folder: Path, device: torch.device) -> AutoencoderKL:
    """Load a folder in diffusers' layout and freeze the autoencoder. Raises UserError if weights are damaged or missing."""
    described(folder)
    try:
        demand_own(folder / VAE_WEIGHTS)
        vae, found = AutoencoderKL.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            disable_mmap=not maps_files(),
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        path = folder / VAE_WEIGHTS
        raise UserError(f"{path}: not the weights of the autoencoder in config.json ({reason}); get it again") from None
    if strange := [*found["missing_keys"], *found["unexpected_keys"]]:  # diffusers initialises missing tensors at random
        raise UserError(f"{folder / VAE_WEIGHTS}: does not match config.json, which disagrees about {strange[0]}; get it again")
    return vae.to(device).eval().requires_grad_(False)


def prepare(vae: AutoencoderKL, precision: str) -> AutoencoderKL:
    """Convert an autoencoder in place to decode in fp32, tf32 or bf16."""
    return vae.to(torch.bfloat16, memory_format=torch.channels_last) if precision == "bf16" else vae


def decode(vae: AutoencoderKL, latent_BCHW: Tensor, precision: str = "fp32") -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] from latents, by an autoencoder that was prepared for this precision."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    with autocast(latent_BCHW.device, "tf32" if precision == "tf32" else "fp32"):
        return vae.decode(latent_BCHW.to(vae.dtype)).sample.float()


def is_one(folder: Path) -> bool:
    """Whether a folder says that it holds an autoencoder in diffusers' layout."""
    known = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return isinstance(known, dict) and str(known.get("_class_name", "")).startswith("Autoencoder")


def described(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises UserError for another kind than AutoencoderKL, and for other images than RGB."""
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", KIND) if isinstance(config, dict) else KIND
    if kind != KIND:
        raise UserError(f"{folder}: holds {kind}, which is not supported; use an autoencoder that diffusers loads as {KIND}")
    config = read_json(folder / "config.json", "block_out_channels", "latent_channels")
    if (config.get("in_channels", 3), config.get("out_channels", 3)) != (3, 3):
        told = f"{config.get('in_channels', 3)} channels in and {config.get('out_channels', 3)} out"
        raise UserError(f"{folder}: an autoencoder of images of {told}; use one of RGB images")
    return config


def geometry(folder: Path) -> tuple[int, int]:
    """Pixels per latent position along one side, and channels of a latent, from the folder's config.json."""
    config = described(folder)
    return 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"]


def factors(folder: Path) -> tuple[list[float], list[float]] | None:
    """Shift and scale per channel that are published with an autoencoder; None if they must be fitted to the latents.

    scaling_factor and shift_factor are of all channels; latents_mean and latents_std, where they are given, of each.
    """
    config = described(folder)
    scale, channels = config.get("scaling_factor", 0.18215), config["latent_channels"]  # missing in SD's file
    if (mean := config.get("latents_mean")) and (spread := config.get("latents_std")):
        return list(mean), [scale / each for each in spread]
    return None if scale == 1.0 else ([config.get("shift_factor") or 0.0] * channels, [scale] * channels)


def identity(folder: Path) -> str:
    """sha256 of the weights."""
    return sha256(folder / VAE_WEIGHTS)


def demand(folder: Path, wanted: str) -> None:
    """Raise UserError unless the folder's weights have this sha256."""
    if identity(folder) != wanted:
        raise UserError(
            f"{folder}: not the autoencoder that made the latents of this run; select the one with sha256 {wanted[:12]}…"
        )


def to_unit(pixels_BHWC: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images_BCHW: Tensor, quantisation: str = "round") -> Tensor:
    """Float (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3), clipped; `quantisation` is "round" or "floor"."""
    levels = images_BCHW.float() * 127.5 + 127.5
    levels = levels.floor() if quantisation == "floor" else levels.round()
    return levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def psnr(one_BHWC: Tensor, other_BHWC: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB (B,) of each pair of images from two uint8 batches."""
    error = (one_BHWC.float() - other_BHWC.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp(min=1e-10))
