"""Times the cases of the benchmark alternately in one process.

On a CPU the clock counts the process's CPU seconds, so that other processes disturb it little.
"""

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from maskdit.benchmark.baseline import Plain, plain_denoise, plain_loss
from maskdit.config.benchmark import Case
from maskdit.config.training import Pretrain
from maskdit.methods.plugins import of_entry
from maskdit.model import transformer
from maskdit.model.diffusion import Draw, denoise, guided
from maskdit.model.samplers import heun, sigma_steps
from maskdit.model.transformer import MaskDiT, compile_blocks, for_inference
from maskdit.runtime.device import autocast, gemm_rate, half, peak_memory
from maskdit.runtime.process_group import Ranks
from maskdit.runtime.progress import say
from maskdit.training.batches import Batch
from maskdit.training.learner import Learner

CLASSES, STEPS, GUIDANCE = 1000, 4, 1.5
ALONE = Ranks(0, 1)


def training(case: Case) -> Pretrain:
    """A case as an entry of pretrain."""
    fixed = {"dataset": "bench", "seed": 0, "mae_weight": 0.1, "milestones": (10**6,), "lr": 1e-4, "betas": (0.9, 0.999)}
    fixed |= {"warmup": 0, "ema": 0.9999, "ema_warmup": 1, "label_dropout": 0.1}
    shared = {name: getattr(case, name) for name in ("mask_ratio", "batch", "precision", "compile", "checkpointing")}
    return Pretrain(encoder=case.encoder, decoder=case.decoder, **fixed, **shared)  # type: ignore[arg-type]


def architecture(case: Case) -> dict[str, Any]:
    """A case's network as the arguments of MaskDiT."""
    encoder = case.encoder.model_dump(exclude={"revision"})
    decoder = case.decoder and case.decoder.model_dump(exclude={"revision"})
    return {"side": case.side, "channels": 4, "classes": CLASSES, "encoder": encoder, "decoder": decoder}


def network(case: Case) -> Any:
    """The case's network, MaskDiT or Plain, with random weights, because products with zeros could be faster."""
    torch.manual_seed(0)
    net = (MaskDiT if case.network == "ours" else Plain)(**architecture(case))
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.02)
    return net


def learner_of(case: Case, net: Any, where: torch.device, ranks: Ranks = ALONE, **changes: Any) -> Learner:
    """A case's network in training; `changes` are of its entry."""
    entry = training(case).model_copy(update=changes)
    return Learner(net, net.state_dict(), entry, of_entry(entry, architecture(case)), where, ranks)


