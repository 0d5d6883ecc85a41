"""The scratch folder, for state that must survive a kill."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from maskdit.config.base import UserError
from maskdit.runtime import progress
from maskdit.runtime.variables import flag, variable

NODE = "node"  # the file of a scratch folder that names the node VERB/KEY it was made for
FINISHED: list[Path] = []  # scratch folders to remove when this process has published its results
PART: tuple[int, int] | None = None  # (K, N): make the K-th of N shares of a step's shards and do not publish; None: make all


def maps_files() -> bool:
    """Whether large files are mapped into memory; with MASKDIT_MMAP=0 they are read. Raises UserError for another value."""
    return variable("MASKDIT_MMAP") is None or flag("MASKDIT_MMAP")


def image() -> str:
    """The container image of the commands, where they run in one."""
    return variable("MASKDIT_CONTAINER") or "containers/maskdit.sif"


def scratch_root() -> Path:
    """The folder of all scratch folders: MASKDIT_SCRATCH, which is relative to the project, or .scratch in it."""
    return original() / (variable("MASKDIT_SCRATCH") or ".scratch")


def original() -> Path:
    """The project's folder. `dvc exp run --temp` and `--queue` run in a copy, which they remove: then that of the original."""
    here = Path.cwd()
    return next((above.parents[2] for above in here.parents if above.parts[-3:] == (".dvc", "tmp", "exps")), Path())


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
            (path / NODE).write_text(f"{name.split('-')[0].lstrip('.')}/{progress.KEY}\n", encoding="utf-8")
    return path


def demand_own(path: Path) -> None:
    """Raise UserError if other users can write to a trusted file or folder, or to a link's target, unless MASKDIT_SHARED=1.

    The user's own primary group may write. Root may use other users' folders, which is common in containers.
    """
    status = path.stat()
    foreign = path.is_dir() and os.getuid() not in (0, status.st_uid)
    writable = status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid != os.getgid())
    if (writable or foreign) and not flag("MASKDIT_SHARED"):
        raise UserError(f"{path}: other users can write to it; run chmod go-w on it, or set MASKDIT_SHARED=1 if you trust them")


def without_matplotlibrc() -> None:
    """Keep Matplotlib, which is imported later, from the user's own settings, which may not be readable, and from any window."""
    os.environ |= {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "agg"}


def tidy() -> None:
    """Remove scratch folders of published results. Each is renamed first: a half-deleted one would look like damaged work."""
    while FINISHED:
        home = FINISHED.pop()
        for left in home.parent.glob(f"{home.name.rpartition('-')[0]}-*.gone"):  # left by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            shutil.rmtree(home.rename(home.with_name(f"{home.name}.gone")))
