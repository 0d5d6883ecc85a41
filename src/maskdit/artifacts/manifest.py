"""Manifests, which say how an artifact was made, and what they prove."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter, ValidationError

from maskdit.artifacts.atomic import digest, look, named, read_json, sha256
from maskdit.config.base import Section, UserError
from maskdit.config.params import Params
from maskdit.config.paths import is_result

MANIFEST = "manifest.json"
SMALL, LARGE = 2**24, 2**28  # bytes of a result that is hashed when it is judged, and of a file that is hashed when it is read
CHECK = "sha256"  # the field of a manifest that covers its other fields


@dataclass(frozen=True)
class Known:
    """What is known of a file."""

    bytes: int
    sha256: str


Name = Annotated[str, StringConstraints(pattern=r"^[^/\x00-\x1f][^\x00-\x1f]*$")]
Node = Annotated[str, StringConstraints(pattern=r"^[a-z]+/[^\x00-\x1f/]+$")]


@dataclass(frozen=True)
class Origin:
    """How one ancestor of an artifact was made: its entry of params.yaml and the digest of what came out.

    read: of a training that it reads only some files of, their sha256: node -> file -> sha256.
    """

    config: dict[str, Any]
    digest: str
    read: dict[Node, dict[Name, str]] = field(default_factory=dict)


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


def inputs_of(path: Path, only: tuple[str, ...] | None = None, largest: float = LARGE) -> list[tuple[Path, Manifest]]:
    """The manifests at an input: of the folder, of the JSON file, or of those JSON files in a folder that `only` names.

    Raises UserError if there is none, or if a file that it lists is damaged; see `damage`.
    """
    if path.suffix != ".json" and only is not None:
        return [found for file in named(path, only).values() for found in inputs_of(file)]
    manifest = read_manifest(path)
    if why := damage(path, manifest, largest):
        raise UserError(f"{why}; delete {path} and rerun the step that makes it")
    return [(path, manifest)]


def damage(out: Path, manifest: Manifest, largest: float) -> str:
    """What is wrong with the first file of an artifact that is not as its manifest says; '' if all are.

    A record is read; of other files the size is compared and, up to `largest` bytes, the hash.
    Raises OSError if a file cannot be looked at.
    """
    if out.suffix == ".json":
        tree, known = read_json(out, "manifest"), manifest.files.get(out.name)
        del tree["manifest"]
        return "" if known and known.sha256 == digest(tree) else f"{out} was changed since it was written"
    for name, known in manifest.files.items():
        file = (out.parent if is_result(out) else out) / name
        there = look(file)
        if there is None:
            return f"{file} is missing"
        if not S_ISREG(there.st_mode) or there.st_size != known.bytes:
            return f"{file} is not the file that was written: it has {there.st_size} bytes in place of {known.bytes}"
        if known.bytes <= largest and sha256(file) != known.sha256:
            return f"{file} is not the file that was written: its sha256 differs from {manifest_file(out)}"
    return ""


def manifest_file(out: Path) -> Path:
    """Where the manifest of an artifact lies: inside a folder or a JSON file; of other files in a folder beside them."""
    if is_result(out):
        return out.parent / "manifests" / f"{out.stem}.json"
    return out if out.suffix else out / MANIFEST


def read_manifest(out: Path) -> Manifest:
    """The manifest of an artifact, whose files are not looked at; raises UserError if there is none."""
    tree = read_json(manifest_file(out))
    if out.suffix == ".json":
        tree = tree.get("manifest") if isinstance(tree, dict) else None
    return _parse(out, tree)


def _parse(path: Path, tree: Any) -> Manifest:
    check = tree.pop(CHECK, None) if isinstance(tree, dict) else None
    if check is not None and check != digest(tree):
        raise UserError(f"{path}: its manifest was changed since it was written; delete {path} and rerun the step that makes it")
    try:
        found = MANIFESTS.validate_python(tree)
    except ValidationError:
        raise UserError(f"{path}: has no manifest of a step; rerun the step that makes it") from None
    if strange := [name for name in found.files if ".." in Path(name).parts]:
        raise UserError(f"{path}: its manifest names {strange[0]}, which lies elsewhere; delete it")
    return found


def lineage(found: list[tuple[Path, Manifest]], params: Params, partly: Collection[str] = ()) -> dict[str, Origin]:
    """The joint lineage of several inputs; of the trainings in `partly` only some files are read.

    Raises UserError if an ancestor was made with other numbers than today's params.yaml, or if two inputs descend from
    different makings of one ancestor.
    """
    joint: dict[str, Origin] = {}
    for path, manifest in found:
        for node, origin in manifest.lineage.items():
            longer = node in partly or node in partly_read(manifest)
            if differs := difference(origin.config, params.entry(*node.split("/")), longer):
                raise UserError(f"{path}: {node} was made with {differs}: rerun it, or restore the number")
            other = joint.setdefault(node, origin)
            if other.digest != origin.digest:
                raise UserError(f"{path}: made from another {node} than the other inputs: rerun it")
    return joint


def partly_read(manifest: Manifest) -> set[str]:
    """The trainings in the lineage of an artifact of which only some files were read."""
    return {run for origin in manifest.lineage.values() for run in origin.read}


def difference(recorded: dict[str, Any], today: Section, longer: bool = False) -> str:
    """The first field in which a recorded entry differs from today's, with both values; '' if there is none.

    The record is read as today's release reads it. `longer`: other milestones of a training make no difference.
    """
    old, new = recorded, today.model_dump(mode="json")
    try:
        made = type(today).model_validate(recorded)
        if longer:
            made = made.model_copy(update={"milestones": getattr(today, "milestones", None)})
        if today.accepts(made):
            return ""
        old = made.model_dump(mode="json")
    except ValidationError:  # of a field that there is no more, or a value that it cannot have
        pass
    names = [name for name in [*old, *new] if old.get(name) != new.get(name)]
    if not names:  # the same value in another type
        return ""
    name = min(names, key=lambda name: (name, new.get(name)) == ("precision", "auto"))
    if name == "method_sha256":
        return f"another {new.get('method')} than the one that is here"
    return f"{name} {json.dumps(old.get(name))}, params.yaml says {json.dumps(new.get(name))}"


def config_of(record: dict[str, Any], verb: str) -> dict[str, Any]:
    """The entry of params.yaml with which an ancestor of a record was made; empty if there is none."""
    lineage = record.get("manifest", {}).get("lineage", {})
    return next((origin["config"] for node, origin in lineage.items() if node.startswith(f"{verb}/")), {})


def written(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON holds it, with a checksum of its own; what is empty in an origin is left out."""
    tree = asdict(manifest)
    for origin in tree["lineage"].values():
        if not origin["read"]:
            del origin["read"]
    return {**tree, CHECK: digest(tree)}
