"""Lists what a user's folder or archive holds: images, the files that tell their classes, and what is left out and why."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from maskdit.config.base import UserError, printable
from maskdit.images import archives
from maskdit.images.archives import FOLDER, IMAGES, LARGEST, LINK, NOWHERE, ODD, OTHER, OUTSIDE, PRIVATE, RAW, SPECIAL, Member

UNREAD: tuple[str, ...] = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".svgz", ".psd", ".xcf", ".tga", ".pcx", ".ico")
UNREAD += (".icns", ".eps", ".exr", ".hdr", ".pfm", ".dds", ".dib", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2")
UNREAD += (".raf", ".dcm")
PACKED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".7z", ".rar")
TRAIN = {"train", "training"}  # folders, or archives, of a split
APART = {"test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev", "heldout", "held-out", "holdout"}
NOTES = (".cls", ".json")  # files that may tell classes
FORMAT = "images in a format that is not read"
CIRCLE = "links that lead back into a folder that they are in"
REPLACED = "members that a later one of the same name replaces"
UNLABELLED = "images without a label"
IMAGELESS = "labels without an image"
BROKEN = "images that cannot be used"
NEVER = {PRIVATE, OTHER, CIRCLE, REPLACED}  # reasons that concern no image of the data
FIRST = 20  # names that are kept of each reason
ALIKE = 100  # maximum number of links to one folder
HEAD = 32  # bytes that tell an image from another file
Inode = tuple[int, int]  # what tells a folder from another, whatever it is called


class Seen(NamedTuple):
    """A file or folder below a root: RAW, FOLDER, or ODD, and then why it is left out."""

    path: Path
    kind: int
    why: str = ""


class Left:
    """What is left out, by reason: how many, and the first names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count something that is left out."""
        self.counts[reason] += 1
        if len(names := self.first.setdefault(reason, [])) < FIRST:
            names.append(printable(name))

    @property
    def images(self) -> int:
        """The number of images among it."""
        return sum(self.counts[reason] for reason in self.reasons)

    @property
    def reasons(self) -> list[str]:
        """The reasons that concern images."""
        return [reason for reason in self.counts if reason not in NEVER]

    def told(self, reason: str) -> str:
        """A reason with its count and first names."""
        return f"{reason}: {self.counts[reason]:,} ({shortened(self.first[reason])})"

    def joined(self, reasons: Iterable[str] | None = None) -> str:
        """Some reasons, or all, on one line."""
        return "; ".join(map(self.told, self.counts if reasons is None else reasons))

    def tree(self) -> dict[str, dict[str, object]]:
        """The same for a JSON file."""
        return {reason: {"count": count, "first": self.first[reason]} for reason, count in sorted(self.counts.items())}


def shortened(names: Sequence[str]) -> str:
    """The first three names."""
    return f"{', '.join(names[:3])}{' …' * (len(names) > 3)}"


class Held(NamedTuple):
    """An image or note: its number among the containers, and where it lies there."""

    container: int
    member: Member


@dataclass
class Contents:
    """What lies below a root. The names of images and folders begin at the root, those of notes at the root or their archive."""

    root: Path
    containers: list[str] = field(default_factory=list)  # files, relative to root
    sizes: list[int] = field(default_factory=list)  # of the containers, in bytes
    images: dict[str, Held] = field(default_factory=dict)
    notes: dict[tuple[str, str], Held] = field(default_factory=dict)  # archive ('' for a file of its own) and name
    folders: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)  # names of images that are left out, but not unsafe ones
    busy: set[str] = field(default_factory=set)  # folders of files that are no images
    left: Left = field(default_factory=Left)

    def omit(self, reason: str, name: str) -> None:
        """Leave something out."""
        self.left.add(reason, name)
        if reason not in NEVER | {OUTSIDE}:
            self.lost.append(name)
        elif reason == OTHER:
            self.busy.add(name.rpartition("/")[0])


def walked(
    root: Path, above: frozenset[tuple[int, int]] = frozenset(), times: Counter[tuple[int, int]] | None = None
) -> Iterator[Seen]:
    """Files and folders below a root in the order of their names. Links are followed, but not into a folder that they are in.

    Raises UserError if links lead to one folder again and again.
    """
    times = Counter() if times is None else times
    here = identity(root)
    times[here] += 1
    if times[here] > ALIKE:
        raise UserError(f"{root}: more than {ALIKE} links lead to this folder; remove them")
    with os.scandir(root) as inside:
        entries = sorted(inside, key=lambda entry: entry.name)
    for entry in entries:
        path, kind = Path(entry.path), kind_of(entry)
        if archives.private(entry.name):
            yield Seen(path, ODD, PRIVATE)
        elif kind == FOLDER and entry.is_symlink() and identity(path) in above | {here}:
            yield Seen(path, ODD, CIRCLE)
        else:
            yield Seen(path, kind, "" if kind != ODD else NOWHERE if entry.is_symlink() else SPECIAL)
            if kind == FOLDER:
                yield from walked(path, above | {here}, times)


def kind_of(entry: os.DirEntry[str]) -> int:
    """What an entry of a folder is, or the target of a link."""
    try:
        return FOLDER if entry.is_dir() else RAW if entry.is_file() else ODD
    except OSError:
        if not entry.is_symlink():
            raise
        return ODD  # links in a circle


def identity(path: Path) -> Inode:
    """The device and inode of a file or folder, or of the target of a link."""
    status = path.stat()
    return status.st_dev, status.st_ino


def listed(root: Path) -> list[Path]:
    """Images and archives below a root, in the order of their names, by their suffixes only."""
    found = (seen.path for seen in walked(root) if seen.kind == RAW)
    return [path for path in found if path.name.lower().endswith((*IMAGES, ".tar", ".zip"))]


def contents(root: Path) -> Contents:
    """All that lies below a root, which is a folder or an archive. Archives are read, and files that may be images looked into.

    Raises UserError for a damaged archive, one that cannot be read at random, an image that is too large or there twice.
    """
    found = Contents(root if root.is_dir() else root.parent)
    for seen in walked(root) if root.is_dir() else [Seen(root, RAW)]:
        name, suffix = str(seen.path.relative_to(found.root)), seen.path.suffix.lower()
        if seen.kind == FOLDER:
            found.folders.add(name)
        elif seen.kind == ODD:
            if seen.why == NOWHERE and not suffix:
                found.folders.add(name)
            found.omit(seen.why, name)
        elif suffix in (".tar", ".zip"):
            archive(found, seen.path, name)
        else:
            size = seen.path.stat().st_size
            if held := sorted_in(found, Member(name, RAW, 0, size), name, "", seen.path):
                join(found, {name: held}, seen.path)
    return found


def join(found: Contents, more: dict[str, Held], path: Path) -> None:
    """Add the images of a file. Raises UserError if one is there already."""
    if twice := next((name for name in more if name in found.images), None):
        other = found.root / found.containers[found.images[twice].container]
        raise UserError(f"{path}: {twice} is in {other}, too; keep one of the two below {found.root}")
    found.images |= more


def archive(found: Contents, path: Path, relative: str) -> None:
    """Add the members of an archive, whose names begin at the folder that it is in; train.zip and the like stand for a folder."""
    members = list(archives.members_of(path))
    known = {member.name: member for member in members if member.kind != ODD}
    home = f"{relative.rpartition('/')[0]}/".lstrip("/")
    if path.stem.lower() in TRAIN | APART and not all(f"{name}/".startswith(f"{path.stem}/") for name in known):
        home += f"{path.stem}/"
    mine: dict[str, Held] = {}
    for each in members:
        member = followed(each, known) if each.kind == LINK else each
        name = home + member.placed
        if member.kind == FOLDER:
            found.folders.add((home + member.name).rstrip("/"))
        elif member.kind == ODD:
            if member.told == NOWHERE and not Path(name).suffix:
                found.folders.add(home + member.name)
            found.omit(member.told, home + member.name)
        elif held := sorted_in(found, member, name, relative, path):
            if name in mine:
                found.left.add(REPLACED, name)
            mine[name] = held
    join(found, mine, path)
    if not mine:
        found.folders.add(home + path.stem)


def followed(link: Member, known: dict[str, Member]) -> Member:
    """What a link of an archive leads to, under the link's name; ODD if that is no file of the archive."""
    end = link
    for _ in range(40):  # as many as Linux follows
        if end.kind != LINK:
            break
        end = known.get(end.told, Member("", ODD))
    if end.kind in (FOLDER, LINK, ODD):
        return link._replace(kind=ODD, told=NOWHERE)
    return end._replace(name=link.name, stem=link.stem)


