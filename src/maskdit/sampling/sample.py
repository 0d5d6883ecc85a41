"""Images from a checkpoint and seeds."""

from pathlib import Path
from typing import Any

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
from maskdit.methods.contract import Method
from maskdit.methods.plugins import altered, of_facts
from maskdit.model import checkpoint
from maskdit.model.diffusion import Network
from maskdit.model.ema import combination
from maskdit.model.transformer import compile_blocks, for_inference
from maskdit.runtime.device import autocast, device, half, prepare_compiler, settled, upload
from maskdit.runtime.progress import say
from maskdit.runtime.random import generator

SAMPLERS = {"heun": "EDM Heun", "dpmpp-2m": "DPM-Solver++(2M)", "ddpm": "DDPM"}
SAMPLERS |= {"flow-heun": "Heun in t", "flow-euler": "Euler in t"}
PREDICTIONS = {"ddpm": "noise and its variance", "flow-heun": "a velocity", "flow-euler": "a velocity"}  # solver -> what it needs
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


def demand_solver(config: Sample, path: Path, method: Method) -> None:
    """Raise UserError if the entry's solver does not fit the method of a checkpoint."""
    if config.solver not in (fitting := method.solvers()):
        needed = f"{config.solver} needs a network that predicts {PREDICTIONS.get(config.solver, 'x0')}"
        raise UserError(f"{path}: {needed}; set solver to {' or '.join(fitting)}")


def count(config: Sample, method: Method) -> tuple[int, int]:
    """Evaluations and network passes per image, counted with a network that returns zeros."""
    batches: list[int] = []
    channels = method.architecture["channels"]
    out = (method.architecture.get("out_channels") or channels) // channels

    def zeros(x: Tensor, *_: object) -> Tensor:
        batches.append(len(x))
        return torch.zeros_like(torch.cat([x] * out, dim=1))

    noise = torch.zeros(1, channels, *[method.architecture["side"]] * 2)
    method.sampled(config, zeros, np.arange(1), noise, torch.zeros(1, dtype=torch.long))
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


class Sampler:
    """A network on the device of this process, the autoencoder that made its latents, and the numbers of an entry.

    flops: of one pass of an image. home: the folder of a work that several processes share, see `settled`.
    """

    def __init__(
        self, config: Sample, tensors: dict[str, Tensor], facts: dict[str, Any], vae: Path, home: Path | None = None
    ) -> None:
        self.config, self.method, where = config, of_facts(facts), device()
        self.where, self.precision = where, settled(config.precision, where, home)
        if altered(self.method):
            say(f"sample: {self.method.source['name']} is not as it was when the checkpoint was trained")
        net = self.method.network()
        net.load_state_dict(tensors)
        net.to(where).eval().requires_grad_(False)
        self.net: Network = net
        self.flops = self.method.flops(None, self.method.tokens)
        self.nfe, self.passes = count(config, self.method)
        self.compiled = compiles(config, where, self.passes * self.flops)
        if (rounded := half(self.precision)) != torch.float32:
            for_inference(net, rounded, self.compiled)
        if self.compiled:
            compile_blocks(net)
        self.decoder = autoencoder.prepare(autoencoder.load(vae, where), config.vae_precision)
        self.shift, self.scale = (torch.from_numpy(each).to(where) for each in Space.parse(facts["space"]).factors())

    @torch.inference_mode()
    def draw(self, rows: Array, noise: Array, labels: Array) -> Tensor:
        """The images `rows` (n, H, W, 3) from their noise and labels; `done` says when a GPU has copied them to the CPU.

        The batch is padded to the entry's size, so that an image does not depend on the others drawn.
        """
        whole = np.resize(np.arange(len(rows)), self.config.batch)
        noise_BCHW, labels_B = (upload(torch.from_numpy(array[whole]), self.where) for array in (noise, labels))
        with autocast(self.where, self.precision):
            latent = self.method.sampled(self.config, self.net, rows[whole], noise_BCHW, labels_B)
        images = autoencoder.decode(self.decoder, latent.float() / self.scale + self.shift, self.config.vae_precision)
        return autoencoder.to_pixels(images, self.config.quantisation).to("cpu", non_blocking=True)[: len(rows)]

    def done(self) -> None:
        """Wait until all images are on the CPU."""
        if self.where.type == "cuda":
            torch.cuda.synchronize()


def sample(config: Sample, *, run: Path, vae: Path, out: Path) -> None:
    """Draw images from EMA weights. Writes shards of uint8 images (n, H, W, 3), labels.npy and index.json.

    Finished shards survive an interruption. Raises UserError if the disk has no room for all images.
    """
    # 1. The network, and the autoencoder that made its latents
    path = find(run, config.step)
    tensors, facts = checkpoint.load(path)
    if config.ema_width is not None:
        tensors = averaged(run, facts["step"], config.ema_width)
    demand_solver(config, path, of_facts(facts))
    space = Space.parse(facts["space"])
    autoencoder.demand(vae, space.vae)
    names = [f"images-{number:04d}.npy" for number in range(config.shards)]
    work = Shards("sample", [config.model_dump(mode="json"), sha256(path), space.vae], names, out)
    work.demand_room(3 * config.images * (space.side * autoencoder.geometry(vae)[0]) ** 2)
    sampler = Sampler(config, tensors, facts, vae, work.home)

    # 2. The shards
    parts = np.array_split(np.arange(config.images), config.shards)

    def shard(number: int, place: Path) -> None:
        batches = np.array_split(parts[number], -(-len(parts[number]) // config.batch))
        drawn = [sampler.draw(rows, *starts(config, space, rows)) for rows in batches]  # a GPU computes one while it copies another
        sampler.done()
        save_array(place, torch.cat(drawn).numpy())

    if not work.fill(shard):
        return
    work.take(out)

    # 3. The record of the checkpoint and the sampling protocol
    save_array(out / "labels.npy", starts(config, space, np.arange(config.images))[1])
    training = {name: facts.get(name) for name in FACTS} | {"forward_flops": sampler.flops}
    training |= {"heldout": facts["heldout"]} if "heldout" in facts else {}
    weights = "EMA" if config.ema_width is None else f"EMA of relative width {config.ema_width}"
    cost = {"nfe": sampler.nfe, "network_passes": sampler.passes}
    levels = {} if config.solver.startswith("flow-") else {"sigma_range": sampler.method.sigma_range()}
    protocol = {"sampler": SAMPLERS[config.solver], **cost, **levels}
    protocol |= {name: getattr(config, name) for name in CHOICES}
    used = {"precision": sampler.precision, "seed": config.seed, "images": config.images, "vae_sha256": space.vae}
    protocol |= {"weights": weights, **used}
    unusual = {"vae_precision": config.vae_precision if config.vae_precision != "fp32" else None, "compiled": sampler.compiled}
    protocol |= {name: value for name, value in unusual.items() if value}
    write_json(out / "index.json", {"shards": names, "checkpoint": training, "protocol": protocol})
    told = f"{config.images} images from {path.name}, {sampler.nfe} NFE, {sampler.passes} passes per image"
    say(f"sample: {told}, guidance {config.guidance}")
