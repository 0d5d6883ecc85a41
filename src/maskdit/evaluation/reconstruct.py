"""Held-out images through an autoencoder and back: how much of them is lost."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError
from maskdit.config.evaluation import Reconstruct
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.metrics import frechet_distance, moments
from maskdit.evaluation.protocol import gathered, suffix
from maskdit.images.dataset import Images
from maskdit.latents.autoencoder import identity, load, psnr, to_pixels, to_unit
from maskdit.runtime.device import device
from maskdit.runtime.progress import progress, say
from maskdit.runtime.random import generator

WINDOW, SIGMA = 11, 1.5  # of the Gaussian window, in pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def reconstruct(config: Reconstruct, *, images: Path, vae: Path, extractor: Path, out: Path) -> None:
    """PSNR (dB) and SSIM of held-out images after encoding and decoding, and the Fréchet distance of their features to the images'.

    That distance, not one to the training images, is the rFID that others report for an autoencoder. What is decoded is the mean of
    the posterior or a sample seeded per image; outputs are rounded to 8 bits. The work is sharded by image number, and batches are
    padded to one size, so the results do not depend on the sharding. Raises UserError if too few images are held out.
    """
    data, where = Images.load(images), device()
    rows = data.rows(heldout=True)
    if len(rows) < max(2, config.shards):
        advice = "hold out more in its entry of fetch, or lower reconstruct.shards"
        raise UserError(f"{images}: holds out {len(rows)} images, at least {max(2, config.shards)} are needed; {advice}")
    net, judge = load(vae, where), Network(extractor)
    parts = np.array_split(rows, config.shards)
    names = [f"part-{number:04d}.npz" for number in range(config.shards)]
    work = Shards("reconstruct", [config.model_dump(), sha256(images / "manifest.json"), identity(vae), judge.sha256], names)

    def again(numbers: Array) -> tuple[Tensor, Tensor]:
        real = torch.from_numpy(np.ascontiguousarray(data.pixels[numbers]))
        posterior = net.encode(to_unit(real.to(where))).latent_dist
        latent: Tensor = posterior.mean
        if config.posterior == "sample":
            shape = latent.shape[1:]
            normal = [generator(config.seed, "posterior", index=int(row)).standard_normal(shape, np.float32) for row in numbers]
            latent = latent + posterior.std * torch.from_numpy(np.stack(normal)).to(where)
        return real, to_pixels(net.decode(latent).sample).cpu()

    def make(number: int, path: Path) -> None:
        mine = parts[number]
        made = np.empty((len(mine), *data.pixels.shape[1:]), np.uint8)
        quality = np.empty((2, len(mine)))  # PSNR, SSIM
        starts = range(0, len(mine), config.batch)
        with torch.inference_mode():
            for at in progress(starts, "reconstruct", len(starts), unit="batches"):
                here = slice(at, min(at + config.batch, len(mine)))
                pair = [pixels[: here.stop - at] for pixels in again(np.resize(mine[here], config.batch))]
                made[here], quality[0, here], quality[1, here] = pair[1].numpy(), psnr(*pair), ssim(*pair)
        before = judge.extract(data.pixels, mine, config.batch)["features"]
        after = judge.extract(made, np.arange(len(mine)), config.batch)["features"]
        savez(path, {"psnr": quality[0], "ssim": quality[1], "real": before, "made": after})

    if not work.fill(make):
        return
    found = gathered([work.home / name for name in names])
    name = suffix(judge.family, judge.sha256, len(rows))
    metrics = {
        f"{'rfd' if name else 'rfid'}{name}": frechet_distance(moments(found["made"]), moments(found["real"])),
        "psnr": float(found["psnr"].mean()),
        "ssim": float(found["ssim"].mean()),
    }
    protocol = {
        **judge.protocol(),
        "images": len(rows),
        "images_sha256": sha256(images / "manifest.json"),
        "resolution": data.pixels.shape[1],
        "crop": "ADM" if read_json(images / "index.json")["kind"] == "store" else "none",
        "posterior": config.posterior,
        "quantisation": "round",
        "against": "the same images",
        "vae_sha256": identity(vae),
        "seed": config.seed,
    }
    write_json(out, {"metrics": metrics, "protocol": protocol})
    work.forget()
    say("reconstruct: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


def ssim(one_BHWC: Tensor, other_BHWC: Tensor) -> Tensor:
    """SSIM (B,) between two batches of uint8 images, averaged over channels and Gaussian windows, unpadded (Wang et al. 2004)."""
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    window = torch.outer(weights, weights)[None, None]

    def blurred(images: Tensor) -> Tensor:
        return F.conv2d(images.flatten(0, 1)[:, None], window)

    x, y = (images.permute(0, 3, 1, 2).double() for images in (one_BHWC, other_BHWC))
    mx, my = blurred(x), blurred(y)
    vx, vy, cov = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    found = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return found.reshape(len(x), -1).mean(1)
