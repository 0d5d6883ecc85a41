"""Images to latent moments."""

from pathlib import Path

import numpy as np
import torch

from maskdit.autoencoder import identity, load, to_unit
from maskdit.config import Encode
from maskdit.data import Images, Space
from maskdit.diffusion import SIGMA_DATA
from maskdit.files import save_array, sha256, write_json
from maskdit.runtime import device, progress, say


def encode(config: Encode, *, images: Path, vae: Path, out: Path) -> None:
    """Encode the training images, and their mirror images if asked, to posterior moments (N, mirrors, 2 C, H, W) in float16.

    The index holds shift and scale per channel that give latents mean 0 and standard deviation 0.5, the class names, the hash of
    the VAE and of each file.
    """
    where = device()
    net = load(vae, where)
    data = Images.load(images)
    pixels, labels = data.part(heldout=False)
    parts = []
    starts = range(0, len(pixels), config.batch)
    with torch.inference_mode():
        for part in progress(range(len(starts)), "encode", len(starts)):
            clean = to_unit(torch.from_numpy(pixels[starts[part] : starts[part] + config.batch])).to(where)
            views = (clean, clean.flip(-1)) if config.mirror else (clean,)
            parts.append(torch.stack([net.encode(view).latent_dist.parameters.half().cpu() for view in views], dim=1).numpy())
    moments = np.concatenate(parts)
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=2)
    axes = (0, 1, 3, 4)
    variance = mean.var(axes) + np.exp(np.clip(logvar, -30, 20)).mean(axes)  # of a sample from the posterior
    space = Space(
        channels=mean.shape[2],
        side=mean.shape[3],
        shift=tuple(mean.mean(axes).tolist()),
        scale=tuple((SIGMA_DATA / np.sqrt(variance)).tolist()),
        vae=identity(vae),
        classes=data.classes,
    )
    save_array(out / "moments.npy", moments)
    save_array(out / "labels.npy", labels)
    hashes = {name: sha256(out / name) for name in ("moments.npy", "labels.npy")}
    write_json(out / "index.json", {"shape": moments.shape, "space": space.__dict__, "sha256": hashes})
    say(f"encode: {moments.shape[0]} images, moments {moments.shape[1:]} float16, {moments.nbytes / 2**20:.1f} MiB")
