"""Held-out images through an autoencoder and back: how much of them is lost."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskdit.artifacts.arrays import Array, read_arrays
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError
from maskdit.config.evaluation import Reconstruct
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.metrics import frechet_distance, moments
from maskdit.evaluation.protocol import suffix
from maskdit.evaluation.similarity import ssim
from maskdit.images.dataset import Images
from maskdit.latents.autoencoder import identity, load, psnr, to_pixels, to_unit
from maskdit.runtime.device import device
from maskdit.runtime.progress import progress, say
from maskdit.runtime.random import generator


def reconstruct(config: Reconstruct, *, images: Path, vae: Path, extractor: Path, out: Path) -> None:
    """Encode and decode the held-out images, and compare: PSNR, SSIM, and the distance of their features to those of the images.

    That distance, not one to the training images, is the rFID that others report of an autoencoder. The posterior is sampled by a
    seed of each image, or its mean is decoded; images are rounded to 8 bits. Sharded by the image's number; batches are filled up
    to one size, so that nothing depends on how the work is cut. Raises UserError if no two images are held out.
    """
    data, where = Images.load(images), device()
    rows = data.rows(heldout=True)
    if len(rows) < 2:
        raise UserError(f"reconstruct: {images} holds out {len(rows)} images; give fetch a share of heldout, or a validation set")
    if config.shards > len(rows):
        raise UserError(f"reconstruct.shards: {config.shards} shards of {len(rows)} images; lower it")
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
        quality = np.empty((2, len(mine)))
        starts = range(0, len(mine), config.batch)
        with torch.inference_mode():
            for at in progress(starts, "reconstruct", len(starts)):
                here = slice(at, min(at + config.batch, len(mine)))
                pair = [pixels[: here.stop - at] for pixels in again(np.resize(mine[here], config.batch))]
                made[here], quality[0, here], quality[1, here] = pair[1].numpy(), psnr(*pair), ssim(*pair)
        seen = {
            "real": judge.extract(data.pixels, mine, config.batch),
            "made": judge.extract(made, np.arange(len(mine)), config.batch),
        }
        features = {name: found["features"] for name, found in seen.items()}
        savez(path, {"rows": mine, "psnr": quality[0], "ssim": quality[1], **features})

    if not work.fill(make):
        return
    stored = [read_arrays(work.home / name) for name in names]
    found = {name: np.concatenate([part[name] for part in stored]) for name in ("rows", "psnr", "ssim", "real", "made")}
    if not np.array_equal(found["rows"], rows):
        raise UserError(f"{work.home}: does not hold each of {len(rows)} images once; remove it and reconstruct again")
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
