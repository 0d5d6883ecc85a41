"""What a step needs of the machine: device, threads, progress, and a place for the state that must survive a kill."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from maskdit.config import UserError

if TYPE_CHECKING:  # steps that only count do not wait for torch
    import torch

LOG_SECONDS = 10.0
FINISHED: list[Path] = []  # scratch folders that nobody needs when this process has published
PART: tuple[int, int] | None = None  # of a step's shards, this process makes the K-th of N shares and publishes nothing; None: all
PRECISION: str | None = None  # in which this process computes, of a step whose entry has one
KEY = ""  # of the entry that this process runs, before each line: several write to one terminal


def seconds(name: str, otherwise: float) -> float:
    """A setting of the environment; raises UserError if it is no number of seconds."""
    text = os.environ.get(name, str(otherwise))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise UserError(f"{name}: '{text}' is no number of seconds; set one, or unset it")
    return value


def whole(name: str) -> int:
    """A setting of the environment, 1 if it is not there; raises UserError if it is no number from 1 to 1024."""
    text = os.environ.get(name, "1")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= 1024):
        raise UserError(f"{name}: '{text}' is no number from 1 to 1024; set one, or unset it")
    return int(text)


def threads() -> int:
    """Threads of this process on a CPU: MASKDIT_THREADS, else OMP_NUM_THREADS, which Snakemake sets, else half of the cores.

    Half of them leaves room for a second training beside it, and is what the rules ask for: both engines get the same bits on one
    machine. Another number of threads adds up in another order: numbers then differ in their last digits.
    """
    for name in ("MASKDIT_THREADS", "OMP_NUM_THREADS"):
        if name in os.environ:
            return whole(name)
    return max(1, len(os.sched_getaffinity(0)) // 2 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) // 2)


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


def scratch(name: str) -> Path:
    """A folder for recovery state that no engine knows or deletes, under MASKDIT_SCRATCH, else .scratch.

    Raises UserError if others may write it.
    """
    path = Path(os.environ.get("MASKDIT_SCRATCH", ".scratch")) / name
    path.mkdir(parents=True, exist_ok=True)
    demand_own(path)
    return path


def demand_own(path: Path) -> None:
    """Raise UserError if others may write a file or folder that is trusted, or what a link leads to; MASKDIT_SHARED=1 allows it.

    The own primary group is oneself, for many systems give each user one; root trusts folders of users, as containers do.
    """
    status = path.stat()
    strange = path.is_dir() and os.getuid() not in (0, status.st_uid)
    others = status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid != os.getgid())
    if (others or strange) and not os.environ.get("MASKDIT_SHARED"):
        raise UserError(f"{path}: others may write it; chmod go-w it, or set MASKDIT_SHARED=1 if you trust them")


def tidy() -> None:
    """Remove the scratch folders of what has been published, and what a process that was killed here has left of others.

    A folder loses its name before its files: half of it would pass for damaged work.
    """
    while FINISHED:
        home = FINISHED.pop()
        for left in home.parent.glob("*.gone"):
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            shutil.rmtree(home.rename(home.with_name(f"{home.name}.gone")))


def first_rank() -> bool:
    """Whether this process speaks and writes for its group."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A line to the log at once, from rank 0 only."""
    if first_rank():
        print(f"{KEY} {line}".lstrip(), file=sys.stderr, flush=True)


def tensorboard(name: str) -> Callable[[dict[str, float]], None]:
    """A writer of log lines as TensorBoard events under MASKDIT_TENSORBOARD, by rank 0; does nothing where that is not set."""
    folder = os.environ.get("MASKDIT_TENSORBOARD")
    if folder is None or not first_rank():
        return lambda row: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("MASKDIT_TENSORBOARD is set, but tensorboard is not installed: pip install tensorboard") from None
    writer = SummaryWriter(str(Path(folder) / f"{KEY}-{name}".lstrip("-")))

    def write(row: dict[str, float]) -> None:
        for field, value in row.items():
            writer.add_scalar(field, value, int(row["step"]))
        writer.flush()

    return write


def progress(steps: Iterable[int], name: str, total: int, start: int = 0, note: Callable[[], str] = lambda: "") -> Iterator[int]:
    """Go through `steps` with a bar on a terminal, and in a log a line each ten seconds: done, rate, time left, note."""
    if sys.stderr.isatty() and first_rank():
        with tqdm(steps, f"{KEY} {name}", total=total, initial=start) as bar:
            for step in bar:
                yield step
                bar.set_postfix_str(note(), refresh=False)
        return
    began = last = time.monotonic()
    done = start
    for step in steps:
        yield step
        done += 1
        now = time.monotonic()
        if now - last >= LOG_SECONDS or done == total:
            rate, last = (done - start) / (now - began), now
            left = tqdm.format_interval((total - done) / rate)
            say(f"{name}: {done}/{total}, {rate:.1f}/s, {left} left{', ' * bool(note())}{note()}")
