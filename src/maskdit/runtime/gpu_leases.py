"""Which GPUs of this machine a step uses: without Slurm, too, a GPU serves one step of this user at a time."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from maskdit.config.base import UserError
from maskdit.runtime.lock import Held, Lock
from maskdit.runtime.progress import say
from maskdit.runtime.variables import group, variable, visible_gpus

PAUSE = 2.0  # seconds between two looks for a free GPU


def listed() -> list[str]:
    """The GPUs that this process may use, by their UUIDs, as nvidia-smi and CUDA_VISIBLE_DEVICES say; empty without nvidia-smi.

    Also empty if the GPUs are unlike, because CUDA then numbers them in another order, unless CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        return []
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    if len({name for _, _, name in rows}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return []
    known = {number: uuid for number, uuid, _ in rows}
    if (words := visible_gpus()) is None:
        return list(known.values())
    found = [known.get(word) or next((uuid for uuid in known.values() if uuid.startswith(word)), "") for word in words]
    return [uuid for uuid in found if uuid]


def home() -> Path:
    """The folder of this user's locks on this machine. Raises UserError if it is not the user's own."""
    path = Path(tempfile.gettempdir()) / f"maskdit-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise UserError(f"{path}: is not your own folder; remove it, or set TMPDIR to another place")
    return path


def take(uuids: list[str], count: int) -> tuple[ExitStack, list[str], str]:
    """Lock so many of some GPUs, or none: what releases them, their UUIDs, and who holds others."""
    stack, held, others = ExitStack(), list[str](), list[str]()
    for uuid in uuids:
        if len(held) == count or len(uuids) - len(others) < count:
            break
        try:
            stack.enter_context(Lock(home() / uuid).held(wait=False))
            held.append(uuid)
        except Held as other:
            others.append(str(other))
    if len(held) < count:
        stack.close()
        held = []
    return stack, held, ", ".join(dict.fromkeys(others))


@contextmanager
def leased(wanted: int | None, tell: Callable[[str], None] = lambda _: None) -> Iterator[bool]:
    """Hold so many GPUs, which are then the only visible ones, as soon as they are free; None: all that this process may use.

    Yields whether it had to wait. `tell` is what shows others what this step waits for or holds.
    Without GPUs, in a Slurm job, which has its own, and with MASKDIT_DEVICE=cpu nothing is held.
    """
    free = wanted == 0 or group() or variable("SLURM_JOB_ID") or variable("MASKDIT_DEVICE")
    uuids = [] if free else listed()
    count = len(uuids) if wanted is None else min(wanted, len(uuids))
    if not count:
        yield False
        return
    before, told = os.environ.get("CUDA_VISIBLE_DEVICES"), ""
    while not (found := take(uuids, count))[1]:
        if (line := f"waiting for {count} of {len(uuids)} GPUs, held by {found[2]}") != told:
            say(line)
            tell(line)
        told = line
        time.sleep(PAUSE)
    stack, held, _ = found
    tell(f"holds {', '.join(held)}")
    with stack:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        try:
            yield bool(told)
        finally:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before
