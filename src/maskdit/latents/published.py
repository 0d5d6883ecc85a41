"""Latents that the authors have published: float32 moments in an LMDB or in webdataset's tar files. Nothing in them is executed."""

import pickletools
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.config.base import UserError
from maskdit.images import tar_members

Samples = tuple[NDArray[np.float32], NDArray[np.int64]]  # moments (n, 2 C, H, W), labels (n,)


def label(data: bytes, where: str) -> int:
    """A class that is written as text; raises UserError, naming the place, if it is none."""
    try:
        return int(data)
    except ValueError:
        raise UserError(f"{where}: '{data[:20]!r}' is no class; get it again") from None


class Lmdb:
    """`z-I` holds the moments of sample I as bytes, `y-I` its class and `length` their number as text."""

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        try:
            import lmdb
        except ImportError:
            raise UserError("format: lmdb needs the package lmdb: pip install lmdb") from None
        self.root, self.shape, self.error = root, shape, lmdb.Error
        try:
            self.environment = lmdb.open(str(root), readonly=True, create=False, lock=False, readahead=False)
        except lmdb.Error as error:
            raise UserError(f"{root}: no LMDB of latents ({error}); get it again") from None
        self.count = label(self.values(["length"])[0], f"{root}: length")

    def values(self, keys: list[str]) -> list[bytes]:
        """The bytes under some keys; raises UserError if one has none."""
        try:
            with self.environment.begin() as transaction:
                found = [transaction.get(key.encode()) for key in keys]
        except self.error as error:
            raise UserError(f"{self.root}: damaged ({error}); get it again") from None
        whole = [data for data in found if data is not None]
        if len(whole) < len(keys):
            raise UserError(f"{self.root}: has no {keys[found.index(None)]}; get it again")
        return whole

    def read(self, rows: NDArray[Any]) -> Samples:
        """Moments and labels of some samples."""
        wanted = 4 * int(np.prod(self.shape))
        moments, labels = np.empty((len(rows), *self.shape), np.float32), np.empty(len(rows), np.int64)
        for place, row in enumerate(rows):
            data, known = self.values([f"z-{row}", f"y-{row}"])
            if len(data) != wanted:
                raise UserError(f"{self.root}: z-{row} has {len(data)} bytes, {wanted} are wanted for moments {self.shape}")
            moments[place] = np.frombuffer(data, "<f4").reshape(self.shape)
            labels[place] = label(known, f"{self.root}: y-{row}")
        return moments, labels


class Webdataset:
    """Tar files with NAME.latent, a pickled array, and NAME.cls, its class as text."""

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        self.root, self.shape, self.places = root, shape, []
        for path in sorted(root.glob("*.tar")):
            try:
                with path.open("rb") as stream:
                    members = {one.name: (one.offset_data, one.size) for one in tar_members.members(stream) if one.isreg()}
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
                labels[place] = label(stream.read(label_size), f"{path}: the class of {name}")
        return moments, labels


@dataclass(frozen=True)
class Global:
    """MODULE NAME of something that a pickle would import."""

    name: str


@dataclass(frozen=True)
class Call:
    """What a pickle would call, and with what."""

    what: Any
    arguments: Any


@dataclass(frozen=True)
class State:
    """An object that a pickle would fill, and with what."""

    of: Any
    state: Any


PLAIN = {"BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
FLOAT32 = State(Call(Global("numpy dtype"), ("f4", False, True)), (3, "<", None, None, None, -1, -1, 0))
RECONSTRUCT = [Global(f"numpy.{core}.multiarray _reconstruct") for core in ("core", "_core")]
FROMBUFFER = [Global(f"numpy.{core}.numeric _frombuffer") for core in ("core", "_core")]


def described(data: bytes) -> Any:
    """What a pickle would make, as a description: nothing is imported or called.

    Raises ValueError, IndexError or KeyError for a damaged pickle, or one with other opcodes than those of an array.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for code, argument, _ in pickletools.genops(data):
        match code.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                at = marks.pop()
                stack[at:] = [tuple(stack[at:])]
            case name if name in TUPLES:
                at = len(stack) - TUPLES[name]
                stack[at:] = [tuple(stack[at:])]
            case "GLOBAL":
                stack.append(Global(str(argument)))
            case "STACK_GLOBAL":
                stack[-2:] = [Global(" ".join(part if isinstance(part, str) else "?" for part in stack[-2:]))]
            case "REDUCE":
                stack[-2:] = [Call(stack[-2], stack[-1])]
            case "BUILD":
                stack[-2:] = [State(stack[-2], stack[-1])]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[int(str(argument))] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(str(argument))])
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in PLAIN:
                stack.append(argument)
            case name:
                raise ValueError(f"it has {name}")
    return stack[-1]


def unpickled(data: bytes, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    """A float32 array of a known shape from its pickle, of which nothing is executed.

    Raises UserError for a pickle that would make anything else.
    """
    try:
        found = described(data)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{where}: not the pickle of an array ({error}); it is not read") from None
    numbers: Any = None
    kind: Any = None
    dimensions: Any = None
    match found:
        case State(Call(made, (Global("numpy ndarray"), (0,), b"b")), (1, dimensions, kind, False, numbers)) if made in RECONSTRUCT:
            pass
        case Call(made, (numbers, kind, dimensions, "C")) if made in FROMBUFFER:
            pass
    whole = isinstance(numbers, bytes | bytearray) and len(numbers) == 4 * int(np.prod(shape))
    if not (whole and kind == FLOAT32 and dimensions == shape):
        raise UserError(f"{where}: not the pickle of a float32 array {shape}; it is not read")
    return np.frombuffer(numbers, "<f4").reshape(shape)


READERS: dict[str, type[Lmdb] | type[Webdataset]] = {"lmdb": Lmdb, "webdataset": Webdataset}
