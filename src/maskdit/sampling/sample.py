"""Images from a checkpoint and seeds."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import read_json, save_array, sha256, write_json
from maskdit.artifacts.shards import Shards
from maskdit.config.base import UserError
from maskdit.config.sampling import Sample
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.model import checkpoint
from maskdit.model.diffusion import Network, denoise, denoise_vp, guided, predict_vp, vp_sigmas
from maskdit.model.ema import combination
from maskdit.model.samplers import SIGMA_MAX, SIGMA_MIN, ddpm, dpmpp_2m, heun, sigma_steps
from maskdit.model.transformer import MaskDiT, compile_blocks, for_inference
from maskdit.runtime.device import autocast, device, half, prepare_compiler, settled, upload
from maskdit.runtime.progress import say
from maskdit.runtime.random import generator

SAMPLERS = {"heun": "EDM Heun", "dpmpp-2m": "DPM-Solver++(2M)", "ddpm": "DDPM"}
FACTS = ("model", "phase", "step", "images", "seconds", "device_seconds", "flops", "parameters", "precision", "arithmetic", "speed")
WORTH = 3e16  # FLOPs from which on compiling, half a minute, is worth while: minutes of a GPU
CHOICES = ("guidance", "guidance_channels", "guidance_interval", "labels", "quantisation")  # fields of the entry in the protocol


def starts(config: Sample, space: Space, rows: Array) -> tuple[Array, Array]:
    """Noise (n, C, H, W) and labels (n,) of the images `rows`. Balanced labels are the image's number modulo the classes."""
    noise = np.empty((len(rows), space.channels, space.side, space.side), np.float32)
    labels = rows % len(space.classes)
    for place, row in enumerate(rows):
        source = generator(config.seed, "image", index=int(row))
        source.standard_normal(out=noise[place], dtype=np.float32)
        if config.labels == "random":
            labels[place] = source.integers(len(space.classes))
    return noise, labels


def find(run: Path, step: int | str) -> Path:
    """The file with a milestone's EMA weights. Raises UserError if the run has no such milestone."""
    milestones: dict[int, str] = {mark["step"]: mark["file"] for mark in read_json(run / "index.json", "milestones")["milestones"]}
    wanted = max(milestones) if step == "final" else step
    if wanted not in milestones:
        raise UserError(f"{run}: has no milestone {wanted}, only {sorted(milestones)}")
    return run / milestones[wanted]


def averaged(run: Path, step: int, width: float) -> dict[str, Tensor]:
    """The average of relative width `width` at a milestone: a least-squares fit by the averages stored up to that step."""
    marks = [mark for mark in read_json(run / "index.json", "milestones")["milestones"] if mark["step"] <= step]
    files = [run / name for mark in marks for name in mark["posthoc"]]
    if len(files) < 2:
        raise UserError(f"{run}: ema_width needs at least two post-hoc averages; train it with posthoc_ema: [0.05, 0.1]")
    kept = [(known["sigma_rel"], known["step"]) for known in map(checkpoint.facts, files)]
    total: dict[str, Tensor] = {}
    for factor, file in zip(combination(kept, width, step), files, strict=True):
        for name, tensor in checkpoint.load(file)[0].items():
            fixed = name.endswith("pos_embed")
            total[name] = tensor if fixed else total.get(name, 0) + float(factor) * tensor
    return total


def sigma_range(vp: bool) -> tuple[float, float]:
    """Lowest and highest noise level of a sampler, for EDM's preconditioning or a VP network."""
    return (vp_sigmas()[0].item(), vp_sigmas()[-1].item()) if vp else (SIGMA_MIN, SIGMA_MAX)


def integrate(config: Sample, net: Network, rows: Array, noise_BCHW: Tensor, labels_B: Tensor, vp: bool) -> Tensor:
    """Turn noise into the latents of the images `rows` with the entry's solver and guidance. `vp`: the network is a VP model."""
    ask = predict_vp if config.solver == "ddpm" else denoise_vp if vp else denoise
    channels = noise_BCHW.shape[1] if config.guidance_channels == "all" else min(3, noise_BCHW.shape[1])
    denoiser = guided(net, labels_B, config.guidance, ask=ask, channels=channels, interval=config.guidance_interval)
    if config.solver == "ddpm":
        seeds = [int(generator(config.seed, "ddpm", index=int(row)).integers(2**63)) for row in rows]
        return ddpm(denoiser, noise_BCHW, config.solver_steps, [torch.Generator().manual_seed(seed) for seed in seeds])
    solve = heun if config.solver == "heun" else dpmpp_2m
    return solve(denoiser, noise_BCHW, sigma_steps(config.solver_steps, *sigma_range(vp)))


