"""The table of training speed and memory, from the logs of the trainings."""

from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.manifest import config_of
from maskdit.config.reporting import Efficiency
from maskdit.reporting.records import model_of, published, read, steps_of
from maskdit.reporting.table_formats import latex, rounded, write

LABELS = {"eval": "Run", "batch": "Batch", "steps_per_second": "Steps/s", "images_per_second": "Images/s"}
LABELS |= {"speedup": "Speed-up", "memory_gb": "Memory (GB)", "mfu": "MFU"}


def row_of(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """The training behind a record: medians over the lines of its log, and the peak memory of a process."""
    checkpoint, steps = record["checkpoint"], steps_of(record)
    speed: dict[str, Any] = checkpoint.get("speed") or {}
    config = config_of(record, checkpoint["phase"])
    batch, images, flops = config.get("batch"), speed.get("images_per_second"), checkpoint["flops"]
    training = {"eval": config_of(record, "sample").get("run", name), "model": model_of(record), "phase": checkpoint["phase"]}
    training |= {"mask_ratio": config.get("mask_ratio"), "precision": checkpoint["precision"], "steps": steps}
    machine = {"device": speed.get("device"), "devices": speed.get("devices"), "batch": batch}
    rates = {"steps_per_second": images / batch if images and batch else None, "images_per_second": images}
    rates |= {
        "memory_gb": speed["peak_memory"] / 1e9 if speed else None,
        "mfu": speed.get("mfu"),
        "data_wait": speed.get("data_wait"),
    }
    return {**training, **machine, **rates, "tflop_per_step": flops / steps / 1e12 if flops else None}


def efficiency(config: Efficiency, *, metrics: Path, out: Path) -> None:
    """Write steps and images per second, memory and MFU of trainings as CSV, Markdown and LaTeX.

    The speed-up is relative to the first training of the entry. A training that was not run is marked. Published rows come last.
    """
    records = read(metrics, config.evals, ())
    rows: list[dict[str, Any]] = [
        row_of(name, records[name]) if name in records else {"eval": name, "model": "not run"} for name in config.evals
    ]
    yardstick = rows[0].get("images_per_second")
    for row in rows:
        if yardstick and row.get("images_per_second"):
            row["speedup"] = row["images_per_second"] / yardstick
    frame = pd.DataFrame([rounded(row, 4) for row in rows] + published(config.published), dtype=object)
    write(
        frame, config.title, out, latex(frame.filter(list(LABELS)).rename(columns=LABELS), config.title, (), frame["model"].isna())
    )
