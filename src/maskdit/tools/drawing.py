"""What `maskdit draw` draws: the network and its autoencoder, the images of each row, and the files that they go to."""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import digest
from maskdit.artifacts.manifest import read_manifest
from maskdit.artifacts.provenance import demand_own_picture, mark
from maskdit.config.base import UserError, printable
from maskdit.config.errors import nearest
from maskdit.config.images import VAE_WEIGHTS
from maskdit.config.sampling import Sample
from maskdit.latents import autoencoder
from maskdit.methods.plugins import of_facts
from maskdit.model import checkpoint
from maskdit.reporting.pictures import MOST, Row, sheet, write_image
from maskdit.runtime.device import device, native
from maskdit.sampling.chosen import End, Wish, drawn, usual_batch
from maskdit.sampling.sample import demand_solver, find
from maskdit.tools.draw import is_exported
from maskdit.weights.exported import exported

CLASSES, COUNT, LENGTH = 8, 4, 8  # rows and columns of a grid, and images of a strip, unless they are named
LINE = 10  # most images of a class side by side
GUIDANCE = 1.5  # as the pipeline of an exported folder has it
WIDEST = 30_000  # pixels of a side of a picture
FIXED = {"run": "run", "vae": "vae", "phase": "released", "step": "final", "labels": "balanced", "shards": 1}


@dataclass(frozen=True)
class Source:
    """Weights and the facts stored with them, the autoencoder of their latents, and in words what they are."""

    tensors: dict[str, Any]
    facts: dict[str, Any]
    vae: Path
    node: str

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""
        known: Sequence[str] = self.facts["space"]["classes"]
        return known

    @property
    def told(self) -> str:
        """The network in words."""
        step = f", {self.facts['phase']} step {self.facts['step']:,}" if "step" in self.facts else ""
        return f"{self.facts['model']}{step}"

    @property
    def guidance(self) -> float:
        """The usual scale; 1, none, where the network has not learnt what an image without a class is."""
        dropped = self.facts.get("config", {}).get("label_dropout", 1.0)
        return GUIDANCE if len(self.classes) > 1 and dropped else 1.0

    @property
    def side(self) -> int:
        """Pixels of an image along one side."""
        return int(self.facts["space"]["side"] * autoencoder.geometry(self.vae)[0])


