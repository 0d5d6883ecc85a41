"""The device that a step runs on: its precision, its measured peak rate and its memory."""

import os
import re
import resource
import shutil
import sysconfig
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from maskdit.config.base import UserError
from maskdit.runtime.progress import say
from maskdit.runtime.variables import bf16_allowed, flag, threads, variable, visible_gpus, whole

if TYPE_CHECKING:  # many steps do not need torch, whose import is slow
    import torch
    from torch import Tensor

NODES = Path("/dev")  # of GPUs: nvidia0, nvidia1, …
COMPILER = "install the compiler and Python's headers on this node, or set compile: false"
ADVICE = "docs/installation.md says what it needs; MASKDIT_DEVICE=cpu computes on the CPU"
PRECISION: str | None = None  # the resolved precision of this process's step, if its entry has a precision


def gpus() -> int:
    """The number of GPUs that this process may use: 0 on a machine without one, and with MASKDIT_DEVICE=cpu.

    Raises UserError if there are GPUs, but none that PyTorch can use: the CPU would take weeks for their work.
    """
    import torch

    if (wanted := variable("MASKDIT_DEVICE")) not in (None, "cpu"):
        raise UserError(f"MASKDIT_DEVICE: '{wanted}' is not 'cpu'; correct it, or unset it to use the GPUs that there are")
    if wanted:
        return 0
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    if sign := _sign_of_gpus():
        reason = "no reason is given"
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split(". ")[0].split("\n")[0]
        raise UserError(f"{sign}: PyTorch {torch.__version__} cannot use this GPU ({reason}); {ADVICE}")
    return 0


def _sign_of_gpus() -> str:
    """What shows that this machine or job has NVIDIA GPUs; '' if nothing does, or if they are hidden from this process."""
    if visible_gpus() == []:
        return ""
    if whole("SLURM_GPUS_ON_NODE", 0):
        return f"Slurm job {variable('SLURM_JOB_ID')}"
    return next((str(path) for path in sorted(NODES.glob("nvidia[0-9]*"))), "")


def demand_kernels(where: "torch.device") -> None:
    """Raise UserError if this PyTorch has no code for a GPU: neither for its major version, nor any that the driver can compile."""
    import torch

    capability, known = torch.cuda.get_device_capability(where), torch.cuda.get_arch_list()
    for kind, major, minor in re.findall(r"\b(sm|compute)_(\d+)(\d)[a-z]?\b", " ".join(known)):
        if (int(major), int(minor)) <= capability and (kind == "compute" or int(major) == capability[0]):
            return
    name = f"{torch.cuda.get_device_name(where)}, compute capability {'.'.join(map(str, capability))}"
    raise UserError(f"{where} ({name}): PyTorch {torch.__version__} has kernels for {' '.join(known)} only; {ADVICE}")


def device() -> "torch.device":
    """The GPU of this rank, else the CPU. Also sets the threads and, with MASKDIT_DETERMINISTIC=1, deterministic algorithms."""
    import torch

    torch.set_num_threads(threads())
    torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions; here fp32 means float32
    if flag("MASKDIT_DETERMINISTIC"):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read at the first matrix product on a GPU
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    if not (count := gpus()):
        return torch.device("cpu")
    if (place := whole("LOCAL_RANK", 0) or 0) >= count:
        raise UserError(f"LOCAL_RANK: {place}, but PyTorch sees {count} GPUs here; start one process for each of them")
    where = torch.device("cuda", place)
    demand_kernels(where)
    torch.cuda.set_device(where)
    return where


def upload(tensor: "Tensor", where: "torch.device") -> "Tensor":
    """A tensor on a device; a copy to a GPU does not wait for the GPU."""
    return tensor if where.type == "cpu" else tensor.pin_memory().to(where, non_blocking=True)


def native(where: "torch.device") -> str:
    """The fastest precision that a device supports without emulation: bf16, on older GPUs fp16, on most CPUs fp32."""
    import torch

    if where.type == "cuda":
        major, _ = torch.cuda.get_device_capability(where)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    known = torch.cpu.get_capabilities()
    return "bf16" if (known.get("avx512_bf16") or known.get("amx_bf16")) and bf16_allowed() else "fp32"


