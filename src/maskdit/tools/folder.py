"""What `maskdit doctor` finds in a folder or archive of images."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskdit.config.base import UserError, printable
from maskdit.config.images import Folder
from maskdit.images.check import Opened, kept_at
from maskdit.images.folders import BROKEN, shortened
from maskdit.images.own import left_share
from maskdit.images.scan import Scanned, scan
from maskdit.tools.contact_sheet import ContactSheet

LEFT_OUT = Folder.model_fields["left_out"].default
SHOWN = 40  # classes that are listed; of more, the first and the last ones


@dataclass(frozen=True)
class Finding:
    """The result of one check; `fix` says what to do, '' if nothing is wrong. A line of a list is neither good nor bad."""

    text: str
    fix: str = ""
    listed: bool = False

    def __str__(self) -> str:
        text = printable(self.text)
        if self.listed:
            return text
        return f"problem: {text}\n  fix: {printable(self.fix)}" if self.fix else f"ok: {text}"


def scanned(path: Path, choice: str = "auto") -> Scanned:
    """The images of a folder or archive. Raises UserError if there are none."""
    found = scan(path, choice)
    if not len(found):
        told = f" ({found.left.joined()})" if found.left.counts else ""
        raise UserError(f"{path}: contains no images{told}; name a folder CLASS/image, or tar or zip files with this layout")
    return found


def pictures(path: Path, choice: str = "auto", sheet: ContactSheet | None = None) -> Iterator[Finding]:
    """The classes and their counts, what is left out and why, whether each image can be opened, and what a training sees."""
    found = scanned(path, choice)
    yield from (Finding(line, listed=True) for line in lines(found))
    apart = f", {found.apart.sum():,} of them held out" if found.apart.any() else ""
    yield Finding(f"{len(found):,} images of {counted(found.classes)}{apart}; {found.told}")
    for reason in found.left.counts:
        yield Finding(f"left out: {found.left.told(reason)}")
    opened = Opened(found, kept_at(path) if Path("params.yaml").exists() else None)
    fine, options = not opened.bad, f" --classes {choice}" * (choice != "auto")
    if opened.bad:
        told = "; ".join(fact["problem"] for fact in opened.bad[:3]) + " …" * (len(opened.bad) > 3)
        yield Finding(
            f"images that cannot be used: {len(opened.bad)} of {len(found):,} ({told})", "repair them, or leave them out as below"
        )
        options += " --skip-bad"
    else:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in opened.kinds.items())
        yield Finding(f"all images can be opened: {kinds}")
    if turned := opened.names["turned"]:
        yield Finding(f"images stored turned or mirrored: {len(turned):,} ({shortened(turned)}); a study sets them upright")
    if moving := opened.names["frames"]:
        yield Finding(f"images of several frames: {len(moving):,} ({shortened(moving)}); the first frame is read")
    yield from map(Finding, sheet.of_folder(found, opened) if sheet else ())
    for fact in opened.bad:
        found.left.add(BROKEN, fact["name"])
    if (share := left_share(found.left, len(opened.good))) > LEFT_OUT:
        fine, options = False, f"{options} --left-out {share:g}"
        told = f"left out: {found.left.images} of {found.left.images + len(opened.good)} images, more than {LEFT_OUT:g} of all"
        yield Finding(told, "mend them, or allow it as below")
    command = f"maskdit study NAME {shlex.quote(str(path))}{options}"
    yield Finding(f"to make a study of {'them' if fine else 'the others'}, run {command}")


def counted(classes: Sequence[str]) -> str:
    """How many classes there are."""
    return f"{len(classes):,} class{'es' * (len(classes) != 1)}"


def lines(found: Scanned) -> Iterator[str]:
    """The classes with the numbers of their images."""
    counts = np.bincount(found.labels, minlength=len(found.classes)).tolist()
    width = len(f"{max(counts):,}")
    listed = [f"{count:>{width},}  {name}" for name, count in zip(found.classes, counts, strict=True)]
    if len(listed) > SHOWN:
        middle = counts[SHOWN // 2 : -(SHOWN // 2)]
        between = f"{len(middle)} more classes of {min(middle):,} to {max(middle):,} images"
        listed = [*listed[: SHOWN // 2], f"{'…':>{width}}  {between}", *listed[-(SHOWN // 2) :]]
    yield from listed
