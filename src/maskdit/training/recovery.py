"""What a training leaves in the scratch folder: its newest states, its milestones, and what is published of them."""

import fcntl
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from maskdit.artifacts.atomic import Full, digest, read_json, replacing, sha256, write_json, writing
from maskdit.config.base import UserError
from maskdit.config.training import Training, ema_file, net_file, posthoc_file
from maskdit.model import checkpoint
from maskdit.runtime.environment import scratch, seconds
from maskdit.runtime.process_group import Ranks
from maskdit.runtime.progress import say
from maskdit.training.learner import Learner

SAVE_SECONDS = 60.0  # between two states, at least; more, so that writing takes a twentieth of the time at most
KEPT = 2  # states, the newest ones


class Recovery:
    """The folder of one recipe: rank 0 holds it for its group alone; raises UserError if another one trains there.

    A state is a safetensors file and, written after it, a record of its size and sha256: without the record it does not count.
    MASKDIT_STATE_SECONDS is the least pause between two states: more on a slow disk, where a state is a burden.
    """

    def __init__(self, name: str, config: Training, ranks: Ranks) -> None:
        self.folder, self.config, self.ranks = scratch(name), config, ranks
        self.least = seconds("MASKDIT_STATE_SECONDS", SAVE_SECONDS)
        self.saved, self.pause = time.monotonic(), self.least

    def __enter__(self) -> Self:
        self.lock = (self.folder / "lock").open("a+")
        if self.ranks.rank == 0:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.lock.seek(0)
                owner = self.lock.readline(200).strip() or "which has just begun"
                self.lock.close()
                raise UserError(f"{self.folder}: another process trains this recipe ({owner}); wait for it or stop it") from None
            self.lock.truncate(0)
            job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
            print(f"process {os.getpid()} on {socket.gethostname()}{job}", file=self.lock, flush=True)
            for left in self.folder.glob(".*"):  # half written by a process that was killed
                if not left.name.startswith(".nfs"):  # a file that someone has open
                    left.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()

    def records(self) -> list[Path]:
        """The records of the states, the newest first."""
        return sorted(self.folder.glob("state-*.json"), reverse=True)

    def whole(self, record: Path) -> bool:
        """Whether a state is there as its record says."""
        path = record.with_suffix(".safetensors")
        try:
            known = read_json(record)
            return path.stat().st_size == known["bytes"] and sha256(path) == known["sha256"]
        except (UserError, OSError, KeyError, TypeError):
            return False

    def aside(self, record: Path, why: str) -> None:
        """Give a state names under which it is found no more."""
        say(f"{record.with_suffix('.safetensors')}: {why}; set aside as {record.stem}.{why}")
        for file in (record, record.with_suffix(".safetensors")):
            if file.exists():
                file.rename(file.with_name(f"{file.name}.{why}"))

    def newest(self) -> Path | None:
        """The newest whole state, by rank 0 for all; damaged ones are set aside.

        Raises UserError if there are states and none is whole: a training never starts anew in silence.
        """
        records = self.records()
        for record in records:
            if self.whole(record):
                return record.with_suffix(".safetensors")
            self.aside(record, "damaged")
        if records or any(self.folder.glob("state-*.damaged")):
            raise UserError(f"{self.folder}: none of its states is whole; remove the folder to start again from step 0")
        return None

    def resume(self, learner: Learner, terms: Tensor) -> dict[str, Any]:
        """Restore the newest whole state, if there is one; returns what was done until then."""
        path = self.ranks.from_first(self.newest)
        if path is None:
            return {}
        state, done = checkpoint.load(path)
        step = done["step"]
        lost = [mark for mark in self.config.milestones if mark <= step and not (self.folder / net_file(mark)).exists()]
        if lost:
            say(f"{self.folder}: step {step} is reached, but milestone {lost[0]} was not kept: starting again from step 0")
            if self.ranks.rank == 0:
                for record in self.records():
                    self.aside(record, "passed")
            return {}
        learner.restore(state)
        if self.ranks.rank == 0:
            terms.copy_(state["terms"])
        say(f"{self.folder}: going on from step {step}")
        return done

    def room(self, learner: Learner) -> None:
        """Raise UserError if the disk cannot hold one state more than are kept, as it must while a state is written."""
        there = sum(path.stat().st_size for path in self.folder.glob("state-*.safetensors"))
        need = (KEPT + 1) * sum(tensor.nbytes for tensor in learner.state().values()) - there
        free = shutil.disk_usage(self.folder).free
        if free < need:
            line = f"the states of this training need {need} bytes, {free} bytes are free"
            raise UserError(f"{self.folder}: {line}; make room, or set MASKDIT_SCRATCH to a folder on a larger disk")

    def due(self) -> bool:
        """Whether it is time for a state."""
        return time.monotonic() - self.saved > self.pause

    def save(self, learner: Learner, terms: Tensor, done: dict[str, Any], milestone: dict[str, Any] | None) -> None:
        """Write the state, and before it, at a milestone, its weights with these facts; then drop all but the newest states.

        Raises UserError if the disk is full even without the older states; the newest one is kept.
        """
        began = time.monotonic()
        try:
            with writing(self.folder):
                self._write(learner, terms, done, milestone)
        except Full:
            self._prune(1)
            try:
                with writing(self.folder):
                    self._write(learner, terms, done, milestone)
            except Full:
                free = shutil.disk_usage(self.folder).free
                line = f"the disk is full ({free / 1e9:.2f} GB free); make room, then run it again: it goes on from its last state"
                raise UserError(f"{self.folder}: {line}") from None
        self._prune(KEPT)
        self.saved = time.monotonic()
        self.pause = max(self.least, 20 * (self.saved - began))

    def _write(self, learner: Learner, terms: Tensor, done: dict[str, Any], milestone: dict[str, Any] | None) -> None:
        if milestone is not None:
            step = milestone["step"]
            parts = {ema_file(step): (learner.average, milestone), net_file(step): (learner.masters.detach(), milestone)}
            for number, average in enumerate(learner.posthoc):
                parts[posthoc_file(number, step)] = (average, {**milestone, "sigma_rel": self.config.posthoc_ema[number]})
            for name, (flat, facts) in parts.items():
                checkpoint.save(self.folder / name, learner.weights(flat), facts)
            done["kept"] = done.get("kept", {}) | {name: sha256(self.folder / name) for name in parts}
        path = self.folder / f"state-{done['step']:09d}.safetensors"
        checkpoint.save(path, {"terms": terms, **learner.state()}, done)
        known = {"step": done["step"], "bytes": path.stat().st_size, "sha256": sha256(path)}
        write_json(path.with_suffix(".json"), {**known, "world": self.ranks.world, "recipe": digest(self.config.recipe())})

    def _prune(self, count: int) -> None:
        for record in self.records()[count:]:
            record.unlink()
            record.with_suffix(".safetensors").unlink(missing_ok=True)
        whole = {record.stem for record in self.records()}
        for path in self.folder.glob("state-*.safetensors"):
            if path.stem not in whole:  # by a kill before its record
                path.unlink()

    def publish(self, out: Path) -> None:
        """Copy milestones, final weights and log, with an index that describes them.

        Raises UserError if a milestone is not what was written.
        """
        done = checkpoint.facts(self.records()[0].with_suffix(".safetensors"))
        steps = self.config.milestones
        final = net_file(steps[-1])
        listed = []

        def copy(name: str) -> None:
            shutil.copyfile(self.folder / name, out / name)
            if sha256(out / name) != done["kept"][name]:
                raise UserError(f"{self.folder / name}: damaged; remove the folder to train this recipe again")

        for step in steps:
            extra = [posthoc_file(number, step) for number in range(len(self.config.posthoc_ema))]
            for name in (ema_file(step), *extra):
                copy(name)
            facts = checkpoint.facts(out / ema_file(step))
            spent = {name: facts[name] for name in ("step", "images", "seconds", "device_seconds", "flops")}
            listed.append({"file": ema_file(step), "posthoc": extra, **spent})
        copy(final)
        rows = [row for row in done["rows"] if row["step"] <= steps[-1]]
        with replacing(out / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(out / "index.json", {"milestones": listed, "final": final})
