"""Encoded images where they lie, in folders, tar and zip files or parquet tables: read one by one at random, never unpacked."""

import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from maskdit import tars
from maskdit.arrays import read_array
from maskdit.config import UserError
from maskdit.files import read_json, save_array, write_json
from maskdit.picture import centre_crop, decode

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# Bytes of a container as they are; a row group and row of a parquet table; a zip file's member, stored or deflated, at its header.
RAW, DEFLATED, TABLE, STORED = range(4)
RECORD = np.dtype([("container", "<u4"), ("kind", "u1"), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4")])  # crc 0: not known
LARGEST = 2**28  # bytes of one encoded image
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


def header_length(header: bytes) -> int:
    """Bytes from the begin of a zip member to its data, by the 30 bytes that it begins with."""
    return 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def inflated(data: bytes) -> bytes:
    """What a deflated member holds, if it is no more than LARGEST; raises zlib.error otherwise."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(data, LARGEST)
    if not stream.eof:
        raise zlib.error(f"it is cut, or larger than {LARGEST >> 20} MiB")
    return plain


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


Entry = tuple[str, int, int, int]  # name, kind, offset, length


def tar_entries(stream: Any, stem: str, base: int = 0) -> Iterator[Entry]:
    """Images of a tar file, and of tar files inside it, whose name is then their class: regular files with harmless names only."""
    for member in tars.members(stream):
        if not member.isreg() or member.issparse() or not harmless(member.name):
            continue
        if member.name.lower().endswith(".tar") and not base:
            inner = tarfile.ExFileObject(cast(Any, SimpleNamespace(fileobj=stream)), member)
            yield from tar_entries(inner, Path(member.name).stem, member.offset_data)
        elif member.name.lower().endswith(IMAGES):
            yield placed(member.name, stem), RAW, base + member.offset_data, member.size


def zip_entries(stream: Any, stem: str) -> Iterator[Entry]:
    """Images of a zip file, stored or deflated: regular files with harmless names only."""
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG) or not harmless(member.filename):
                continue
            if not member.filename.lower().endswith(IMAGES):
                continue
            if not 0 <= member.header_offset < 2**62:
                raise zipfile.BadZipFile(f"{member.filename} at byte {member.header_offset}")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise UserError(f"{stream.name}: {member.filename} is encrypted or packed otherwise than by deflate; pack it again")
            kind = STORED if member.compress_type == zipfile.ZIP_STORED else DEFLATED
            yield placed(member.filename, stem), kind, member.header_offset, member.compress_size


def harmless(name: str) -> bool:
    """Whether a member's name stays below where it is, and is not a program's private matter, as .DS_Store and __MACOSX are."""
    parts = name.removeprefix("./").split("/")
    return "\0" not in name and not any(part in ("", "__MACOSX") or part.startswith(".") for part in parts)


def placed(name: str, stem: str) -> str:
    """A member's path; that of one without a folder begins with the archive's name, which is its class."""
    return name.removeprefix("./") if "/" in name.removeprefix("./") else f"{stem}/{name}"


def entries_of(path: Path, relative: str) -> Iterator[Entry]:
    """The images of one file: itself, or the members of an archive; raises UserError for a damaged archive."""
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        yield relative, RAW, 0, path.stat().st_size
        return
    try:
        with path.open("rb") as stream:
            yield from zip_entries(stream, path.stem) if suffix == ".zip" else tar_entries(stream, path.stem)
    except (tarfile.TarError, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged ({error}); get it again") from None


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
