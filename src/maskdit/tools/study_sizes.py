"""The numbers of a study that depend on its images: how many, held out, batch, steps, samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskdit.artifacts.arrays import Array
from maskdit.config.base import UserError, printable
from maskdit.evaluation.metrics import NEAR
from maskdit.images.check import Opened, kept_at
from maskdit.images.folders import BROKEN, shortened
from maskdit.images.own import demand_most, demand_training, split, without
from maskdit.tools.folder import LEFT_OUT, counted, scanned

USUAL = 940  # training images of the demo, for which its steps were chosen
SHARES = (0.1, 0.15, 0.2)  # held out: the first that takes an image of each class, if it has at least three
SMALL = 500  # images, below which a larger share is worth it
SCALES = (0.25, 4.0)  # steps relative to the demo's
FEWEST = 64  # samples
ROWS = 16  # classes in a grid
SIDE = 32  # positions along one side of a latent, above which the autoencoder of a study gets more levels

Tree = dict[str, Any]


@dataclass(frozen=True)
class Wishes:
    """What the command line sets; None: by the number of images."""

    steps: int | None = None
    batch: int | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Data:
    """The images of a study: its entry of fetch, the label of each, which are held out, and all this in words."""

    entry: Tree
    labels: Array
    heldout: Array
    told: str


def data_of(root: Path, seed: int, choice: str, skip_bad: bool, left_out: float, wish: float | None) -> Data:
    """Open every image below a root and choose what is held out; `wish` is the share, None: by the number of images.

    Raises UserError for damaged images unless they are skipped, and if more are left out than the share `left_out`.
    """
    scan = scanned(root, choice)
    opened = Opened(scan, kept_at(root))
    if opened.bad and not skip_bad:
        told = f"images that cannot be used: {len(opened.bad)} of {len(scan)} ({opened.bad[0]['problem']})"
        raise UserError(f"{root}: {told}; repair them, or leave them out with --skip-bad")
    for fact in opened.bad:
        scan.left.add(BROKEN, fact["name"])
    found = opened.only(scan)
    demand_most(scan.left, len(found), left_out, "--left-out {:g}")
    apart = bool(found.apart.any())
    if apart and wish is not None:
        raise UserError(f"--heldout {wish:g}: {root} says itself which images are held out ({scan.told}); leave the option out")
    share = 0.0 if apart else held_out(found.labels, wish)
    heldout = found.apart if apart else split(found.labels, share, seed)
    demand_training(found, heldout)
    entry: Tree = {"source": "folder", "root": str(root), "bad": "skip" if opened.bad else "fail", "orientation": "apply"}
    entry["images"] = int((~heldout).sum()) if apart else len(found)
    entry |= {"validation": int(heldout.sum())} if apart else {}
    entry |= {"heldout": share, "seed": seed} | ({"classes": choice} if choice != "auto" else {})
    entry |= {"left_out": left_out} if left_out != LEFT_OUT else {}
    lines = [f"{len(found):,} images of {counted(found.classes)} from {root}; {scan.told}"]
    lines += [f"left out: {scan.left.joined()}"] if scan.left.counts else []
    told = f"held out: {heldout.sum():,} images" + (f", {share:g} of each class" if share else "")
    if bare := without(found, heldout):
        told += f"; classes without one: {len(bare)} ({shortened(bare)})"
    return Data(entry, found.labels, heldout, "\n".join(map(printable, [*lines, told])))


def held_out(labels: Array, wish: float | None) -> float:
    """The share to hold out: the wished one, or one of SHARES."""
    if wish is not None:
        if not 0 <= wish < 1:
            raise UserError(f"--heldout {wish:g}: must be a fraction from 0 and below 1")
        return wish
    counts = np.bincount(labels)
    least = int(counts[counts > 2].min(initial=len(labels)))
    if len(labels) >= SMALL:
        return SHARES[0]
    return next((share for share in SHARES if round(share * least)), SHARES[-1])


def power(most: int) -> int:
    """The largest power of two that is at most this."""
    return 2 ** (most.bit_length() - 1)


def rounded(value: float) -> int:
    """A number of steps in two digits, at least 1."""
    digits = max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 0
    return max(1, round(value / 10**digits) * 10**digits)


def scaled(marks: list[int], steps: int) -> dict[int, int]:
    """Milestones in proportion to another last one. Raises UserError if it leaves no step between them."""
    found: list[int] = []
    for mark in marks[:-1]:
        found.append(max(rounded(mark * steps / marks[-1]), found[-1] + 1 if found else 1))
    if steps < 1 or (found and found[-1] >= steps):
        raise UserError(f"--steps {steps}: too few for {len(marks)} milestones; {2 * len(marks)} are enough")
    return dict(zip(marks, [*found, steps], strict=True))


def demand_enough(new: Tree, data: Data, wishes: Wishes) -> None:
    """Raise UserError for too few images, and for numbers of the command line that do not fit."""
    training, held = int((~data.heldout).sum()), int(data.heldout.sum())
    least = 1 + max(NEAR, *(entry["neighbours"] for entry in new["evaluate"].values()))
    if training < least:
        told = f"{training} to train on and {held} held out, where at least {least} are needed to train on"
        raise UserError(f"{data.entry['root']}: {len(data.labels)} images are too few: {told}; add {least - training}")
    if wishes.batch is not None and not 1 <= wishes.batch <= training:
        raise UserError(f"--batch {wishes.batch}: must be from 1 to the {training} training images")
    shown = 1 + max((max(strip["images"]) for strip in new.get("strip", {}).values()), default=0)
    if wishes.samples is not None and wishes.samples < (fewest := max(least, shown)):
        raise UserError(f"--samples {wishes.samples}: at least {fewest} are needed")


def unconditional(new: Tree) -> None:
    """Change a study's entries for images without classes: no label is dropped, and samples are drawn without guidance."""
    for entry in (*new.get("pretrain", {}).values(), *new.get("finetune", {}).values()):
        entry["label_dropout"] = 0.0
    same: dict[str, str] = {}  # a guided sample, and the one that is the same without guidance
    for key, entry in [*new["sample"].items()]:
        plain = {**entry, "guidance": 1.0}
        if entry["guidance"] != 1 and (others := [other for other, known in new["sample"].items() if known == plain]):
            same[key] = others[0]
        new["sample"][key] = plain
    new["sample"] = {key: entry for key, entry in new["sample"].items() if key not in same}
    rekeyed = replaced(new, same)
    new.update(rekeyed)


