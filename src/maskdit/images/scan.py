"""Scans a folder or archive of the user's: its images, sorted into classes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.config.base import UserError
from maskdit.images.folders import Held, Left, contents
from maskdit.images.index import Found, ordered, read_at
from maskdit.images.layouts import classes_of


@dataclass(frozen=True)
class Scanned(Found):
    """The images of a folder of the user's. apart marks those that the folder itself holds out; told says how it tells classes."""

    apart: NDArray[np.bool_]
    left: Left
    told: str

    def only(self, rows: NDArray[Any]) -> "Scanned":
        """A selection of the images."""
        found = super().only(rows)
        return replace(self, records=found.records, names=found.names, labels=found.labels, apart=self.apart[rows])


def scan(root: Path, choice: str = "auto") -> Scanned:
    """All images below a root, which is a folder or an archive, with their classes.

    `choice` is as in `classes_of`. Raises UserError if the root does not exist, an archive is damaged or cannot be read at random,
    or classes are missing or ambiguous.
    """
    if not root.exists():
        raise UserError(f"{root}: no such file or folder; name one that contains CLASS/image, or tar or zip files with that layout")
    if root.is_file() and root.suffix.lower() not in (".tar", ".zip"):
        raise UserError(f"{root}: not a folder, .tar or .zip (a .tar.gz does not allow random access: decompress it)")
    held = contents(root)

    def read(note: Held) -> bytes:
        path, size = held.root / held.containers[note.container], held.sizes[note.container]
        return read_at(path, size, note.member.kind, note.member.offset, note.member.length)

    classes = classes_of(held, read, choice)
    images = [(name, held.images[name]) for name in classes.of]
    used = {number: place for place, number in enumerate(sorted({each.container for _, each in images}))}  # not those of notes
    containers, sizes = [held.containers[number] for number in used], [held.sizes[number] for number in used]
    found = ordered(held.root, containers, sizes, ((name, used[each.container], each.member) for name, each in images))
    number = {name: label for label, name in enumerate(classes.names)}
    labels = np.array([number[classes.of[name]] for name in found.names], np.int64)
    apart = np.array([name in classes.apart for name in found.names], bool)
    known = {**vars(found), "labels": labels, "classes": classes.names}
    return Scanned(**known, apart=apart, left=held.left, told=classes.told)
