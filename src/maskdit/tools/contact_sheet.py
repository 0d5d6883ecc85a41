"""The contact sheet of `maskdit doctor`: what will be trained on, as training sees it."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import digest
from maskdit.artifacts.provenance import demand_own_picture, mark
from maskdit.config.base import UserError
from maskdit.config.images import RESOLUTION, Folder
from maskdit.config.load import load
from maskdit.images.check import Opened
from maskdit.images.index import Encoded
from maskdit.images.scan import Scanned
from maskdit.runtime.environment import without_matplotlibrc

ROWS, COLUMNS = 24, 6
FEW = 4  # lines of images, where there are fewer classes


class ContactSheet:
    """Where a contact sheet goes, and the side of its images. `drawn`: whether it was.

    Without a path it goes to results/ of the project, if there is one; a folder of images gets no file of ours.
    """

    def __init__(self, source: Path, out: Path | None, resolution: int | None) -> None:
        self.source, self.resolution, self.drawn = source, resolution, False
        self.name = re.sub(r"[^\w.-]+", "-", (source.resolve().stem if source.is_file() else source.resolve().name))
        inside = source.is_dir() and (out or Path("results")).resolve().is_relative_to(source.resolve())
        if out and (out.suffix.lower() != ".png" or inside):
            told = "lies in the folder of images, where it would count as one" if inside else "not the name of a .png file"
            raise UserError(f"--sheet {out}: {told}; name another file")
        usual = Path("results") / f"sheet_{self.name}.png" if Path("params.yaml").exists() and not inside else None
        self.out = out or usual
        if resolution and not self.out:
            raise UserError("--resolution: has no effect here without --sheet FILE")
        if out:
            demand_own_picture(out, "doctor")

    def of_folder(self, found: Scanned, opened: Opened) -> Iterator[str]:
        """Draw the images of a folder that can be used and are not held out by the folder itself."""
        if self.out is None or not opened.good:
            return
        study, side, upright = self.study()
        good = opened.only(found)
        pixels = Encoded(good, side, upright)
        yield from self.draw(pixels, good.labels, np.flatnonzero(~good.apart), good.classes, f"as {study} reads them")

    def study(self) -> tuple[str, int, bool]:
        """How the images are read: by which entry, at which resolution, and whether photographs are set upright."""
        entries = {}
        if Path("params.yaml").exists():
            with suppress(UserError):  # of a params.yaml that other commands refuse
                entries = load().fetch
        for key, entry in entries.items():
            if isinstance(entry, Folder) and Path(entry.root).resolve() == self.source.resolve():
                return f"fetch.{key}", self.resolution or entry.resolution, entry.orientation == "apply"
        return "a study", self.resolution or RESOLUTION, True

    def draw(self, pixels: Any, labels: Array, rows: Array, classes: tuple[str, ...], told: str) -> Iterator[str]:
        """Draw some of the images `rows`, and say so: classes and images of a class are evenly spaced, so always the same ones."""
        counts = np.bincount(labels[rows], minlength=len(classes))
        if self.out is None or not (present := np.flatnonzero(counts)).size:
            return
        demand_own_picture(self.out, "doctor")
        without_matplotlibrc()
        from maskdit.reporting.pictures import sheet

        shown = spaced(present, ROWS)
        most = COLUMNS * max(1, FEW // len(shown))
        chosen = [spaced(rows[labels[rows] == label], most) for label in shown]
        wide = min(COLUMNS, max(map(len, chosen)))
        images = iter(pixels[np.concatenate(chosen)])
        grid, names = [], []
        for label, each in zip(shown, chosen, strict=True):
            for first in range(0, len(each), wide):
                grid.append([next(images) if place < len(each) else None for place in range(first, first + wide)])
                names.append("" if first else f"{classes[label]} ({counts[label]:,})")
        side = pixels.shape[1]
        some = f"{len(shown)} of {len(present):,} classes" if len(shown) < len(present) else f"{len(present):,} classes"
        title = f"{self.name}: {len(rows):,} images, {some}, {side} pixels"
        text = f"{mark(f'doctor/{self.name}', digest([side, told, ROWS, COLUMNS]))}; {title}, {told}"
        sheet(grid, names, title, self.out, text)
        self.drawn = True
        which = f"each of {some}" if len(shown) < len(present) else "each class"
        yield f"{self.out}: up to {max(map(len, chosen))} images of {which} at {side} pixels, {told}"


def spaced(values: Array, most: int) -> Array:
    """At most so many of some values, evenly spaced."""
    return values[np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)]
