"""What gpu_test checks: each function does one thing on the device and says what it saw."""

import os
import platform
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from maskdit.benchmark.timing import batch_of, learner_of, network, ready, training
from maskdit.config.benchmark import Case
from maskdit.config.training import kept_tokens
from maskdit.latents.dataset import Latents, Space
from maskdit.methods.plugins import of_entry
from maskdit.runtime import device
from maskdit.runtime.device import demand_kernels, prepare_compiler
from maskdit.runtime.process_group import Stopped, free_port
from maskdit.training import train
from maskdit.training.batches import batch_at
from maskdit.training.learner import Learner
from maskdit.training.start import Past

XL = {
    "side": 32,
    "encoder": {"patch": 2, "depth": 28, "width": 1152, "heads": 16},
    "decoder": {"depth": 8, "width": 512, "heads": 16},
}
TINY = {"side": 8, "encoder": {"patch": 2, "depth": 2, "width": 32, "heads": 2}, "decoder": {"depth": 1, "width": 32, "heads": 2}}


@dataclass(frozen=True)
class Seen:
    """What a check saw, in words, and whether it is right; None where there is no right or wrong."""

    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Bench:
    """Where the checks run, and how large they are: XL/2 with 128 images on a GPU, a toy on a CPU."""

    where: torch.device
    sizes: dict[str, Any]
    batch: int
    rounds: int

    def case(self, **changes: Any) -> Case:
        """MaskDiT in bf16 with half of the tokens masked, but for the changes."""
        usual = {"network": "ours", **self.sizes, "mask_ratio": 0.5, "batch": self.batch, "precision": "bf16", "update": True}
        return Case.model_validate({**usual, **changes})

    def sync(self) -> None:
        """Wait for the device."""
        if self.where.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, act: Callable[[], object], count: int = 0) -> float:
        """Median seconds of an act, after one that is not counted."""
        taken = []
        for _ in range((count or self.rounds) + 1):
            self.sync()
            began = time.perf_counter()
            act()
            self.sync()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[1:])

    def fresh(self) -> None:
        """Forget compiled graphs, memory and its peak."""
        torch.compiler.reset()
        if self.where.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """GB allocated at most since `fresh`."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.where.type == "cuda" else float("nan")


def graphs() -> int:
    """Graphs that torch.compile has made."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def machine(bench: Bench) -> Seen:
    """Driver, capability, kernels, and what torch.compile needs."""
    told = [platform.node(), f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if bench.where.type == "cuda":
        demand_kernels(bench.where)
        facts = torch.cuda.get_device_properties(bench.where)
        told += [
            facts.name,
            f"sm_{facts.major}{facts.minor}",
            f"{facts.total_memory / 1e9:.0f} GB, {facts.multi_processor_count} units",
        ]
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            told.append(
                "driver " + subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace").stdout.split("\n")[0]
            )
    prepare_compiler(bench.where)
    return Seen(", ".join(told), True)


def products(bench: Bench) -> Seen:
    """TFLOP/s of matrix products in each precision; with few and many rows in bf16."""
    told = []

    def repeat(left: torch.Tensor, right: torch.Tensor) -> None:
        for _ in range(20):
            torch.nn.functional.linear(left, right)

    sizes = [("bf16", 1024), ("bf16", 16384), ("tf32", 16384), ("fp32", 4096)] if bench.where.type == "cuda" else [("fp32", 256)]
    for precision, rows in sizes:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        left, right = (torch.randn(shape, device=bench.where, dtype=kind) for shape in ((rows, 1152), (4608, 1152)))
        taken = bench.seconds(partial(repeat, left, right)) / 20
        told.append(f"{precision} M={rows}: {2 * rows * 1152 * 4608 / taken / 1e12:.0f}")
    torch.set_float32_matmul_precision("highest")
    return Seen(", ".join(told))


def step(bench: Bench, dense: bool, compiled: bool) -> Seen:
    """A training step with its update: milliseconds, images per second, memory, graphs and the share of the measured peak rate."""
    bench.fresh()
    before, began = graphs(), time.perf_counter()
    one = ready(bench.case(compile=compiled, **({"decoder": None, "mask_ratio": 0.0} if dense else {})), bench.where)
    one.once()
    bench.sync()
    first, taken = time.perf_counter() - began, bench.seconds(one.once)
    rate = one.flops * bench.batch / taken / device.gemm_rate(bench.where, "bf16")
    told = f"{1e3 * taken:.1f} ms, {bench.batch / taken:.0f} images/s, {bench.peak():.1f} GB, MFU {rate:.2f}, first {first:.0f} s"
    return Seen(f"{told}, {graphs() - before} graphs" if compiled else told)


def ours(bench: Bench, where: torch.device, **changes: Any) -> Learner:
    """A learner of the bench's case on a device."""
    case = bench.case(**changes)
    net = network(case)
    return learner_of(case, net, where)


def agreement(bench: Bench) -> Seen:
    """The gradient in fp32 of a small network on the device and on the CPU."""
    small = replace(bench, sizes=TINY, batch=8)
    given, found = batch_of(small.case()), []
    for where in (torch.device("cpu"), bench.where):
        learner = ours(small, where, precision="fp32")
        learner.gradients(given.to(where), 8)
        found.append(learner.gradient.cpu())
    apart = float((found[0] - found[1]).norm() / found[0].norm())
    return Seen(f"relative difference {apart:.1e}", apart < 1e-4)


def waits(bench: Bench) -> Seen:
    """A step in which every wait of the host for the GPU is an error."""
    learner = ours(bench, bench.where)
    given, keep = batch_of(bench.case()).to(bench.where), bench.case().side ** 2 // 2
    learner.gradients(given, keep)
    learner.update(0)
    bench.sync()
    if bench.where.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        learner.gradients(given, keep)
        learner.update(1)
    except RuntimeError as error:
        return Seen(str(error).split("\n")[0], False)
    finally:
        if bench.where.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return Seen("none", True)


def group(bench: Bench) -> Seen:
    """A group of one rank, with the backend of the device: a sum, and the end of the group."""
    from torch import distributed

    backend = "nccl" if bench.where.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        value = torch.ones(1 << 20, device=bench.where)
        distributed.all_reduce(value)
        bench.sync()
    finally:
        distributed.destroy_process_group()
    return Seen(backend, bool(value.sum() == 1 << 20))


def trained(bench: Bench, home: Path, stop: int | None) -> tuple[dict[str, torch.Tensor], float]:
    """The weights of a short training, which a signal stops before a step and which then goes on; seconds until it was stopped."""
    case = bench.case()
    config = training(case).model_copy(update={"milestones": (6,), "dataset": "gpu-test", "batch": 16})
    architecture = {"channels": 4, "classes": 10, **bench.sizes}
    space = Space(4, case.side, (0.0,) * 4, (1.0,) * 4, "", tuple(map(str, range(10))))
    moments = np.random.default_rng(0).normal(size=(64, 1, 8, case.side, case.side)).astype(np.float16)
    data = Latents.of([moments], np.arange(64) % 10, space, "random")
    torch.manual_seed(0)
    method = of_entry(config, architecture)
    start = method.network().state_dict()
    work = partial(train.train, "pretrain", config, method, data, Past(start, start), home / "out")
    (home / "out").mkdir(parents=True)

    def warned(number: int, **rest: Any) -> Any:
        if number == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_at(number, **rest)

    seconds, began = 0.0, time.perf_counter()
    with mock.patch.dict(os.environ, {"MASKDIT_SCRATCH": str(home / "scratch"), "MASKDIT_DETERMINISTIC": "1"}):
        try:
            with mock.patch.object(train, "batch_at", warned):
                work()
        except Stopped:
            seconds = time.perf_counter() - began
            work()
    torch.use_deterministic_algorithms(False)
    return load_file(next((home / "out").glob("net-*.safetensors"))), seconds


def stopping(bench: Bench) -> Seen:
    """SIGTERM in a training: its state, and its end, which must have the bits of a training that was never stopped."""
    with tempfile.TemporaryDirectory() as name:
        (whole, _), (again, seconds) = trained(bench, Path(name, "whole"), None), trained(bench, Path(name, "stopped"), 4)
        size = sum(path.stat().st_size for path in Path(name).glob("stopped/scratch/*/state-*.safetensors")) / 1e9
    same = all(torch.equal(whole[name], again[name]) for name in whole)
    told = f"stopped and saved {seconds:.0f} s after its start, states of {size:.1f} GB"
    return Seen(f"{told}, {'the same bits' if same else 'other bits'}", same)


def unmasking(bench: Bench) -> Seen:
    """Graphs for many numbers of kept tokens, as the cosine schedule has them."""
    bench.fresh()
    net = network(bench.case())
    learner = learner_of(bench.case(compile=True), net, bench.where, schedule_steps=100)
    given, tokens, before = batch_of(bench.case()).to(bench.where), net.pos_embed.shape[1], graphs()
    counts = sorted({kept_tokens(tokens, ratio) for ratio in np.linspace(0.5, 0.0, 6)})
    for keep in counts:
        learner.gradients(given, keep)
    bench.sync()
    return Seen(f"{graphs() - before} graphs for {len(counts)} numbers of tokens", graphs() - before < len(counts))


def sampling(bench: Bench, compiled: bool) -> Seen:
    """Sampling with guidance in bf16: milliseconds per evaluation of the network. A wait of the host for the GPU is an error."""
    bench.fresh()
    case = bench.case(sampling=True, mask_ratio=0.0, update=False, compile=compiled)
    one = ready(case, bench.where)
    bench.sync()
    if bench.where.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        one.once()
    finally:
        if bench.where.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    taken = bench.seconds(one.once, 3)
    return Seen(f"{1e3 * taken / 7:.0f} ms per evaluation of {2 * case.batch} images")
