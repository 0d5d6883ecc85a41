"""The log of a step."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


def log_file(verb: str, key: str, part: tuple[int, int] | None = None) -> Path:
    """The log of a step, or of one of its parts."""
    folder = Path("logs") / verb
    return folder / key / f"{part[0]}-of-{part[1]}.log" if part else folder / f"{key}.log"


def rows_file(verb: str, key: str) -> Path:
    """The rows of a training's log while it runs, and after it."""
    return log_file(verb, key).with_suffix(".jsonl")


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
        log = path.open("a", buffering=1, errors="replace", encoding="utf-8")
        if not goes_on:
            log.truncate(0)
        elif path.read_bytes()[-1:] not in (b"", b"\n"):  # the last line was cut by a kill
            log.write("\n")
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