def deepened(new: Tree, resolution: int) -> None:
    """Give the autoencoders of a study more levels until the side of a latent is at most SIDE."""
    for entry in (entry for entry in new.get("vae", {}).values() if entry["source"] == "train"):
        while resolution >> (len(entry["channels"]) - 1) > SIDE:
            entry["channels"] = [*entry["channels"], entry["channels"][-1]]


def fitted(new: Tree, data: Data, wishes: Wishes) -> str:
    """Change the numbers of a study's entries so that they fit its images, and tell them in words.

    Raises UserError as `demand_enough` does.
    """
    demand_enough(new, data, wishes)
    training, classes = int((~data.heldout).sum()), int(data.labels.max()) + 1
    first, *later = [verb for verb in ("pretrain", "finetune") if new.get(verb)]
    marks = sorted({mark for entry in new[first].values() for mark in entry["milestones"]})
    steps = wishes.steps
    if steps is None:
        steps = rounded(marks[-1] * min(max(math.sqrt(training / USUAL), SCALES[0]), SCALES[1]))
    moved, ratio = scaled(marks, steps), steps / marks[-1]
    for entry in (entry for entry in new.get("vae", {}).values() if entry["source"] == "train"):
        entry |= {"batch": min(entry["batch"], wishes.batch or training, power(training)), "steps": rounded(entry["steps"] * ratio)}
    ends: dict[str, dict[int, int]] = {}  # finetuning -> its milestones, and what they become
    for verb in (first, *later):
        for key, entry in new[verb].items():
            own = moved if verb == first else scaled(entry["milestones"], rounded(entry["milestones"][-1] * ratio))
            ends |= {key: own} if verb != first else {}
            entry["milestones"] = [own[mark] for mark in entry["milestones"]]
            entry["warmup"] = entry["warmup"] and rounded(entry["warmup"] * min(1.0, ratio))
            entry["batch"] = wishes.batch or min(entry["batch"], power(training))
    keys: dict[str, str] = {}
    for key, entry in new.get("finetune", {}).items():
        if entry.get("start") in moved:
            tail, entry["start"] = f"-{entry['start']:04d}", moved[entry["start"]]
            keys |= {key: f"{key.removesuffix(tail)}-{entry['start']:04d}"} if key.endswith(tail) else {}
    for key, entry in new["sample"].items():
        usual = max(min(entry["images"], max(FEWEST, 16 * -(-len(data.labels) // 16))), 2 * classes)
        entry["images"] = wishes.samples or usual
        if entry["phase"] == first and entry["step"] in moved:
            tail = f"{entry['step']:04d}"
            entry["step"] = moved[entry["step"]]
            keys[key] = f"{key.removesuffix(tail)}{entry['step']:04d}" if key.endswith(f"-{tail}") else key
        elif entry["phase"] in later:
            entry["step"] = ends[entry["run"]].get(entry["step"], entry["step"])
    for verb in ("table", "curves", "efficiency", "strip"):
        for choice in (choice for entry in new.get(verb, {}).values() for choice in entry.get("select", ()) if "step" in choice):
            step = choice["step"]
            choice["step"] = [moved.get(each, each) for each in step] if isinstance(step, list) else moved.get(step, step)
    if classes > ROWS:
        for entry in new.get("grid", {}).values():
            entry["classes"] = np.linspace(0, classes - 1, ROWS).astype(int).tolist()
    rekeyed = replaced(new, keys)
    new.clear()
    new.update(rekeyed)
    batch = next(iter(new[first].values()))["batch"]
    last = "".join(f" and {max(entry['milestones'][-1] for entry in new[verb].values()):,} of finetuning" for verb in later)
    count = next(iter(new["sample"].values()))["images"]
    return f"batch {batch}, {steps:,} steps{last}, {count:,} samples of each evaluation"


def replaced(tree: Any, keys: Mapping[str, str]) -> Any:
    """A copy with other keys, as keys and as values."""
    if isinstance(tree, dict):
        return {keys.get(key, key): replaced(value, keys) for key, value in tree.items()}
    if isinstance(tree, list):
        return [replaced(value, keys) for value in tree]
    return keys.get(tree, tree) if isinstance(tree, str) else tree
