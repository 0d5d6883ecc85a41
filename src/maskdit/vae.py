"""Obtain the autoencoder: the demo trains a small one on its own images."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from maskdit.autoencoder import build, to_pixels, to_unit
from maskdit.config import DownloadedVae, UserError, Vae
from maskdit.data import Images, generator, order
from maskdit.files import write_json
from maskdit.runtime import autocast, device, progress, say

WARMUP = 30  # steps


def psnr(one: Tensor, other: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, of uint8 (N, H, W, 3) images."""
    error = (one.float() - other.float()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error.clamp(min=1e-10))).mean().item()


def reconstruct(net: AutoencoderKL, clean_BCHW: Tensor) -> Tensor:
    """Decode the posterior's mean."""
    images: Tensor = net.decode(net.encode(clean_BCHW).latent_dist.mean).sample
    return images


def rate(step: int, config: Vae) -> float:
    """Learning rate at a step: linear warm-up, then cosine to 2 % of the peak."""
    done = max(0.0, (step - WARMUP) / max(1, config.steps - WARMUP))
    return config.lr * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def vae(config: Vae | DownloadedVae, *, images: Path, out: Path) -> None:
    """Train AutoencoderKL with L1 + MSE + kl_weight * KL (mean per latent number) and save it in diffusers' layout.

    metrics.json holds the PSNR in dB of the held-out images. Raises UserError for an autoencoder of others.
    """
    if isinstance(config, DownloadedVae):
        raise UserError(f"vae: this version cannot download {config.repository} yet; its studies can be planned, not run")
    where = device()
    data = Images.load(images)
    pixels = data.part(heldout=False)[0]
    torch.manual_seed(config.seed)
    net = build(config).to(where)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    last = math.nan

    def batches() -> Iterator[tuple[int, Tensor]]:
        for step in progress(range(config.steps), "vae", config.steps, note=lambda: f"loss {last:.3f}"):
            rows = order(config.seed, len(pixels), step * config.batch, (step + 1) * config.batch)
            yield step, to_unit(torch.from_numpy(pixels[rows])).to(where)

    for step, clean in batches():
        optimizer.param_groups[0]["lr"] = rate(step, config)
        with autocast(where, config.precision):
            posterior = net.encode(clean).latent_dist
            normal = generator(config.seed, "posterior", step).standard_normal(posterior.mean.shape, dtype=np.float32)
            error = net.decode(posterior.mean + posterior.std * torch.from_numpy(normal).to(where)).sample.float() - clean
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
        loss = error.abs().mean() + error.square().mean() + config.kl_weight * kl
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            last = loss.item()

    net.eval().save_pretrained(out)
    with torch.inference_mode():
        real = torch.from_numpy(data.part(heldout=True)[0])
        parts = (real[at : at + 64] for at in range(0, len(real), 64))
        again = [to_pixels(reconstruct(net, to_unit(part).to(where))).cpu() for part in parts]
    quality = psnr(torch.cat(again), real)
    write_json(out / "metrics.json", {"heldout_psnr_db": quality, "heldout_images": len(real)})
    say(f"vae: held-out PSNR {quality:.2f} dB over {len(real)} images")