def picture(
    folder: Path,
    name: str,
    out: Path,
    *,
    single: bool,
    step: int | None,
    vae: Path | None,
    classes: list[str],
    count: int | None,
    noise: list[int],
    to_seed: int | None,
    to_class: str | None,
    **numbers: Any,
) -> None:
    """Draw images of a run into the file or folder `out`; `numbers` are those of a `sample` entry.

    Raises UserError if there is no such milestone, autoencoder or class, or if the images are too many for one picture.
    """
    # 1. The network, and what to draw
    source = source_of(folder, step, vae)
    labels = numbered(classes, source.classes) or [len(source.classes) * place // CLASSES for place in range(CLASSES)]
    end = End(to_seed, numbered([to_class], source.classes)[0] if to_class is not None else None)
    rows = wished(list(dict.fromkeys(labels)), len(source.classes), noise, count, end)
    length, images = len(rows[0]), [wish for row in rows for wish in row]
    wide = length if end != End() else -(-length // -(-length // LINE))  # images side by side in a grid
    if not single and max(len(images) // wide, wide) * max(source.side, MOST) > WIDEST:
        raise UserError(f"draw: {len(images)} images are too many for one picture; use --out FOLDER")
    if (numbers["guidance"] or 1) > 1 and len(source.classes) == 1:
        raise UserError(f"{folder}: has a single class, so that nothing can guide it; leave --guidance out")
    numbers["guidance"] = numbers["guidance"] or source.guidance
    numbers["batch"] = numbers["batch"] or usual_batch(source.facts)
    numbers["precision"] = native(device()) if numbers["precision"] == "auto" else numbers["precision"]
    config = Sample.model_validate({**FIXED, **numbers, "images": len(images)})
    demand_solver(config, folder, of_facts(source.facts))

    # 2. The pixels, and where they go
    told = {name: getattr(config, name) for name in numbers} | {"to_seed": to_seed, "to_class": to_class}
    words = ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)
    text = f"{mark(f'draw/{name}', digest(told))}; {source.node}, {source.told}, {words}"
    found = drawn(config, images, end, source.tensors, source.facts, source.vae)
    if single:
        write_singles(out, images, found, source.classes, config.seed, text, length * (end != End()))
        return
    pixels = list(found)
    names = [named(row[0], source.classes, end, len(noise) > 1) for row in rows]
    used = [" ".join(map(str, dict.fromkeys(wish.number for wish in row))) for row in rows]
    shown = "; ".join(f"{row}: {each}" for row, each in zip(names, used, strict=True))
    towards = f" to {to_seed}" if to_seed is not None else ""
    title = f"{source.told}, guidance {config.guidance:g}, seed {config.seed}{towards}"
    lines = [pixels[first : first + length] for first in range(0, len(pixels), length)]
    grid = {(place, first): line[first : first + wide] for place, line in enumerate(lines) for first in range(0, length, wide)}
    padded: list[Row] = [[*line, *[None] * (wide - len(line))] for line in grid.values()]
    beside = ["" if first else names[place] for place, first in grid]
    sheet(padded, beside, title, out, f"{text}; images of {shown}", max(MOST, source.side))


def source_of(folder: Path, step: int | None, vae: Path | None) -> Source:
    """The weights in a folder and their autoencoder. Raises UserError if there is no such milestone, or no such autoencoder."""
    tensors, facts = exported(folder) if is_exported(folder) else checkpoint.load(find(folder, step or "final"))
    node, wanted = folder.name, facts["space"]["vae"]
    with suppress(UserError):  # of a copy without its manifest
        node = read_manifest(folder).node
    if vae:
        autoencoder.demand(vae, wanted)
        return Source(tensors, facts, vae, node)
    homes = [above / "vae" for above in (folder, *folder.absolute().parents[:3], Path("artifacts"))]
    for place in [found for home in homes for found in (home, *sorted(home.glob("*")))]:
        if autoencoder.is_one(place) and (place / VAE_WEIGHTS).is_file() and autoencoder.identity(place) == wanted:
            return Source(tensors, facts, place, node)
    told = f"its autoencoder, sha256 {wanted[:12]}…, is neither beside it nor in artifacts/vae"
    raise UserError(f"{folder}: {told}; name its folder with --vae FOLDER")


def numbered(words: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The numbers of classes, which are named exactly, or without regard to case, or by number. Raises UserError for others."""
    found = []
    for word in words:
        same = [label for label, name in enumerate(classes) if name == word]
        same = same or [label for label, name in enumerate(classes) if name.casefold() == word.casefold()]
        if len(same) > 1:
            raise UserError(f"draw: class '{word}' may be {' or '.join(classes[label] for label in same)}; write it as it is")
        if not same and word.isascii() and word.isdigit() and int(word) < len(classes):
            same = [int(word)]
        if not same:
            raise UserError(f"draw: no class '{word}'{nearest(word, classes)}; or a number from 0 to {len(classes) - 1}")
        found += same
    return found


def wished(labels: Sequence[int], classes: int, noise: Sequence[int], count: int | None, end: End) -> list[list[Wish]]:
    """The images of each row. Of a class they are those of a `sample` entry with balanced labels, unless their noise is named."""
    if end == End():
        numbers = {label: noise or range(label, label + classes * (count or COUNT), classes) for label in labels}
        return [[Wish(label, number) for number in numbers[label]] for label in labels]
    length = count or LENGTH
    begins = [(label, number) for label in labels for number in noise or [label]]
    return [[Wish(label, number, place / (length - 1)) for place in range(length)] for label, number in begins]


def named(wish: Wish, classes: Sequence[str], end: End, several: bool) -> str:
    """The name of the row that begins with an image; `several` rows of a class are told apart by their noise."""
    towards = f" → {classes[end.label]}" if end.label is not None else ""
    return f"{classes[wish.label]}{towards}" + f", noise {wish.number}" * (several and end != End())


def write_singles(
    out: Path, wishes: Sequence[Wish], found: Iterable[Array], classes: Sequence[str], seed: int, text: str, length: int
) -> None:
    """Write each image as soon as it is drawn. length: of a strip, whose images are numbered; 0 for others."""
    for place, (wish, pixels) in enumerate(zip(wishes, found, strict=True)):
        slug = re.sub(r"[^\w.-]+", "-", classes[wish.label])[:60].strip("-.")
        part = f"-{place % length:03d}" if length else ""
        file = out / f"{wish.label}-{slug}-seed{seed}-{wish.number}{part}.png"
        demand_own_picture(file, "draw")
        write_image(pixels, file, printable(f"{text}; image {wish.number} of {classes[wish.label]}"))
