"""Held-out images through an autoencoder and back: how much of them is lost."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskdit.autoencoder import identity, load, psnr, to_pixels, to_unit
from maskdit.config import Reconstruct, UserError
from maskdit.data import Array, Images, generator
from maskdit.extractor import Network
from maskdit.files import sha256, write_json
from maskdit.metrics import frechet_distance, merged, moments
from maskdit.runtime import device, progress, say
from maskdit.scores import loaded, suffix
from maskdit.shards import Shards, savez
from maskdit.similarity import ssim


def reconstruct(config: Reconstruct, *, images: Path, vae: Path, extractor: Path, out: Path) -> None:
    """Encode and decode the held-out images, and compare: PSNR, SSIM, and the distance of their features to those of the images.

    That distance, not one to the training images, is the rFID that others report of an autoencoder. The posterior is sampled by a
    seed of each image, or its mean is decoded; images are rounded to 8 bits. Raises UserError if no images are held out.
    """
    data, where = Images.load(images), device()
    rows = data.rows(heldout=True)
    if len(rows) < 2:
        raise UserError(f"reconstruct: {images} holds out {len(rows)} images; give fetch a share of heldout, or a validation set")
    net, judge = load(vae, where), Network(extractor)
    parts = np.array_split(rows, config.shards)
    names = [f"part-{number:04d}.npz" for number in range(config.shards)]
    work = Shards("reconstruct", [config.model_dump(), sha256(images / "manifest.json"), identity(vae), judge.sha256], names)

    def again(numbers: Array) -> tuple[Array, Array]:
        real = torch.from_numpy(np.ascontiguousarray(data.pixels[numbers]))
        posterior = net.encode(to_unit(real.to(where))).latent_dist
        latent: Tensor = posterior.mean
        if config.posterior == "sample":
            shape = latent.shape[1:]
            normal = [generator(config.seed, "posterior", index=int(row)).standard_normal(shape, np.float32) for row in numbers]
            latent = latent + posterior.std * torch.from_numpy(np.stack(normal)).to(where)
        return real.numpy(), to_pixels(net.decode(latent).sample).cpu().numpy()

    def make(number: int, path: Path) -> None:
        mine = parts[number]
        starts = range(0, len(mine), config.batch)
        with torch.inference_mode():
            pairs = [again(mine[at : at + config.batch]) for at in progress(starts, "reconstruct", len(starts))]
        real, made = (np.concatenate(column) for column in zip(*pairs, strict=True))
        both = [torch.from_numpy(pixels) for pixels in (real, made)]
        tree = {"count": np.array(len(mine)), "psnr": psnr(*both).numpy(), "ssim": ssim(*both).numpy()}
        for name, pixels in (("real", real), ("made", made)):
            tree[f"mu_{name}"], tree[f"sigma_{name}"] = moments(
                judge.extract(pixels, np.arange(len(pixels)), config.batch)["features"]
            )
        savez(path, tree)

    if not work.fill(make):
        return
    stored = [loaded(work.home / name) for name in names]
    real, made = (
        merged([(int(part["count"]), part[f"mu_{name}"], part[f"sigma_{name}"]) for part in stored]) for name in ("real", "made")
    )
    name = suffix(judge.family, judge.sha256, len(rows))
    metrics = {
        f"{'rfd' if name else 'rfid'}{name}": frechet_distance(made, real),
        "psnr": float(np.concatenate([part["psnr"] for part in stored]).mean()),
        "ssim": float(np.concatenate([part["ssim"] for part in stored]).mean()),
    }
    protocol = {
        **judge.protocol(),
        "images": len(rows),
        "images_sha256": sha256(images / "manifest.json"),
        "resolution": data.pixels.shape[1],
        "crop": "ADM",
        "posterior": config.posterior,
        "quantisation": "round",
        "against": "the same images",
        "vae_sha256": identity(vae),
        "seed": config.seed,
    }
    write_json(out, {"metrics": metrics, "protocol": protocol})
    work.forget()
    say("reconstruct: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
