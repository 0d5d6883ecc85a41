"""The training loop behind two verbs: `pretrain` from random weights and `finetune` from a pretrained run."""

import statistics
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from maskdit.artifacts.atomic import digest
from maskdit.config.base import UserError
from maskdit.config.training import Finetune, Pretrain, Training
from maskdit.latents.dataset import Latents
from maskdit.methods.contract import Method
from maskdit.methods.plugins import of_entry
from maskdit.runtime.device import device, gemm_rate, peak_memory, prepare_compiler, settled
from maskdit.runtime.process_group import Ranks, Stopped, listening, together, watched
from maskdit.runtime.progress import progress, say
from maskdit.training.batches import ahead, batch_at
from maskdit.training.heldout import Heldout, due
from maskdit.training.learner import Learner
from maskdit.training.loggers import Loggers
from maskdit.training.micro_batch import fitted
from maskdit.training.milestones import SPENT
from maskdit.training.recovery import Recovery
from maskdit.training.start import Past, begun

LOG_STEPS = 10  # steps per row of log.jsonl
PATIENCE = 5  # number of consecutive steps without a finite gradient that ends a training


def pretrain(config: Pretrain, *, latents: Path, out: Path, published: Path | None = None) -> None:
    """Train from random weights. Publishes each milestone's EMA weights, the final raw weights, log.jsonl and index.json.

    The milestones of a published training of the same recipe are taken over from there.
    """
    data = Latents.load(latents)
    architecture: dict[str, Any] = {"side": data.space.side, "channels": data.space.channels, "classes": len(data.space.classes)}
    architecture |= config.model_dump(include={"encoder", "decoder"}, exclude={"encoder": {"revision"}, "decoder": {"revision"}})
    method = of_entry(config, architecture)
    torch.manual_seed(config.seed)
    start = method.network().state_dict()
    train("pretrain", config, method, data, Past(start, start), out, published)


def finetune(config: Finetune, *, latents: Path, pretrained: Path, out: Path, published: Path | None = None) -> None:
    """Continue from the final weights of a run and their EMA with a new optimiser. Publishes the same files as `pretrain`.

    The run may be published weights, which get a label table for the classes of the images.
    """
    data = Latents.load(latents)
    method, past = begun(config, data, latents, pretrained)
    train("finetune", config, method, data, past, out, published)


def train(
    phase: str,
    config: Training,
    method: Method,
    data: Latents,
    past: Past,
    out: Path,
    published: Path | None = None,
) -> None:
    """Train on every rank and publish from the first. The recipe directory's name depends on the recipe, but not on its length.

    An interrupted phase resumes, and a longer one extends a shorter one, with the same bits as an uninterrupted run. Of other
    milestones than those of before only the missing ones are made, if need be from step 0.
    """
    if config.batch > len(data.labels):
        raise UserError(f"{phase}.batch: {config.batch} is larger than the data ({len(data.labels)} latents); lower it")
    recipe = {
        "phase": phase,
        **config.recipe(),
        "architecture": method.architecture,
        "latents": data.sha256,
        "past": past.identity(),
    }
    recipe |= method.named()
    name = digest(recipe)[:16]
    with (
        Loggers(phase, name, config.model_dump(mode="json")) as log,
        listening(),
        together() as ranks,
        Recovery(f"{phase}-{name}", config, ranks, published) as home,
    ):
        precision = ranks.from_first(lambda: settled(home.milestones.precision or config.precision, device(), home.folder))
        while missing := ranks.from_first(home.milestones.missing):
            loop(phase, config.model_copy(update={"precision": precision}), method, data, past, ranks, home, missing, log)
        if ranks.rank == 0:
            home.publish(out)


