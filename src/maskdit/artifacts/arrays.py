"""Arrays on disk, .npy and .npz: read as numbers only, and only as many as the file holds."""

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from maskdit.config.base import UserError
from maskdit.runtime.environment import maps_files

Array = NDArray[Any]
INFLATED = 2**30  # bytes of a packed array of an npz
DAMAGE = (ValueError, TypeError, LookupError, EOFError, MemoryError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error)


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis runs fastest, and type of a .npy file that is read up to its numbers.

    Raises ValueError for one of pickled objects.
    """
    version = np.lib.format.read_magic(stream)
    form = np.lib.format
    shape, fortran, kind = (form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0)(stream)
    if kind.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    return shape, fortran, kind


class Stored:
    """An array in a file, of which only the rows are read that one asks for: in place of a map, where MASKDIT_MMAP=0."""

    def __init__(self, path: Path, kind: np.dtype[Any], start: int, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.start, self.shape = path, kind, start, shape
        self.handle = os.open(path, os.O_RDONLY)
        finalize(self, os.close, self.handle)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        """Rows by a number, a slice or an array of numbers. Raises IndexError if there is no such row."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        numbers = np.atleast_1d(wanted)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"{self.path}: has {len(self)} rows, not {numbers.min()} to {numbers.max()}")
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        places = found.reshape(-1).view(np.uint8)
        runs = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        for begin, end in pairwise([*runs, len(numbers)]):
            self.fill(places[begin * size : end * size], self.start + int(numbers[begin]) * size)
        return found if wanted.ndim else found[0]

    take = __getitem__

    def fill(self, place: Array, offset: int) -> None:
        """Read bytes of the file. Raises UserError if it ends before, as it does if it was damaged since it was opened."""
        while len(place):
            if not (count := os.preadv(self.handle, [place.data], offset)):
                raise UserError(f"{self.path}: ends before its numbers do; rerun the step that makes it")
            place, offset = place[count:], offset + count

    def elements(self, kind: np.dtype[Any]) -> "Stored":
        """The same bytes as a row of larger elements."""
        return Stored(self.path, kind, self.start, (math.prod(self.shape) * self.dtype.itemsize // kind.itemsize,))


def opened(path: Path, kind: np.dtype[Any], start: int, shape: tuple[int, ...]) -> Any:
    """An array that begins at a byte of a file: mapped into memory, or Stored."""
    return np.memmap(path, kind, "r", start, shape) if maps_files() else Stored(path, kind, start, shape)


def read_array(path: Path, mapped: bool = False) -> Any:
    """Read a .npy file, or only open it (`mapped`), so that what is indexed is read.

    Raises UserError if it is missing, damaged, or of pickled objects, which are never read. A header that claims more than the file
    holds is refused before memory is asked for.
    """
    try:
        with path.open("rb") as stream:
            shape, fortran, kind = array_header(stream)
            start = stream.tell()
            if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize > path.stat().st_size - start:
                raise ValueError(f"it ends before its {shape} numbers do")
            if mapped and not fortran:
                return opened(path, kind, start, shape)
            return np.fromfile(stream, kind, math.prod(shape)).reshape(shape, order="F" if fortran else "C")
    except FileNotFoundError:
        raise UserError(f"{path}: No such file or directory; run the step that makes it") from None
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); rerun the step that makes it") from None


def read_arrays(path: Path, *only: str) -> dict[str, NDArray[Any]]:
    """The arrays of an npz, or those of some names that are there.

    Raises UserError if it is damaged, holds pickled objects, or a packed array of more than INFLATED bytes.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
            names = [name for name in members if not only or name in only]
            if large := [name for name in names if members[name].compress_type and members[name].file_size > INFLATED]:
                raise ValueError(f"{large[0]}.npy is packed and has more than {INFLATED >> 20} MiB")
            with np.load(path, allow_pickle=False) as stored:
                return {name: np.asarray(stored[name]) for name in names}
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: damaged ({_reason(error)}); make or get it again") from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


class Joined:
    """Acts as one array of several with the same shapes of rows."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.arrays, self.ends = arrays, np.cumsum([len(array) for array in arrays])
        self.shape, self.dtype = (int(self.ends[-1]), *arrays[0].shape[1:]), arrays[0].dtype

    def __getitem__(self, rows: NDArray[Any]) -> Array:
        found, place = np.empty((len(rows), *self.shape[1:]), self.dtype), np.searchsorted(self.ends, rows, "right")
        for number in np.unique(place):
            begin = self.ends[number] - len(self.arrays[number])
            found[place == number] = self.arrays[number][rows[place == number] - begin]
        return found
