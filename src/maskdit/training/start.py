"""What a finetuning starts from: a run's weights, or published ones with a label table for other classes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskdit.artifacts.atomic import read_json
from maskdit.config.base import UserError
from maskdit.config.errors import nearest
from maskdit.config.training import Finetune
from maskdit.images.imagenet import CATEGORIES, class_number
from maskdit.latents.dataset import Latents, Space
from maskdit.methods.contract import Method
from maskdit.methods.plugins import of_facts
from maskdit.model import checkpoint
from maskdit.model.transformer import LabelEmbed
from maskdit.runtime.progress import say
from maskdit.training.learner import State
from maskdit.training.milestones import SPENT

TABLE, FINAL = "y_embedder.embedding_table.weight", "final_layer.linear"  # of the label table, (width, classes), and the last layer


@dataclass(frozen=True)
class Past:
    """The start of a phase: weights, their average, and the cost of earlier phases. source: where published weights come from."""

    net: State
    ema: State
    images: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    flops: float = 0.0
    source: dict[str, Any] | None = None

    def identity(self) -> str:
        """sha256 of the weights."""
        total = hashlib.sha256()
        for tensor in (*self.net.values(), *self.ema.values()):
            total.update(tensor.numpy().data)
        return total.hexdigest()


def begun(config: Finetune, data: Latents, latents: Path, run: Path) -> tuple[Method, Past]:
    """The method of a finetuning and what it starts from: the final raw weights of a run and their average.

    A branch starts from the average of a milestone, because raw weights are kept of the last one only.
    Published weights without raw ones start from their average. They get a label table for the classes of the data, see `adapted`;
    what they have cost is unknown and counts as nothing. Raises UserError if the latents are not of the space of the weights.
    """
    index = read_json(run / "index.json", "milestones", "final")
    marks = [mark for mark in index["milestones"] if config.start in ("final", mark["step"])]
    ema, facts = checkpoint.load(run / marks[-1]["file"])
    net = checkpoint.load(run / index["final"])[0] if index["final"] and config.start == "final" else ema
    published, theirs = config.phase == "released", Space.parse(facts["space"])
    if field := differing(data.space, theirs):
        advice = "encode the images at the size and with the autoencoder of the weights" if published else "rerun the pretraining"
        ours, wanted = (getattr(space, field) for space in (data.space, theirs))
        raise UserError(f"{latents}: not the latents that {run} was trained on, whose {field} is {wanted}, not {ours}; {advice}")
    spent: dict[str, Any] = {name: facts[name] or 0 for name in SPENT}
    if not published:
        return of_facts(facts, config), Past(net, ema, **spent)
    architecture = {**facts["architecture"], "classes": len(data.space.classes)}
    architecture.pop("out_channels", None)
    method = of_facts(facts, config, architecture)
    for problem in method.misfits(config):
        raise UserError(f"finetune.{problem}")
    rows = dict(named(config, data.space.classes, facts["architecture"]["classes"]))
    net, ema = (adapted(tensors, architecture, rows, config.seed) for tensors in (net, ema))
    kept = f"{len(rows)} classes start from published ones, {architecture['classes'] - len(rows)} anew"
    say(f"finetune: {facts['model']} of {run}; {kept}")
    return method, Past(net, ema, **spent, source=facts["source"])


def differing(ours: Space, theirs: Space) -> str:
    """The first field in which two spaces of latents differ, apart from their classes; '' if there is none."""
    fields = ("vae", "channels", "side", "scale", "shift")
    return next((name for name in fields if getattr(ours, name) != getattr(theirs, name)), "")


def named(config: Finetune, classes: tuple[str, ...], count: int) -> Iterator[tuple[int, int]]:
    """The classes that start from one of `count` published classes, and that one. Raises UserError if either does not exist."""
    for name, theirs in config.classes.items():
        where = f"finetune.classes.{name}"
        if name not in classes:
            raise UserError(f"{where}: not a class of the images{nearest(name, classes)}")
        if isinstance(theirs, str) and count != CATEGORIES:
            raise UserError(f"{where}: names are those of ImageNet, but the weights have {count} classes; write a number")
        number = class_number(theirs) if isinstance(theirs, str) else theirs
        if number >= count:
            raise UserError(f"{where}: the weights have the classes 0 to {count - 1}, not {number}")
        yield classes.index(name), number


def adapted(tensors: State, architecture: dict[str, Any], rows: dict[int, int], seed: int) -> State:
    """Weights for other classes: a label table as at the start of a training, but for `rows` (class -> published class).

    Of a last layer that also predicts a variance, as DiT's does, the part of the noise is kept. All other tensors stay as they are.
    """
    torch.manual_seed(seed)
    table, old = LabelEmbed(architecture["classes"], len(tensors[TABLE])).embedding_table.weight.detach(), tensors[TABLE]
    for ours, theirs in rows.items():
        table[:, ours] = old[:, theirs]
    channels, places = architecture["channels"], architecture["encoder"]["patch"] ** 2
    last = {name: tensors[name] for name in (f"{FINAL}.weight", f"{FINAL}.bias")}
    noise = {name: tensor.reshape(places, -1, *tensor.shape[1:])[:, :channels].flatten(0, 1) for name, tensor in last.items()}
    return {**tensors, **noise, TABLE: table}
