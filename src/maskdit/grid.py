"""A picture of samples by class beside real images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from maskdit.arrays import read_array
from maskdit.config import Grid, UserError
from maskdit.data import Array, Images
from maskdit.files import read_json, replacing


class Stacked:
    """Images (N, H, W, 3) in several files, indexed by an array of numbers: only those asked for are read."""

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
    """The first `columns` images of each class among those numbered, white where there are fewer: (classes, columns, H, W, 3)."""
    picture = np.full((len(classes), columns, *pixels.shape[1:]), 255, np.uint8)
    for row, label in enumerate(classes):
        found = pixels[numbers[labels[numbers] == label][:columns]]
        picture[row, : len(found)] = found
    return picture


def tiled(rows: Array) -> Array:
    """(rows, columns, H, W, 3) to one picture."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def grid(config: Grid, *, images: Path, samples: Path, out: Path) -> None:
    """A row a class: held-out real images on the left, samples of that class on the right, the first of each."""
    real = Images.load(images)
    shown = config.classes or range(len(real.classes))
    if max(shown) >= len(real.classes):
        raise UserError(f"{images}: has {len(real.classes)} classes, the grid wants number {max(shown)}; correct classes")
    index = read_json(samples / "index.json", "shards", "checkpoint", "protocol")
    drawn = Stacked([samples / shard for shard in index["shards"]])
    sides = {
        "real, held out": (real.pixels, real.labels, real.rows(heldout=True)),
        f"{index['checkpoint']['model']}, guidance {index['protocol']['guidance']:g}": (
            drawn,
            read_array(samples / "labels.npy"),
            np.arange(drawn.shape[0]),
        ),
    }
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(1.2 * config.columns + 1, 0.6 * len(shown) + 0.4), layout="constrained")
    for panel, (title, (pixels, labels, numbers)) in zip(panels, sides.items(), strict=True):
        picture = tiled(rows_of(pixels, labels, numbers, shown, config.columns))
        panel.imshow(picture, interpolation="nearest")
        panel.set_title(title)
        panel.set_xticks([])
        panel.set_yticks([pixels.shape[1] * (row + 0.5) for row in range(len(shown))], [real.classes[label] for label in shown])
        panel.tick_params(length=0)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
