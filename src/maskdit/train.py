"""The training loop, behind two verbs: `pretrain` from random weights and `finetune` from a pretrained run."""

import fcntl
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskdit import checkpoint
from maskdit.config import Finetune, Pretrain, Training, UserError, kept_tokens
from maskdit.data import Latents, generator, order
from maskdit.diffusion import Draw, loss
from maskdit.files import digest, read_json, replacing, write_json
from maskdit.model import MaskDiT
from maskdit.runtime import autocast, device, progress, say, scratch

LOG_STEPS = 10  # a line of log.jsonl each so many steps
SAVE_SECONDS = 60.0  # recovery state at least so often

State = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One step's global batch: clean latents, labels, and everything random."""

    clean: Tensor  # B, C, H, W
    labels: Tensor  # B
    draw: Draw


@dataclass(frozen=True)
class Past:
    """What a phase starts from: weights, their moving average, and what has been spent before."""

    net: State
    ema: State
    images: int = 0
    seconds: float = 0.0
    flops: float = 0.0


def batch_at(step: int, config: Training, latents: Latents, patches: int, where: torch.device) -> Batch:
    """The batch of a step: a function of (seed, step, place in the batch) alone, whatever ran before."""
    shape = (latents.space.channels, latents.space.side, latents.space.side)
    rows = order(config.seed, len(latents.labels), step * config.batch, (step + 1) * config.batch)
    posterior, noise = np.empty((2, config.batch, *shape), np.float32)
    uniform = np.empty((config.batch, patches + 2), np.float32)  # mask scores, label drop, mirror
    normal = np.empty(config.batch, np.float32)
    for place in range(config.batch):
        source = generator(config.seed, "step", step, place)
        normal[place] = source.standard_normal(dtype=np.float32)
        source.standard_normal(dtype=np.float32, out=posterior[place])
        source.standard_normal(dtype=np.float32, out=noise[place])
        source.random(dtype=np.float32, out=uniform[place])
    mirrors = (uniform[:, -1] * latents.moments.shape[1]).astype(int)
    clean = latents.draw(rows, mirrors, posterior)

    def put(array: Any) -> Tensor:
        return torch.from_numpy(array).to(where)

    draw = Draw(put(normal), put(noise), put(uniform[:, :patches]), put(uniform[:, patches]))
    return Batch(put(clean), put(latents.labels[rows]), draw)


def step_loss(net: MaskDiT, batch: Batch, config: Training, keep: int) -> tuple[Tensor, Tensor]:
    """The two loss terms, averaged over the batch."""
    dsm, mae = loss(
        net,
        batch.clean,
        batch.labels,
        batch.draw,
        patch=net.patch,
        keep=keep,
        mae_weight=config.mae_weight,
        label_dropout=config.label_dropout,
    )
    return dsm.mean(), mae.mean()


def pretrain(config: Pretrain, *, latents: Path, out: Path) -> None:
    """Train from random weights.

    Publishes the EMA weights of each milestone, the final raw weights, log.jsonl and index.json.
    """
    data = Latents.load(latents)
    architecture: dict[str, Any] = {
        "side": data.space.side,
        "channels": data.space.channels,
        "classes": len(data.space.classes),
        "encoder": config.encoder.model_dump(exclude={"revision"}),
        "decoder": config.decoder.model_dump(exclude={"revision"}) if config.decoder else None,
    }
    torch.manual_seed(config.seed)
    start = MaskDiT(**architecture).state_dict()
    train("pretrain", config, architecture, data, Past(start, start), out)


def finetune(config: Finetune, *, latents: Path, pretrained: Path, out: Path) -> None:
    """Go on from a run's last weights and their moving average, with a new optimiser; publishes what `pretrain` does."""
    data = Latents.load(latents)
    index = read_json(pretrained / "index.json")
    net, facts = checkpoint.load(pretrained / index["final"])
    ema, _ = checkpoint.load(pretrained / index["milestones"][-1]["file"])
    architecture = facts["architecture"]
    if data.space.vae != facts["space"]["vae"] or list(data.space.scale) != facts["space"]["scale"]:
        raise UserError(f"{latents}: not the latents that {pretrained} was trained on; rerun the pretraining")
    spent = Past(net, ema, facts["images"], facts["seconds"], facts["flops"])
    train("finetune", config, architecture, data, spent, out)


