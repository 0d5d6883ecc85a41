"""Processes that train together: how they are started, agree and are asked to stop."""

import faulthandler
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from maskdit.runtime.environment import seconds, threads, whole

GRACE = 60.0  # seconds that a process has to end when another of its group has failed: it may wait for that one for ever


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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
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
        return whole("MASKDIT_RANKS")
    import torch

    return max(1, torch.cuda.device_count())


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(command: list[str], count: int, place: int = 0, nodes: int = 1, address: str = "127.0.0.1", port: int = 0) -> int:
    """Run `count` processes of a command on this machine, the `place`-th of `nodes`, all of one group that meets at an address.

    The first failure stops the others, within GRACE, and is the exit code. SIGTERM and SIGUSR1 go to all of them, a SIGUSR1 from
    before, too: it waits in a process that has just begun until that one can note it.
    """
    shared = {**os.environ, "WORLD_SIZE": str(count * nodes), "MASTER_ADDR": address, "MASTER_PORT": str(port or free_port())}
    shared["OMP_NUM_THREADS"] = str(max(1, threads() // count))  # of each; MASKDIT_THREADS is obeyed as it is
    names = [{"RANK": str(place * count + local), "LOCAL_RANK": str(local)} for local in range(count)]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # what a process begins with
    group = [subprocess.Popen(command, env={**shared, **name}) for name in names]

    def forward(number: int, _: object) -> None:
        for process in group:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    for number in _signals:
        forward(number, None)
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
