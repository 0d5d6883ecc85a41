"""Published latents: float32 moments in an LMDB or in webdataset's tar files. Nothing in these files is executed."""

import pickletools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.config.base import UserError
from maskdit.images.archives import tar_members

Samples = tuple[NDArray[np.float32], NDArray[np.int64]]  # moments (n, 2 C, H, W), labels (n,)


def number(data: bytes, where: str) -> int:
    """An integer stored as text. Raises UserError, which names the place, for anything else."""
    try:
        return int(data)
    except ValueError:
        raise UserError(f"{where}: {data[:20]!r} is not a number; get it again") from None


class Lmdb:
    """`z-I` holds the moments of sample I as bytes, `y-I` its class as text, and `length` the number of samples as text."""

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        try:
            import lmdb
        except ImportError:
            raise UserError("format: lmdb needs the package lmdb: pip install lmdb") from None
        self.root, self.shape, self.error = root, shape, lmdb.Error
        try:
            self.environment = lmdb.open(str(root), readonly=True, create=False, lock=False, readahead=False)
        except lmdb.Error as error:
            raise UserError(f"{root}: not an LMDB of latents ({error}); get it again") from None
        self.count = number(self.value("length"), f"{root}: length")

    def value(self, key: str) -> bytes:
        """The bytes under a key. Raises UserError if there are none."""
        try:
            with self.environment.begin() as transaction:
                found: bytes | None = transaction.get(key.encode())
        except self.error as error:
            raise UserError(f"{self.root}: damaged ({error}); get it again") from None
        if found is None:
            raise UserError(f"{self.root}: has no {key}; get it again")
        return found

    def read(self, rows: NDArray[Any]) -> Samples:
        """Moments and labels of some samples."""
        wanted = 4 * int(np.prod(self.shape))
        moments, labels = np.empty((len(rows), *self.shape), np.float32), np.empty(len(rows), np.int64)
        for place, row in enumerate(rows):
            data = self.value(f"z-{row}")
            if len(data) != wanted:
                raise UserError(f"{self.root}: z-{row} has {len(data)} bytes, moments {self.shape} need {wanted}; get it again")
            moments[place] = np.frombuffer(data, "<f4").reshape(self.shape)
            labels[place] = number(self.value(f"y-{row}"), f"{self.root}: y-{row}")
        return moments, labels


class Webdataset:
    """Tar files with NAME.latent, a pickled array, and NAME.cls, its class as text."""

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        self.root, self.shape, self.places = root, shape, []
        for path in sorted(root.glob("*.tar")):
            try:
                with path.open("rb") as stream:
                    members = {one.name: (one.offset_data, one.size) for one in tar_members(stream) if one.isreg()}
            except tarfile.TarError as error:
                raise UserError(f"{path}: damaged ({error}); get it again") from None
            for name in sorted(name for name in members if name.endswith(".latent")):
                known = members.get(f"{name.removesuffix('.latent')}.cls")
                if known is None:
                    raise UserError(f"{path}: {name} has no .cls beside it; get it again")
                self.places.append((path, name, members[name], known))
        self.count = len(self.places)

    def read(self, rows: NDArray[Any]) -> Samples:
        """Moments and labels of some samples."""
        moments, labels = np.empty((len(rows), *self.shape), np.float32), np.empty(len(rows), np.int64)
        for place, row in enumerate(rows):
            path, name, (start, size), (label_start, label_size) = self.places[row]
            with path.open("rb") as stream:
                stream.seek(start)
                moments[place] = unpickled(stream.read(size), self.shape, f"{path}: {name}")
                stream.seek(label_start)
                labels[place] = number(stream.read(label_size), f"{path}: the class of {name}")
        return moments, labels


PLAIN = {"BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
SILENT = {"PROTO", "FRAME", "STOP", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "STACK_GLOBAL", "REDUCE", "BUILD"}
FLOAT32 = ["numpy", "dtype", "f4", False, True, 3, "<", None, None, None, -1, -1, 0]


def constants(data: bytes) -> list[Any]:
    """The constants of a pickle in order, including the names of what it would import and call. Nothing is imported or called.

    Raises ValueError, IndexError or KeyError if the pickle is damaged or has other opcodes than that of an array.
    """
    found: list[Any] = []
    memo: dict[int, Any] = {}
    for code, argument, _ in pickletools.genops(data):
        match code.name:
            case "MEMOIZE":
                memo[len(memo)] = found[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[int(str(argument))] = found[-1]
            case "BINGET" | "LONG_BINGET":
                found.append(memo[int(str(argument))])
            case "GLOBAL":
                found += str(argument).split(" ")
            case name if name in CONSTANTS:
                found.append(CONSTANTS[name])
            case name if name in PLAIN:
                found.append(argument)
            case name if name not in SILENT:
                raise ValueError(f"unsupported opcode {name}")
    return found


def unpickled(data: bytes, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    """A float32 array of a known shape from its pickle, of which nothing is executed.

    Raises UserError unless the pickle has exactly the constants of such an array, as NumPy 1 or 2 writes them.
    """
    try:
        found = constants(data)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{where}: not the pickle of an array ({error}); it is not read") from None
    size = 4 * int(np.prod(shape))
    numbers = next((each for each in found if isinstance(each, bytes | bytearray) and len(each) == size), b"")
    for core in ("numpy.core", "numpy._core"):
        rebuilt = [f"{core}.multiarray", "_reconstruct", "numpy", "ndarray", 0, b"b", 1, *shape, *FLOAT32, False, numbers]
        buffered = [f"{core}.numeric", "_frombuffer", numbers, *FLOAT32, *shape, "C"]
        if numbers and found in (rebuilt, buffered):
            return np.frombuffer(numbers, "<f4").reshape(shape)
    raise UserError(f"{where}: not the pickle of a float32 array {shape}; it is not read")


READERS: dict[str, type[Lmdb] | type[Webdataset]] = {"lmdb": Lmdb, "webdataset": Webdataset}
