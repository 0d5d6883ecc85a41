"""The logs of trainings to a table of speed and memory."""

from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.manifest import config_of
from maskdit.config.reporting import Efficiency
from maskdit.reporting.records import published, read, steps_of
from maskdit.reporting.table_formats import latex, write

LABELS = {
    "eval": "Run",
    "batch": "Batch",
    "steps_per_second": "Steps/s",
    "images_per_second": "Images/s",
    "speedup": "Speed-up",
    "memory_gb": "Memory (GB)",
    "mfu": "MFU",
}


def row_of(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """The training behind a record: medians over the lines of its log, and the most memory that a process has held."""
    checkpoint = record["checkpoint"]
    speed: dict[str, Any] = checkpoint.get("speed") or {}
    config = config_of(record, checkpoint["phase"])
    batch, images, flops = config.get("batch"), speed.get("images_per_second"), checkpoint["flops"]
    return {
        "eval": config_of(record, "sample").get("run", name),
        "model": checkpoint["model"],
        "phase": checkpoint["phase"],
        "mask_ratio": config.get("mask_ratio"),
        "precision": checkpoint["precision"],
        "steps": steps_of(record),
        "device": speed.get("device"),
        "devices": speed.get("devices"),
        "batch": batch,
        "steps_per_second": images / batch if images and batch else None,
        "images_per_second": images,
        "memory_gb": speed["peak_memory"] / 1e9 if speed else None,
        "mfu": speed.get("mfu"),
        "data_wait": speed.get("data_wait"),
        "tflop_per_step": flops / steps_of(record) / 1e12 if flops else None,
    }


def efficiency(config: Efficiency, *, metrics: Path, out: Path) -> None:
    """Write steps and images a second, memory and MFU of trainings as CSV, and as Markdown and LaTeX beside it.

    speedup is against the first training of the entry; one that was not run says so. Below them come the rows that others report.
    """
    records = read(metrics, config.evals, ())
    rows: list[dict[str, Any]] = [
        row_of(name, records[name]) if name in records else {"eval": name, "model": "not run"} for name in config.evals
    ]
    yardstick = rows[0].get("images_per_second")
    for row in rows:
        if yardstick and row.get("images_per_second"):
            row["speedup"] = row["images_per_second"] / yardstick
    shown = [{name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()} for row in rows]
    frame = pd.DataFrame(shown + published(config.published), dtype=object)
    kinds = frame["model"].isna()
    rules = [row for row in range(1, len(frame)) if kinds.iloc[row] != kinds.iloc[row - 1]]
    columns = {name: label for name, label in LABELS.items() if name in frame}
    write(frame, config.title, out, latex(frame[list(columns)].rename(columns=columns), config.title, set(), rules))
