"""Images of chosen classes from chosen noise, as `sample` draws them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maskdit.artifacts.arrays import Array
from maskdit.config.sampling import Sample
from maskdit.latents.dataset import Space
from maskdit.methods.plugins import of_facts
from maskdit.runtime.device import device
from maskdit.runtime.progress import progress
from maskdit.sampling.between import slerp, with_mixtures
from maskdit.sampling.sample import Sampler, starts

BATCH = 16  # as in the demo and in what `maskdit study` writes
LARGE = 5e9  # FLOPs of a pass from which on one image keeps a CPU busy


@dataclass(frozen=True)
class Wish:
    """The image `number` of an entry, with this class; `part`: how far it is on the way to the other end of a strip."""

    label: int
    number: int
    part: float = 0.0


@dataclass(frozen=True)
class End:
    """The other end of a strip: its seed, its class, or both."""

    seed: int | None = None
    label: int | None = None


def usual_batch(facts: dict[str, Any]) -> int:
    """Images at a time, which depends on the network and the device alone: images differ in their last digits with it."""
    method = of_facts(facts)
    return 1 if device().type == "cpu" and method.flops(None, method.tokens) > LARGE else BATCH


def labelled(wishes: Sequence[Wish], end: End, classes: int) -> tuple[Array, list[tuple[int, int, float]]]:
    """The label of each image, and the mixtures of two classes, which have the labels after those of the classes."""
    labels, mixtures = list[int](), dict[tuple[int, int, float], int]()
    for wish in wishes:
        label = wish.label
        if end.label is not None and wish.part:
            mixture = (wish.label, end.label, wish.part)
            label = end.label if wish.part == 1 else mixtures.setdefault(mixture, classes + len(mixtures))
        labels.append(label)
    return np.array(labels), list(mixtures)


def drawn(
    config: Sample, wishes: Sequence[Wish], end: End, tensors: dict[str, Tensor], facts: dict[str, Any], vae: Path
) -> Iterator[Array]:
    """The images (H, W, 3) in order, with a bar. A strip begins and ends with the bits of images that are drawn alone."""
    space = Space.parse(facts["space"])
    numbers, parts = np.array([wish.number for wish in wishes]), [wish.part for wish in wishes]
    labels, mixtures = labelled(wishes, end, len(space.classes))
    if mixtures:
        tensors, facts = with_mixtures(tensors, facts, mixtures)
    sampler = Sampler(config, tensors, facts, vae)
    batches = np.array_split(np.arange(len(wishes)), -(-len(wishes) // config.batch))
    bar, ask = progress(range(total := len(batches) * sampler.nfe), "draw", total), sampler.net

    def counted(*words: Any) -> Tensor:
        next(bar, None)
        return ask(*words)

    sampler.net = counted
    for rows in batches:
        noise = starts(config, space, numbers[rows])[0]
        if end.seed is not None:
            others = starts(config.model_copy(update={"seed": end.seed}), space, numbers[rows])[0]
            noise = np.stack([slerp(noise[place], others[place], parts[row]) for place, row in enumerate(rows)])
        images = sampler.draw(numbers[rows], noise, labels[rows])
        sampler.done()
        yield from images.numpy()
    next(bar, None)
