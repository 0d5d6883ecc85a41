"""Encoded images where they lie, in folders, tar and zip files or parquet tables: read one by one at random, never unpacked."""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.artifacts.arrays import read_array
from maskdit.artifacts.atomic import read_json, save_array, write_json
from maskdit.config.base import UserError
from maskdit.images.archives import DEFLATED, IMAGES, LARGEST, STORED, TABLE, Entry, entries_of, harmless, header_length, inflated
from maskdit.images.decode import centre_crop, decode

RECORD = np.dtype([("container", "<u4"), ("kind", "u1"), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4")])  # crc 0: not known
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Found:
    """Encoded images below a root: where each lies, its name and its class; -1 is a label that is not known."""

    root: Path
    containers: tuple[str, ...]  # relative to root
    sizes: tuple[int, ...]
    records: NDArray[Any]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def only(self, rows: NDArray[Any]) -> "Found":
        """Some of the images."""
        names = tuple(self.names[row] for row in rows)
        return Found(self.root, self.containers, self.sizes, self.records[rows], names, self.labels[rows], self.classes)

    def state(self, rows: range) -> list[Any]:
        """Where some images lie and in which state: equal if, and only if, nothing was written there since."""
        part = self.records[rows.start : rows.stop]
        used = {int(number): (self.root / self.containers[number]).stat() for number in np.unique(part["container"])}
        states = {number: [self.containers[number], known.st_size, known.st_mtime_ns] for number, known in used.items()}
        places = part[["kind", "offset", "length"]].tolist()
        return [[*states[number], *place] for number, place in zip(part["container"].tolist(), places, strict=True)]

    def read(self, row: int) -> bytes:
        """The encoded bytes of an image; raises UserError if its container is gone, changed or damaged."""
        record = self.records[row]
        container = int(record["container"])
        path = self.root / self.containers[container]
        offset, length = int(record["offset"]), int(record["length"])
        try:
            if record["kind"] == TABLE:
                return _table(str(path), self.sizes[container]).row(offset, length)
            opened = _opened(str(path), self.sizes[container])  # held while it is read
            if record["kind"] in (STORED, DEFLATED):
                header = os.pread(opened.number, 30, offset)
                if not header.startswith(b"PK\3\4") or len(header) < 30:
                    raise OSError(f"no member at byte {offset}")
                offset += header_length(header)
            data = os.pread(opened.number, length, offset)
            if len(data) != length:
                raise OSError(f"ends before byte {offset + length}")
            return inflated(data) if record["kind"] == DEFLATED else data
        except (OSError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read ({error}); mend it and fetch again") from None

    def save(self, folder: Path) -> None:
        """Write the index, without the images, into a folder."""
        save_array(folder / "records.npy", self.records)
        tree = {"root": str(self.root), "containers": self.containers, "sizes": self.sizes, "names": self.names}
        write_json(folder / "store.json", tree)

    @classmethod
    def load(cls, folder: Path) -> "Found":
        """Read what `save` wrote; labels and classes stand elsewhere."""
        tree = read_json(folder / "store.json", "root", "containers", "sizes", "names")
        records, names = read_array(folder / "records.npy"), tuple(tree["names"])
        unknown = np.full(len(names), -1)
        return cls(Path(tree["root"]), tuple(tree["containers"]), tuple(tree["sizes"]), records, names, unknown, ())


class _Opened:
    """A container that has this size; it stays open, and is closed when nobody knows it any more."""

    def __init__(self, path: str, size: int) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        demand_size(path, os.fstat(self.number).st_size, size)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_opened = lru_cache(256)(_Opened)


def demand_size(path: str, found: int, size: int) -> None:
    """Raise UserError unless a container has the size that it had when it was fetched."""
    if found != size:
        raise UserError(f"{path}: has {found} bytes, not {size} as when it was fetched; fetch again")


class _Table:
    """A parquet table with a column `image` of bytes; the two row groups read last are kept, for threads that pass a border."""

    def __init__(self, path: str, size: int) -> None:
        from pyarrow import parquet

        demand_size(path, Path(path).stat().st_size, size)
        self.file, self.lock = parquet.ParquetFile(path), threading.Lock()
        self.columns: OrderedDict[int, Any] = OrderedDict()

    def row(self, group: int, row: int) -> bytes:
        """The bytes of an image; raises OSError if the table is damaged there."""
        from pyarrow import ArrowException

        try:
            with self.lock:
                if group not in self.columns:
                    read = self.file.read_row_group(group, columns=["image.bytes"], use_threads=False)
                    self.columns[group] = read.column("image").combine_chunks()
                    if len(self.columns) > 2:
                        self.columns.popitem(last=False)
                return self.columns[group][row]["bytes"].as_py() or b""
        except (ArrowException, LookupError, ValueError, TypeError) as error:
            raise OSError(next(iter(str(error).splitlines()), "")) from None


_table = lru_cache(16)(_Table)


def gathered(root: Path, files: Sequence[Path]) -> tuple[list[str], list[int], list[tuple[int, Entry]]]:
    """Containers, their sizes, and the images in them in order, each with the number of its container."""
    containers: list[str] = []
    sizes: list[int] = []
    found: list[tuple[int, Entry]] = []
    for path in files:
        entries = list(entries_of(path, str(path.relative_to(root))))
        if too_large := [entry[0] for entry in entries if entry[3] > LARGEST]:
            raise UserError(f"{path}: {too_large[0]} has more than {LARGEST >> 20} MiB; take it out")
        if entries:
            found += [(len(containers), entry) for entry in entries]
            containers.append(str(path.relative_to(root)))
            sizes.append(path.stat().st_size)
    return containers, sizes, found


def records_of(found: Sequence[tuple[int, Entry]]) -> NDArray[Any]:
    """The entries as an array."""
    return np.array([(container, kind, offset, length, 0) for container, (_, kind, offset, length) in found], RECORD)


def classified(names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels and classes of images by the first folder in their names that is not common to all."""
    parts = [name.split("/") for name in names]
    depth = 0
    while parts and all(len(part) > depth + 2 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    found = [part[depth] if len(part) > depth + 1 else "" for part in parts]
    classes = tuple(sorted(set(found)))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[name] for name in found], np.int64), classes


def listed(root: Path) -> list[Path]:
    """Files below a root that are images or archives, in the order of their names.

    A folder of a class may be a link; deeper links to folders are not followed, for they may go round.
    """
    if root.is_file():
        return [root]
    wanted = (*IMAGES, ".tar", ".zip")

    def below(folder: str, links: bool) -> Iterator[str]:
        with os.scandir(folder) as inside:
            entries = sorted((entry for entry in inside if harmless(entry.name)), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir(follow_symlinks=links):
                yield from below(entry.path, False)
            elif entry.name.lower().endswith(wanted) and entry.is_file():
                yield entry.path

    return [Path(name) for name in below(str(root), True)]


def scan(root: Path) -> Found:
    """All images below a root, or in it if it is an archive, with their classes.

    Raises UserError if there is no such root, an archive is damaged, or images lie in no folder of a class.
    """
    if not root.exists():
        raise UserError(f"{root}: no such file or folder; name one that holds CLASS/image, or tar or zip files of that form")
    files = listed(root)
    if root.is_file() and root.suffix.lower() not in (".tar", ".zip"):
        raise UserError(f"{root}: not a folder, .tar or .zip (a packed .tar.gz cannot be read at random: unpack it)")
    base = root.parent if root.is_file() else root
    containers, sizes, found = gathered(base, files)
    found = sorted(found, key=lambda each: each[1][0])
    names = tuple(entry[0] for _, entry in found)
    labels, classes = classified(names)
    if "" in classes:
        raise UserError(f"{root}: {names[0]} lies in no folder; the folder of an image is its class")
    return Found(base, tuple(containers), tuple(sizes), records_of(found), names, labels, classes)


class Encoded:
    """Pixels of a store, as an array (N, side, side, 3) of uint8 that reads and decodes what it is asked for."""

    def __init__(self, found: Found, side: int) -> None:
        self.found, self.side = found, side
        self.shape = (len(found), side, side, 3)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        if isinstance(rows, int | np.integer):
            return self.one(int(rows))
        wanted = np.arange(len(self))[rows]
        if not len(wanted):
            return np.empty((0, *self.shape[1:]), np.uint8)
        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(self.one, wanted.tolist())))

    def one(self, row: int) -> NDArray[np.uint8]:
        """One image."""
        data, known = self.found.read(row), self.found.records[row]["crc"]
        if known and zlib.crc32(data) != known:
            raise UserError(f"{self.found.names[row]}: changed since it was fetched; fetch again")
        return centre_crop(decode(data, self.found.names[row]), self.side)
