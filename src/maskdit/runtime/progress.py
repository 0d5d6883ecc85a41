"""Progress output of a step: log lines and bars."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from tqdm import tqdm

from maskdit.config.base import UserError, printable
from maskdit.runtime.logs import note_in_log
from maskdit.runtime.variables import group

LOG_SECONDS = 10.0
KEY = ""  # key of the entry that this process runs; it starts each line, because several processes may share a terminal


def first_rank() -> bool:
    """Whether this process prints and writes for its group, if it is in one."""
    with suppress(UserError):  # a step refuses half a group
        return (group() or (0, 1))[0] == 0
    return True


def say(line: str) -> None:
    """Print a line to stderr at once, from rank 0 only."""
    if first_rank():
        print(printable(f"{KEY} {line}".lstrip()), file=sys.stderr, flush=True)


def progress(
    steps: Iterable[int], name: str, total: int, start: int = 0, note: Callable[[], str] = lambda: "", unit: str = ""
) -> Iterator[int]:
    """Iterate over `steps` with a bar on a terminal, and a log line every ten seconds: steps done, rate, time left, note.

    unit: what is counted, in the plural, unless it is steps. With MASKDIT_BARS=0 there are lines on a terminal, too: several steps
    may share it.
    """
    shown = sys.stderr.isatty() and first_rank() and os.environ.get("MASKDIT_BARS") != "0"
    began = last = time.monotonic()
    with tqdm(desc=f"{KEY} {name}", total=total, initial=start, disable=not shown, unit=f" {unit}" if unit else "it") as bar:
        for done, step in enumerate(steps, start + 1):
            yield step
            bar.update()
            now = time.monotonic()
            if now - last >= LOG_SECONDS or done == total:
                rate, last = (done - start) / (now - began), now
                left = tqdm.format_interval((total - done) / rate)
                done_of, speed = f"{done}/{total} {unit}".rstrip(), f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
                line = f"{name}: {done_of}, {speed}/s, {left} left{', ' * bool(note())}{note()}"
                bar.set_postfix_str(note(), refresh=False)
                (note_in_log if shown else say)(line)
