"""`fetch` of the user's own images: every one opened and hashed, what is left out counted, nothing copied."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import digest, sha256, write_json
from maskdit.config.base import UserError
from maskdit.config.images import Folder
from maskdit.images.archives import ODD, RAW
from maskdit.images.check import Opened, kept_at
from maskdit.images.dataset import demand_count
from maskdit.images.folders import BROKEN, Left, shortened, walked
from maskdit.images.index import Found, state_of
from maskdit.images.scan import Scanned, scan
from maskdit.runtime import progress
from maskdit.runtime.progress import say
from maskdit.runtime.random import generator

SOURCE = "source.json"  # the class, size and sha256 of each image, by name
COMPARED = "compared"  # the last comparison of a folder with its artifact
LISTED = 20  # maximum number of damaged images that an error names


def gathered(config: Folder, out: Path) -> tuple[Scanned, Array, dict[str, Any]]:
    """The images of an entry, which are held out, and the report; writes their hashes to `out`.

    Raises UserError if images are damaged, more are left out than the entry allows, or their number is not the declared one.
    """
    root, entry = Path(config.root), f"fetch.{progress.KEY}"
    before = files(root) if root.exists() else []
    found = scan(root, config.classes)
    demand_split(config, found, entry)
    if config.bad != "skip":
        demand_numbers(config, found)
    home = kept_at(root)
    opened = Opened(found, home, hashes=True)
    listing = home / "damaged.json"
    if opened.bad:
        write_json(listing, opened.bad)
        for fact in opened.bad:
            found.left.add(BROKEN, fact["name"])
    if opened.bad and config.bad != "skip":
        shown = opened.bad[: LISTED if config.bad == "list" else 1]
        told = f"images that cannot be used: {len(opened.bad)} of {len(found)}, listed in {listing}"
        problems = "; ".join(fact["problem"] for fact in shown)
        advice = f"repair them, or set bad: skip and images: {len(opened.good) - int(found.apart[opened.good].sum())} in {entry}"
        raise UserError(f"fetch: {told} ({problems}); {advice}")
    kept = opened.only(found)
    demand_most(found.left, len(kept), config.left_out, f"left_out: {{:g}} in {entry}")
    try:
        demand_numbers(config, kept)
    except UserError as error:
        told = f" (images that cannot be used and are left out: {len(opened.bad)}, listed in {listing})" if opened.bad else ""
        raise UserError(f"{error}{told}") from None
    heldout = kept.apart if config.validation else split(kept.labels, config.heldout, config.seed)
    demand_training(kept, heldout)
    write_json(out / SOURCE, {"images": source(found, opened)})
    write_json(home / COMPARED, {"state": state(config, out, before), "told": ""})
    images = opened.report() | {"turned": opened.names["turned"], "several_frames": opened.names["frames"]}
    if found.left.counts:
        say(f"fetch: left out {found.left.joined()}")
    if config.heldout and (bare := without(kept, heldout)):
        say(f"fetch: classes without a held-out image: {len(bare)} ({shortened(bare)}); a larger heldout would hold some out")
    return kept, heldout, {"images": images, "layout": found.told, "left_out": found.left.tree()}


def files(root: Path) -> list[tuple[str, int, int, int]]:
    """The files below a root, with their sizes and times, and the folders."""
    if root.is_file():
        return [("", *state_of(root))]
    there = [seen for seen in walked(root) if seen.kind != ODD]
    return [(str(seen.path.relative_to(root)), *(state_of(seen.path) if seen.kind == RAW else (0, 0, 0))) for seen in there]


def state(config: Folder, made: Path, there: list[tuple[str, int, int, int]]) -> str:
    """What a comparison of the folder with an artifact depends on."""
    return digest([config.classes, sha256(made / SOURCE), there])


def source(found: Scanned, opened: Opened) -> dict[str, list[Any]]:
    """The class, size and sha256 of each image, damaged ones too."""
    return {name: [found.classes[label], *opened.hashes[name]] for name, label in zip(found.names, found.labels, strict=True)}


def demand_split(config: Folder, found: Scanned, entry: str) -> None:
    """Raise UserError if the folder itself holds images out and the entry does not expect it, or the other way round."""
    apart = int(found.apart.sum())
    if bool(apart) != bool(config.validation):
        told = f"{found.told}: {len(found) - apart} images and {apart} held out" if apart else "it holds no images out itself"
        numbers = f"images: {len(found) - apart}, validation: {apart}" + (" and heldout: 0.0" if apart else "")
        raise UserError(f"{config.root}: {told}; set {numbers} in {entry}")


def demand_numbers(config: Folder, found: Scanned) -> None:
    """Raise UserError unless there are as many images, and held-out images of the folder's own, as declared."""
    apart = int(found.apart.sum())
    demand_count("images", len(found) - apart, config.images)
    demand_count("validation", apart, config.validation)


def demand_most(left: Left, kept: int, allowed: float, option: str) -> None:
    """Raise UserError if a larger share of the images is left out than allowed; {} in `option` is the share that is needed."""
    if (share := left_share(left, kept)) and left.images > allowed * (total := left.images + kept):
        told = f"left out: {left.images} of {total} images, more than {allowed:g} of all ({left.joined(left.reasons)})"
        raise UserError(f"{told}; mend them, or allow it with {option.format(share)}")


def left_share(left: Left, kept: int) -> float:
    """The share of the images that is left out, rounded up to a hundredth."""
    return math.ceil(100 * left.images / max(1, left.images + kept)) / 100


def demand_training(found: Scanned, heldout: Array) -> None:
    """Raise UserError for a class without training images."""
    if bare := without(found, ~heldout):
        raise UserError(f"{found.root}: {shortened(bare)} has no training images left; add some, remove it, or hold out fewer")


def split(labels: Array, share: float, seed: int) -> Array:
    """Which images are held out: this share of each class, rounded, drawn by the seed."""
    aside = np.zeros(len(labels), bool)
    for label in range(labels.max(initial=-1) + 1):
        rows = np.flatnonzero(labels == label)
        aside[generator(seed, "held-out", index=label).permutation(rows)[: round(share * len(rows))]] = True
    return aside


def without(found: Found, chosen: Array) -> list[str]:
    """The classes that have none of the chosen images."""
    counts = np.bincount(found.labels[chosen], minlength=len(found.classes))
    return [name for name, count in zip(found.classes, counts, strict=True) if not count]
