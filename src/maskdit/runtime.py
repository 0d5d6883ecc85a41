"""What a step needs of the machine: device, threads, progress, and a place for the state that must survive a kill."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:  # steps that only count do not wait for torch
    import torch

LOG_SECONDS = 10.0
KEY = ""  # of the entry that this process runs, before each line: several write to one terminal


def device() -> "torch.device":
    """The accelerator if there is one.

    On a CPU a step uses one thread (or MASKDIT_THREADS): independent steps run side by side, none spoils another's clock, and the
    order of sums, hence each number, does not depend on the machine's cores.
    """
    import torch

    torch.set_num_threads(int(os.environ.get("MASKDIT_THREADS", "1")))
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(where: "torch.device", precision: str) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 if `precision` is bf16; nothing for fp32."""
    import torch

    return torch.autocast(where.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def scratch(name: str) -> Path:
    """A folder for recovery state that no engine knows or deletes, under MASKDIT_SCRATCH, else .scratch."""
    path = Path(os.environ.get("MASKDIT_SCRATCH", ".scratch")) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(line: str) -> None:
    """A line to the log at once."""
    print(f"{KEY} {line}".lstrip(), file=sys.stderr, flush=True)


def progress(steps: Iterable[int], name: str, total: int, start: int = 0, note: Callable[[], str] = lambda: "") -> Iterator[int]:
    """Go through `steps` with a bar on a terminal, and in a log a line each ten seconds: done, rate, time left, note."""
    if sys.stderr.isatty():
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
