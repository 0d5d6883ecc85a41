"""Settings of the environment: threads, waits, and the scratch folder for state that must survive a kill."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from maskdit.config.base import UserError
from maskdit.runtime import progress

if TYPE_CHECKING:  # steps that only count do not wait for torch
    pass
NODE = "node"  # the file of a scratch folder that names the node VERB/KEY it was made for
FINISHED: list[Path] = []  # scratch folders that nobody needs when this process has published
PART: tuple[int, int] | None = None  # of a step's shards, this process makes the K-th of N shares and publishes nothing; None: all


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


def scratch_root() -> Path:
    """The folder of all scratch folders."""
    return Path(os.environ.get("MASKDIT_SCRATCH", ".scratch"))


def scratch(name: str) -> Path:
    """A folder for recovery state that no engine knows or deletes, under MASKDIT_SCRATCH, else .scratch. It names its node.

    Raises UserError if others may write it.
    """
    path = scratch_root() / name
    path.mkdir(parents=True, exist_ok=True)
    demand_own(path)
    if progress.KEY and not (path / NODE).exists():
        (path / NODE).write_text(f"{name.split('-')[0]}/{progress.KEY}\n")
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
