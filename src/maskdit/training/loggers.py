"""Where the rows of a log go while a training runs: a file beside the step's log, and TensorBoard, W&B or DVCLive.

Each logger has a thread of its own, so that none can end or slow the training. None of them is part of a recipe or a manifest.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self

from maskdit.artifacts.atomic import replacing
from maskdit.runtime import progress
from maskdit.runtime.logs import rows_file
from maskdit.runtime.progress import first_rank, say
from maskdit.runtime.variables import loggers, variable

LEAVE, HURRY = 30.0, 5.0  # seconds that a training waits for its loggers at its end, and when it was stopped or has failed
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A training as the loggers call it. `name` tells its key, phase and recipe, so that a resumed one goes on in its place."""

    phase: str
    name: str
    config: dict[str, Any]


class Sink(Protocol):
    """Where rows go. `last`: the last step that it has; rows up to it are not written again."""

    last: int

    def write(self, row: Row) -> None:
        """Add a row."""

    def close(self) -> None:
        """End."""


class Rows:
    """The file logs/VERB/KEY.jsonl, with the rows of log.jsonl. It is opened for each row, so that other nodes see it at once."""

    def __init__(self, run: Run, rows: list[Row]) -> None:
        self.path, self.last = rows_file(run.phase, progress.KEY), last_of(rows)
        with replacing(self.path) as temporary:
            temporary.write_text("".join(map(line_of, rows)), encoding="utf-8")

    def write(self, row: Row) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line_of(row))

    def close(self) -> None:
        """There is nothing to end."""


class TensorBoard:
    """Events in a folder of runs/, torch's own default, or of MASKDIT_TENSORBOARD. Events after the last row are withdrawn."""

    def __init__(self, run: Run, rows: list[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(variable("MASKDIT_TENSORBOARD") or "runs") / run.name
        self.last = last_of(rows) if any(folder.glob("events.*")) else 0
        self.writer = SummaryWriter(str(folder), purge_step=self.last + 1)

    def write(self, row: Row) -> None:
        """Add a scalar for each field."""
        for field, value in row.items():
            self.writer.add_scalar(field, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        """Write the rest."""
        self.writer.close()


class Wandb:
    """A run of W&B, with its own variables: WANDB_PROJECT, WANDB_MODE, WANDB_DIR and the others."""

    def __init__(self, run: Run, rows: list[Row]) -> None:
        import wandb

        settings = wandb.Settings(console="off", disable_git=True, finish_timeout=LEAVE)
        self.run = wandb.init(id=run.name, name=run.name, resume="allow", config=run.config, settings=settings)
        self.last = self.run.starting_step - 1

    def write(self, row: Row) -> None:
        """Log a row at its step."""
        self.run.log(row, step=row["step"])

    def close(self) -> None:
        """Upload the rest."""
        self.run.finish()


class DvcLive:
    """A folder of dvclive/. It changes neither dvc.yaml nor Git."""

    def __init__(self, run: Run, rows: list[Row]) -> None:
        from dvclive import Live

        self.live = Live(dir=f"dvclive/{run.name}", resume=bool(rows), save_dvc_exp=False, dvcyaml=None)
        self.last = self.live.step - 1

    def write(self, row: Row) -> None:
        """Add a line to the table of each field. The step is noted first, so that a kill cannot make a later attempt repeat it."""
        self.live.step = row["step"]
        self.live.make_summary()
        for field in row.keys() - {"step"}:
            self.live.log_metric(field, row[field])
        self.live.make_summary()

    def close(self) -> None:
        """End the run."""
        self.live.end()


KINDS: dict[str, Callable[[Run, list[Row]], Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb, "dvclive": DvcLive}


class Logger:
    """A thread that gives rows to a sink. An error there is told in one line, and the training goes on without the sink."""

    def __init__(self, label: str, opened: Callable[[list[Row]], Sink]) -> None:
        self.label, self.opened, self.queue = label, opened, SimpleQueue[Row | list[Row] | None]()
        self.thread = Thread(target=self._serve, daemon=True)
        self.thread.start()

    def put(self, told: Row | list[Row] | None) -> None:
        """Hand over a row, or all rows so far when a training begins or resumes, or None at the end."""
        if self.thread.is_alive():
            self.queue.put(told)

    def _serve(self) -> None:
        sink: Sink | None = None
        try:
            while (told := self.queue.get()) is not None:
                if isinstance(told, list) and sink:
                    sink.close()
                if isinstance(told, list):
                    sink = self.opened(told)
                for row in told if isinstance(told, list) else [told]:
                    if sink and row["step"] > sink.last:
                        sink.write(row)
            if sink:
                sink.close()
        except BaseException as error:
            reason = " ".join(str(error).split())[:300]
            say(f"{self.label}: {type(error).__name__}: {reason}; the training goes on without it")


class Loggers:
    """The loggers of a training, on the first rank only. Raises UserError as `variables.loggers` does."""

    def __init__(self, phase: str, recipe: str, config: dict[str, Any]) -> None:
        self.phase, run = phase, Run(phase, f"{progress.KEY}-{phase}-{recipe[:8]}".lstrip("-"), config)
        kinds = [*[("rows", Rows)] * bool(progress.KEY), *((name, KINDS[name]) for name in loggers())] if first_rank() else []
        self.loggers = [Logger(label, partial(kind, run)) for label, kind in kinds]

    def __enter__(self) -> Self:
        return self

    def begin(self, rows: list[Row], step: int, last: int) -> None:
        """Begin, or go on, at a step and after these rows, of which each logger writes those that it lacks."""
        say(f"{self.phase}: {step}/{last}" + (f"; maskdit watch {progress.KEY} shows it" if progress.KEY else ""))
        for logger in self.loggers:
            logger.put([*rows])

    def add(self, row: Row) -> None:
        """Add a row."""
        for logger in self.loggers:
            logger.put(row)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        deadline = time.monotonic() + (HURRY if kind else LEAVE)
        for logger in self.loggers:
            logger.put(None)
        for logger in self.loggers:
            logger.thread.join(max(0.0, deadline - time.monotonic()))
            if logger.thread.is_alive():
                say(f"{logger.label}: has not ended in time; its last rows may be missing there")


def last_of(rows: list[Row]) -> int:
    """The step of the last row; 0 if there is none."""
    return int(rows[-1]["step"]) if rows else 0


def line_of(row: Row) -> str:
    """A row as a line of log.jsonl."""
    return json.dumps(row) + "\n"
