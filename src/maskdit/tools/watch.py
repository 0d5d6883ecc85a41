"""What a training does while it runs, from its files alone: the sign that it runs, its log, the rows of its log, and its states."""

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskdit.artifacts.compute_log import rows as ledger
from maskdit.artifacts.freshness import TRAININGS
from maskdit.config.base import UserError
from maskdit.config.errors import nearest
from maskdit.config.params import Params
from maskdit.config.paths import output
from maskdit.config.training import HELDOUT_LOSS
from maskdit.runtime.environment import NODE, scratch_root
from maskdit.runtime.lock import RUNNING, runs, sign
from maskdit.runtime.logs import log_file, rows_file
from maskdit.runtime.process_group import STOPPED
from maskdit.tools.plan import duration, size

PAUSE = 2.0  # seconds between two looks
LINE = 10.0  # seconds between two lines where there is no terminal
TAIL = 2**16  # bytes read from the end of a log
SHOWN = 40  # rows whose loss is drawn, and over which the rate is measured
ROW = ("step", "seconds", "loss", "grad_norm", "images_per_second", "mfu", "data_wait", "peak_memory")  # what is shown of a row
BARS = "▁▂▃▄▅▆▇█"
Facts = dict[str, str]


def watch(params: Params, key: str | None = None) -> None:
    """`maskdit watch [KEY]`: show a training until it ends, then exit with its code; without a key, print what runs.

    It only reads files, so that it may run on another node, and Ctrl-C ends it alone. Raises UserError for a key that is not of a
    training, and for a training that has never run.
    """
    if key is None:
        print(*(list(running()) or ["nothing runs"]), sep="\n")
        return
    node = chosen(params, key)
    screen = Screen()
    try:
        while runs(sign(*node)):
            screen.show(facts(params, *node))
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        print("\nwatch: the training goes on" if runs(sign(*node)) else "")
        sys.exit(130)
    screen.show(facts(params, *node), last=True)
    code, told = ended(*node)
    print(f"{'/'.join(node)}: {told}", flush=True)
    sys.exit(code)


def running() -> Iterator[str]:
    """A line for each step that runs, or part of one: where, and what its log said last."""
    for path in sorted(RUNNING.glob("*/*.json")):
        if where := runs(path):
            key, _, part = path.stem.partition(".")
            share = tuple(map(int, part.split("-of-"))) if part else None
            said = progress_of(log_file(path.parent.name, key, share))  # type: ignore[arg-type]
            yield ", ".join(filter(None, (f"{path.parent.name}/{key}{f' part {part}' * bool(part)}", where, said)))


def chosen(params: Params, key: str) -> tuple[str, str]:
    """The phase of a run that is running, or else the one that ran last."""
    known = {name for verb in TRAININGS for name in getattr(params, verb)}
    if key not in known:
        raise UserError(f"watch: no entry of pretrain or finetune is named '{key}'{nearest(key, known)}")
    found = [(verb, key) for verb in TRAININGS if key in getattr(params, verb)]
    if alive := [node for node in found if runs(sign(*node))]:
        return alive[-1]
    logs = {node: written(log_file(*node)) for node in found}
    if not any(logs.values()):
        raise UserError(f"watch: no log of {' or '.join(map('/'.join, found))} here; start it with maskdit {found[0][0]} {key}")
    return max(found, key=lambda node: logs[node])


def ended(verb: str, key: str) -> tuple[int, str]:
    """The exit code of a training that does not run, and what it means. One that was killed has left its sign."""
    if sign(verb, key).exists():
        return 1, "was killed; the same command goes on from its last state"
    code = next((int(row.get("exit") or 0) for row in reversed(ledger()) if row["node"] == f"{verb}/{key}"), 0)
    if code == STOPPED:
        return code, f"stopped and keeps its state, exit code {code}; the same command goes on"
    return code, f"failed with exit code {code}; see {log_file(verb, key)}" if code else "has ended, exit code 0"


