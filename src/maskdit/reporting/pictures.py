"""Pictures of samples: by class next to real images, and from the same noise and class through training."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from maskdit.artifacts.arrays import Array, read_array
from maskdit.artifacts.atomic import read_json, replacing
from maskdit.artifacts.manifest import MANIFEST, config_of, read_manifest
from maskdit.config.base import UserError
from maskdit.config.reporting import Grid, Strip
from maskdit.images.dataset import Images
from maskdit.reporting.records import read, steps_of
from maskdit.reporting.report.provenance_tables import FOLDERS


class Stacked:
    """Images (N, H, W, 3) in several files, as one array: only the images that an index array selects are read."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.parts = [read_array(file, mapped=True) for file in files]
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.shape = (int(self.starts[-1]), *self.parts[0].shape[1:])

    def __getitem__(self, rows: Array) -> Array:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            part = int(np.searchsorted(self.starts, row, "right")) - 1
            out[place] = self.parts[part][row - self.starts[part]]
        return out


def rows_of(pixels: Any, labels: Array, numbers: Array, classes: Sequence[int], columns: int) -> Array:
    """The first `columns` images of each class among `numbers`, padded with white: (classes, columns, H, W, 3)."""
    picture = np.full((len(classes), columns, *pixels.shape[1:]), 255, np.uint8)
    for row, label in enumerate(classes):
        found = pixels[numbers[labels[numbers] == label][:columns]]
        picture[row, : len(found)] = found
    return picture


def lay(panel: Any, rows: Array, names: Sequence[str], heads: Sequence[str] = ()) -> None:
    """Draw images (rows, columns, H, W, 3) with a name for each row and, optionally, a heading for each column."""
    count, columns, high, wide, channels = rows.shape
    panel.imshow(rows.swapaxes(1, 2).reshape(count * high, columns * wide, channels), interpolation="nearest")
    panel.set_xticks([wide * (column + 0.5) for column in range(len(heads))], heads)
    panel.set_yticks([high * (row + 0.5) for row in range(count)], names)
    panel.tick_params(length=0, labeltop=True, labelbottom=False)


def save(figure: Figure, out: Path) -> None:
    """Write a figure as PNG."""
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def grid(config: Grid, *, images: Path, samples: Path, out: Path) -> None:
    """Draw one row per class: the first held-out real images on the left, the first samples of the class on the right."""
    real = Images.load(images)
    shown = config.classes or range(len(real.classes))
    if max(shown) >= len(real.classes):
        raise UserError(f"{images}: has {len(real.classes)} classes, but the grid lists class {max(shown)}; correct its classes")
    index = read_json(samples / "index.json", "shards", "checkpoint", "protocol")
    drawn, labels = images_of(samples)
    sides = {
        "real, held out": (real.pixels, real.labels, real.rows(heldout=True)),
        f"{index['checkpoint']['model']}, guidance {index['protocol']['guidance']:g}": (drawn, labels, np.arange(drawn.shape[0])),
    }
    figure = Figure(figsize=(1.2 * config.columns + 1, 0.6 * len(shown) + 0.4), layout="constrained")
    for panel, (title, (pixels, labels, numbers)) in zip(figure.subplots(1, 2), sides.items(), strict=True):
        lay(panel, rows_of(pixels, labels, numbers, shown, config.columns), [real.classes[label] for label in shown])
        panel.set_title(title)
    save(figure, out)


def images_of(samples: Path) -> tuple[Stacked, Array]:
    """The images in a folder of samples, and their labels."""
    shards = read_json(samples / "index.json", "shards")["shards"]
    return Stacked([samples / shard for shard in shards]), read_array(samples / "labels.npy")


def scored(name: str, record: dict[str, Any], results: Path) -> Path | None:
    """The samples of an evaluation, None if they do not exist; raises UserError if they were remade since the evaluation."""
    node, folder = f"sample/{name}", results.parent / FOLDERS["sample"].format(key=name)
    if not (folder / MANIFEST).exists():
        return None
    origin = read_manifest(folder).lineage.get(node)
    if origin is None or origin.digest != record["manifest"]["lineage"][node]["digest"]:
        raise UserError(f"{folder}: not the images that {name} was evaluated on; rerun evaluate {name}")
    return folder


def strip(config: Strip, *, results: Path, out: Path) -> None:
    """Draw the same noise and class through training: one row per image and run, one column per milestone.

    Missing samples are white. Raises UserError if no samples exist, or if some are not those that were evaluated.
    """
    records = read(results, config.evals, ())
    drawn = {name: images_of(folder) for name, record in records.items() if (folder := scored(name, record, results))}
    if not drawn:
        raise UserError(f"{out.name}: none of its samples exist; run the sampling steps first")
    runs = {name: (records[name]["checkpoint"]["model"], config_of(records[name], "sample")["run"]) for name in drawn}
    several = Counter(model for model, _ in set(runs.values()))
    places = {name: (steps_of(records[name]), records[name]["checkpoint"]["phase"]) for name in drawn}
    columns = sorted(set(places.values()))
    rows: dict[str, dict[tuple[int, str], Array]] = {}
    for number in config.images:
        for name, (pixels, labels) in drawn.items():
            model, run = runs[name]
            series = model if several[model] == 1 else f"{model} {run}"
            row = rows.setdefault(f"{series}, noise {number}, class {labels[number]}", {})
            row[places[name]] = pixels[np.array([number])][0]
    white = np.full_like(next(iter(row.values())), 255)
    figure = Figure(figsize=(0.9 * len(columns) + 3, 0.9 * len(rows) + 0.6), layout="constrained")
    panel = figure.subplots()
    heads = [f"{steps:,}" + "\nfinetuned" * (phase == "finetune") for steps, phase in columns]
    lay(panel, np.array([[row.get(column, white) for column in columns] for row in rows.values()]), list(rows), heads)
    panel.set_title("training steps")
    save(figure, out)
