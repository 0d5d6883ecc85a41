"""Random access to encoded images in folders, tar and zip files or parquet tables, without unpacking them."""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
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
from maskdit.images import archives
from maskdit.images.archives import DEFLATED, IMAGES, LARGEST, RAW, STORED, TABLE, Member, header_length, inflated
from maskdit.images.decode import centre_crop, decode
from maskdit.images.layouts import shared

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
        """Location of some images, and size and times of their containers: changes if a container is written."""
        part = self.records[rows.start : rows.stop]
        states = {number: state_of(self.root / self.containers[number]) for number in np.unique(part["container"]).tolist()}
        return [
            [self.containers[number], *states[number], *place]
            for number, *place in part[["container", "kind", "offset", "length"]].tolist()
        ]

    def read(self, row: int) -> bytes:
        """The encoded bytes of an image. Raises UserError if its container is missing, changed or damaged."""
        container, kind, offset, length, _ = self.records[row].tolist()
        return read_at(self.root / self.containers[container], self.sizes[container], kind, offset, length)

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


def state_of(path: Path) -> tuple[int, int, int]:
    """Size and times of a file: another one if it is written, even where its modification time is set back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_at(path: Path, size: int, kind: int, offset: int, length: int) -> bytes:
    """The bytes at a place of a container of a known size. Raises UserError if it is missing, changed or damaged."""
    try:
        if kind == TABLE:
            return _Table(str(path), size).row(offset, length)
        opened = _Opened(str(path), size)  # this reference keeps the file open while it is read
        if kind in (STORED, DEFLATED):
            header = os.pread(opened.number, 30, offset)
            if not header.startswith(b"PK\3\4") or len(header) < 30:
                raise OSError(f"no member at byte {offset}")
            offset += header_length(header)
        data = os.pread(opened.number, length, offset)
        if len(data) != length:
            raise OSError(f"ends before byte {offset + length}")
        return inflated(data) if kind == DEFLATED else data
    except (OSError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); repair it and run fetch again") from None


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
    """The images in some files below a root, by their suffixes, sorted by name and without labels.

    Raises UserError if one is too large.
    """
    containers: list[str] = []
    sizes: list[int] = []
    found: list[tuple[str, int, Member]] = []
    for path in files:
        relative = str(path.relative_to(root))
        images = list(images_of(path, relative))
        if too_large := [name for name, member in images if member.length > LARGEST]:
            raise UserError(f"{path}: {too_large[0]} is larger than {LARGEST >> 20} MiB; remove it")
        if images:
            found += [(name, len(containers), member) for name, member in images]
            containers.append(relative)
            sizes.append(path.stat().st_size)
    return ordered(root, containers, sizes, found)


def images_of(path: Path, relative: str) -> Iterable[tuple[str, Member]]:
    """The images of one file by name: the file itself, or the members of an archive. Links in an archive are left out."""
    if path.suffix.lower() in IMAGES:
        return [(relative, Member(relative, RAW, 0, path.stat().st_size))]
    files = (member for member in archives.members_of(path) if member.kind < archives.FOLDER)
    return ((member.placed, member) for member in files if member.name.lower().endswith(IMAGES))


def ordered(root: Path, containers: Sequence[str], sizes: Sequence[int], images: Iterable[tuple[str, int, Member]]) -> Found:
    """Images without labels, sorted by name, from the name of each, the number of its container, and its place there."""
    found = sorted(images, key=lambda each: each[0])
    records = np.array([(number, member.kind, member.offset, member.length, 0) for _, number, member in found], RECORD)
    names = tuple(name for name, *_ in found)
    return Found(root, tuple(containers), tuple(sizes), records, names, np.full(len(names), -1), ())


def classified(names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels and sorted classes of images: the class is the first folder of the name that not all images share."""
    parts = [name.split("/") for name in names]
    depth = shared(tuple(part[:-1]) for part in parts)
    found = [part[depth] if len(part) > depth + 1 else "" for part in parts]
    classes = tuple(sorted(set(found)))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[name] for name in found], np.int64), classes


class Encoded:
    """Acts as an array (N, side, side, 3) of uint8 that reads, decodes and crops images when it is indexed."""

    def __init__(self, found: Found, side: int, upright: bool = False) -> None:
        """upright: turn each image as its EXIF says."""
        self.found, self.side, self.upright = found, side, upright
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
        return centre_crop(decode(data, self.found.names[row], self.upright), self.side)