def batch_of(case: Case) -> Batch:
    """Random latents and draws, with labels."""
    B, shape = case.batch, (case.batch, 4, case.side, case.side)
    draw = Draw(torch.randn(B), torch.randn(shape), torch.rand(B, (case.side // case.encoder.patch) ** 2), torch.rand(B))
    return Batch(torch.randn(shape), torch.arange(B) % CLASSES, draw)


@dataclass
class Ready:
    """A case that can be run repeatedly: `once` works on one batch, `states` is the size of its rounded weights in bytes."""

    case: Case
    once: Callable[[], Any]
    flops: float  # per image
    states: int = 0


def ready(case: Case, where: torch.device) -> Ready:
    """Build a case's network and the function to time."""
    entry = training(case)
    method = of_entry(entry, architecture(case))
    keep = method.kept(entry, 0)
    given, net = batch_of(case).to(where), network(case).to(where)
    if case.sampling:
        return sampling(case, net, given, where, method.flops(None, method.tokens))
    flops = 3 * method.flops(entry, keep)
    if case.network == "ours":
        learner = learner_of(case, net, where)
        if not case.update:
            learner.average = torch.empty(0)  # leaves memory for the other network

        def step() -> None:
            learner.gradients(given, keep)
            if case.update:
                learner.update(0)

        return Ready(case, step, flops, 0 if learner.copy.dtype == torch.float32 else learner.copy.nbytes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
    average = [weight.detach().clone() for weight in net.parameters() if case.update]

    def plain_step() -> None:
        net.zero_grad()
        with autocast(where, case.precision):
            value = plain_loss(net, given, keep, 0.1, 0.1)
        torch.autograd.backward(value)
        if case.update:
            optimizer.step()
            for mean, weight in zip(average, net.parameters(), strict=True):
                mean.mul_(0.9999).add_(weight.detach(), alpha=0.0001)

    return Ready(case, plain_step, flops)


def sampling(case: Case, net: Any, given: Batch, where: torch.device, flops: int) -> Ready:
    """A case that samples latents; `flops` is the cost of one forward pass of one image."""
    net.eval().requires_grad_(False)
    if isinstance(net, MaskDiT) and case.precision in ("bf16", "fp16"):
        for_inference(net, half(case.precision), compiled=case.compile)
    if case.compile:
        compile_blocks(net)
    passes: list[int] = []

    def ask(network: Any, y: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        passes.append(len(y))
        return (denoise if isinstance(network, MaskDiT) else plain_denoise)(network, y, sigma, labels)

    def draw() -> None:
        passes.clear()
        with torch.inference_mode(), autocast(where, case.precision):
            heun(guided(net, given.labels, GUIDANCE, ask=ask, interval=case.interval), given.clean, sigma_steps(STEPS))

    draw()
    return Ready(case, draw, flops * sum(passes) / case.batch)


def attention(case: Case) -> AbstractContextManager[Any]:
    """A context in which networks use the case's attention kernel."""
    if case.attention != "sdpa":
        return contextlib.nullcontext()
    return mock.patch.object(transformer, "attend", torch.nn.functional.scaled_dot_product_attention)


def clock(where: torch.device) -> float:
    """CPU seconds of this process on a CPU; wall seconds, after all queued work, on a GPU."""
    if where.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(one: Ready, where: torch.device) -> float:
    """Seconds per image of one run."""
    began = clock(where)
    with attention(one.case):
        one.once()
    return (clock(where) - began) / one.case.batch


def tidy() -> None:
    """Return freed memory to the system, so that the next peak belongs to the next case alone."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak_of(one: Ready, where: torch.device) -> int:
    """Peak memory of a run in bytes, beyond parameters, gradients, moments and average."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one.once()
        return peak_memory(where) - before + one.states
    with mock.patch.object(torch.nn.Module, "zero_grad"), attention(one.case):
        one.once()  # allocates the gradients
        tidy()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
        before = resident("VmRSS")
        one.once()
    return resident("VmHWM") - before + one.states


def measure(cases: dict[str, Case], rounds: int, where: torch.device, with_memory: bool = False) -> dict[str, dict[str, Any]]:
    """Time the cases. Returns for each one seconds per image in each round, FLOPs per image, MFU, and peak memory in bytes.

    MFU is relative to the rate of matrix products measured in the same round.
    """
    torch.compiler.reset()
    tidy()
    built = {name: ready(case, where) for name, case in cases.items()}
    for one in built.values():
        timed(one, where)  # compiles
    memory = {name: peak_of(one, where) for name, one in built.items()} if with_memory else {}
    seconds: dict[str, list[float]] = {name: [] for name in built}
    shares: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(rounds):
        peaks = {precision: gemm_rate(where, precision) for precision in {case.precision for case in cases.values()}}
        for name, one in built.items():
            taken = timed(one, where)
            seconds[name].append(taken)
            shares[name].append(one.flops / taken / peaks[one.case.precision])
    found = {}
    for name, one in built.items():
        mfu = statistics.median(shares[name])
        found[name] = {"seconds": seconds[name], "flops": one.flops, "mfu": mfu, "memory": memory.get(name)}
        say(f"bench: {name}: {statistics.median(seconds[name]):.3f} s per image, MFU {mfu:.3f}")
    return found