def sorted_in(found: Contents, member: Member, name: str, scope: str, path: Path) -> Held | None:
    """An image, with its container's number; anything else is noted, refused or left out, and gives None."""
    lower = member.name.lower()
    if lower.endswith(PACKED) or (scope and lower.endswith((".tar", ".zip"))):
        what = f"{path}: {member.name}" if scope else str(path)
        raise UserError(f"{what}: images in it cannot be read at random; unpack it, or move it away")
    note = lower.endswith(NOTES)
    if not note and lower.endswith(UNREAD):
        found.omit(FORMAT, name)
    elif note or lower.endswith(IMAGES) or looks(path, member):
        if member.length > LARGEST:
            raise UserError(f"{path}: {name} is larger than {LARGEST >> 20} MiB; remove it")
        relative = str(path.relative_to(found.root))
        if not found.containers or found.containers[-1] != relative:
            found.containers.append(relative)
            found.sizes.append(path.stat().st_size)
        held = Held(len(found.containers) - 1, member)
        if not note:
            return held
        found.notes[scope, member.name] = held
        found.busy.add(name.rpartition("/")[0])
    else:
        found.omit(OTHER, name)
    return None


def looks(path: Path, member: Member) -> bool:
    """Whether a file without a known suffix begins as an image that can be read does."""
    if member.length < HEAD:
        return False
    with path.open("rb") as stream:
        head = archives.first_bytes(stream.fileno(), member, HEAD)
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4) and head[14] in (12, 40, 52, 56, 64, 108, 124)
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or bitmap
        or re.match(rb"P[1-6]\s+[#\d]", head) is not None
    )
