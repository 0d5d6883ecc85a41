"""What a step needs of the machine: device, threads, progress, and a place for the state that must survive a kill."""

import faulthandler
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from maskdit.config import UserError

if TYPE_CHECKING:  # steps that only count do not wait for torch
    import torch

LOG_SECONDS = 10.0
GRACE = 60.0  # seconds that a process has to end when another of its group has failed: it may wait for that one for ever
FINISHED: list[Path] = []  # scratch folders that nobody needs when this process has published
PART: tuple[int, int] | None = None  # of a step's shards, this process makes the K-th of N shares and publishes nothing; None: all
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


def device() -> "torch.device":
    """The accelerator if there is one.

    On a CPU a step uses one thread (or MASKDIT_THREADS): independent steps run side by side, none spoils another's clock, and the
    order of sums, hence each number, does not depend on the machine's cores. With MASKDIT_DETERMINISTIC=1 only algorithms are used
    that give the same bits each time, which a CPU does anyway and a GPU in less speed; an operation that has none is an error.
    """
    import torch

    torch.set_num_threads(int(os.environ.get("MASKDIT_THREADS", "1")))
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

    left, right = torch.randn(1024, 1152, device=where), torch.randn(4608, 1152, device=where)

    def once() -> float:
        began = time.perf_counter()
        for _ in range(2 if where.type == "cpu" else 50):
            torch.nn.functional.linear(left, right)
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with torch.no_grad(), autocast(where, precision):
        left, right = left.to(half(precision)), right.to(half(precision))
        once()
        return 2 * 1024 * 1152 * 4608 * (2 if where.type == "cpu" else 50) / min(once() for _ in range(3))


def peak_memory(where: "torch.device") -> int:
    """Bytes that this process has held at once so far: on the device, on a CPU resident."""
    import torch

    if where.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Ranks:
    """Which process of those that train together, and the store in which they leave each other notes."""

    rank: int
    world: int
    store: Any = None

    def from_first(self, ask: Callable[[], Any]) -> Any:
        """What the first rank answers, in all ranks."""
        if self.world == 1:
            return ask()
        from torch import distributed

        answer = [ask() if self.rank == 0 else None]
        distributed.broadcast_object_list(answer, src=0)
        return answer[0]

    def meet(self, name: str) -> None:
        """Wait until the first rank has come here."""
        if self.world > 1 and self.rank == 0:
            self.store.set(f"maskdit/{name}", "1")
        elif self.world > 1:
            self.store.wait([f"maskdit/{name}"])

    def stop(self, step: int) -> bool:
        """Whether all ranks stop before this step, since a signal came to one of them, or their launcher ended, a few steps ago."""
        if self.world == 1:
            return bool(_signals)
        if _signals or os.getppid() != PARENT:
            self.store.compare_set("maskdit/stop", "", str(step + AHEAD))
        return self.store.check(["maskdit/stop"]) and int(self.store.get("maskdit/stop")) <= step


AHEAD = 4  # steps; no rank is further ahead of another
STOPPED = 85  # exit code of a training that was asked to stop and has kept its state
PARENT = os.getppid()  # who has started this process and would pass signals on
_signals: list[int] = []  # that have asked this process to stop


class Stopped(Exception):  # noqa: N818, no error
    """A training was asked to stop, and its state is kept."""


def wish(number: int, _: object) -> None:
    """A signal that asks a training to stop at its next step; a second SIGINT ends at once."""
    if number == signal.SIGINT and number in _signals:
        raise KeyboardInterrupt
    _signals.append(number)


@contextmanager
def listening() -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGINT ask to stop at the next step, a SIGUSR1 from before, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, wish) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.clear()


@contextmanager
def together() -> Iterator[Ranks]:
    """The processes that torchrun, or `launch`, has started as one group: NCCL on GPUs, Gloo on CPUs; alone without them."""
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(0, 1)
        return
    patience = timedelta(seconds=max(1800, seconds(*WATCHDOG)))  # while rank 0 writes a large checkpoint the others wait
    store, rank, world = next(rendezvous("env://", timeout=patience))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
    try:
        yield Ranks(rank, world, store)
    finally:
        distributed.destroy_process_group()


WATCHDOG = ("MASKDIT_WATCHDOG_SECONDS", 1800.0)  # 0: off


def watched(steps: Iterable[int], world: int) -> Iterator[int]:
    """Go through `steps`; one that takes too long ends the process with exit code 1 and the stacks of its threads on stderr.

    A collective operation of which a rank is lost never ends: it is better that the job fails, and its next attempt goes on from
    the last state. One process alone waits for nobody, and is watched only if MASKDIT_WATCHDOG_SECONDS is set.
    """
    limit = seconds(*WATCHDOG) if world > 1 or WATCHDOG[0] in os.environ else 0.0
    turn = int(os.environ.get("RANK", "0")) / 10  # the stacks of several ranks at once would be one heap
    try:
        for step in steps:
            if limit:
                faulthandler.dump_traceback_later(limit + turn, exit=True, file=2)  # stderr, whatever has taken its name
            yield step
    finally:
        faulthandler.cancel_dump_traceback_later()


def local_ranks() -> int:
    """How many processes should train on this machine: MASKDIT_RANKS, else one per GPU, at least one."""
    if "MASKDIT_RANKS" in os.environ:
        return int(os.environ["MASKDIT_RANKS"])
    import torch

    return max(1, torch.cuda.device_count())


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(command: list[str], count: int, place: int = 0, nodes: int = 1, address: str = "127.0.0.1", port: int = 0) -> int:
    """Run `count` processes of a command on this machine, the `place`-th of `nodes`, all of one group that meets at an address.

    The first failure stops the others, within GRACE, and is the exit code. SIGTERM and SIGUSR1 go to all of them.
    """
    shared = {**os.environ, "WORLD_SIZE": str(count * nodes), "MASTER_ADDR": address, "MASTER_PORT": str(port or free_port())}
    names = [{"RANK": str(place * count + local), "LOCAL_RANK": str(local)} for local in range(count)]
    group = [subprocess.Popen(command, env={**shared, **name}) for name in names]

    def forward(number: int, _: object) -> None:
        for process in group:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    codes: list[int | None] = [None]
    try:
        while None in codes and not any(codes):
            time.sleep(0.05)
            codes = [process.poll() for process in group]
        if STOPPED in codes:  # each ends by itself, the first rank when it has written its state
            codes = [process.wait() for process in group]
        first = next((code for code in codes if code), 0)
        return 128 - first if first < 0 else first
    finally:
        for process in group:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in group:
            try:
                process.wait(max(0.0, deadline - time.monotonic()) if any(codes) else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


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
