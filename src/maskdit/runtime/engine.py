"""The engine that has started this process: a step does not outlive it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import psutil

from maskdit.runtime.progress import say
from maskdit.runtime.variables import group

ENGINES = {"snakemake", "dvc"}
PAUSE = 5.0  # seconds between two looks


def engine() -> psutil.Process | None:
    """The nearest ancestor of this process that is Snakemake or DVC; None if there is none on this machine."""
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            with suppress(psutil.Error):
                if ENGINES & {Path(word).name for word in process.cmdline()[:4]}:
                    return process
    return None


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


@contextmanager
def ending_with_engine() -> Iterator[None]:
    """Send this process SIGTERM when its engine, or a rank's launcher, has gone: a training then saves its state and ends."""
    ours, end = psutil.Process(os.getppid()) if group() else engine(), Event()

    def watch() -> None:
        while ours is not None and not end.wait(PAUSE):
            if gone(ours):
                say("the engine that started this step has gone, so the step stops; start the engine again to go on")
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if ours is not None:
        Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        end.set()
