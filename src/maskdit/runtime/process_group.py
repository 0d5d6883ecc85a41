"""Processes that train together: how they start, agree and stop."""

import faulthandler
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event
from typing import Any

from maskdit.config.base import UserError
from maskdit.runtime.variables import MOST, group, seconds, threads, variable, whole

POLL, LEAVE = 0.02, 5.0  # seconds between two looks for the answers of other ranks, and that a rank that ends waits for them
GRACE = 60.0  # seconds that the other processes have to end after one has failed; they may be waiting for it forever


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, the number of ranks, and the store through which they communicate."""

    rank: int
    world: int
    store: Any = None

    def from_first(self, ask: Callable[[], Any]) -> Any:
        """Call `ask` on the first rank; returns its result on all ranks."""
        if self.world == 1:
            return ask()
        from torch import distributed

        answer = [ask() if self.rank == 0 else None]
        distributed.broadcast_object_list(answer, src=0)
        return answer[0]

    def exchange(self, name: str, text: str, leaving: Event) -> list[str]:
        """The texts of all ranks under a name that is used once. A thread may ask while the ranks train.

        The first rank, which has the store, returns last. Raises TimeoutError a few seconds after this rank is `leaving`, because
        another may have ended.
        """
        if self.world == 1:
            return [text]
        given, seen = ([f"maskdit/{name}/{what}/{rank}" for rank in range(self.world)] for what in ("given", "seen"))
        patience = LEAVE

        def wait(keys: list[str]) -> None:
            nonlocal patience
            while not self.store.check(keys):
                time.sleep(POLL)
                patience -= POLL * leaving.is_set()
                if patience < 0:
                    raise TimeoutError(f"{name}: another rank did not answer")

        self.store.set(given[self.rank], text)
        wait(given)
        texts = [self.store.get(key).decode() for key in given]
        self.store.set(seen[self.rank], "")
        if self.rank == 0:
            wait(seen)
        return texts

    def stop(self, step: int) -> bool:
        """Whether all ranks stop before this step, because a few steps ago one received a signal or lost its launcher."""
        if self.world == 1:
            return bool(_signals)
        if _signals or os.getppid() != PARENT:
            self.store.compare_set("maskdit/stop", "", str(step + AHEAD))
        return self.store.check(["maskdit/stop"]) and int(self.store.get("maskdit/stop")) <= step


AHEAD = 4  # maximum number of steps between two ranks
STOPPED = 85  # exit code of a training that stopped on request and saved its state
PARENT = os.getppid()  # the launcher, which forwards signals
_signals: list[int] = []  # received stop signals


class Stopped(Exception):  # noqa: N818, not an error
    """A training stopped on request and saved its state."""


def wish(number: int, _: object) -> None:
    """Signal handler that stops a training at its next step; a second SIGINT ends it at once."""
    if number == signal.SIGINT and number in _signals:
        raise KeyboardInterrupt
    _signals.append(number)


@contextmanager
def handling(handler: Callable[[int, Any], Any], *numbers: int) -> Iterator[None]:
    """Handle these signals with `handler`, then restore the previous handlers. A SIGUSR1 blocked until now is delivered."""
    before = {number: signal.signal(number, handler) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def listening() -> Iterator[None]:
    """Let SIGTERM, SIGUSR1 and SIGINT stop the training at its next step, including a SIGUSR1 that came earlier."""
    try:
        with handling(wish, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            yield
    finally:
        _signals.clear()


@contextmanager
def together() -> Iterator[Ranks]:
    """Join the process group that torchrun or `launch` started (NCCL on GPUs, Gloo on CPUs); without one, a single rank."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    from maskdit.runtime.device import gpus

    if not group():
        yield Ranks(0, 1)
        return
    if not variable("MASTER_ADDR") or not whole("MASTER_PORT", most=65535):
        line = "MASTER_ADDR and MASTER_PORT are not"
        raise UserError(f"RANK and WORLD_SIZE are set, but {line}; start the group with torchrun, or unset RANK and WORLD_SIZE")
    patience = timedelta(seconds=max(1800, seconds(*WATCHDOG)))  # the others wait while rank 0 writes a large checkpoint
    store, rank, world = next(rendezvous("env://", timeout=patience))
    backend = "nccl" if gpus() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
    try:
        yield Ranks(rank, world, store)
    finally:
        distributed.destroy_process_group()


WATCHDOG = ("MASKDIT_WATCHDOG_SECONDS", 1800.0)  # 0: off


def watched(steps: Iterable[int], world: int) -> Iterator[int]:
    """Iterate over `steps`; if one takes too long, print the stacks of all threads and exit with code 1, for a retry of the job.

    Otherwise a collective operation would wait forever for a lost rank. A single process is watched only if the variable is set.
    """
    limit = seconds(*WATCHDOG) if world > 1 or variable(WATCHDOG[0]) else 0.0
    turn = (group() or (0, 1))[0] / 10  # so that the stacks of several ranks are not interleaved
    try:
        for step in steps:
            if limit:
                faulthandler.dump_traceback_later(
                    limit + turn, exit=True, file=2
                )  # the real stderr, even if sys.stderr was replaced
            yield step
    finally:
        faulthandler.cancel_dump_traceback_later()


def local_ranks() -> int:
    """Number of processes to train with on this machine: MASKDIT_RANKS, else one per GPU, at least one."""
    if count := whole("MASKDIT_RANKS", most=MOST):
        return count
    from maskdit.runtime.device import gpus

    return max(1, gpus())


def free_port() -> int:
    """An unused TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(command: list[str], count: int, place: int = 0, nodes: int = 1, address: str = "127.0.0.1", port: int = 0) -> int:
    """Run `count` processes of a command on this machine, the `place`-th of `nodes`, in a group that meets at an address.

    The first failure stops the others within GRACE seconds and is the exit code. SIGTERM and SIGUSR1 are forwarded to all; an
    earlier SIGUSR1 stays pending in a new process until it is handled.
    """
    shared = {**os.environ, "WORLD_SIZE": str(count * nodes), "MASTER_ADDR": address, "MASTER_PORT": str(port or free_port())}
    shared["LOCAL_WORLD_SIZE"] = str(count)
    shared["OMP_NUM_THREADS"] = str(max(1, threads() // count))  # per process; MASKDIT_THREADS is not divided
    names = [{"RANK": str(place * count + local), "LOCAL_RANK": str(local)} for local in range(count)]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # inherited by the new processes
    group = [subprocess.Popen(command, env={**shared, **name}) for name in names]

    def forward(number: int, _: object) -> None:
        for process in group:
            process.send_signal(number)

    codes: list[int | None] = [None]
    with handling(forward, signal.SIGTERM, signal.SIGUSR1):
        for number in _signals:
            forward(number, None)
        try:
            while None in codes and not any(codes):
                time.sleep(0.05)
                codes = [process.poll() for process in group]
            if STOPPED in codes:  # each process ends by itself, the first rank after saving its state
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