def count(config: Sample, vp: bool) -> tuple[int, int]:
    """Denoiser evaluations and network passes per image, counted with a network that returns zeros."""
    batches: list[int] = []

    def zeros(x: Tensor, *_: object) -> Tensor:
        batches.append(len(x))
        return torch.zeros_like(torch.cat([x, x], dim=1) if vp else x)

    integrate(config, zeros, np.arange(1), torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long), vp)
    return len(batches), sum(batches)


def compiles(config: Sample, where: torch.device, flops: float) -> bool:
    """Whether the network is compiled, which passes an image by so many FLOPs: `auto` if that takes a GPU minutes."""
    if config.compile is False or (config.compile == "auto" and (where.type == "cpu" or config.images * flops < WORTH)):
        return False
    try:
        prepare_compiler(where)
    except UserError as error:
        if config.compile is True:
            raise
        say(f"sample: not compiled: {error}")
        return False
    return True


def sample(config: Sample, *, run: Path, vae: Path, out: Path) -> None:
    """Draw images from EMA weights. Writes shards of uint8 images (n, H, W, 3), labels.npy and index.json.

    Finished shards survive an interruption. Batches are padded to one size, so that an image does not depend on the others drawn.
    Raises UserError if the disk has no room for all images.
    """
    # 1. The network, and the autoencoder that made its latents
    where = device()
    path = find(run, config.step)
    tensors, facts = checkpoint.load(path)
    if config.ema_width is not None:
        tensors = averaged(run, facts["step"], config.ema_width)
    vp = facts.get("preconditioning", "edm") == "vp"
    if config.solver == "ddpm" and not vp:
        raise UserError(f"{path}: ddpm needs a network that predicts noise and its variance; set solver to heun or dpmpp-2m")
    space = Space.parse(facts["space"])
    autoencoder.demand(vae, space.vae)
    names = [f"images-{number:04d}.npy" for number in range(config.shards)]
    work = Shards("sample", [config.model_dump(mode="json"), sha256(path), space.vae], names, out)
    work.demand_room(3 * config.images * (space.side * autoencoder.geometry(vae)[0]) ** 2)
    precision = settled(config.precision, where, work.home)
    net = MaskDiT(**facts["architecture"])
    net.load_state_dict(tensors)
    net.to(where).eval().requires_grad_(False)
    nfe, passes = count(config, vp)
    compiled = compiles(config, where, passes * net.flops(net.pos_embed.shape[1]))
    if (rounded := half(precision)) != torch.float32:
        for_inference(net, rounded, compiled)
    if compiled:
        compile_blocks(net)
    decoder = autoencoder.prepare(autoencoder.load(vae, where), config.vae_precision)
    shift, scale = (torch.from_numpy(factor).to(where) for factor in space.factors())

    def draw(rows: Array) -> Tensor:
        whole = np.resize(rows, config.batch)
        noise, labels = (upload(torch.from_numpy(array), where) for array in starts(config, space, whole))
        with autocast(where, precision):
            latent = integrate(config, net, whole, noise, labels, vp)
        images = autoencoder.decode(decoder, latent.float() / scale + shift, config.vae_precision)
        return autoencoder.to_pixels(images, config.quantisation).to("cpu", non_blocking=True)[: len(rows)]

    # 2. The shards
    parts = np.array_split(np.arange(config.images), config.shards)

    def shard(number: int, place: Path) -> None:
        batches = np.array_split(parts[number], -(-len(parts[number]) // config.batch))
        with torch.inference_mode():
            drawn = [draw(rows) for rows in batches]  # a GPU computes one while it copies the one before
        if where.type == "cuda":
            torch.cuda.synchronize()
        save_array(place, torch.cat(drawn).numpy())

    if not work.fill(shard):
        return
    work.take(out)

    # 3. The record of the checkpoint and the sampling protocol
    save_array(out / "labels.npy", starts(config, space, np.arange(config.images))[1])
    training = {name: facts.get(name) for name in FACTS} | {"forward_flops": net.flops(net.pos_embed.shape[1])}
    weights = "EMA" if config.ema_width is None else f"EMA of relative width {config.ema_width}"
    protocol = {"sampler": SAMPLERS[config.solver], "nfe": nfe, "network_passes": passes, "sigma_range": sigma_range(vp)}
    protocol |= {name: getattr(config, name) for name in CHOICES}
    protocol |= {"weights": weights, "precision": precision, "seed": config.seed, "images": config.images, "vae_sha256": space.vae}
    unusual = {"vae_precision": config.vae_precision if config.vae_precision != "fp32" else None, "compiled": compiled}
    protocol |= {name: value for name, value in unusual.items() if value}
    write_json(out / "index.json", {"shards": names, "checkpoint": training, "protocol": protocol})
    say(f"sample: {config.images} images from {path.name}, {nfe} NFE, {passes} passes per image, guidance {config.guidance}")
