"""Random access to encoded images in folders, tar and zip files or parquet tables, without unpacking them."""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.artifacts.arrays import read_array
from maskdit.artifacts.atomic import read_json, save_array, write_json
from maskdit.config.base import UserError
from maskdit.images.archives import DEFLATED, IMAGES, LARGEST, STORED, TABLE, entries_of, harmless, header_length, inflated
from maskdit.images.decode import centre_crop, decode

RECORD = np.dtype([("container", "<u4"), ("kind", "u1"), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4")])  # crc 0: unknown
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Found:
    """Encoded images below a root: location, name and label of each. An unknown label is -1."""

    root: Path
    containers: tuple[str, ...]  # files, relative to root
    sizes: tuple[int, ...]  # of the containers, in bytes
    records: NDArray[Any]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def only(self, rows: NDArray[Any]) -> "Found":
        """A selection of the images, with copies of their records."""
        names = tuple(self.names[row] for row in rows)
        return replace(self, records=self.records[rows], names=names, labels=self.labels[rows])

    def state(self, rows: range) -> list[Any]:
        """Location of some images, and size and modification time of their containers: changes if a container is written."""
        part = self.records[rows.start : rows.stop]
        states = {number: (self.root / self.containers[number]).stat() for number in np.unique(part["container"]).tolist()}
        return [
            [self.containers[number], states[number].st_size, states[number].st_mtime_ns, *place]
            for number, *place in part[["container", "kind", "offset", "length"]].tolist()
        ]

    def read(self, row: int) -> bytes:
        """The encoded bytes of an image. Raises UserError if its container is missing, changed or damaged."""
        record = self.records[row]
        container = int(record["container"])
        path, size = self.root / self.containers[container], self.sizes[container]
        offset, length = int(record["offset"]), int(record["length"])
        try:
            if record["kind"] == TABLE:
                return _Table(str(path), size).row(offset, length)
            opened = _Opened(str(path), size)  # this reference keeps the file open while it is read
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
            raise UserError(f"{path}: cannot be read ({error}); repair it and run fetch again") from None

    def save(self, folder: Path) -> None:
        """Write the index, without the images, into a folder."""
        save_array(folder / "records.npy", self.records)
        tree = {"root": str(self.root), "containers": self.containers, "sizes": self.sizes, "names": self.names}
        write_json(folder / "store.json", tree)

    @classmethod
    def load(cls, folder: Path) -> "Found":
        """Read what `save` wrote, which includes neither labels nor classes."""
        tree = read_json(folder / "store.json", "root", "containers", "sizes", "names")
        containers, sizes, names = (tuple(tree[name]) for name in ("containers", "sizes", "names"))
        return cls(Path(tree["root"]), containers, sizes, read_array(folder / "records.npy"), names, np.full(len(names), -1), ())


@lru_cache(256)
class _Opened:
    """An open container of a known size, cached, and closed when the last reference to it is gone."""

    def __init__(self, path: str, size: int) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        demand_size(path, os.fstat(self.number).st_size, size)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def demand_size(path: str, found: int, size: int) -> None:
    """Raise UserError unless a container still has the size that it had when it was fetched."""
    if found != size:
        raise UserError(f"{path}: has {found} bytes, not {size} as when it was fetched; run fetch again")


@lru_cache(16)
class _Table:
    """A parquet table with images in column `image`. Caches two row groups, because threads can be in neighbouring groups."""

    def __init__(self, path: str, size: int) -> None:
        from pyarrow import parquet

        demand_size(path, Path(path).stat().st_size, size)
        self.file, self.lock = parquet.ParquetFile(path), threading.Lock()
        self.columns: OrderedDict[int, Any] = OrderedDict()

    def row(self, group: int, row: int) -> bytes:
        """The bytes of an image. Raises OSError if the table is damaged there."""
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


def gathered(root: Path, files: Sequence[Path]) -> Found:
    """The images in some files below a root, sorted by name and without labels. Raises UserError if one is too large."""
    containers: list[str] = []
    sizes: list[int] = []
    found: list[tuple[str, tuple[int, ...]]] = []  # names and records
    for path in files:
        relative = str(path.relative_to(root))
        entries = list(entries_of(path, relative))
        if too_large := [name for name, _, _, length in entries if length > LARGEST]:
            raise UserError(f"{path}: {too_large[0]} is larger than {LARGEST >> 20} MiB; remove it")
        if entries:
            found += [(name, (len(containers), *where, 0)) for name, *where in entries]
            containers.append(relative)
            sizes.append(path.stat().st_size)
    found.sort(key=lambda each: each[0])
    names, records = tuple(name for name, _ in found), np.array([record for _, record in found], RECORD)
    return Found(root, tuple(containers), tuple(sizes), records, names, np.full(len(names), -1), ())


def classified(names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels and sorted classes of images: the class is the first folder of the name that not all images share."""
    parts = [name.split("/") for name in names]
    depth = 0
    while parts and all(len(part) > depth + 2 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    found = [part[depth] if len(part) > depth + 1 else "" for part in parts]
    classes = tuple(sorted(set(found)))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[name] for name in found], np.int64), classes


def listed(root: Path, links: bool = True) -> list[Path]:
    """Images and archives below a root, sorted by name. Follows links to folders at the top only: deeper ones may form a cycle."""
    if root.is_file():
        return [root]
    found: list[Path] = []
    with os.scandir(root) as inside:
        entries = sorted((entry for entry in inside if harmless(entry.name)), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=links):
            found += listed(Path(entry.path), links=False)
        elif entry.name.lower().endswith((*IMAGES, ".tar", ".zip")) and entry.is_file():
            found.append(Path(entry.path))
    return found


def scan(root: Path) -> Found:
    """All images below a root, which is a folder or an archive, with their classes.

    Raises UserError if the root does not exist, an archive is damaged, or an image is not in a class folder.
    """
    if not root.exists():
        raise UserError(f"{root}: no such file or folder; name one that contains CLASS/image, or tar or zip files with that layout")
    if root.is_file() and root.suffix.lower() not in (".tar", ".zip"):
        raise UserError(f"{root}: not a folder, .tar or .zip (a .tar.gz does not allow random access: decompress it)")
    found = gathered(root.parent if root.is_file() else root, listed(root))
    labels, classes = classified(found.names)
    if "" in classes:  # as label 0
        raise UserError(f"{root}: {found.names[labels.argmin()]} is not in a folder; the folder of an image names its class")
    return replace(found, labels=labels, classes=classes)


class Encoded:
    """Acts as an array (N, side, side, 3) of uint8 that reads, decodes and crops images when it is indexed."""

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
        """One image. Raises UserError if it is damaged, or changed since it was fetched."""
        data, known = self.found.read(row), self.found.records[row]["crc"]
        if known and zlib.crc32(data) != known:
            raise UserError(f"{self.found.names[row]}: changed since it was fetched; run fetch again")
        return centre_crop(decode(data, self.found.names[row]), self.side)
