"""Metrics at milestones to curves: quality against what was spent."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from maskdit.config import Curves, UserError
from maskdit.files import replacing
from maskdit.records import COMPARABLE, SAMPLING, read

AXES = {"seconds": "training time (s)", "images": "training images", "tflop": "training compute (TFLOP)"}
COLOURS = {"DiT": "#555555", "MaskDiT": "#c0392b"}


def known(value: Any) -> Any:
    """The value, or not a number where released weights do not tell: an empty cell, and no mark."""
    return math.nan if value is None else value


def points(metrics: Path, evals: tuple[str, ...]) -> pd.DataFrame:
    """One row per evaluation: model, phase, step, what was spent, and the metrics; raises UserError if none was run."""
    rows = []
    for name, record in read(metrics, evals, (*COMPARABLE, *SAMPLING, "sampler", "nfe", "guidance")).items():
        spent = {field: known(record["checkpoint"][field]) for field in ("model", "phase", "step", "images", "seconds")}
        tflop = known(record["checkpoint"]["flops"]) / 1e12
        rows.append({"eval": name, **spent, "tflop": tflop, "guidance": record["protocol"]["guidance"], **record["metrics"]})
    if not rows:
        raise UserError(f"{metrics}: none of the evaluations of these curves has been run")
    return pd.DataFrame(rows).sort_values(["model", "images"], ignore_index=True)


def curves(config: Curves, *, metrics: Path, out: Path) -> None:
    """Write the points as CSV, and beside it a picture (PNG and SVG) of the distance against seconds, images and FLOPs.

    Both models are drawn from the same kind of evaluation; a hollow mark is a finetuned checkpoint.
    """
    frame = points(metrics, config.evals)
    quality = next(column for column in frame.columns if column.startswith(("fd_", "fid")))
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "maskdit"  # the same picture has the same bytes
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(AXES), figsize=(11, 3.6), sharey=True, layout="constrained")
    for panel, (column, label) in zip(panels, AXES.items(), strict=True):
        for model, rows in frame.groupby("model"):
            colour = COLOURS.get(str(model), "#2471a3")
            panel.plot(rows[column], rows[quality], color=colour, label=model)
            for phase, marks in rows.groupby("phase"):
                fill = "white" if phase == "finetune" else colour
                panel.plot(marks[column], marks[quality], "o", color=colour, markerfacecolor=fill)
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{quality} (lower is better)")
    panels[0].set_ylim(bottom=0)
    panels[-1].legend()
    figure.suptitle(config.title)
    for suffix in (".png", ".svg"):
        with replacing(out.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, dpi=150, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)
    with replacing(out) as temporary:
        frame.to_csv(temporary, index=False)
