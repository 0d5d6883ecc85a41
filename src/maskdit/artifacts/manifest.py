"""Artifacts: published atomically, with a manifest that says how they were made."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter, ValidationError

from maskdit.artifacts.atomic import Full, digest, named, read_json, sha256, sync, write_json, writing
from maskdit.artifacts.provenance import made_by, mark, stamp
from maskdit.config.base import Section, UserError
from maskdit.config.params import Params

MANIFEST = "manifest.json"


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


def config_of(record: dict[str, Any], verb: str) -> dict[str, Any]:
    """The entry of params.yaml with which an ancestor of a record was made; empty if there is none."""
    lineage = record.get("manifest", {}).get("lineage", {})
    return next((origin["config"] for node, origin in lineage.items() if node.startswith(f"{verb}/")), {})


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
        sync(file)
        file.replace(out.parent / file.relative_to(workshop))
    sync(out.parent)


def _publish_folder(
    workshop: Path, place: Path, out: Path, node: str, config: dict[str, Any], ancestors: dict[str, Origin]
) -> None:
    files = {}
    for file in sorted(file for file in place.rglob("*") if file.is_file()):
        sync(file)
        files[str(file.relative_to(place))] = Known(file.stat().st_size, sha256(file))
    write_json(place / MANIFEST, asdict(_manifest(files, node, config, ancestors)))
    if out.is_symlink() or out.is_file():
        raise UserError(f"{out}: not a folder; move it away")
    if out.exists():
        out.rename(workshop / "old")
    place.rename(out)
    sync(out.parent)
    shutil.rmtree(workshop / "old", ignore_errors=True)
