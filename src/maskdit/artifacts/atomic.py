"""Files that are written whole or not at all, and their hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from maskdit.config.base import UserError
from maskdit.config.errors import fault


def digest(tree: Any) -> str:
    """sha256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """sha256 of a file's contents, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Write a file or a folder's entries to the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Full(UserError):  # noqa: N818, a UserError all the same
    """A disk, a quota or a limit of size ends before what is to be written."""


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Raise Full, with the path and the bytes that are needed and free, for a write within that finds no room.

    NumPy tells of it without a number, safetensors in words, torch with another error. Another refusal to write there is a
    UserError.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as last:
        error = last.__context__ if isinstance(last, RuntimeError) and isinstance(last.__context__, OSError) else last
        number = getattr(error, "errno", None)
        if number is None and (told := re.search(r"(?:os error |code: )(\d+)|\d+ requested and \d+ written", str(error))):
            number = int(told[1] or errno.ENOSPC)
        if number in FULL:
            size = f"{needed:,} bytes are to be written, " if needed else ""
            room = f"{size}{shutil.disk_usage(path.parent).free:,} bytes are free"
            raise Full(f"{path}: {os.strerror(number)} ({room}); make room, then run it again") from None
        if isinstance(error, OSError) and error.filename and Path(error.filename).parent == path.parent:
            raise UserError(f"{path}: cannot be written: {fault(error)}") from None
        raise


@contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A temporary file to write, in the same folder, that takes the name of `path` when the block ends without an error.

    It has the permissions of the file that it replaces, or else those of a new one.
    Raises UserError if it cannot be written; `needed` bytes are named then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, needed):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            as_new(temporary)
            with suppress(FileNotFoundError):
                temporary.chmod(path.stat().st_mode & 0o777)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def as_new(path: Path) -> None:
    """Give a file the permissions of a new one: those of tempfile and safetensors can be read by their owner alone."""
    path.chmod(0o666 & ~_umask())


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def look(path: Path) -> os.stat_result | None:
    """What lies at a path; None if nothing does. Raises OSError if that cannot be told, also of a link that leads nowhere."""
    try:
        return path.stat()
    except FileNotFoundError:
        if any(each.is_symlink() and not each.exists() for each in (path, *path.parents)):
            raise
    return None


def write_json(path: Path, tree: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file atomically."""
    with replacing(path, array.nbytes) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def read_json(path: Path, *fields: str) -> Any:
    """Read a JSON file.

    Raises UserError if it is missing or damaged, or no dictionary with these fields; OSError if that cannot be told.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: {fault(error, 'run the step that makes it')}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON, so damaged; delete it and rerun the step that makes it") from None
    if fields and not (isinstance(found, dict) and found.keys() >= set(fields)):
        raise UserError(f"{path}: expected a dictionary with {', '.join(fields)}; rerun the step that makes it")
    return found


def named(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Those of the records NAME.json that exist: in the folder itself, or in `results` or `metrics` by study.

    Raises UserError if a second file of the same name lies below the folder: which one counts would be a guess.
    """
    root = folder / "metrics" if (folder / "metrics").is_dir() else folder
    depth = 2 if root.name == "metrics" else 1
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.json"), key=lambda path: len(path.parts)):
        parts = path.relative_to(root).parts
        if path.stem not in names or any(part.startswith(".") for part in parts):  # hidden: half written
            continue
        if other := found.get(path.stem):
            raise UserError(f"{path}: {other} is a record of the same name; move one of them out of {root}")
        found[path.stem] = path
    return {name: found[name] for name in names if name in found and len(found[name].relative_to(root).parts) == depth}
