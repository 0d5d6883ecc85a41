"""Pictures of samples: by class next to real images, and from the same noise and class through training."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from maskdit.artifacts.arrays import Array, Joined, read_array
from maskdit.artifacts.atomic import read_json, replacing
from maskdit.artifacts.manifest import MANIFEST, config_of, read_manifest
from maskdit.artifacts.provenance import stamp
from maskdit.config.base import UserError, printable
from maskdit.config.paths import OUTPUTS
from maskdit.config.reporting import Grid, Strip
from maskdit.images.dataset import Images
from maskdit.reporting.curve_plot import coloured
from maskdit.reporting.figures import fitted, literal, save
from maskdit.reporting.records import model_of, read, steps_of

DPI = 120
MOST = 128  # pixels across a large image, where many are shown
GAP = 221  # grey, which shows between black and between white images
Row = list[Array | None]


def cell(side: int, across: int, most: int = MOST) -> int:
    """Pixels of the picture across an image: the multiple of its side next to `across`; larger ones are reduced to `most`."""
    return min(side * max(1, round(across / side)), most)


def lay(figure: Figure, corner: tuple[float, float], rows: Sequence[Row], side: int, across: int, most: int = MOST) -> Axes:
    """Draw rows of images (side, side, 3) with gaps and ticks at their middles; a missing image has the colour of the gaps.

    corner: the upper left one, inches to the right and down. across, most: see cell.
    """
    gap = max(1, side // 16)
    step, scale = side + gap, cell(side, across, most) / side / DPI
    high, wide = (step * count + gap for count in (len(rows), len(rows[0])))
    sheet = np.full((high, wide, 3), GAP, np.uint8)
    for down, row in enumerate(rows):
        for right, image in enumerate(row):
            if image is not None:
                sheet[step * down + gap : step * (down + 1), step * right + gap : step * (right + 1)] = image
    panel = figure.add_axes((corner[0], -corner[1] - high * scale, wide * scale, high * scale))
    panel.imshow(sheet, interpolation="antialiased" if cell(side, across, most) % side else "nearest")
    middles = [[step * place + (step + gap - 1) / 2 for place in range(count)] for count in (len(rows[0]), len(rows))]
    panel.set_xticks(middles[0], [])
    panel.set_yticks(middles[1], [])
    panel.tick_params(length=0, labeltop=True, labelbottom=False)
    panel.spines[:].set_visible(False)
    return panel


def paper() -> Figure:
    """A figure of one inch, so that its fractions are inches: `write` crops it to what is drawn, inside or outside."""
    return Figure(figsize=(1, 1))


def write(figure: Figure, out: Path, mark: str = "") -> None:
    """Write a picture as PNG, with the line `mark` in its metadata."""
    save(figure, out, ".png", mark=mark, dpi=DPI, bbox_inches="tight")


def write_image(pixels: Array, out: Path, mark: str) -> None:
    """Write one image (H, W, 3) as PNG, with the line `mark` in its metadata."""
    with replacing(out) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
        stamp(temporary, mark, ".png")


def sheet(rows: Sequence[Row], names: Sequence[str], title: str, out: Path, mark: str, most: int = MOST) -> None:
    """Write rows of images, each with its name, under a title. most: see cell."""
    side = next(len(image) for row in rows for image in row if image is not None)
    figure = paper()
    panel = lay(figure, (0, 0), rows, side, 96, most)
    panel.set_yticklabels([fitted(printable(name), 2.5) for name in names])
    panel.set_title(fitted(printable(title), max(3.5, panel.get_position().width)), fontsize="medium")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a letter that the font lacks, which is drawn as a box
        write(figure, out, printable(mark))


def first(pixels: Any, labels: Array, numbers: Array, classes: Sequence[int], columns: int) -> list[Row]:
    """A row for each class of its first images among `numbers`: at most `columns`, and no more than some class has."""
    chosen = [numbers[labels[numbers] == label] for label in classes]
    if len(chosen) == 1:
        chosen = [chosen[0][start:] for start in range(0, min(len(chosen[0]), columns**2), columns)] or chosen
    found = [pixels[each[:columns]] for each in chosen]
    most = max(1, *map(len, found))
    return [[*row, *[None] * (most - len(row))] for row in found]


def grid(config: Grid, *, images: Path, samples: Path, out: Path) -> None:
    """Draw one row per class: the first held-out real images on the left, the first samples of the class on the right.

    Of a single class there are up to as many rows as columns. Where no image is held out, real images of the training are shown.
    """
    real = Images.load(images)
    shown = config.classes or range(len(real.classes))
    if max(shown) >= len(real.classes):
        raise UserError(f"{images}: has {len(real.classes)} classes, but the grid lists class {max(shown)}; correct its classes")
    index = read_json(samples / "index.json", "shards", "checkpoint", "protocol")
    drawn, labels = images_of(samples)
    unseen = real.rows(heldout=True)
    told, known = ("real, held out", unseen) if len(unseen) else ("real, of the training", real.rows(heldout=False))
    sides = {
        told: first(real.pixels, real.labels, known, shown, config.columns),
        f"{index['checkpoint']['model']}, guidance {index['protocol']['guidance']:g}": first(
            drawn, labels, np.arange(drawn.shape[0]), shown, config.columns
        ),
    }
    figure, left = paper(), 0.0
    for title, rows in sides.items():
        panel = lay(figure, (left, 0), rows, real.pixels.shape[1], 72)
        if not left:
            names = [literal(real.classes[label]) for label in shown]
            panel.set_yticklabels(names if len(names) == len(rows) else [""] * len(rows))
        panel.set_title(fitted(title, panel.get_position().width), fontsize="medium")
        left = panel.get_position().x1 + 0.4
    write(figure, out)


def images_of(samples: Path) -> tuple[Joined, Array]:
    """The images in a folder of samples, and their labels."""
    shards = read_json(samples / "index.json", "shards")["shards"]
    return Joined([read_array(samples / shard, mapped=True) for shard in shards]), read_array(samples / "labels.npy")


def behind(record: dict[str, Any], node: str, results: Path) -> tuple[Path, bool] | None:
    """The folder of a node behind a record, and whether it is still what the record was made from; None if it does not exist."""
    verb, key = node.split("/")
    folder = results.parent / OUTPUTS[verb].format(key=key)
    if not (folder / MANIFEST).exists():
        return None
    origin = read_manifest(folder).lineage.get(node)
    return folder, origin is not None and origin.digest == record["manifest"]["lineage"][node]["digest"]


def scored(name: str, record: dict[str, Any], results: Path) -> Path | None:
    """The samples of an evaluation, None if they do not exist; raises UserError if they were remade since the evaluation."""
    folder, same = behind(record, f"sample/{name}", results) or (None, True)
    if not same:
        raise UserError(f"{folder}: not the images that {name} was evaluated on; rerun evaluate {name}")
    return folder


def class_names(record: dict[str, Any], results: Path) -> Sequence[str]:
    """The class names of the images behind an evaluation; () if that data set does not exist, or was remade since."""
    folder, same = behind(record, f"fetch/{config_of(record, 'encode').get('dataset')}", results) or (None, False)
    return read_json(folder / "index.json", "classes")["classes"] if folder and same else ()


def pretrained(record: dict[str, Any]) -> str:
    """The run behind a record: of finetunings that branch off one run, that run."""
    sample, finetune = config_of(record, "sample"), config_of(record, "finetune")
    return str(finetune.get("run") or sample["run"])


def strip(config: Strip, *, results: Path, out: Path) -> None:
    """Draw the same noise and class through training: one block per image, in it one row per run and one column per milestone.

    Missing samples are left empty. Raises UserError if no samples exist, or if some are not those that were evaluated.
    """
    records = read(results, config.evals, ())
    drawn = {name: images_of(folder) for name, record in records.items() if (folder := scored(name, record, results))}
    if not drawn:
        raise UserError(f"{out.name}: none of its samples exist; run the sampling steps first")
    runs = {name: (model_of(records[name]), pretrained(records[name])) for name in drawn}
    several = Counter(model for model, _ in set(runs.values()))
    colours = coloured(several)
    places = {name: (steps_of(records[name]), records[name]["checkpoint"]["phase"]) for name in drawn}
    columns = sorted(set(places.values()))
    heads = [f"{steps:,}" + "\nfinetuned" * (phase == "finetune") for steps, phase in columns]
    any_name = next(iter(drawn))
    labels, classes = drawn[any_name][1], class_names(records[any_name], results)
    figure, down = paper(), 0.0
    for number in config.images:
        rows: dict[tuple[str, str], dict[tuple[int, str], Array]] = {}
        for name, (pixels, _) in drawn.items():
            rows.setdefault(runs[name], {})[places[name]] = pixels[np.array([number])][0]
        images = [[row.get(column) for column in columns] for row in rows.values()]
        panel = lay(figure, (0, down), images, drawn[any_name][0].shape[1], 96)
        panel.set_yticklabels([model if several[model] == 1 else f"{model} {run}" for model, run in rows])
        for text, (model, _) in zip(panel.get_yticklabels(), rows, strict=True):
            text.set(color=colours[model], weight="bold")
        label = labels[number]
        told = classes[label] if label < len(classes) else f"class {label}"
        panel.set_ylabel(f"{fitted(told, 1.6)}\nnoise {number}", rotation="horizontal", ha="right", va="center", labelpad=12)
        if not down:
            panel.set_xticklabels(heads, fontsize="small")
            panel.set_title("training steps", fontsize="medium")
        down = -panel.get_position().y0 + 0.15
    write(figure, out)
