"""Arrays on disk, .npy and .npz: read as numbers only, and only as many as the file holds."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from maskdit.config.base import UserError

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


def read_array(path: Path, mapped: bool = False) -> NDArray[Any]:
    """Read or map a .npy file; raises UserError if it is missing, damaged, or of pickled objects, which are never read.

    A header that claims more than the file holds is refused before memory is asked for.
    """
    try:
        with path.open("rb") as stream:
            shape, fortran, kind = array_header(stream)
            start = stream.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize > path.stat().st_size - start:
            raise ValueError(f"it ends before its {shape} numbers do")
        found = np.memmap(path, kind, "r", start, shape, "F" if fortran else "C")
    except FileNotFoundError:
        raise UserError(f"{path}: No such file or directory; run the step that makes it") from None
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); rerun the step that makes it") from None
    return found if mapped else np.array(found)


def read_arrays(path: Path, *only: str) -> dict[str, NDArray[Any]]:
    """The arrays of an npz, or those of some names that are there.

    Raises UserError if it is damaged, holds pickled objects, or a packed array of more than INFLATED bytes.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            if large := [one.filename for one in archive.infolist() if one.compress_type and one.file_size > INFLATED]:
                raise ValueError(f"{large[0]} is packed and has more than {INFLATED >> 20} MiB")
            names = [one.removesuffix(".npy") for one in archive.namelist()]
            with np.load(path, allow_pickle=False) as stored:
                return {name: np.asarray(stored[name]) for name in names if not only or name in only}
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path}: damaged ({_reason(error)}); make or get it again") from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
