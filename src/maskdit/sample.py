"""A checkpoint and seeds to images."""

import shutil
from pathlib import Path

import numpy as np
import torch

from maskdit import autoencoder, checkpoint
from maskdit.config import Sample, UserError
from maskdit.data import Array, Space, generator
from maskdit.diffusion import guided, heun
from maskdit.files import digest, read_json, save_array, sha256, write_json
from maskdit.model import MaskDiT
from maskdit.runtime import autocast, device, progress, say, scratch


def starts(config: Sample, space: Space, rows: Array) -> tuple[Array, Array]:
    """Noise (n, C, H, W) and labels (n,) of the images numbered `rows`: each depends on the seed and its number alone.

    Labels are uniform, as in the paper, or balanced: the number modulo the number of classes.
    """
    noise = np.empty((len(rows), space.channels, space.side, space.side), np.float32)
    labels = rows % len(space.classes)
    for place, row in enumerate(rows):
        source = generator(config.seed, "image", index=int(row))
        source.standard_normal(out=noise[place], dtype=np.float32)
        if config.labels == "random":
            labels[place] = source.integers(len(space.classes))
    return noise, labels


def find(run: Path, step: int | str) -> Path:
    """The EMA weights of a milestone; raises UserError if the run has no such one."""
    milestones: dict[int, str] = {mark["step"]: mark["file"] for mark in read_json(run / "index.json")["milestones"]}
    wanted = max(milestones) if step == "final" else step
    if wanted not in milestones:
        raise UserError(f"{run}: has no milestone {wanted}, only {sorted(milestones)}")
    return run / milestones[wanted]


def sample(config: Sample, *, run: Path, vae: Path, out: Path) -> None:
    """Draw images by EDM's Heun sampler from EMA weights: shards of uint8 images (n, H, W, 3), labels.npy and index.json.

    Shards are contiguous in the image's number; those already drawn survive an interruption. Batches are filled up to one size,
    so that what an image becomes does not depend on how many are drawn with it.
    """
    # 1. The network, and the autoencoder that made its latents
    where = device()
    path = find(run, config.step)
    tensors, facts = checkpoint.load(path)
    space = Space.parse(facts["space"])
    autoencoder.demand(vae, space.vae)
    net = MaskDiT(**facts["architecture"])
    net.load_state_dict(tensors)
    net.to(where).eval().requires_grad_(False)
    decoder = autoencoder.load(vae, where)
    shift, scale = (torch.from_numpy(factor).to(where) for factor in space.factors())

    def draw(rows: Array) -> Array:
        noise, labels = starts(config, space, np.resize(rows, config.batch))
        denoiser = guided(net, torch.from_numpy(labels).to(where), config.guidance)
        with autocast(where, config.precision):
            latent = heun(denoiser, torch.from_numpy(noise).to(where), config.solver_steps)
        images = decoder.decode(latent.float() / scale + shift).sample
        return autoencoder.to_pixels(images).cpu().numpy()[: len(rows)]

    # 2. The shards, each finished one kept in the scratch folder
    home = scratch(f"sample-{digest([config.model_dump(mode='json'), sha256(path), space.vae])[:16]}")
    shards = np.array_split(np.arange(config.images), config.shards)
    names = [f"images-{number:04d}.npy" for number in range(config.shards)]
    with torch.inference_mode():
        for number in progress(range(config.shards), "sample", config.shards):
            rows, kept = shards[number], home / names[number]
            if not kept.exists():
                parts = np.array_split(rows, -(-len(rows) // config.batch))
                save_array(kept, np.concatenate([draw(part) for part in parts]))
            shutil.copyfile(kept, out / kept.name)

    # 3. What a reader needs to know
    save_array(out / "labels.npy", starts(config, space, np.arange(config.images))[1])
    spent = ("model", "phase", "step", "images", "seconds", "flops", "parameters", "precision")
    protocol = {
        "sampler": "EDM Heun",
        "nfe": 2 * config.solver_steps - 1,
        "guidance": config.guidance,
        "labels": config.labels,
        "quantisation": "round",
        "weights": "EMA",
        "precision": config.precision,
        "seed": config.seed,
        "images": config.images,
        "vae_sha256": space.vae,
    }
    checkpoint_facts = {name: facts[name] for name in spent}
    write_json(out / "index.json", {"shards": names, "checkpoint": checkpoint_facts, "protocol": protocol})
    shutil.rmtree(home)
    say(f"sample: {config.images} images from {path.name}, {protocol['nfe']} NFE, guidance {config.guidance}")
