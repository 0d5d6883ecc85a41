"""Environment variables, and the scratch folder for state that must survive a kill."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from maskdit.config.base import UserError
from maskdit.runtime import progress

NODE = "node"  # the file of a scratch folder that names the node VERB/KEY it was made for
FINISHED: list[Path] = []  # scratch folders to remove when this process has published its results
PART: tuple[int, int] | None = None  # (K, N): make the K-th of N shares of a step's shards and do not publish; None: make all


def seconds(name: str, otherwise: float) -> float:
    """A duration from an environment variable. Raises UserError if it is not a number from 0 to 1e9."""
    text = os.environ.get(name, str(otherwise))
    with suppress(ValueError):
        if 0 <= float(text) <= 1e9:
            return float(text)
    raise UserError(f"{name}: '{text}' is not a number of seconds; correct it or unset it")


def whole(name: str) -> int:
    """A count from an environment variable that is set. Raises UserError if it is not a whole number from 1 to 1024."""
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= 1024):
        raise UserError(f"{name}: '{text}' is not a whole number from 1 to 1024; correct it or unset it")
    return int(text)


def maps_files() -> bool:
    """Whether large files are mapped into memory; with MASKDIT_MMAP=0 they are read. Raises UserError for another value."""
    if (wanted := os.environ.get("MASKDIT_MMAP", "1")) not in ("0", "1"):
        raise UserError(f"MASKDIT_MMAP: '{wanted}' is neither 0 nor 1; set one of them, or unset it")
    return wanted == "1"


def image() -> str:
    """The container image of the commands, where they run in one."""
    return os.environ.get("MASKDIT_CONTAINER", "containers/maskdit.sif")


def threads() -> int:
    """CPU threads of this process: MASKDIT_THREADS, else OMP_NUM_THREADS (set by Snakemake), else half of the cores.

    The workflow's rules also ask for half of the cores: another number of threads would change the last digits of the results.
    """
    for name in ("MASKDIT_THREADS", "OMP_NUM_THREADS"):
        if name in os.environ:
            return whole(name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def visible_gpus() -> list[str] | None:
    """The numbers and UUIDs in CUDA_VISIBLE_DEVICES, none if it hides all GPUs; None if it is not set."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return None
    words = (word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    return [word for word in words if word not in ("", "-1")]


def scratch_root() -> Path:
    """The folder of all scratch folders."""
    return Path(os.environ.get("MASKDIT_SCRATCH", ".scratch"))


def scratch(name: str, root: Path | None = None) -> Path:
    """A folder for recovery state, which names its node, under `root`, or else under MASKDIT_SCRATCH (default .scratch).

    Raises UserError if other users can write to it, and if it is a link, which another user may have made to a folder of ours.
    """
    path = (root or scratch_root()) / name
    if path.is_symlink():
        raise UserError(f"{path}: is a link; remove it (MASKDIT_SCRATCH itself may be one)")
    path.mkdir(parents=True, exist_ok=True)
    demand_own(path)
    if progress.KEY and not (path / NODE).exists():
        with suppress(OSError):  # a full disk is told by who needs it
            (path / NODE).write_text(f"{name.split('-')[0].lstrip('.')}/{progress.KEY}\n")
    return path


def demand_own(path: Path) -> None:
    """Raise UserError if other users can write to a trusted file or folder, or to a link's target, unless MASKDIT_SHARED=1.

    The user's own primary group may write. Root may use other users' folders, which is common in containers.
    """
    status = path.stat()
    foreign = path.is_dir() and os.getuid() not in (0, status.st_uid)
    writable = status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid != os.getgid())
    if (writable or foreign) and not os.environ.get("MASKDIT_SHARED"):
        raise UserError(f"{path}: other users can write to it; run chmod go-w on it, or set MASKDIT_SHARED=1 if you trust them")


def tidy() -> None:
    """Remove scratch folders of published results. Each is renamed first: a half-deleted one would look like damaged work."""
    while FINISHED:
        home = FINISHED.pop()
        for left in home.parent.glob(f"{home.name.rpartition('-')[0]}-*.gone"):  # left by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            shutil.rmtree(home.rename(home.with_name(f"{home.name}.gone")))
