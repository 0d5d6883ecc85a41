"""Opens every image of a data set once: what it is, whether it is damaged, its hash. Results are kept until the file changes."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.atomic import digest, read_json, write_json
from maskdit.config.base import UserError
from maskdit.images.archives import IMAGES
from maskdit.images.decode import flat, frames, opened, orientation, refused
from maskdit.images.index import THREADS, Found
from maskdit.runtime.environment import scratch
from maskdit.runtime.progress import progress

FORMATS = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png", ".apng"), "WEBP": (".webp",), "TIFF": (".tif", ".tiff")}
CHUNK = 1024  # images per file of kept results
VERSION, ENDS = 1, (".json", ".hashes.json")  # of the kept results
Fact = dict[str, Any]


def kept_at(root: Path) -> Path:
    """The scratch folder of what is known of the images below a root, whoever asks."""
    return scratch(f"fetch-{digest([str(root.absolute()), 'images'])[:16]}")


def examined(found: Found, row: int) -> Fact:
    """What an image is: format, mode, whether its suffix is wrong (`odd`), whether it is turned by EXIF, or has several frames.

    `problem` says what is wrong with a damaged one. crc and sha256 are those of its encoded bytes.
    """
    name = found.names[row]
    fact: Fact = {"name": name}
    try:
        data = found.read(row)
        fact |= {"bytes": len(data), "crc": zlib.crc32(data), "sha256": hashlib.sha256(data).hexdigest()}
        with refused(name):
            image = opened(data)
            fact |= {"format": image.format, "mode": image.mode}
            image.load()
            flat(image)
    except UserError as error:
        return {**fact, "problem": str(error)}
    suffix = Path(name).suffix.lower()
    fact["odd"] = suffix in IMAGES and suffix not in FORMATS.get(image.format or "", (suffix,))
    return {**fact, "turned": orientation(image) > 1, "frames": frames(image)}


def hashed(found: Found, row: int) -> Fact:
    """The size and hash of an image, which is not decoded; without them if it cannot be read."""
    try:
        data = found.read(row)
    except UserError:
        return {"name": found.names[row]}
    return {"name": found.names[row], "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def pieces(found: Found) -> Iterator[range]:
    """The images in ranges of at most CHUNK of one class: another image changes the range that it is in, not those after it."""
    bounds = [0, *(np.flatnonzero(np.diff(found.labels)) + 1).tolist(), len(found)]
    for first, last in pairwise(bounds):
        for start in range(first, last, CHUNK):
            yield range(start, min(start + CHUNK, last))


def kept(path: Path) -> list[Fact] | None:
    """The results in a file; None if there are none, or another process has just removed them."""
    try:
        found: list[Fact] = read_json(path)
    except UserError:
        return None
    return found


def facts(found: Found, home: Path | None, decoded: bool = True) -> Iterator[Fact]:
    """The results of `examined` for all images in order, or of `hashed` where a hash is enough.

    They are kept in `home`, and reused for files that have not changed; a bar shows those that are made.
    """
    parts = []
    for rows in pieces(found):
        name = digest([VERSION, found.state(rows)])
        parts.append((rows, [home / f"{name}{end}" for end in ENDS] if home else []))
    usable = 1 if decoded else 2  # files that tell enough
    todo = sum(len(rows) for rows, files in parts if not any(path.exists() for path in files[:usable]))
    bar = progress(range(todo), f"{'open' if decoded else 'hash'} {todo} images", todo)
    with ThreadPoolExecutor(THREADS) as pool:
        for rows, files in parts:
            known = next(filter(None, map(kept, files[:usable])), None)
            if known and len(known) == len(rows):
                yield from known
                continue
            results = []
            for fact in pool.map(lambda row: (examined if decoded else hashed)(found, row), rows):
                next(bar, None)
                results.append(fact)
                yield fact
            if files:
                write_json(files[not decoded], results)
    next(bar, None)
    used = {path for _, files in parts for path in files}
    for path in {path for end in ENDS for path in home.glob("?" * 64 + end)} - used if home else ():
        path.unlink(missing_ok=True)


class Opened:
    """What opening the images of a data set has shown; of each good one little is kept, for there may be millions.

    names: the good images of which a field is true. hashes: size and sha256 by name, if they are wanted, of the damaged ones too.
    """

    def __init__(self, found: Found, home: Path | None, first: bool = False, hashes: bool = False) -> None:
        """first: stop at the first damaged image."""
        self.good: list[int] = []
        self.sums: list[int] = []  # CRC-32 of the good ones
        self.bad: list[Fact] = []
        self.kinds: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {"odd": [], "turned": [], "frames": []}
        self.hashes: dict[str, list[Any]] = {}
        for row, fact in enumerate(facts(found, home)):
            if hashes:
                self.hashes[fact["name"]] = [fact.get("bytes"), fact.get("sha256")]
            if "problem" in fact:
                self.bad.append({name: fact[name] for name in ("name", "problem")})
                if first:
                    break
                continue
            self.good.append(row)
            self.sums.append(fact["crc"])
            self.kinds[f"{fact['format']} {fact['mode']}"] += 1
            for field, names in self.names.items():
                if fact[field]:
                    names.append(fact["name"])

    def only(self, found: Found) -> Any:
        """The good images, with checksums; of the type of `found`."""
        good = found.only(np.array(self.good, int))
        good.records["crc"] = self.sums
        return good

    def report(self) -> dict[str, Any]:
        """Formats and problems."""
        return {"kinds": dict(self.kinds), "misnamed": self.names["odd"], "damaged": self.bad}
