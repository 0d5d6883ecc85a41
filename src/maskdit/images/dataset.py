"""Images as the steps read them from a folder that `fetch` has written, with their labels."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import DAMAGE, Array, array_header, opened, read_array
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


def _npz_header(path: Path) -> tuple[tuple[int, ...], int | None]:
    """Shape of arr_0, and the offset of its numbers in the file; None if they are compressed or in Fortran order."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            member = archive.getinfo("arr_0.npy")
            with archive.open(member) as stream:
                shape, fortran, kind = array_header(stream)
                header = stream.tell()
            file.seek(member.header_offset)
            start = member.header_offset + header_length(file.read(30)) + header
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: not an image batch in the format of ADM's evaluator ({error}); get it again") from None
    if kind != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"{path}: arr_0 is {kind} {shape}, not uint8 (N, H, W, 3); use another file")
    return shape, start if member.compress_type == zipfile.ZIP_STORED and not fortran else None


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
