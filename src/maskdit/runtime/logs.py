"""What a step leaves while it runs: its log, and a sign that it is running."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TextIO

BEAT = 60.0  # seconds between two signs of life
RUNNING = Path(".scratch") / "running"


def log_file(verb: str, key: str, part: tuple[int, int] | None = None) -> Path:
    """The log of a step, or of one of its parts."""
    folder = Path("logs") / verb
    return folder / key / f"{part[0]}-of-{part[1]}.log" if part else folder / f"{key}.log"


class Tee:
    """A stream that also writes whole lines to a log, which may fail without harm; bars, which go back in a line, it leaves out."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream, self.log = stream, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write to both."""
        if "\r" not in text:
            with suppress(OSError):
                self.log.write(text)
                self.log.flush()
        return self.stream.write(text)


_kept: list[TextIO] = []  # the log of this process, if it has one


def keep_log(path: Path, goes_on: bool) -> None:
    """Copy what this process prints to a log, which is continued or begun again, until `end_log`.

    There is no log if it cannot be written.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a", buffering=1, errors="replace")
        if not goes_on:
            log.truncate(0)
        _kept.append(log)
        sys.stdout, sys.stderr = Tee(sys.stdout, log), Tee(sys.stderr, log)


def note_in_log(line: str) -> None:
    """Write a line to the log alone, if there is one."""
    for log in _kept:
        with suppress(OSError):
            log.write(f"{line}\n")


def end_log() -> None:
    """Close the log and print to the terminal alone again."""
    while _kept:
        sys.stdout, sys.stderr = getattr(sys.stdout, "stream", sys.stdout), getattr(sys.stderr, "stream", sys.stderr)
        with suppress(OSError):
            _kept.pop().close()


def sign(verb: str, key: str, part: tuple[int, int] | None = None) -> Path:
    """The file that shows that a step, or a part of it, is running."""
    return RUNNING / verb / (f"{key}.{part[0]}-of-{part[1]}.json" if part else f"{key}.json")


@contextmanager
def running(verb: str, key: str, part: tuple[int, int] | None) -> Iterator[None]:
    """Show that a step is running, by a file whose time is never older than a minute; it is removed at the end."""
    path, ended = sign(verb, key, part), Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(path)

    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        job = os.environ.get("SLURM_JOB_ID")
        path.write_text(json.dumps({"host": platform.node(), "process": os.getpid(), "slurm_job": job}) + "\n")
    Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            path.unlink()


def runs(path: Path) -> str:
    """Where the step runs that has left a sign; '' if it has ended without removing it."""
    try:
        told, age = json.loads(path.read_text()), time.time() - path.stat().st_mtime
        host, process, job = told["host"], int(told["process"]), told["slurm_job"]
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return ""
    if age > 3 * BEAT or (host == platform.node() and not alive(process)):
        return ""
    return f"process {process} on {host}" + (f", Slurm job {job}" if job else "")


def alive(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if process < 1:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