def settled(precision: str, where: "torch.device", home: Path | None = None, scaled: bool = True) -> str:
    """The precision of a step; `auto` becomes the device's native precision. Prints a line if the precision is emulated.

    The first process that works in the folder `home` stores its precision there for all others. A step whose loss is not `scaled`
    cannot train in fp16, so that `auto` becomes fp32.
    """
    global PRECISION
    mine, stored = native(where), home and home / "precision"
    if precision == "auto":
        precision = "fp32" if mine == "fp16" and not scaled else mine
        if stored:
            precision = _first(stored, precision)
    if precision in ("bf16", "fp16") and (where.type == "cpu" or precision == "bf16") and mine != precision:
        begun = ", in which this work started," if stored and stored.exists() else ""
        say(f"precision {precision}{begun} is emulated on this device and several times slower than {mine}")
    PRECISION = precision
    return precision


def _first(path: Path, text: str) -> str:
    """Write `text` to a file unless another process did so first; returns the file's text."""
    mine = path.with_name(f".{os.getpid()}.{path.name}")
    mine.write_text(text, encoding="utf-8")
    try:
        path.hardlink_to(mine)  # fails if the file exists
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            mine.replace(path)
    finally:
        mine.unlink(missing_ok=True)
    return path.read_text(encoding="utf-8")


def half(precision: str) -> "torch.dtype":
    """The type to which operands of matrix products are rounded: float32 for fp32 and tf32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def autocast(where: "torch.device", precision: str) -> AbstractContextManager[Any]:
    """Compute matrix products in fp32 (exact), tf32 (a GPU may round operands to 10 bits), bf16 or fp16."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.autocast(where.type, half(precision)) if precision in ("bf16", "fp16") else nullcontext()


def gemm_rate(where: "torch.device", precision: str) -> float:
    """Measured FLOP/s of a large matrix product on this device: the peak that MFU refers to."""
    import torch

    rows, products = (512, 1) if where.type == "cpu" else (16384, 10)  # enough tiles for all units of a GPU
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


def prepare_compiler(where: "torch.device") -> None:
    """Raise UserError if torch.compile cannot work on this machine: torch itself says so only in the first step."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # by default 32 processes for each rank
    names = {"CXX": ("g++", "clang++"), **({"CC": ("gcc", "clang")} if where.type == "cuda" else {})}
    for name, usual in names.items():
        words = (variable(name) or "").split()[:1]
        if not any(map(shutil.which, words or usual)):
            wanted = f"{name}={words[0]}" if words else usual[0]
            raise UserError(f"compile: true needs a compiler, and {wanted} is not here; {COMPILER}")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if where.type == "cuda" and not header.exists():
        raise UserError(f"compile: true needs {header}, which is not here; {COMPILER}")


def free_memory(where: "torch.device") -> tuple[int, int]:
    """Free bytes and all bytes that this process may use, of the GPU or of the machine."""
    if where.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(where)
        return int(free), int(total)
    return system_memory(whole("LOCAL_WORLD_SIZE") or 1)


def system_memory(processes: int) -> tuple[int, int]:
    """The share of one of so many processes in the machine's memory, or in what a control group allows: free bytes and all."""
    memory = psutil.virtual_memory()
    limit = min([memory.total, *group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])
    return min(memory.available, limit) // processes, limit // processes


def group_limits(membership: Path, root: Path) -> Iterator[int]:
    """The limits of memory of this process's control groups, in bytes."""
    with suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            top, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
            if controllers in ("", "memory"):
                folder = top / name.lstrip("/")
                for each in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):
                    with suppress(OSError, ValueError):  # the root has none, and `max` is none
                        yield int((each / file).read_text(encoding="utf-8"))


def peak_memory(where: "torch.device") -> int:
    """Peak memory of this process in bytes: allocated on the GPU, or resident on a CPU."""
    import torch

    if where.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
