"""Artifacts: published atomically, with a manifest that says how they were made."""

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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


def manifest_file(out: Path) -> Path:
    """Where the manifest of an artifact lies: inside a folder or a JSON file; of other files in a folder beside them."""
    if out.suffix == ".json":
        return out
    return out.parent / "manifests" / f"{out.stem}.json" if out.suffix else out / MANIFEST


def read_manifest(out: Path) -> Manifest:
    """The manifest of an artifact, whose files are not looked at; raises UserError if there is none."""
    tree = read_json(manifest_file(out))
    if out.suffix == ".json":
        tree = tree.get("manifest") if isinstance(tree, dict) else None
    return _parse(out, tree)


def _parse(path: Path, tree: Any) -> Manifest:
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
    return f"{name} {json.dumps(old.get(name))}, params.yaml says {json.dumps(new.get(name))}"


def config_of(record: dict[str, Any], verb: str) -> dict[str, Any]:
    """The entry of params.yaml with which an ancestor of a record was made; empty if there is none."""
    lineage = record.get("manifest", {}).get("lineage", {})
    return next((origin["config"] for node, origin in lineage.items() if node.startswith(f"{verb}/")), {})


@dataclass(frozen=True)
class Making:
    """What a step knows of an artifact before it is made: the node, its entry, and where it comes from.

    read: see Origin. milestones: the beginning of the names of files that a longer training keeps; '' for other steps.
    """

    node: str
    config: dict[str, Any]
    ancestors: dict[str, Origin]
    read: dict[str, dict[str, str]] = field(default_factory=dict)
    milestones: str = ""

    def manifest(self, files: dict[str, Known], out: Path) -> Manifest:
        """The manifest of these files, which replace what is published under `out`."""
        whole = self.kept(files, out) or digest({name: asdict(known) for name, known in files.items()})
        return Manifest(self.node, files, {**self.ancestors, self.node: Origin(self.config, whole, self.read)}, made_by())

    def kept(self, files: dict[str, Known], out: Path) -> str | None:
        """The digest under which a training was published before, if its milestones are still the same; None if not."""
        if not self.milestones or not manifest_file(out).exists():
            return None
        try:
            old = read_manifest(out)
        except UserError:
            return None
        shared = [name for name in files.keys() & old.files.keys() if name.startswith(self.milestones)]
        same = bool(shared) and all(files[name] == old.files[name] for name in shared)
        return old.lineage[self.node].digest if same and self.node in old.lineage else None


@contextmanager
def publishing(
    out: Path,
    node: str,
    config: dict[str, Any],
    ancestors: dict[str, Origin],
    read: dict[str, dict[str, str]] | None = None,
    milestones: str = "",
) -> Iterator[Path]:
    """A temporary place for a step to write, published under `out` with its manifest when the block ends without an error.

    A folder gets a manifest.json. A name with a suffix is a file: what the step wrote beside it under the same stem is published
    too, folders whole; a JSON file holds its manifest inside, of others it lies in manifests/STEM.json. The rest: see Making.
    """
    making = Making(node, config, ancestors, read or {}, milestones)
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
                (_publish_files if out.suffix else _publish_folder)(workshop, place, out, making)
        except Full as error:
            raise Full(str(error).replace(str(place), str(out))) from None


def written(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON holds it; what is empty in an origin is left out."""
    tree = asdict(manifest)
    for origin in tree["lineage"].values():
        if not origin["read"]:
            del origin["read"]
    return tree


def _known(file: Path) -> Known:
    sync(file)
    return Known(file.stat().st_size, sha256(file))


def _publish_files(workshop: Path, place: Path, out: Path, making: Making) -> None:
    made = [file for file in workshop.rglob("*") if file.is_file()]
    for folder in {file.parent for file in made} - {workshop}:
        target = out.parent / folder.relative_to(workshop)
        target.mkdir(parents=True, exist_ok=True)
        for left in target.iterdir():
            if not (folder / left.name).exists():
                left.unlink()
    if out.suffix == ".json":
        tree = read_json(place)
        files = {out.name: Known(place.stat().st_size, digest(tree))}
        write_json(place, {**tree, "manifest": written(making.manifest(files, out))})
    else:
        numbers = {name: origin.config for name, origin in making.ancestors.items()} | {making.node: making.config}
        text = mark(making.node, digest(numbers))
        for file in made:
            stamp(file, text)
        files = {str(file.relative_to(workshop)): _known(file) for file in sorted(made)}
        beside = manifest_file(place)
        write_json(beside, written(making.manifest(files, out)))
        manifest_file(out).parent.mkdir(exist_ok=True)
        made.append(beside)
    for file in sorted(made, key=lambda file: file == place):  # the declared one last
        sync(file)
        file.replace(out.parent / file.relative_to(workshop))
    sync(out.parent)


def _publish_folder(workshop: Path, place: Path, out: Path, making: Making) -> None:
    files = {str(file.relative_to(place)): _known(file) for file in sorted(place.rglob("*")) if file.is_file()}
    write_json(place / MANIFEST, written(making.manifest(files, out)))
    if out.is_symlink() or out.is_file():
        raise UserError(f"{out}: not a folder; move it away")
    if out.exists():
        out.rename(workshop / "old")
    place.rename(out)
    sync(out.parent)
    shutil.rmtree(workshop / "old", ignore_errors=True)
