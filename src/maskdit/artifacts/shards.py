"""Work that is cut into independent files: made by any number of processes, kept through kills, taken together by one."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.artifacts.atomic import digest, read_json, sha256, write_json, writing
from maskdit.artifacts.publish import published_in
from maskdit.config.base import UserError
from maskdit.runtime import environment
from maskdit.runtime.environment import scratch
from maskdit.runtime.progress import progress, say

Make = Callable[[int, Path], None]  # makes shard number i as a folder or file at a path, which appears only when it is whole


def share(count: int) -> range:
    """Numbers of the shards that this process makes: all, or each N-th beginning with its own."""
    part, of = environment.PART or (1, 1)
    return range(part - 1, count, of)


class Shards:
    """A folder of shards, named by everything that determines them: in the scratch, or beside the artifact whose files they become.

    `out` is the place of that artifact. The shards lie on its disk from the start, and are never there twice.
    `root` is a folder in place of the scratch, for a command that belongs to no project.
    """

    def __init__(self, name: str, identity: Any, names: Sequence[str], out: Path | None = None, root: Path | None = None) -> None:
        unit = f"{name}-{digest(identity)[:16]}"
        self.home = scratch(f".{unit}", published_in(out)) if out else scratch(unit, root)
        self.name, self.names = name, list(names)

    def demand_room(self, size: int) -> None:
        """Raise UserError if the disk has no room for what is missing of all shards, which need `size` bytes."""
        free, there = shutil.disk_usage(self.home).free, 0
        for file in self.home.rglob("*"):
            with suppress(FileNotFoundError):  # another process has renamed it
                there += file.stat().st_size if file.is_file() else 0
        if free < size - there:
            line = f"{self.name} needs {size - there} bytes more, but {free} bytes are free"
            raise UserError(f"{self.home.parent}: {line}; free some space, or make this folder a link to a larger disk")

    def fill(self, make: Make) -> bool:
        """Make the missing ones of this process's share; whether it is this process that takes all together.

        `make` is given a number and a path whose name ends as the shard's does; what it writes there is renamed when it is done.
        """
        mine = share(len(self.names))
        for number in progress(mine, self.name, len(mine), unit="parts"):
            kept = self.home / self.names[number]
            if self.whole(kept):
                continue
            half = kept.with_name(f".{os.getpid()}.{kept.name}")
            remove(half)  # left by a process of this number that was killed
            try:
                with writing(kept):
                    make(number, half)
                    if not kept.exists():  # another process may have been quicker
                        write_json(sums_of(kept), sums(half))
                        half.rename(kept)
            finally:
                remove(half)
        return environment.PART is None

    def whole(self, kept: Path) -> bool:
        """Whether a shard exists with the contents that were written; what has been damaged since is removed."""
        if not kept.exists():
            return False
        with suppress(UserError, FileNotFoundError):
            if read_json(sums_of(kept)) == sums(kept):
                return True
        say(f"{kept}: damaged since it was made, or its checksum file is missing or damaged; making it again")
        remove(kept)
        return False

    def take(self, out: Path) -> None:
        """Give each shard its place in an artifact, and need the folder of shards no more."""
        for name in self.names:
            self.give(name, out / name)
        self.forget()

    def give(self, name: str, target: Path) -> None:
        """Give a shard, or a file of one, its place in an artifact, without a copy.

        Where the file system has no hard links the place is a link that leads to the file, until `publishing` moves the file there.
        """
        source = self.home / name
        try:
            os.link(source, target)
        except OSError:
            target.symlink_to(source.absolute())

    def checksums(self, name: str) -> dict[str, str]:
        """The sha256 of a shard, or of each file in it, as it was made; `fill` has checked them."""
        found: dict[str, str] = read_json(sums_of(self.home / name))
        return found

    def forget(self) -> None:
        """Let the folder of shards be removed when what was made of it is published, so that a kill before loses nothing."""
        environment.FINISHED.append(self.home)


def sums_of(kept: Path) -> Path:
    """The file that holds the checksums of a shard, written before the shard gets its name."""
    return kept.with_name(f".{kept.name}.sha256")


def sums(path: Path) -> dict[str, str]:
    """The sha256 of a file, or of each file in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {"" if file == path else str(file.relative_to(path)): sha256(file) for file in files if file.is_file()}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def place(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def savez(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an npz, whatever the path's name ends with."""
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
        stream.flush()
        os.fsync(stream.fileno())