def loop(
    phase: str,
    config: Training,
    method: Method,
    data: Latents,
    past: Past,
    ranks: Ranks,
    home: Recovery,
    missing: list[int],
    log: Loggers,
) -> None:
    """Run the steps from the newest state before the first of the missing milestones, as far as `Recovery.goal` says."""
    # 1. The network on its device, and the progress made so far
    where = device()
    if config.batch % ranks.world:
        raise UserError(f"{phase}.batch: {config.batch} cannot be shared by {ranks.world} ranks; use a multiple of {ranks.world}")
    net = method.network(config)
    net.load_state_dict(past.net)
    weights = sum(weight.numel() for weight in net.parameters())
    config = fitted(phase, config, method, weights, where, ranks, home.folder)
    learner = Learner(net, past.ema, config, method, where, ranks)
    unseen = Heldout(method, data.heldout, config.precision, where, ranks) if data.heldout else None
    terms = torch.zeros(2, device=where)  # sums of the loss terms since the last row of the log
    done: dict[str, Any] = {"step": 0, **dict.fromkeys((*SPENT, "state_seconds"), 0), "rows": []}
    done |= home.resume(learner, terms, missing[0])
    first, last, rows = done["step"], ranks.from_first(partial(home.goal, missing)), done["rows"]
    log.begin(rows, first, last)
    if config.compile:
        prepare_compiler(where)
    if ranks.rank == 0:
        home.room(learner)
    peak = gemm_rate(where, config.precision)
    mark, waited, measured = time.perf_counter(), 0.0, dict[int, dict[str, float]]()

    def tick() -> None:
        nonlocal mark
        if where.type == "cuda":
            torch.cuda.synchronize()
        mark, passed = time.perf_counter(), time.perf_counter() - mark
        done["seconds"] += passed
        done["device_seconds"] += passed * ranks.world

    def heldout() -> dict[str, float]:
        nonlocal mark
        if unseen and done["step"] not in measured:
            tick()
            measured.clear()
            measured[done["step"]] = unseen.loss(learner.weights(learner.average))
            mark = time.perf_counter()  # the time of a measurement is not training time
        return measured.get(done["step"], {})

    def facts() -> dict[str, Any]:
        kind: dict[str, Any] = {"model": method.model, "phase": phase}
        kind |= {"preconditioning": method.preconditioning, **({"source": past.source} if past.source else {})}
        cost = {"step": done["step"], **{name: getattr(past, name) + done[name] for name in SPENT}}
        how = {"precision": config.precision, "arithmetic": arithmetic(where), "speed": speed(rows, ranks.world, where.type)}
        given = {"architecture": method.architecture, "space": data.space.__dict__, "config": config.model_dump(mode="json")}
        found = {"heldout": measured[done["step"]]} if done["step"] in measured else {}
        return {**kind, **cost, "parameters": weights, **how, **given, **method.named(), **found}

    def save(milestone: bool, together: bool) -> None:
        if milestone:
            heldout()
        tick()
        if together and ranks.world > 1:
            distributed.all_reduce(terms)
        began = time.perf_counter()
        home.copy(learner, terms, done["step"], milestone)
        done["state_seconds"] += time.perf_counter() - began
        if together:  # the sums of all ranks go on with the first
            terms.mul_(ranks.rank == 0)
        tick()
        home.write(done, facts() if milestone else {})

    # 2. The steps
    share: dict[str, Any] = {"rank": ranks.rank, "world": ranks.world, "extra": method.draws(config)}
    make = partial(batch_at, config=config, latents=data, patches=method.tokens, **share)
    marks: deque[torch.cuda.Event] = deque()
    batches = ahead(make, first, last)
    steps = watched(range(first, last), ranks.world)
    for step in progress(steps, phase, last, first, lambda: f"loss {rows[-1]['loss']:.4f}" if rows else ""):
        if ranks.stop(step):
            save(milestone=False, together=True)
            home.wait()
            raise Stopped(f"{phase}: stopped before step {step + 1} and saved its state; run the command again to resume")
        if where.type == "cuda":  # the host runs at most two steps ahead of the GPU, so that no rank runs far ahead of another
            marks.append(torch.cuda.current_stream().record_event())
            if len(marks) > 2:
                marks.popleft().synchronize()
        batch, wait = next(batches)
        waited += wait
        ratio, keep = config.mask_at(step), method.kept(config, step)
        part = learner.gradients(batch.to(where), keep)
        rate = learner.update(step)
        terms += torch.where(learner.bad > 0, 0.0, part)
        done["step"] = step + 1
        done["images"] += config.batch
        done["flops"] += 3 * method.flops(config, keep) * config.batch  # the backward pass costs twice as much as the forward pass

        # 3. A row of the log
        if (step + 1) % LOG_STEPS == 0:
            if ranks.world > 1:
                distributed.all_reduce(terms)
            tick()
            before = rows[-1] if rows else {"step": 0, "seconds": 0.0, "flops": 0, "skipped": 0}
            seconds, skipped = done["seconds"] - before["seconds"], int(learner.skipped)
            if learner.streak >= PATIENCE:
                raise UserError(f"{phase}: no finite gradient in {PATIENCE} steps up to step {step + 1}; lower lr, or use fp32")
            dsm, mae = (terms / max(1, step + 1 - before["step"] - (skipped - before["skipped"]))).tolist()
            terms.zero_()
            row = {"step": step + 1, "loss": dsm + mae, "dsm": dsm, "mae": mae, "grad_norm": float(learner.norm)}
            row |= {"lr": rate, "mask_ratio": ratio, "skipped": skipped, **{name: done[name] for name in (*SPENT, "state_seconds")}}
            row["images_per_second"] = (step + 1 - before["step"]) * config.batch / seconds
            row["data_wait"] = waited / seconds
            row["mfu"] = (done["flops"] - before["flops"]) / seconds / ranks.world / peak
            row["peak_memory"] = peak_memory(where)
            row |= heldout() if due(step + 1, LOG_STEPS) or step + 1 in config.milestones else {}
            rows.append(row)
            log.add(row)
            waited = 0.0

        # 4. Milestones and recovery
        milestone = step + 1 in missing
        if milestone or ((step + 1) % LOG_STEPS == 0 and home.due()):
            save(milestone, together=milestone)
    home.wait()
    if rows:
        say(f"{phase}: {last} steps, {rows[-1]['images_per_second']:.0f} images/s, MFU {rows[-1]['mfu']:.2f}")


def speed(rows: list[dict[str, Any]], devices: int, kind: str) -> dict[str, Any] | None:
    """Speed of a phase from its log: medians over the rows, and the highest memory use; None without rows."""
    if not rows:
        return None
    middle = {name: statistics.median(row[name] for row in rows) for name in ("images_per_second", "mfu", "data_wait")}
    return {"device": kind, "devices": devices, **middle, "peak_memory": max(row["peak_memory"] for row in rows)}


def arithmetic(where: torch.device) -> dict[str, Any]:
    """The settings, besides code and config, that the results depend on."""
    return {
        "device": torch.cuda.get_device_name() if where.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.get_float32_matmul_precision() != "highest",
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }
