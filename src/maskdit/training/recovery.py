"""Recovery of a training: its newest states and its milestones in the scratch folder, and their publication."""

import json
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from maskdit.artifacts.atomic import Full, digest, read_json, replacing, sha256, write_json, writing
from maskdit.config.base import UserError
from maskdit.config.training import Training, milestone_file
from maskdit.model import checkpoint
from maskdit.runtime.environment import scratch
from maskdit.runtime.lock import Held, Lock, owner_of, words
from maskdit.runtime.process_group import Ranks
from maskdit.runtime.progress import say
from maskdit.runtime.variables import seconds
from maskdit.training.learner import Learner

SAVE_SECONDS = 60.0  # minimum pause between two states; it grows so that writing takes at most 5 % of the time
KEPT = 2  # number of states kept
SPENT = ("images", "seconds", "device_seconds", "flops")


class Recovery:
    """The recipe directory of a training. Rank 0 locks it; raises UserError if another process trains there.

    A state is a safetensors file and a record of its size and sha256 that is written after it; without its record it is ignored.
    MASKDIT_STATE_SECONDS sets the minimum pause between two states, for instance a longer one on a slow disk.
    """

    def __init__(self, name: str, config: Training, ranks: Ranks) -> None:
        self.folder, self.config, self.ranks = scratch(name), config, ranks
        self.least = seconds("MASKDIT_STATE_SECONDS", SAVE_SECONDS)
        self.saved, self.pause = time.monotonic(), self.least

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
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def records(self) -> list[Path]:
        """The records of the states, newest first."""
        return sorted(self.folder.glob("state-*.json"), reverse=True)

    def aside(self, record: Path, why: str) -> None:
        """Rename a state so that it is not used any more."""
        say(f"{record.with_suffix('.safetensors')}: {why}; set aside as {record.stem}.{why}")
        for file in (record, record.with_suffix(".safetensors")):
            if file.exists():
                file.rename(file.with_name(f"{file.name}.{why}"))

    def newest(self) -> Path | None:
        """The newest intact state; damaged ones are set aside. Raises UserError if only damaged ones were found."""
        records = self.records()
        for record in records:
            path = record.with_suffix(".safetensors")
            with suppress(UserError, OSError):
                if sha256(path) == read_json(record, "sha256")["sha256"]:
                    return path
            self.aside(record, "damaged")
        if records or any(self.folder.glob("state-*.damaged")):
            raise UserError(f"{self.folder}: all its states are damaged; remove the folder to restart from step 0")
        return None

    def resume(self, learner: Learner, terms: Tensor) -> dict[str, Any]:
        """Restore the newest intact state, if there is one. Returns the progress made until then."""
        path = self.ranks.from_first(self.newest)
        if path is None:
            return {}
        state, done = checkpoint.load(path)
        step = done["step"]
        passed = [mark for mark in self.config.milestones if mark <= step]
        if lost := [mark for mark in passed if not (self.folder / milestone_file("net", mark)).exists()]:
            say(f"{self.folder}: step {step} is done, but milestone {lost[0]} was not saved; restarting from step 0")
            if self.ranks.rank == 0:
                for record in self.records():
                    self.aside(record, "passed")
            return {}
        learner.restore(state)
        if self.ranks.rank == 0:
            terms.copy_(state["terms"])
        say(f"{self.folder}: resuming from step {step}")
        return done

    def room(self, learner: Learner) -> None:
        """Raise UserError if the disk has no room for one more state than are kept, which is needed while a state is written."""
        there = sum(path.stat().st_size for path in self.folder.glob("state-*.safetensors"))
        need = (KEPT + 1) * sum(tensor.nbytes for tensor in learner.state().values()) - there
        free = shutil.disk_usage(self.folder).free
        if free < need:
            line = f"the states of this training need {need} bytes, but {free} bytes are free"
            raise UserError(f"{self.folder}: {line}; free some space, or set MASKDIT_SCRATCH to a folder on a larger disk")

    def due(self) -> bool:
        """Whether it is time to save a state."""
        return time.monotonic() - self.saved > self.pause

    def save(self, learner: Learner, terms: Tensor, done: dict[str, Any], milestone: dict[str, Any] | None) -> None:
        """Save a state and, if its facts are given, a milestone before it; then delete all but the newest states.

        Raises UserError if the disk is full even without the older states; the newest one is always kept. Also if another process
        has taken over the recipe because this one gave no sign of life for long.
        """
        if not self.lock.ours():
            owner = words(owner_of(self.lock.lease))
            raise UserError(f"{self.folder}: {owner} has taken over this training, because this process gave no sign of life")
        began = time.monotonic()
        try:
            self._write(learner, terms, done, milestone)
        except Full:
            self._prune(1)
            try:
                self._write(learner, terms, done, milestone)
            except Full:
                free = f"{shutil.disk_usage(self.folder).free / 1e9:.2f} GB free"
                line = f"the disk is full ({free}); free some space and run the command again to resume from the last state"
                raise UserError(f"{self.folder}: {line}") from None
        self._prune(KEPT)
        self.saved = time.monotonic()
        self.pause = max(self.least, 20 * (self.saved - began))

    def _write(self, learner: Learner, terms: Tensor, done: dict[str, Any], milestone: dict[str, Any] | None) -> None:
        with writing(self.folder):
            if milestone is not None:
                parts = {"ema": (learner.average, milestone), "net": (learner.masters.detach(), milestone)}
                for number, average in enumerate(learner.posthoc):
                    parts[f"posthoc-{number}"] = (average, {**milestone, "sigma_rel": self.config.posthoc_ema[number]})
                for kind, (flat, facts) in parts.items():
                    path = self.folder / milestone_file(kind, milestone["step"])
                    checkpoint.save(path, learner.weights(flat), facts)
                    done.setdefault("kept", {})[path.name] = sha256(path)
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
            if path.stem not in whole:  # the process was killed before it wrote the record
                path.unlink()

    def publish(self, out: Path) -> None:
        """Copy milestones, final weights and log, and write an index of them. Raises UserError if a milestone is damaged."""
        done = checkpoint.facts(self.records()[0].with_suffix(".safetensors"))

        def copy(kind: str, step: int) -> str:
            name = milestone_file(kind, step)
            shutil.copyfile(self.folder / name, out / name)
            if sha256(out / name) != done["kept"][name]:
                raise UserError(f"{self.folder / name}: damaged; remove the folder and train this recipe again")
            return name

        listed, last = [], self.config.milestones[-1]
        for step in self.config.milestones:
            ema = copy("ema", step)
            posthoc = [copy(f"posthoc-{number}", step) for number in range(len(self.config.posthoc_ema))]
            facts = checkpoint.facts(out / ema)
            listed.append({"file": ema, "posthoc": posthoc, **{name: facts[name] for name in ("step", *SPENT)}})
        final = copy("net", last)
        with replacing(out / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in done["rows"] if row["step"] <= last), encoding="utf-8")
        write_json(out / "index.json", {"milestones": listed, "final": final})
