"""Work that is cut into independent files: made by any number of processes, kept through kills, taken together by one."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskdit import runtime
from maskdit.files import digest
from maskdit.runtime import progress, scratch

Make = Callable[[int, Path], None]  # makes shard number i as a folder or file at a path, which appears only when it is whole


def share(count: int) -> range:
    """Numbers of the shards that this process makes: all, or each N-th beginning with its own."""
    part, of = runtime.PART or (1, 1)
    return range(part - 1, count, of)


class Shards:
    """A scratch folder of shards, named by everything that determines them."""

    def __init__(self, name: str, identity: Any, names: Sequence[str]) -> None:
        self.home, self.name, self.names = scratch(f"{name}-{digest(identity)[:16]}"), name, list(names)

    def fill(self, make: Make) -> bool:
        """Make the missing ones of this process's share; whether it is this process that takes all together.

        `make` is given a number and a path whose name ends as the shard's does; what it writes there is renamed when it is done.
        """
        mine = share(len(self.names))
        for number in progress(mine, self.name, len(mine)):
            kept = self.home / self.names[number]
            if kept.exists():
                continue
            half = kept.with_name(f".{os.getpid()}.{kept.name}")
            try:
                make(number, half)
                half.rename(kept)
            finally:
                shutil.rmtree(half) if half.is_dir() else half.unlink(missing_ok=True)
        return runtime.PART is None

    def take(self, out: Path) -> None:
        """Give each shard its place in a folder, without a copy where the file system can, and remove the scratch folder."""
        for name in self.names:
            try:
                os.link(self.home / name, out / name)
            except OSError:
                shutil.copyfile(self.home / name, out / name)
        shutil.rmtree(self.home)
