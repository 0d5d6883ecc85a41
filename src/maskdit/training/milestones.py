"""The milestones of a training: which are kept, those of its publication taken over, and their publication."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskdit.artifacts.atomic import replacing, sha256, write_json
from maskdit.artifacts.manifest import read_manifest
from maskdit.artifacts.shards import place
from maskdit.config.base import UserError
from maskdit.config.training import Training, milestone_file
from maskdit.model import checkpoint

SPENT = ("images", "seconds", "device_seconds", "flops")


class Milestones:
    """The milestones in the recipe directory of a training. `kept`: the sha256 of each of their files."""

    def __init__(self, folder: Path, config: Training) -> None:
        self.folder, self.steps, self.widths = folder, config.milestones, len(config.posthoc_ema)
        self.kept: dict[str, str] = {}
        self.rows: dict[int, dict[str, Any]] = {}  # of the published log, by step
        self.precision: str | None = None  # of the published training

    def files(self, step: int) -> list[str]:
        """The files that are published of a milestone: the averages and, of the last one, the raw weights, too."""
        kinds = ["ema", *(f"posthoc-{number}" for number in range(self.widths)), *["net"] * (step == self.steps[-1])]
        return [milestone_file(kind, step) for kind in kinds]

    def missing(self) -> list[int]:
        """The milestones of which a file is missing."""
        return [
            step for step in self.steps if not all(name in self.kept and (self.folder / name).exists() for name in self.files(step))
        ]

    def adopt(self, published: Path) -> None:
        """Take over the milestones of a published training of the same recipe, by a second name of each intact file."""
        manifest = read_manifest(published)
        self.precision = manifest.lineage[manifest.node].config["precision"]
        for name, known in manifest.files.items():
            if name.endswith(".safetensors") and sha256(published / name) == known.sha256:
                (self.folder / name).unlink(missing_ok=True)
                place(published / name, self.folder / name)
                self.kept[name] = known.sha256
        with suppress(OSError, ValueError, KeyError, TypeError):
            rows = map(json.loads, (published / "log.jsonl").read_text(encoding="utf-8").splitlines())
            self.rows = {row["step"]: row for row in rows}

    def publish(self, out: Path, rows: dict[int, dict[str, Any]]) -> None:
        """Put milestones, final weights and log into `out`, and an index of them. Raises UserError if a milestone is damaged."""
        listed, last = [], self.steps[-1]
        for step in self.steps:
            for name in self.files(step):
                place(self.folder / name, out / name)
                if sha256(out / name) != self.kept[name]:
                    raise UserError(f"{self.folder / name}: damaged; remove the folder and train this recipe again")
            ema, *posthoc = self.files(step)[: 1 + self.widths]
            facts = checkpoint.facts(out / ema)
            listed.append({"file": ema, "posthoc": posthoc, **{name: facts[name] for name in ("step", *SPENT)}})
        with replacing(out / "log.jsonl") as temporary:
            whole = {**rows, **self.rows}
            lines = [json.dumps(whole[step]) + "\n" for step in sorted(whole) if step <= last]
            temporary.write_text("".join(lines), encoding="utf-8")
        write_json(out / "index.json", {"milestones": listed, "final": milestone_file("net", last)})
