"""What a training leaves in the scratch folder: its newest state, its milestones, and what is published of them."""

import fcntl
import json
import shutil
import time
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from maskdit import checkpoint
from maskdit.config import Training, UserError
from maskdit.files import replacing, write_json
from maskdit.learner import Learner
from maskdit.runtime import Ranks, say, scratch

SAVE_SECONDS = 60.0  # a state at least so long after the one before, and so that writing takes a twentieth of the time at most


def ema_file(step: int) -> str:
    """Name of a milestone's averaged weights."""
    return f"ema-{step:07d}.safetensors"


def net_file(step: int) -> str:
    """Name of a milestone's raw weights, from which a finetuning starts."""
    return f"net-{step:07d}.safetensors"


def posthoc_file(number: int, step: int) -> str:
    """Name of a milestone's average by a power function, the `number`-th of posthoc_ema."""
    return f"posthoc-{number}-{step:07d}.safetensors"


class Recovery:
    """The folder of one recipe: rank 0 holds it for its group alone; raises UserError if another one trains there."""

    def __init__(self, name: str, config: Training, ranks: Ranks) -> None:
        self.folder, self.config, self.ranks = scratch(name), config, ranks
        self.path = self.folder / "state.safetensors"
        self.saved, self.pause = time.monotonic(), SAVE_SECONDS

    def __enter__(self) -> Self:
        self.lock = (self.folder / "lock").open("w")
        if self.ranks.rank == 0:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.lock.close()
                raise UserError(f"{self.folder}: another process trains this recipe; wait for it or stop it") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()

    def resume(self, learner: Learner, terms: Tensor) -> dict[str, Any]:
        """Restore the newest state, if there is one that serves; returns what was done until then."""
        if not self.path.exists():
            return {}
        state, done = checkpoint.load(self.path)
        step = done["step"]
        lost = [mark for mark in self.config.milestones if mark <= step and not (self.folder / net_file(mark)).exists()]
        if lost:
            say(f"{self.folder}: step {step} is reached, but milestone {lost[0]} was not kept: starting again from step 0")
            return {}
        learner.restore(state)
        if self.ranks.rank == 0:
            terms.copy_(state["terms"])
        say(f"{self.folder}: going on from step {step}")
        return done

    def due(self) -> bool:
        """Whether it is time for a state."""
        return time.monotonic() - self.saved > self.pause

    def save(self, learner: Learner, terms: Tensor, done: dict[str, Any], milestone: dict[str, Any] | None) -> None:
        """Write the state, and before it, at a milestone, its weights with these facts."""
        began = time.monotonic()
        if milestone is not None:
            step = milestone["step"]
            checkpoint.save(self.folder / ema_file(step), learner.weights(learner.average), milestone)
            checkpoint.save(self.folder / net_file(step), learner.weights(learner.masters.detach()), milestone)
            for number, average in enumerate(learner.posthoc):
                facts = {**milestone, "sigma_rel": self.config.posthoc_ema[number]}
                checkpoint.save(self.folder / posthoc_file(number, step), learner.weights(average), facts)
        checkpoint.save(self.path, {"terms": terms, **learner.state()}, done)
        self.saved = time.monotonic()
        self.pause = max(SAVE_SECONDS, 20 * (self.saved - began))

    def publish(self, out: Path) -> None:
        """Copy milestones, final weights and log, with an index that describes them."""
        steps = self.config.milestones
        listed = []
        for step in steps:
            extra = [posthoc_file(number, step) for number in range(len(self.config.posthoc_ema))]
            for name in (ema_file(step), *extra):
                shutil.copyfile(self.folder / name, out / name)
            facts = checkpoint.facts(out / ema_file(step))
            spent = {name: facts[name] for name in ("step", "images", "seconds", "device_seconds", "flops")}
            listed.append({"file": ema_file(step), "posthoc": extra, **spent})
        final = net_file(steps[-1])
        shutil.copyfile(self.folder / final, out / final)
        rows = [row for row in checkpoint.facts(self.path)["rows"] if row["step"] <= steps[-1]]
        with replacing(out / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(out / "index.json", {"milestones": listed, "final": final})
