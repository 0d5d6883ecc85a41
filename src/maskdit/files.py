"""Artifacts on disk: written atomically, hashed, and described by a manifest that says how they were made."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import StringConstraints, TypeAdapter, ValidationError
from safetensors import SafetensorError

from maskdit.config import Section, UserError
from maskdit.params import Params
from maskdit.provenance import made_by, mark, stamp

MANIFEST = "manifest.json"


def digest(tree: Any) -> str:
    """sha256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """sha256 of a file's contents, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
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
        number, place = getattr(error, "errno", None), getattr(error, "filename", None)
        if number is None and (told := re.search(r"(?:os error |code: )(\d+)|\d+ requested and \d+ written", str(error))):
            number = int(told[1] or errno.ENOSPC)
        if number in FULL:
            size = f"{needed:,} bytes are to be written, " if needed else ""
            room = f"{size}{shutil.disk_usage(path.parent).free:,} are free"
            raise Full(f"{path}: {os.strerror(number)} ({room}); make room, then run it again") from None
        if number and place and Path(place).parent == path.parent:
            raise UserError(f"{path}: cannot be written ({os.strerror(number)}); mend that, then run it again") from None
        raise


@contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A temporary file to write, in the same folder, that takes the name of `path` when the block ends without an error.

    Raises UserError if it cannot be written; `needed` bytes are named then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, needed):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, tree: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2) + "\n")


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file atomically."""
    with replacing(path, array.nbytes) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def read_json(path: Path, *fields: str) -> Any:
    """Read a JSON file; raises UserError if it is missing or damaged, or no dictionary with these fields."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run the step that makes it") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON, so damaged; delete it and rerun the step that makes it") from None
    if fields and not (isinstance(found, dict) and found.keys() >= set(fields)):
        raise UserError(f"{path}: not what was looked for, which has {', '.join(fields)}; rerun the step that makes it")
    return found


def named(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Those of a folder's JSON files NAME.json that are there, at any depth; what is half written has a dot before its name."""
    known = {path.stem: path for path in sorted(folder.rglob("*.json")) if "/." not in f"/{path.relative_to(folder)}"}
    return {name: known[name] for name in names if name in known}


@dataclass(frozen=True)
class Known:
    """What is known of a file."""

    bytes: int
    sha256: str


Name = Annotated[str, StringConstraints(pattern=r"^[^/\x00-\x1f][^\x00-\x1f]*$")]
Node = Annotated[str, StringConstraints(pattern=r"^[a-z]+/[^\x00-\x1f/]+$")]


@dataclass(frozen=True)
class Origin:
    """How one ancestor of an artifact was made: its entry of params.yaml and the digest of what came out."""

    config: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class Manifest:
    """How an artifact was made.

    node: VERB/KEY. files by name. lineage: node -> origin, for itself and each ancestor.
    made: commit, lock, hardware and versions.
    """

    node: Node
    files: dict[Name, Known]
    lineage: dict[Node, Origin]
    made: dict[str, str]


MANIFESTS = TypeAdapter(Manifest)