def facts(params: Params, verb: str, key: str) -> Facts:
    """What is known of a training now, by name, in the order in which it is shown."""
    rows, said, where = rows_of(rows_file(verb, key)), progress_of(log_file(verb, key)), runs(sign(verb, key))
    states, milestones = (kept(recipe_folder(verb, key), pattern) for pattern in ("state-*.json", "ema-*.safetensors"))
    newest = max(states, key=written, default=None)
    counts = re.match(r"(\d+)/(\d+)", said)
    last = rows[-1] if rows else {"step": 0}
    step = max(last["step"], int(counts[1]) if counts else 0)
    if newest and written(newest) >= written(rows_file(verb, key)):
        step = max(step, states[newest])
    total = int(counts[2]) if counts else params.entry(verb, key).milestones[-1]
    found = {"training": f"{verb}/{key}, {where or 'not running'}"}
    found["step"] = f"{step:,} of {total:,} ({step / total:.0%})"
    if rows:
        before = rows[-min(len(rows), SHOWN)] if len(rows) > 1 else {"step": 0, "seconds": 0.0}
        rate = (last["step"] - before["step"]) / max(1e-9, last["seconds"] - before["seconds"])
        found["rate"] = f"{rate:.3g} steps/s, {last['images_per_second']:,.0f} images/s"
        found |= {"left": duration((total - step) / rate / 3600)} if where and step < total else {}
        found["loss"] = f"{last['loss']:.4f} {sparkline([row['loss'] for row in rows[-SHOWN:]])}".rstrip()
        if unseen := [row[HELDOUT_LOSS] for row in rows if HELDOUT_LOSS in row]:
            found["held-out loss"] = f"{unseen[-1]:.4f} {sparkline(unseen)}".rstrip()
        found["grad norm"], found["MFU"] = f"{last['grad_norm']:.3g}", f"{last['mfu']:.2f}"
        found["data_wait"], found["memory"] = f"{last['data_wait']:.1%}", size(last["peak_memory"])
    if newest:
        found["state"] = f"step {states[newest]:,}, {ago(written(newest))}"
    if here := [path for path, mark in milestones.items() if mark <= step]:
        path = max(here, key=milestones.__getitem__)
        found["milestone"] = f"step {milestones[path]:,}, {path}"
    grids = [output(params, f"grid/{name}") for name, grid in params.grid.items() if of_run(params, grid.sample, verb, key)]
    if drawn := [path for path in grids if path.exists()]:
        found["grid"] = f"{max(drawn, key=written)}"
    found["log"] = f"{log_file(verb, key)}, {ago(max(map(written, (log_file(verb, key), rows_file(verb, key)))))}"
    return found


def of_run(params: Params, sample: str, verb: str, key: str) -> bool:
    """Whether a sample is drawn from a training."""
    return (params.sample[sample].phase, params.sample[sample].run) == (verb, key)


def recipe_folder(verb: str, key: str) -> Path | None:
    """The folder of states of the recipe that an entry has trained last."""
    found = []
    for note in scratch_root().glob(f"{verb}-*/{NODE}"):
        with suppress(OSError, ValueError):
            if note.read_text(encoding="utf-8").strip() == f"{verb}/{key}":
                found.append(note.parent)
    return max(found, key=lambda folder: max(written(folder), written(folder / "lock.lease")), default=None)


def kept(folder: Path | None, pattern: str) -> dict[Path, int]:
    """The files of a recipe folder that are named by a step, and their steps."""
    return {path: int(path.stem.split("-")[1]) for path in folder.glob(pattern)} if folder else {}


def written(path: Path) -> float:
    """When a file was written; 0.0 if there is none."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def ago(moment: float) -> str:
    """How long ago this was."""
    return f"{duration(max(0.0, time.time() - moment) / 3600) or '0 s'} ago"


def tail(path: Path) -> list[str]:
    """The last lines of a file, without one that is cut; none if there is no file."""
    with suppress(OSError), path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - TAIL))
        lines = file.read().decode(errors="replace").split("\n")
        return lines[end > TAIL : -1]
    return []


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The last rows of a training's log; a line that is none is left out."""
    found = []
    for line in tail(path):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in ROW):
                found.append(row)
    return found


def progress_of(log: Path) -> str:
    """What a log said last of the steps that are done, as DONE/TOTAL, rate, time left; '' if it said nothing."""
    found = (re.fullmatch(r"(?:[a-z0-9-]+ )?\w+: (\d+/\d+\b.*)", line) for line in reversed(tail(log)))
    return next((told[1].partition(";")[0] for told in found if told), "")


def sparkline(values: list[float]) -> str:
    """Numbers as bars between their least and largest; '' where standard output lacks these letters, and for less than two."""
    finite = [value for value in values if math.isfinite(value)]
    try:
        BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        return ""
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    return "".join(BARS[round((value - low) / ((high - low) or 1.0) * (len(BARS) - 1))] for value in finite)


@dataclass
class Screen:
    """A table that is drawn again and again on a terminal; elsewhere a line every few seconds."""

    lines: int = 0  # of the table that is shown
    shown: float = -math.inf

    def show(self, found: Facts, last: bool = False) -> None:
        """Show what is known."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
            table = [f"{name:<13} {text}"[: width - 1] for name, text in found.items()]
            print(f"\x1b[{self.lines}A\x1b[J" * bool(self.lines) + "\n".join(table), flush=True)
            self.lines = len(table)
        elif last or time.monotonic() - self.shown >= LINE:
            self.shown = time.monotonic()
            print(", ".join(text if name == "training" else f"{name} {text}" for name, text in found.items()), flush=True)
