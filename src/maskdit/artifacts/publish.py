"""Publication: what a step makes appears as a whole, with its manifest, and replaces nothing but its own."""

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maskdit.artifacts.atomic import Full, as_new, digest, look, read_json, sha256, sync, write_json, writing
from maskdit.artifacts.manifest import MANIFEST, Known, Manifest, Origin, manifest_file, read_manifest, written
from maskdit.artifacts.provenance import made_by, mark, stamp
from maskdit.config.base import UserError
from maskdit.runtime.lock import Lock, is_held

WORKSHOP, LOCK = ".making-", "lock"  # what a step makes is in a folder of its own beside its output, which is locked meanwhile


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
    usual: bool = False,
) -> Iterator[Path]:
    """A temporary place for a step to write, published under `out` with its manifest when the block ends without an error.

    A folder gets a manifest.json. A name with a suffix is a file: what the step wrote beside it under the same stem is published
    too, folders whole; a JSON file holds its manifest inside, of others it lies in manifests/STEM.json. `usual` is as in
    `demand_replaceable`, the rest as in Making. Raises UserError if something else than an older make of the node is there.
    """
    making = Making(node, config, ancestors, read or {}, milestones)
    demand_replaceable(out, node, usual)
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out)
    try:
        with writing(out), _workshop(out) as name:
            home = Path(name)
            place = home / "made" / out.name
            (place.parent if out.suffix else place).mkdir(parents=True)
            with Lock(home / LOCK).held():
                yield place
                demand_replaceable(out, node, usual)
                if out.suffix and not usual:
                    demand_free(out, place)
                (_publish_files if out.suffix else _publish_folder)(place, out, making)
    except Full as error:
        raise Full(str(error).replace(str(place), str(out))) from None


def _workshop(out: Path) -> TemporaryDirectory[str]:
    """A folder beside an output; its removal may fail on NFS, where a file that another process still reads keeps a name."""
    return TemporaryDirectory(dir=out.parent, prefix=f".{out.name}{WORKSHOP}", ignore_cleanup_errors=True)


def published_in(place: Path) -> Path:
    """The folder in which a place that `publishing` gives becomes visible; the parent of any other path."""
    start = f".{place.name}{WORKSHOP}"
    return next((folder.parent for folder in place.parents if folder.name.startswith(start)), place.parent)


def sweep(out: Path) -> None:
    """Remove what killed steps have left beside an artifact; one that was killed while it replaced the artifact had kept it."""
    for home in out.parent.glob(f".{glob.escape(out.name)}{WORKSHOP}*"):
        begun = (home / f"{LOCK}.lease").exists()  # else its process is just starting, or was killed as it started
        if begun and not is_held(home / LOCK):
            if (home / "old").exists() and not out.exists():
                with suppress(FileNotFoundError):  # another process was quicker
                    (home / "old").rename(out)
            shutil.rmtree(home, ignore_errors=True)


def demand_free(out: Path, place: Path) -> None:
    """Raise UserError if a file that is published beside `out` would replace one that was not published there before."""
    known = _listed(out)
    for file in place.parent.rglob("*"):
        name = str(file.relative_to(place.parent))
        if file.is_file() and file != place and (out.parent / name).exists() and name not in known:
            raise UserError(f"{out.parent / name}: exists and was not made with {out}; move it away, or choose another --out")


def demand_replaceable(out: Path, node: str, usual: bool) -> None:
    """Raise UserError if publishing a node's artifact under `out` would replace something else.

    usual: it is the node's own place in the project, where a result without its manifest may be replaced, too.
    Raises OSError if what is there cannot be looked at or replaced.
    """
    there, beside = look(out), manifest_file(out)
    if (out.is_symlink() and not out.suffix) or (there and not (out.is_file() if out.suffix else out.is_dir())):
        raise UserError(f"{out}: not a {'file' if out.suffix else 'folder'}; move it away, or choose another --out")
    if there and not out.suffix and os.access(out.parent, os.W_OK) > os.access(out, os.W_OK):  # to rename it takes both
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))
    if not there or (not out.suffix and not any(out.iterdir())):
        return
    if not look(beside):
        if usual and out.suffix:
            return
        raise UserError(f"{out}: exists and is not {node}; move it away, or choose another --out")
    try:
        found = read_manifest(out).node
    except UserError:  # damaged
        found = node if usual else ""
    if found != node:
        raise UserError(f"{out}: holds {found or 'something else'}, not {node}; move it away, or choose another --out")


def _known(file: Path) -> Known:
    as_new(file)
    sync(file)
    return Known(file.stat().st_size, sha256(file))


def _publish_files(place: Path, out: Path, making: Making) -> None:
    made = [file for file in place.parent.rglob("*") if file.is_file()]
    names = {str(file.relative_to(place.parent)) for file in made}
    if out.suffix == ".json":
        tree = read_json(place)
        files = {out.name: Known(place.stat().st_size, digest(tree))}
        write_json(place, {**tree, "manifest": written(making.manifest(files, out))})
    else:
        numbers = {name: origin.config for name, origin in making.ancestors.items()} | {making.node: making.config}
        text = mark(making.node, digest(numbers))
        for file in made:
            stamp(file, text)
        files = {name: _known(place.parent / name) for name in sorted(names)}
        beside = manifest_file(place)
        write_json(beside, written(making.manifest(files, out)))
        made.append(beside)
    for old in _listed(out) - names:
        (out.parent / old).unlink(missing_ok=True)
    for file in sorted(made, key=lambda file: file == place):  # the declared one last
        target = out.parent / file.relative_to(place.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(file)
        file.replace(target)
    sync(out.parent)


def _listed(out: Path) -> set[str]:
    """The names of the files that were published under `out` before, by its manifest."""
    if out.suffix == ".json" or not manifest_file(out).exists():
        return set()
    try:
        return set(read_manifest(out).files)
    except UserError:
        return set()


def _publish_folder(place: Path, out: Path, making: Making) -> None:
    files = {str(file.relative_to(place)): _known(file) for file in sorted(place.rglob("*")) if file.is_file()}
    write_json(place / MANIFEST, written(making.manifest(files, out)))
    for link in [file for file in place.rglob("*") if file.is_symlink()]:  # to a shard, where files cannot have two names
        link.readlink().replace(link)
    old = place.parents[1] / "old"
    try:
        while True:
            with suppress(FileNotFoundError):
                out.rename(old)
            try:
                place.rename(out)
                break
            except OSError as error:  # another process has published the same meanwhile
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                shutil.rmtree(old, ignore_errors=True)
    finally:  # a signal came, or an error, between the two
        if old.exists() and not out.exists():
            old.rename(out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)
