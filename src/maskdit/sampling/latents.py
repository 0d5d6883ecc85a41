"""Samples as arrays, for the library: the formulas of the `sample` step without its files, config and device."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from maskdit.config.errors import first as first_of
from maskdit.config.sampling import Sample
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.model.diffusion import guided
from maskdit.model.samplers import SIGMA_MAX, SIGMA_MIN, dpmpp_2m, heun, sigma_steps
from maskdit.model.transformer import MaskDiT
from maskdit.sampling.sample import starts

SOLVERS = {"heun": heun, "dpmpp-2m": dpmpp_2m}
UNUSED = {"run": "net", "vae": "net", "phase": "pretrain", "step": "final", "labels": "balanced", "shards": 1, "precision": "fp32"}


@torch.no_grad()
def sample(
    net: MaskDiT,
    labels: Sequence[int] | Tensor,
    *,
    seed: int = 0,
    first: int = 0,
    steps: int = 20,
    guidance: float = 1.0,
    interval: tuple[float, float] | None = None,
    solver: Literal["heun", "dpmpp-2m"] = "heun",
    batch: int = 64,
) -> Tensor:
    """Latents (B, C, H, W) of these labels, on the device of the network; -1 is the null label.

    Image i is number `first` + i of the seed, as `maskdit draw` counts them, whatever other images are drawn. heun (EDM algorithm
    1) evaluates the denoiser 2 * steps - 1 times, dpmpp-2m (Lu et al. 2022) `steps` times. guidance: w in D_null + w * (D_label -
    D_null), 1 for none; with an `interval` only where low < sigma <= high. The latents are those of the autoencoder, `unscaled`.
    Raises ValueError for a label that is no class of the network, and for a number that no `sample` entry may have.
    """
    where = net.pos_embed.device
    told, classes = torch.as_tensor(labels), net.y_embedder.embedding_table.in_features
    whole = told.dtype != torch.bool and not told.is_floating_point()
    if told.ndim != 1 or not len(told) or not whole or told.min() < -1 or told.max() >= classes:
        raise ValueError(f"labels: must be whole numbers from 0 to {classes - 1}, or -1, in one dimension")
    if first < 0:
        raise ValueError(f"first: must be 0 or more (got {first})")
    if solver not in SOLVERS:
        raise ValueError(f"solver: must be heun or dpmpp-2m, not {solver!r}")
    numbers: dict[str, Any] = {"guidance": guidance, "guidance_interval": interval, "solver": solver, "solver_steps": steps}
    try:
        config = Sample.model_validate({**UNUSED, **numbers, "images": len(told), "batch": batch, "seed": seed})
    except ValidationError as error:
        raise ValueError(first_of(error, Sample).removeprefix(": ")) from None
    side, channels = round(net.pos_embed.shape[1] ** 0.5) * net.patch, net.x_embedder.proj.in_channels
    space = Space(channels, side, (), (), "", ("",) * classes)
    found = []
    for part in torch.split(told.to(where, torch.long), batch):
        rows = np.arange(first, first := first + len(part))
        noise = torch.from_numpy(starts(config, space, rows)[0]).to(where)
        denoiser = guided(net, part, guidance, interval=interval)
        found.append(SOLVERS[solver](denoiser, noise, sigma_steps(steps, SIGMA_MIN, SIGMA_MAX)).float())
    latents, unscaled = torch.cat(found), getattr(net, "unscaled", None)
    return unscaled(latents) if unscaled else latents


@torch.no_grad()
def decode(vae: Any, latents_BCHW: Tensor, batch: int = 64) -> Tensor:
    """Images (B, H, W, 3) in uint8 on the CPU from latents, by diffusers' `AutoencoderKL`."""
    parts = (autoencoder.decode(vae, part.to(vae.device)) for part in torch.split(latents_BCHW, batch))
    return torch.cat([autoencoder.to_pixels(part).cpu() for part in parts])
