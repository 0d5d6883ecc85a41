"""Step `vae`: trains an autoencoder, or takes over a published one."""

import math
import shutil
from pathlib import Path

import numpy as np
import torch

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.config.images import VAE_WEIGHTS
from maskdit.config.latents import DownloadedVae, Vae
from maskdit.images.dataset import Images
from maskdit.latents.autoencoder import build, geometry, identity, load, psnr, to_pixels, to_unit
from maskdit.runtime.device import autocast, device, settled
from maskdit.runtime.progress import progress, say
from maskdit.runtime.random import generator, order

WARMUP = 30  # steps


def rate(step: int, config: Vae) -> float:
    """Learning rate at a step: linear warm-up, then cosine to 2 % of the peak."""
    done = max(0.0, (step - WARMUP) / max(1, config.steps - WARMUP))
    return config.lr * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def vae(config: Vae | DownloadedVae, *, images: Path, out: Path) -> None:
    """Write an autoencoder in diffusers' layout: trained on images, or copied from the folder of a `fetch` entry."""
    if isinstance(config, DownloadedVae):
        take(config, images, out)
    else:
        train(config, images, out)


def take(config: DownloadedVae, folder: Path, out: Path) -> None:
    """Check a published autoencoder and copy it. Raises UserError if it is incomplete, or not as declared."""
    known = read_json(folder / "index.json", "kind")
    if known["kind"] != "autoencoder" or identity(folder) != known["sha256"]:
        raise UserError(f"{folder}: not the autoencoder that was fetched; fetch it again")
    net = load(folder, torch.device("cpu"))
    factor, channels = geometry(folder)
    if (factor, channels) != (config.factor, config.latent_channels):
        declared = f"{config.factor} and {config.latent_channels}"
        raise UserError(f"{folder}: {factor} pixels per latent and {channels} channels, vae declares {declared}; correct it")
    for name in ("config.json", VAE_WEIGHTS):
        shutil.copyfile(folder / name, out / name)
    say(f"vae: {known['url']}, scaling factor {net.config.scaling_factor}")


def train(config: Vae, images: Path, out: Path) -> None:
    """Train AutoencoderKL with L1 + MSE + kl_weight * KL (mean per number of a latent).

    metrics.json receives the mean PSNR of the held-out images in dB, null if there are none.
    """
    where = device()
    data = Images.load(images)
    pixels, known, unseen = data.pixels, data.rows(heldout=False), data.rows(heldout=True)
    precision = settled(config.precision, where, scaled=False)
    torch.manual_seed(config.seed)
    net = build(config).to(where)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    last = math.nan
    steps = progress(range(config.steps), "vae", config.steps, note=lambda: f"loss {last:.3f}")
    for step in steps:
        rows = order(config.seed, len(known), step * config.batch, (step + 1) * config.batch)
        clean = to_unit(torch.from_numpy(pixels[known[rows]])).to(where)
        optimizer.param_groups[0]["lr"] = rate(step, config)
        with autocast(where, precision):
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
        found = []
        for at in range(0, len(unseen), 64):
            real = torch.from_numpy(pixels[unseen[at : at + 64]])
            posterior = net.encode(to_unit(real).to(where)).latent_dist
            found.append(psnr(to_pixels(net.decode(posterior.mean).sample).cpu(), real))
    quality = torch.cat(found).mean().item() if found else None
    write_json(out / "metrics.json", {"heldout_psnr_db": quality, "heldout_images": len(unseen)})
    if quality is not None:
        say(f"vae: held-out PSNR {quality:.2f} dB over {len(unseen)} images")
