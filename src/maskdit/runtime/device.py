"""The device that a step computes on: its precision, its measured peak and its memory."""

import os
import resource
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskdit.config.base import UserError
from maskdit.runtime.environment import threads
from maskdit.runtime.progress import say

if TYPE_CHECKING:  # steps that only count do not wait for torch
    import torch

PRECISION: str | None = None  # in which this process computes, of a step whose entry has one


def device() -> "torch.device":
    """The accelerator if there is one.

    With MASKDIT_DETERMINISTIC=1 only algorithms are used that give the same bits each time, which a CPU does anyway and a GPU in
    less speed; an operation that has none is an error.
    """
    import torch

    torch.set_num_threads(threads())
    torch.backends.cudnn.allow_tf32 = False  # convolutions, by default; fp32 means float32 here
    if (wanted := os.environ.get("MASKDIT_DETERMINISTIC", "0")) not in ("0", "1"):
        raise UserError(f"MASKDIT_DETERMINISTIC: '{wanted}' is neither 0 nor 1; set one of them, or unset it")
    if wanted == "1":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read with the first product on a GPU
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    if not torch.cuda.is_available():
        return torch.device("cpu")
    where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(where)
    return where


def native(where: "torch.device") -> str:
    """The fastest precision that a device computes in without emulation: bf16, fp16 on GPUs of before, fp32 on most CPUs."""
    import torch

    if where.type == "cuda":
        major, _ = torch.cuda.get_device_capability(where)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    known = torch.cpu.get_capabilities()
    return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "fp32"


def settled(precision: str, where: "torch.device", home: Path | None = None, scaled: bool = True) -> str:
    """What a step computes in. `auto` becomes the device's own precision.

    That is kept in `home`, the folder of work that several processes or machines may go on with: they take what is kept there. A
    step whose loss is not `scaled` cannot train in fp16 and takes fp32. Says so where the precision is emulated.
    """
    global PRECISION
    mine, kept = native(where), home and home / "precision"
    if precision == "auto":
        precision = mine if scaled or mine != "fp16" else "fp32"
        if kept:
            precision = _first(kept, precision)
    if precision in ("bf16", "fp16") and (where.type == "cpu" or precision == "bf16") and mine != precision:
        begun = ", in which this was begun," if kept and kept.exists() else ""
        say(f"precision {precision}{begun} is emulated on this device, and several times slower than {mine}")
    PRECISION = precision
    return precision


def _first(path: Path, text: str) -> str:
    """What the first process that comes here has written into a file."""
    mine = path.with_name(f".{os.getpid()}.{path.name}")
    mine.write_text(text)
    try:
        path.hardlink_to(mine)  # which fails where there is one
    except FileExistsError:
        pass
    except OSError:  # no links on this file system
        if not path.exists():
            mine.replace(path)
    finally:
        mine.unlink(missing_ok=True)
    return path.read_text()


def half(precision: str) -> "torch.dtype":
    """What the operands of matrix products are rounded to; float32 for fp32 and tf32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def autocast(where: "torch.device", precision: str) -> AbstractContextManager[Any]:
    """Matrix products in `precision`: fp32 (exact), tf32 (float32 that a GPU may round to 10 bits), bf16 or fp16."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.autocast(where.type, half(precision)) if precision in ("bf16", "fp16") else nullcontext()


def gemm_rate(where: "torch.device", precision: str) -> float:
    """FLOP/s of a large matrix product in `precision` on this device: the measured peak that MFU is a share of."""
    import torch

    rows, products = (512, 1) if where.type == "cpu" else (1024, 50)
    left, right = torch.randn(rows, 1152, device=where), torch.randn(4608, 1152, device=where)

    def once() -> float:
        began = time.perf_counter()
        for _ in range(products):
            torch.nn.functional.linear(left, right)
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with torch.no_grad(), autocast(where, precision):
        left, right = left.to(half(precision)), right.to(half(precision))
        once()
        return 2 * rows * 1152 * 4608 * products / min(once() for _ in range(3))


def peak_memory(where: "torch.device") -> int:
    """Bytes that this process has held at once so far: on the device, on a CPU resident."""
    import torch

    if where.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
