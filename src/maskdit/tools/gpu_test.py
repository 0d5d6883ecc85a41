"""Checks of a GPU: python -m maskdit.tools.gpu_test. It prints a line as each check ends, and writes results/gpu.csv.

It needs no data and no net, and of our packages only PyTorch, NumPy, pydantic, psutil and safetensors (with PYTHONPATH=src). The
numbers that are expected were predicted for an H100 without having one. Only what is wrong in itself counts as failed.
"""

import csv
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from maskdit.artifacts.atomic import replacing
from maskdit.config.base import UserError
from maskdit.runtime.device import gpus
from maskdit.tools.gpu_checks import (
    XL,
    Bench,
    Seen,
    agreement,
    group,
    machine,
    products,
    sampling,
    step,
    stopping,
    unmasking,
    waits,
)

CHECKS: dict[str, tuple[str, Callable[[Bench], Seen]]] = {
    "machine": ("driver 580 or newer, sm_75 to sm_120, gcc, Python.h", machine),
    "matrix products (TFLOP/s)": ("350-500 at M 1024, 600-750 at M 16384; tf32 350-450; fp32 45-55", products),
    "gradient, GPU against CPU": ("below 1e-4", agreement),
    "waits of the host in a step": ("none", waits),
    "process group of one rank": ("nccl", group),
    "MaskDiT-XL/2, eager": ("1.25-1.6 times the compiled step", partial(step, dense=False, compiled=False)),
    "MaskDiT-XL/2, compiled": ("105-150 ms, 40-46 GB, 2 graphs, first step 60-120 s", partial(step, dense=False, compiled=True)),
    "DiT-XL/2, compiled": ("190-270 ms, 53-60 GB; 1.65-1.85 times MaskDiT's", partial(step, dense=True, compiled=True)),
    "cosine unmasking": ("3 graphs", unmasking),
    "sampling, eager": ("200-320 ms", partial(sampling, compiled=False)),
    "sampling, compiled": ("1.3-1.6 times as fast", partial(sampling, compiled=True)),
    "SIGTERM, resume, determinism": ("20-45 s for each state of 11.7 GB, the same bits", stopping),
}


def run(bench: Bench, out: Path, names: tuple[str, ...] = tuple(CHECKS)) -> bool:
    """Run the checks, print a line for each, write them as CSV after each; whether none is wrong."""
    rows: list[dict[str, str]] = []
    for name in names:
        expected, check = CHECKS[name]
        began = time.perf_counter()
        try:
            seen = check(bench)
        except (UserError, RuntimeError, AssertionError, OSError) as error:
            seen = Seen(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False)
        verdict = {None: "", True: "good", False: "FAILED"}[seen.good]
        row = {"check": name, "expected on an H100": expected, "seen": seen.text, "verdict": verdict}
        rows.append({**row, "seconds": f"{time.perf_counter() - began:.1f}"})
        print(f"{name}: {seen.text}{f' [{verdict}]' * bool(verdict)}\n    expected on an H100: {expected}", flush=True)
        out.parent.mkdir(exist_ok=True)
        with replacing(out) as fresh, fresh.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return all(row["verdict"] != "FAILED" for row in rows)


def main() -> int:
    """Run all checks on the GPU, if there is one."""
    try:
        if not gpus():
            print("no GPU here: nothing to check")
            return 0
    except UserError as error:
        print(f"maskdit: {error}", file=sys.stderr)
        return 2
    return 0 if run(Bench(torch.device("cuda", 0), XL, 128, 10), Path("results") / "gpu.csv") else 1


if __name__ == "__main__":
    sys.exit(main())
