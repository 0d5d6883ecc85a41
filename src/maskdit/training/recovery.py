"""Recovery of a training: its newest states and its milestones in the scratch folder, and their publication."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Self

import torch
from torch import Tensor

from maskdit.artifacts.atomic import Full, digest, read_json, sha256, write_json, writing
from maskdit.config.base import UserError
from maskdit.config.training import Training, milestone_file
from maskdit.model import checkpoint
from maskdit.runtime.environment import scratch
from maskdit.runtime.lock import Held, Lock, owner_of, words
from maskdit.runtime.process_group import Ranks
from maskdit.runtime.progress import say
from maskdit.runtime.variables import seconds
from maskdit.training.learner import Learner, State
from maskdit.training.milestones import Milestones

SAVE_SECONDS = 60.0  # minimum pause between two states; it grows so that states are written for at most 5 % of the time
KEPT = 2  # number of states kept


class Recovery:
    """The recipe directory of a training. Rank 0 locks it; raises UserError if another process trains there.

    A state is one safetensors file from each rank, with its share of each tensor, and a record with their sha256. Each rank writes
    its file from a copy, in a thread, while it trains; then rank 0 writes the record. Files without one are ignored and removed.
    MASKDIT_STATE_SECONDS sets the minimum pause between two states, for instance a longer one on a slow disk.
    """

    def __init__(self, name: str, config: Training, ranks: Ranks, published: Path | None = None) -> None:
        self.folder, self.config, self.ranks, self.published = scratch(name), config, ranks, published
        self.milestones = Milestones(self.folder, config)
        self.least = seconds("MASKDIT_STATE_SECONDS", SAVE_SECONDS)
        self.saved, self.pause = time.monotonic(), self.least
        self.step: int | None = None  # of the newest state
        self.before = 0  # the next milestone
        self.lines: list[str] = []  # of the log
        self.copies: State = {}  # of this rank's share of a state
        self.weights: dict[str, State] = {}  # copies of those of a milestone
        self.work: Future[None] | None = None
        self.waiting: float | None = None  # since when the training waits for a state
        self.leaving = Event()

    def __enter__(self) -> Self:
        self.open = ExitStack()
        if self.ranks.rank == 0:
            try:
                self.lock = self.open.enter_context(Lock(self.folder / "lock").held())
            except Held as other:
                raise UserError(
                    f"{self.folder}: another process is training this recipe ({other}); wait for it or stop it"
                ) from None
            for left in self.folder.glob(".*"):  # temporary files of a killed process
                if not left.name.startswith(".nfs"):  # a deleted file that some process still has open
                    left.unlink()
            self._sweep()
            for record in self.records():
                with suppress(UserError, OSError, TypeError):
                    self.milestones.kept |= checkpoint.facts(part_of_first(record)).get("kept", {})
            if self.published:
                self.milestones.adopt(self.published)
        self.thread = self.open.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.open.close()

    def records(self) -> list[Path]:
        """The records of the states, newest first."""
        return sorted(self.folder.glob("state-*.json"), reverse=True)

    def aside(self, record: Path, why: str) -> None:
        """Rename a state so that it is not used any more."""
        say(f"{record}: {why}; set aside as {record.stem}.{why}")
        for file in (record, *self.folder.glob(f"{record.stem}*.safetensors")):
            if file.exists():
                file.rename(file.with_name(f"{file.name}.{why}"))

    def newest(self, before: int) -> Path | None:
        """The record of the newest intact state before a step; damaged ones are set aside.

        Raises UserError if only damaged ones were found.
        """
        records = [record for record in self.records() if step_of(record) < before]
        for record in records:
            with suppress(UserError, OSError, TypeError), ThreadPoolExecutor() as pool:
                files = files_of(record)
                if [*pool.map(sha256, files)] == [*files.values()]:
                    return record
            self.aside(record, "damaged")
        if records or (any(self.folder.glob("state-*.damaged")) and not self.records()):
            raise UserError(f"{self.folder}: all its states are damaged; remove the folder to restart from step 0")
        return None

    def goal(self, missing: list[int]) -> int:
        """The step up to which the first of the missing milestones, and those after it, are trained: at most to the next state."""
        later = [step for step in map(step_of, self.records()) if step >= missing[0]]
        goal = max(step for step in missing if step <= min(later, default=step))
        if any(step > goal for step in self.milestones.steps if step not in missing):
            say(f"{self.folder}: milestone {missing[0]} was not kept; training once more up to step {goal}, the others stay")
        return goal

    def resume(self, learner: Learner, terms: Tensor, before: int) -> dict[str, Any]:
        """Restore the newest intact state before a step, whatever the number of ranks that wrote it.

        Returns the progress made until then.
        """
        self.step, self.lines, self.before = None, [], before
        record = self.ranks.from_first(partial(self.newest, before))
        if record is None:
            return {}
        loaded = [checkpoint.load(path) for path in files_of(record)]
        parts, done, known = [tensors for tensors, _ in loaded], loaded[0][1], read_json(record)
        learner.restore(parts)
        if self.ranks.rank == 0:
            terms.copy_(torch.cat([part["terms"] for part in parts]))
        self.step, done["rows"] = done["step"], log_of(parts[0], done)
        done.pop("kept", None)
        for name, devices in (("seconds", 1), ("state_seconds", 1), ("device_seconds", known["world"])):
            done[name] = done.get(name, 0.0) + known.get("waited", 0.0) * devices
        say(f"{self.folder}: resuming from step {self.step}")
        return done

    def room(self, learner: Learner) -> None:
        """Raise UserError if the disk has no room for one more state than are kept, which is needed while a state is written."""
        files = [path for path in self.folder.glob("state-*.safetensors") if step_of(path) < self.before]
        there = sum(path.stat().st_size for path in files)
        need = (KEPT + 1) * sum(tensor.nbytes for tensor in learner.state().values()) - there
        free = shutil.disk_usage(self.folder).free
        if free < need:
            line = f"the states of this training need {need} bytes, but {free} bytes are free"
            raise UserError(f"{self.folder}: {line}; free some space, or set MASKDIT_SCRATCH to a folder on a larger disk")

    def due(self) -> bool:
        """Whether it is time to save a state, or to be told that the last one could not be written."""
        if self.work is not None and not self.work.done():
            due = False
        else:
            due = time.monotonic() - self.saved > self.pause or (self.work is not None and self.work.exception() is not None)
        return bool(self.ranks.from_first(lambda: due))

    def copy(self, learner: Learner, terms: Tensor, step: int, milestone: bool) -> None:
        """Copy this rank's share of a state, and on rank 0 the weights of a milestone; first wait until the last one is written.

        Raises UserError if another process has taken over the recipe because this one gave no sign of life for long.
        """
        self.wait()
        if owner := self.ranks.from_first(lambda: "" if self.lock.ours() else words(owner_of(self.lock.lease))):
            raise UserError(f"{self.folder}: {owner} has taken over this training, because this process gave no sign of life")
        if step == self.step:
            return
        for name, tensor in {"terms": terms, **learner.state()}.items():
            share = tensor.detach().flatten().tensor_split(self.ranks.world)[self.ranks.rank]
            if name not in self.copies:
                self.copies[name] = torch.empty_like(share, device="cpu", pin_memory=share.is_cuda)
            self.copies[name].copy_(share, non_blocking=True)
        if milestone and self.ranks.rank == 0:
            averages = {f"posthoc-{number}": average for number, average in enumerate(learner.posthoc)}
            for kind, flat in {"ema": learner.average, "net": learner.masters.detach(), **averages}.items():
                weights = learner.weights(flat)
                self.weights[kind] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
        if learner.where.type == "cuda":
            torch.cuda.synchronize()

    def write(self, done: dict[str, Any], facts: dict[str, Any]) -> None:
        """Begin to write what was copied, with the progress until then and the description of a milestone."""
        if done["step"] != self.step:
            self.waiting = None
            self.lines += [json.dumps(row) + "\n" for row in done["rows"][len(self.lines) :]]
            self.work = self.thread.submit(self._write, {name: done[name] for name in done if name != "rows"}, facts)

    def wait(self) -> None:
        """Wait until what is being written is kept.

        Raises UserError if the disk is full even without the older states; the newest one is always kept.
        """
        self.waiting = time.monotonic()
        if self.work is not None:
            work, self.work = self.work, None
            work.result()

    def _write(self, done: dict[str, Any], facts: dict[str, Any]) -> None:
        began, first = time.monotonic(), self.ranks.rank == 0
        for attempt in ("first", "second"):
            name = f"state/{done['step']}/{attempt}"
            files = self.ranks.exchange(f"{name}/files", self._tried(partial(self._part, done, facts)), self.leaving)
            kept = self._tried(partial(self._record, done, files)) if first and all(files) else ""
            if first:
                self._prune(KEPT if kept else 1, done["step"])
            if self.ranks.exchange(f"{name}/record", kept, self.leaving)[0]:
                self.step, self.weights, self.saved = done["step"], {}, time.monotonic()
                self.pause = max(self.least, 20 * (self.saved - began))
                return
        free = f"{shutil.disk_usage(self.folder).free / 1e9:.2f} GB free"
        line = f"the disk is full ({free}); free some space and run the command again to resume from the last state"
        raise UserError(f"{self.folder}: {line}")

    def _tried(self, write: Callable[[], str]) -> str:
        """What a write returns, '' if the disk is full."""
        with suppress(Full), writing(self.folder):
            return write()
        return ""

    def _part(self, done: dict[str, Any], facts: dict[str, Any]) -> str:
        """Write this rank's file, on rank 0 those of a milestone before it. Returns its sha256."""
        for kind, weights in self.weights.items():
            width = {"sigma_rel": self.config.posthoc_ema[int(kind[8:])]} if kind.startswith("posthoc") else {}
            path = self.folder / milestone_file(kind, done["step"])
            self.milestones.kept[path.name] = checkpoint.save(path, weights, {**facts, **width})
        path = self.folder / part_file(record_file(done["step"]), self.ranks.rank, self.ranks.world)
        if self.ranks.rank:
            return checkpoint.save(path, self.copies, {"step": done["step"]})
        log = torch.frombuffer(bytearray("".join(self.lines).encode() or b"\n"), dtype=torch.uint8)
        return checkpoint.save(path, {**self.copies, "log": log}, {**done, "kept": self.milestones.kept})

    def _record(self, done: dict[str, Any], files: list[str]) -> str:
        """Write the record, which makes the state one. Returns its name."""
        waited = 0.0 if self.waiting is None else time.monotonic() - self.waiting
        known = {"step": done["step"], "sha256": files, "world": self.ranks.world, "waited": waited}
        path = self.folder / record_file(done["step"])
        write_json(path, {**known, "recipe": digest(self.config.recipe())})
        return path.name

    def _prune(self, count: int, step: int) -> None:
        """Remove all but the newest states up to a step; later ones are of a training whose milestone is made once more."""
        for record in [record for record in self.records() if step_of(record) <= step][count:]:
            record.unlink()
        self._sweep()

    def _sweep(self) -> None:
        """Remove the files of states that have no record: those that were never completed."""
        whole = tuple(record.stem for record in self.records())
        for path in self.folder.glob("state-*.safetensors"):
            if not path.name.startswith(whole):
                path.unlink()

    def publish(self, out: Path) -> None:
        """Publish the milestones, with the log of the newest states."""
        rows: dict[int, dict[str, Any]] = {}
        for record in reversed(self.records()):
            with suppress(UserError, OSError, TypeError, KeyError):
                rows |= {row["step"]: row for row in log_of(*checkpoint.load(part_of_first(record), "log"))}
        self.milestones.publish(out, rows)