def train(phase: str, config: Training, architecture: dict[str, Any], data: Latents, past: Past, out: Path) -> None:
    """The loop. Its state survives in the scratch folder, keyed by the recipe without its length.

    An interrupted phase goes on from there, and a longer one extends a shorter one; both end with the bits of one
    uninterrupted run.
    """
    # 1. The recipe, its place in the scratch folder, and the network
    where = device()
    if config.batch > len(data.labels):
        raise UserError(f"{phase}.batch: {config.batch} is larger than the data ({len(data.labels)} latents); lower it")
    patches = (data.space.side // architecture["encoder"]["patch"]) ** 2
    keep = kept_tokens(patches, config.mask_ratio)
    net = MaskDiT(**architecture).to(where)
    net.load_state_dict(past.net)
    names = [name for name, weight in net.named_parameters() if weight.requires_grad]
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    average = {name: tensor.to(where, copy=True) for name, tensor in past.ema.items()}
    optimizer = torch.optim.AdamW(weights, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True)
    cost = 3 * net.flops(keep)  # per image: the backward pass costs twice the forward
    recipe = {"phase": phase, **config.recipe(), "architecture": architecture, "latents": data.sha256, "past": identity(past)}
    with owned(scratch(f"{phase}-{digest(recipe)[:16]}")) as home:
        # 2. Recovery: the newest state, unless a milestone before it was never kept
        terms = torch.zeros(2, device=where)  # of the loss, since the last line of the log
        step, seconds, rows = resume(home, net, average, terms, optimizer, names, config)

        def facts() -> dict[str, Any]:
            images = past.images + step * config.batch
            return {
                "model": "DiT" if architecture["decoder"] is None else "MaskDiT",
                "phase": phase,
                "step": step,
                "images": images,
                "seconds": past.seconds + seconds,
                "flops": past.flops + step * config.batch * cost,
                "parameters": sum(weight.numel() for weight in net.parameters()),
                "precision": config.precision,
                "architecture": architecture,
                "space": data.space.__dict__,
                "config": config.model_dump(mode="json"),
            }

        def keep_state() -> None:
            full = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
            full |= {"terms": terms, **{f"ema.{name}": tensor for name, tensor in average.items()}}
            for name, weight in zip(names, weights, strict=True):
                full |= {f"{moment}.{name}": tensor for moment, tensor in optimizer.state[weight].items()}
            checkpoint.save(home / "state.safetensors", full, {"step": step, "seconds": seconds, "rows": rows})

        # 3. The steps
        saved, last = time.monotonic(), config.milestones[-1]
        for _ in progress(range(step, last), phase, last, step, note=lambda: f"loss {rows[-1]['loss']:.4f}" if rows else ""):
            began = time.perf_counter()
            batch = batch_at(step, config, data, patches, where)
            rate = config.lr * min(1.0, (step + 1) / (config.warmup or 1))
            optimizer.param_groups[0]["lr"] = rate
            with autocast(where, config.precision):
                dsm, mae = step_loss(net, batch, config, keep)
            torch.autograd.backward(dsm + mae)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(config.ema, (step + 1) / (step + config.ema_warmup))
            torch._foreach_lerp_([average[name] for name in names], [weight.detach() for weight in weights], 1 - decay)
            terms += torch.stack([dsm.detach(), mae.detach()])
            step += 1
            if step % LOG_STEPS == 0:
                d, m = (terms / LOG_STEPS).tolist()
                terms.zero_()
                if not math.isfinite(d + m):
                    raise UserError(f"{phase}: the loss is not finite at step {step}; lower lr, or use precision fp32")
                rows.append({"step": step, "loss": d + m, "dsm": d, "mae": m, "lr": rate})
            seconds += time.perf_counter() - began
            if step % LOG_STEPS == 0:
                rows[-1] |= {"seconds": seconds, "images_per_second": step * config.batch / seconds}

            # 4. Milestones and recovery
            if step in config.milestones:
                checkpoint.save(home / ema_file(step), average, facts())
                checkpoint.save(home / net_file(step), net.state_dict(), facts())
            if step in config.milestones or (time.monotonic() - saved > SAVE_SECONDS and step % LOG_STEPS == 0):
                keep_state()
                saved = time.monotonic()

        # 5. Publish
        publish(home, out, config, [row for row in rows if row["step"] <= last])
    say(f"{phase}: {last} steps, {cost / 1e9:.2f} GFLOP per image and step, {config.batch * last / seconds:.0f} images/s")


MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def ema_file(step: int) -> str:
    """Name of a milestone's averaged weights."""
    return f"ema-{step:07d}.safetensors"


def net_file(step: int) -> str:
    """Name of a milestone's raw weights, from which a finetuning starts."""
    return f"net-{step:07d}.safetensors"


def identity(past: Past) -> str:
    """A hash of the weights that a phase starts from."""
    total = hashlib.sha256()
    for tensor in (*past.net.values(), *past.ema.values()):
        total.update(tensor.numpy().data)
    return total.hexdigest()


def resume(
    home: Path,
    net: MaskDiT,
    average: State,
    terms: Tensor,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    config: Training,
) -> tuple[int, float, list[dict[str, float]]]:
    """Load the newest recovery state, if there is one that serves: step, seconds spent and log so far."""
    path = home / "state.safetensors"
    if not path.exists():
        return 0, 0.0, []
    state, facts = checkpoint.load(path)
    step = facts["step"]
    lost = [mark for mark in config.milestones if mark <= step and not (home / net_file(mark)).exists()]
    if lost:
        say(f"{home}: step {step} is reached, but milestone {lost[0]} was not kept: starting again from step 0")
        return 0, 0.0, []
    net.load_state_dict({name: state[f"net.{name}"] for name in net.state_dict()})
    terms.copy_(state["terms"])
    for name, tensor in average.items():
        tensor.copy_(state[f"ema.{name}"])
    for name, weight in zip(names, optimizer.param_groups[0]["params"], strict=True):
        if f"step.{name}" in state:  # an unused mask token has none
            optimizer.state[weight] = {moment: state[f"{moment}.{name}"].to(weight.device) for moment in MOMENTS}
    say(f"{home}: going on from step {step}")
    return step, facts["seconds"], facts["rows"]


@contextmanager
def owned(home: Path) -> Iterator[Path]:
    """Hold a recovery folder for this process alone; raises UserError if another one trains there."""
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{home}: another process trains this recipe; wait for it or stop it") from None
        yield home


def publish(home: Path, out: Path, config: Training, rows: list[dict[str, float]]) -> None:
    """Copy milestones, final weights and log from the recovery folder, with an index that describes them."""
    listed = []
    for step in config.milestones:
        shutil.copyfile(home / ema_file(step), out / ema_file(step))
        _, facts = checkpoint.load(out / ema_file(step))
        listed.append({"file": ema_file(step), **{name: facts[name] for name in ("step", "images", "seconds", "flops")}})
    final = net_file(config.milestones[-1])
    shutil.copyfile(home / final, out / final)
    with replacing(out / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(out / "index.json", {"milestones": listed, "final": final})
