"""Latents that the authors have published: float32 moments in an LMDB or in webdataset's tar files. Nothing in them is executed."""

import pickletools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.config import UserError

BYTES = {"BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"}


class Lmdb:
    """`z-I` holds the moments of sample I as bytes, `y-I` its class and `length` their number as text."""

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        try:
            import lmdb
        except ImportError:
            raise UserError("format: lmdb needs the package lmdb: pip install lmdb") from None
        self.root, self.shape = root, shape
        try:
            self.environment = lmdb.open(str(root), readonly=True, lock=False, readahead=False)
            self.count = int(self.value("length"))
        except (lmdb.Error, ValueError) as error:
            raise UserError(f"{root}: no LMDB of latents ({error}); get it again") from None

    def value(self, key: str) -> bytes:
        """The bytes under a key; raises UserError if there are none."""
        with self.environment.begin() as transaction:
            found = transaction.get(key.encode())
        if found is None:
            raise UserError(f"{self.root}: has no {key}; get it again")
        return found

    def read(self, rows: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Moments (n, 8, H, W) and labels (n,) of some samples."""
        wanted = 4 * int(np.prod(self.shape))
        moments = np.empty((len(rows), *self.shape), np.float32)
        for place, row in enumerate(rows):
            data = self.value(f"z-{row}")
            if len(data) != wanted:
                raise UserError(f"{self.root}: z-{row} has {len(data)} bytes, {wanted} are wanted for moments {self.shape}")
            moments[place] = np.frombuffer(data, np.float32).reshape(self.shape)
        return moments, np.array([int(self.value(f"y-{row}")) for row in rows])


class Webdataset:
    """Tar files with NAME.latent, a pickled array, and NAME.cls, its class as text."""

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        self.root, self.shape, self.places = root, shape, []
        for path in sorted(root.glob("*.tar")):
            try:
                with tarfile.open(path, "r:") as tar:
                    members = {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}
            except tarfile.TarError as error:
                raise UserError(f"{path}: damaged ({error}); get it again") from None
            for name in sorted(name for name in members if name.endswith(".latent")):
                label = members.get(f"{name.removesuffix('.latent')}.cls")
                if label is None:
                    raise UserError(f"{path}: {name} has no .cls beside it; get it again")
                self.places.append((path, name, members[name], label))
        self.count = len(self.places)

    def read(self, rows: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Moments (n, 8, H, W) and labels (n,) of some samples."""
        moments, labels = np.empty((len(rows), *self.shape), np.float32), np.empty(len(rows), np.int64)
        for place, row in enumerate(rows):
            path, name, (start, size), (label_start, label_size) = self.places[row]
            with path.open("rb") as stream:
                stream.seek(start)
                moments[place] = unpickled(stream.read(size), self.shape, f"{path}: {name}")
                stream.seek(label_start)
                labels[place] = int(stream.read(label_size))
        return moments, labels


def unpickled(data: bytes, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    """The numbers of a pickled float32 array of a known shape, found among the pickle's opcodes without running any.

    Raises UserError for a pickle that holds anything else than one such array.
    """
    try:
        found: list[Any] = [argument for code, argument, _ in pickletools.genops(data) if code.name in BYTES]
    except ValueError as error:
        raise UserError(f"{where}: not a pickle ({error})") from None
    numbers = [part for part in found if len(part) == 4 * int(np.prod(shape))]
    if len(numbers) != 1 or b"f4" not in data:
        raise UserError(f"{where}: holds not one float32 array {shape}; it is not read")
    return np.frombuffer(numbers[0], "<f4").reshape(shape)


READERS: dict[str, type[Lmdb] | type[Webdataset]] = {"lmdb": Lmdb, "webdataset": Webdataset}