def record_file(step: int) -> str:
    """File name of the record of a state."""
    return f"state-{step:09d}.json"


def step_of(path: Path) -> int:
    """The step of a state, by the name of its record or of a part."""
    return int(path.stem.split("-")[1])


def part_file(record: str, rank: int, world: int) -> str:
    """File name of a rank's part of a state."""
    return f"{record.removesuffix('.json')}-{rank}-of-{world}.safetensors"


def files_of(record: Path) -> dict[Path, str]:
    """The files of a state, each with its sha256. Raises UserError if the record is damaged."""
    known = read_json(record, "sha256", "step", "world")["sha256"]
    if isinstance(known, str):  # of 0.1.0: one file
        return {record.with_suffix(".safetensors"): known}
    if not known or not isinstance(known, list) or not all(isinstance(sha, str) for sha in known):
        raise UserError(f"{record}: not the record of a state; remove it")
    return {record.with_name(part_file(record.name, rank, len(known))): sha for rank, sha in enumerate(known)}


def part_of_first(record: Path) -> Path:
    """The first rank's part of a state, with the progress in its description. Raises UserError as `files_of`."""
    return next(iter(files_of(record)))


def log_of(tensors: State, done: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the log in a state; 0.1.0 had them in the description."""
    if "log" not in tensors:
        return list(done["rows"])
    return [json.loads(line) for line in tensors["log"].numpy().tobytes().strip().splitlines()]
