"""What a step says while it works: lines, bars, and TensorBoard's events."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from maskdit.config.base import UserError

if TYPE_CHECKING:  # steps that only count do not wait for torch
    pass

LOG_SECONDS = 10.0
KEY = ""  # of the entry that this process runs, before each line: several write to one terminal


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
    """Go through `steps` with a bar on a terminal, and in a log a line each ten seconds: done, rate, time left, note.

    MASKDIT_BARS=0: lines on a terminal, too, as for several steps that share it.
    """
    if sys.stderr.isatty() and first_rank() and os.environ.get("MASKDIT_BARS") != "0":
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
