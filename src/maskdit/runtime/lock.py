"""Who works here: locks that also hold between nodes, and signs that a step is running.

A lock is flock where the file system has it, and beside it a lease, which decides where flock has no effect on other nodes. A lease
is a file that names its owner and is touched while the owner lives. The age of a lease is taken from the file system's clock.
"""

import errno
import fcntl
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TextIO

from maskdit.runtime.engine import engine
from maskdit.runtime.progress import say
from maskdit.runtime.variables import variable

BEAT = 10.0  # seconds between two signs of life
LOST = 60.0  # seconds without one after which an owner is taken for dead
RUNNING = Path(".scratch") / "running"
Owner = dict[str, Any]


class Held(Exception):  # noqa: N818, an answer
    """Another process holds the lock; the text says which."""


def me() -> Owner:
    """The process that asks, as a lease names it. `space` tells the process numbers of machines and of containers apart."""
    space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        space = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    job, restart = variable("SLURM_JOB_ID"), variable("SLURM_RESTART_COUNT") or "0"
    told = {"host": platform.node(), "process": os.getpid(), "slurm_job": job, "restart": restart, "space": space}
    return {**told, "token": secrets.token_hex(8)}


def owner_of(path: Path) -> Owner:
    """The owner that a lease or a sign names; empty if it cannot be read, for instance because it was just begun."""
    with suppress(OSError, ValueError):
        told = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(told, dict) and isinstance(told.get("host"), str) and isinstance(told.get("process"), int):
            return told
    return {}


def words(owner: Owner) -> str:
    """An owner in words."""
    job = f", Slurm job {owner['slurm_job']}" if owner.get("slurm_job") else ""
    return f"process {owner['process']} on {owner['host']}{job}" if owner else "a process that has just started"


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


def is_here(owner: Owner) -> bool:
    """Whether an owner's process number is one of this machine and container."""
    mine = me()
    return bool(owner) and all(owner.get(name, mine[name]) == mine[name] for name in ("host", "space"))


def ended(owner: Owner) -> bool:
    """Whether an owner is known to have ended: a process of this machine, or an earlier run of this Slurm job."""
    mine = me()
    if is_here(owner) and not alive(owner["process"]):
        return True
    same_job = mine["slurm_job"] is not None and owner.get("slurm_job") == mine["slurm_job"]
    return same_job and owner.get("restart") != mine["restart"]


