"""Images as the steps read them from a folder that `fetch` has written, with their labels."""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from maskdit.artifacts.arrays import DAMAGE, Array, Stored, array_header, opened, read_array
from maskdit.artifacts.atomic import read_json, save_array, write_json
from maskdit.config.base import UserError
from maskdit.images.archives import header_length
from maskdit.images.index import Encoded, Found
from maskdit.runtime import progress


@dataclass(frozen=True)
class Images:
    """Labelled images: pixels (N, H, W, 3) uint8, labels (N,) int64, class names; heldout marks the validation split.

    `pixels` is an array or an object that decodes images when it is indexed, by a number, a slice or an array of numbers.
    """

    pixels: Any
    labels: Array
    heldout: Array
    classes: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write images.npy, labels.npy, heldout.npy and index.json into a folder."""
        save_array(folder / "images.npy", self.pixels)
        save_array(folder / "labels.npy", self.labels)
        save_array(folder / "heldout.npy", self.heldout)
        write_json(folder / "index.json", {"kind": "array", "classes": self.classes, "shape": self.pixels.shape})

    @classmethod
    def load(cls, folder: Path) -> "Images":
        """Read what `fetch` wrote; pixels stay on disk until they are indexed. Raises UserError if it does not hold images."""
        index = read_json(folder / "index.json", "kind")
        shape = tuple(index.get("shape", ()))
        match index["kind"]:
            case "array":
                pixels: Any = read_array(folder / "images.npy", mapped=True)
            case "store":
                pixels = Encoded(Found.load(folder), shape[1], upright=index.get("orientation") == "apply")
            case "npz":
                pixels = npz_images(folder / "batch.npz")
                return cls(pixels, np.full(len(pixels), -1), np.zeros(len(pixels), bool), ())
            case other:
                raise UserError(f"{folder}: holds {other}, not images; name a fetch entry that provides images")
        if tuple(pixels.shape) != shape:
            raise UserError(f"{folder}: holds images {pixels.shape}, but its index says {shape}; run fetch again")
        labels, heldout = read_array(folder / "labels.npy"), read_array(folder / "heldout.npy")
        return cls(pixels, labels, heldout, tuple(read_json(folder / "index.json", "classes")["classes"]))

    def rows(self, heldout: bool) -> Array:
        """Indices of the images of one split, ascending."""
        return np.flatnonzero(self.heldout == heldout)


def demand_count(field: str, found: int, declared: int) -> None:
    """Raise UserError unless the number of items that were found is the one that params.yaml declares."""
    if found != declared:
        declaration = f"params.yaml declares {field}: {declared} in fetch.{progress.KEY}"
        raise UserError(f"fetch: {found} {field} found, {declaration}; set {field}: {found}, or correct the data")


class Packed:
    """A packed array of an npz, of which a few rows are unpacked at a time; for earlier rows it begins again."""

    def __init__(self, path: Path, name: str, start: int, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape, self.start = path, kind, shape, start
        archive = zipfile.ZipFile(path)
        self.stream = archive.open(f"{name}.npy")
        finalize(self, archive.close)
        finalize(self, self.stream.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        """Rows by a slice or an array of numbers. Raises UserError if they are damaged."""
        wanted = np.arange(len(self))[rows]
        first, size = int(wanted.min()), math.prod(self.shape[1:]) * self.dtype.itemsize
        try:
            self.stream.seek(self.start + first * size)
            data = self.stream.read(size * (int(wanted.max()) + 1 - first))
            return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])[wanted - first]
        except (OSError, *DAMAGE) as error:
            raise UserError(f"{self.path}: damaged ({error}); get it again") from None


class Place(NamedTuple):
    """Where an array of an npz lies: its header ends there in the member, and if it is not packed, its numbers begin at `start`."""

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    header: int
    start: int | None


def npz_place(path: Path, name: str) -> Place:
    """Where an array of an npz lies. Raises OSError or one of DAMAGE if that cannot be told, or if it ends too early."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as stream:
            shape, fortran, kind = array_header(stream)
            header = stream.tell()
        if header + math.prod(shape) * kind.itemsize != member.file_size:
            raise ValueError(f"{name} does not hold the {shape} numbers that it claims")
        file.seek(member.header_offset)
        start = member.header_offset + header_length(file.read(30)) + header
        return Place(kind, shape, fortran, header, start if member.compress_type == zipfile.ZIP_STORED else None)


def npz_rows(path: Path, name: str) -> Stored | Packed:
    """An array of an npz, of which only the rows that one asks for are read. Raises the same errors as `npz_place`."""
    kind, shape, fortran, header, start = npz_place(path, name)
    if fortran and len(shape) > 1:
        raise ValueError(f"{name} is in Fortran's order; save np.ascontiguousarray of it")
    return Packed(path, name, header, kind, shape) if start is None else Stored(path, kind, start, shape)


def _npz_header(path: Path) -> tuple[tuple[int, ...], int | None]:
    """Shape of arr_0, and the offset of its numbers in the file; None if they are compressed or in Fortran order."""
    try:
        kind, shape, fortran, _, start = npz_place(path, "arr_0")
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: not an image batch in the format of ADM's evaluator ({error}); get it again") from None
    if kind != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"{path}: arr_0 is {kind} {shape}, not uint8 (N, H, W, 3); use another file")
    return shape, None if fortran else start


def npz_shape(path: Path) -> tuple[int, ...]:
    """Shape of the images in an npz, without reading them. Raises UserError if they are not uint8 (N, H, W, 3)."""
    return _npz_header(path)[0]


def npz_images(path: Path) -> Any:
    """arr_0 of an npz, of which only what is indexed is read if it is not compressed. Raises the same errors as `npz_shape`."""
    shape, start = _npz_header(path)
    try:
        if start is not None:
            return opened(path, np.dtype(np.uint8), start, shape)
        with np.load(path, allow_pickle=False) as stored:
            return stored["arr_0"]
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: arr_0 cannot be read ({error}); get it again") from None