def inputs_of(path: Path, only: tuple[str, ...] | None = None, largest: float = 2**28) -> list[tuple[Path, Manifest]]:
    """The manifests at an input: of the folder, of the JSON file, or of those JSON files in a folder that `only` names.

    Raises UserError if there is none, or if a file that it lists has another size or, for files up to `largest` bytes (256 MiB),
    another hash.
    """
    if path.suffix == ".json":
        tree = read_json(path)
        manifest = _parse(path, tree.pop("manifest", None) if isinstance(tree, dict) else None)
        known = manifest.files.get(path.name)
        if known is None or digest(tree) != known.sha256:
            raise UserError(f"{path}: changed since it was written; rerun the step that makes it")
        return [(path, manifest)]
    if only is not None:
        return [found for file in named(path, only).values() for found in inputs_of(file)]
    manifest = read_manifest(path)
    for name, facts in manifest.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts.bytes:
            raise UserError(f"{file}: missing or truncated; delete {path} and rerun the step that makes it")
        if facts.bytes <= largest and sha256(file) != facts.sha256:
            raise UserError(f"{file}: damaged (sha256 differs); delete {path} and rerun the step that makes it")
    return [(path, manifest)]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, whose files are not looked at; raises UserError if there is none."""
    return _parse(folder, read_json(folder / MANIFEST))


def published_digest(out: Path, node: str) -> str | None:
    """The digest of what a step has just published; None for files that have no manifest."""
    if out.suffix not in ("", ".json"):
        return None
    tree = read_json(out / MANIFEST) if not out.suffix else read_json(out)["manifest"]
    return tree["lineage"][node]["digest"]


def _parse(path: Path, tree: Any) -> Manifest:
    try:
        found = MANIFESTS.validate_python(tree)
    except ValidationError:
        raise UserError(f"{path}: has no manifest of a step; rerun the step that makes it") from None
    if strange := [name for name in found.files if ".." in Path(name).parts]:
        raise UserError(f"{path}: its manifest names {strange[0]}, which lies elsewhere; delete it")
    return found


def lineage(found: list[tuple[Path, Manifest]], params: Params) -> dict[str, Origin]:
    """The joint lineage of several inputs.

    Raises UserError if an ancestor was made with other numbers than today's params.yaml, or if two inputs descend from
    different makings of one ancestor.
    """
    joint: dict[str, Origin] = {}
    for path, manifest in found:
        for node, origin in manifest.lineage.items():
            if difference := _difference(origin.config, params.entry(*node.split("/"))):
                raise UserError(f"{path}: {node} was made with {difference}: rerun it, or restore the number")
            other = joint.setdefault(node, origin)
            if other.digest != origin.digest:
                raise UserError(f"{path}: made from another {node} than the other inputs: rerun it")
    return joint


def _difference(recorded: dict[str, Any], today: Section) -> str:
    """What a recorded entry, read as today's release reads it, has otherwise than today's; '' if nothing."""
    old, new = recorded, today.model_dump(mode="json")
    try:
        made = type(today).model_validate(recorded)
        if today.accepts(made):
            return ""
        old = made.model_dump(mode="json")
    except ValidationError:  # of a field that there is no more, or a value that it cannot have
        pass
    names = [name for name in [*old, *new] if old.get(name) != new.get(name)]
    name = min(names, key=lambda name: (name, new.get(name)) == ("precision", "auto"))
    return f"{name} {json.dumps(old.get(name))}, params.yaml says {json.dumps(new.get(name))}"


@contextmanager
def publishing(out: Path, node: str, config: dict[str, Any], ancestors: dict[str, Origin]) -> Iterator[Path]:
    """A temporary place for a step to write, published under `out` with its manifest when the block ends without an error.

    A folder gets a manifest.json. A name with a suffix is a file: what the step wrote beside it under the same stem is published
    too, folders whole, and a JSON file holds its manifest inside.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.*"):  # by a step that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        workshop = Path(name)
        place = workshop / out.name
        if not out.suffix:
            place.mkdir()
        try:
            with writing(out):
                yield place
                publish = _publish_files if out.suffix else _publish_folder
                publish(workshop, place, out, node, config, ancestors)
        except Full as error:
            raise Full(str(error).replace(str(place), str(out))) from None


def _manifest(files: dict[str, Known], node: str, config: dict[str, Any], ancestors: dict[str, Origin]) -> Manifest:
    whole = digest({name: asdict(known) for name, known in files.items()})
    return Manifest(node, files, {**ancestors, node: Origin(config, whole)}, made_by())


def _publish_files(workshop: Path, place: Path, out: Path, node: str, config: dict[str, Any], ancestors: dict[str, Origin]) -> None:
    if out.suffix == ".json":
        tree = read_json(place)
        files = {out.name: Known(place.stat().st_size, digest(tree))}
        write_json(place, {**tree, "manifest": asdict(_manifest(files, node, config, ancestors))})
    numbers = {name: origin.config for name, origin in ancestors.items()} | {node: config}
    text = mark(node, digest(numbers))
    made = [file for file in workshop.rglob("*") if file.is_file()]
    for folder in {file.parent for file in made} - {workshop}:
        target = out.parent / folder.relative_to(workshop)
        target.mkdir(parents=True, exist_ok=True)
        for left in target.iterdir():
            if not (folder / left.name).exists():
                left.unlink()
    for file in sorted(made, key=lambda file: file == place):  # the declared one last
        stamp(file, text)
        _sync(file)
        file.replace(out.parent / file.relative_to(workshop))
    _sync(out.parent)


def _publish_folder(
    workshop: Path, place: Path, out: Path, node: str, config: dict[str, Any], ancestors: dict[str, Origin]
) -> None:
    files = {}
    for file in sorted(file for file in place.rglob("*") if file.is_file()):
        _sync(file)
        files[str(file.relative_to(place))] = Known(file.stat().st_size, sha256(file))
    write_json(place / MANIFEST, asdict(_manifest(files, node, config, ancestors)))
    if out.is_symlink() or out.is_file():
        raise UserError(f"{out}: not a folder; move it away")
    if out.exists():
        out.rename(workshop / "old")
    place.rename(out)
    _sync(out.parent)
    shutil.rmtree(workshop / "old", ignore_errors=True)