@contextmanager
def beating(path: Path, token: str, otherwise: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Touch a file every few seconds while it names this token, and remove it at the end. While it does not: `otherwise`."""
    end = Event()

    def beat() -> None:
        while not end.wait(BEAT):
            with suppress(OSError):
                os.utime(path) if owner_of(path).get("token") == token else otherwise()

    Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        end.set()
        with suppress(OSError):
            if owner_of(path).get("token") == token:
                path.unlink()


class Lock:
    """An exclusive lock of a folder or file; `path` is its lock file, and the lease lies beside that.

    Raises Held, which names the owner, if another process has it. The lease of an owner on another node that is gone is waited
    for: at most LOST seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lease, self.token = path, path.with_name(f"{path.name}.lease"), ""

    @contextmanager
    def held(self, wait: bool = True) -> Iterator["Lock"]:
        """Hold the lock. Without `wait`, a lease that may be of a dead owner counts as held."""
        with self.path.open("a", encoding="utf-8") as file:
            for _ in range(5):  # another process may only be asking whether the lock is held
                if (locked := flock(file)) is not False:
                    break
                time.sleep(0.1)
            if locked is False:
                raise Held(words(owner_of(self.lease)))
            self.take(locked is True, wait)
            with beating(self.lease, self.token):
                yield self

    def free(self) -> bool:
        """Whether no process is known to hold the lock, which is asked without taking it."""
        with self.path.open("a", encoding="utf-8") as file:
            if (locked := flock(file)) is False:
                return False
            try:
                owner, beat = owner_of(self.lease), self.lease.stat().st_mtime
            except FileNotFoundError:
                return True
            return self.is_dead(owner, beat, locked is True)

    def is_dead(self, owner: Owner, beat: float, locked: bool) -> bool:
        """Whether the owner of a lease has ended, or gave its last sign of life, `beat`, long ago."""
        return ended(owner) or (locked and is_here(owner)) or self.clock() - beat > LOST

    def take(self, locked: bool, wait: bool) -> None:
        """Make the lease. `locked`: flock holds here, so that no other process of this machine has the lock."""
        first, told = None, False
        while not self.begin():
            try:
                owner, beat = owner_of(self.lease), self.lease.stat().st_mtime
            except FileNotFoundError:
                continue
            if self.is_dead(owner, beat, locked):
                self.discard(owner)
                continue
            first = beat if first is None else first
            if beat != first or not wait:
                raise Held(words(owner))
            if not told:
                say(f"{self.path.parent}: waiting up to {LOST:.0f} s to see whether {words(owner)} is still alive")
                told = True
            time.sleep(min(1.0, BEAT / 4))

    def begin(self) -> bool:
        """Create the lease, which only one process can."""
        owner = me()
        if created := self.create(json.dumps(owner) + "\n"):
            self.token = owner["token"]
        return created

    def create(self, text: str) -> bool:
        """Create the lease with this text; False if there is one."""
        try:
            handle = os.open(self.lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return True

    def clock(self) -> float:
        """The present time of the file system, which is not that of this machine."""
        os.utime(self.path)
        return self.path.stat().st_mtime

    def discard(self, owner: Owner) -> None:
        """Remove the lease of this owner, but not one that another process has made meanwhile."""
        aside = self.lease.with_name(f"{self.lease.name}.{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            self.lease.rename(aside)
            if owner_of(aside) != owner:
                self.create(aside.read_text(encoding="utf-8"))
            aside.unlink()

    def ours(self) -> bool:
        """Whether no other process has taken the lease, because this one gave no sign of life for long.

        A lease that has been deleted is made again; one that cannot be read now is taken for ours.
        """
        try:
            told = json.loads(self.lease.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return self.create(json.dumps({**me(), "token": self.token}) + "\n") or self.ours()
        except (OSError, ValueError):
            return True
        return isinstance(told, dict) and told.get("token") == self.token


def flock(file: TextIO) -> bool | None:
    """Lock an open file: True, False if another process holds it, None if the file system has no such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this lock file, as far as is known without waiting."""
    if not path.exists():
        return False
    try:
        return not Lock(path).free()
    except OSError:
        return True


def sign(verb: str, key: str, part: tuple[int, int] | None = None) -> Path:
    """The file that shows that a step, or a part of it, is running."""
    return RUNNING / verb / (f"{key}.{part[0]}-of-{part[1]}.json" if part else f"{key}.json")


@contextmanager
def running(verb: str, key: str, part: tuple[int, int] | None) -> Iterator[Callable[[str], None]]:
    """Show that a step is running, by a file that is touched while it does and removed at the end.

    Yields what adds to it what the step is doing.
    """
    path, owner = sign(verb, key, part), me()
    started_by = engine() if owner["slurm_job"] else None
    sole = started_by is not None and "--target-jobs" in started_by.cmdline()
    owner |= {"sole_job": owner["slurm_job"] if sole else None}  # the job is for this step alone, so that it may be cancelled

    def show() -> None:
        if not runs(path) or owner_of(path).get("token") == owner["token"]:  # a process that is refused leaves the other's sign
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(owner) + "\n", encoding="utf-8")

    def tell(doing: str) -> None:
        owner["doing"] = doing
        with suppress(OSError):
            show()

    with suppress(OSError):
        show()
    with beating(path, owner["token"], show):
        yield tell


def runs(path: Path) -> str:
    """Where the step runs that has left a sign; '' if it has ended without removing it."""
    owner = owner_of(path)
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return ""
    doing = f", {owner['doing']}" if owner.get("doing") else ""
    return words(owner) + doing if owner and age < 3 * LOST and not ended(owner) else ""
