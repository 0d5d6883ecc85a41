"""The batches of a training: latents in their seeded order, and all that is drawn for them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from maskdit.config.training import Training
from maskdit.latents.dataset import Latents
from maskdit.model.diffusion import Draw
from maskdit.runtime.random import generator, order


@dataclass(frozen=True)
class Batch:
    """Clean latents, labels, and everything random that one step does with them."""

    clean: Tensor  # B, C, H, W
    labels: Tensor  # B
    draw: Draw

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Batch":
        """The samples from `start` to `stop`."""
        return self._each(lambda tensor: tensor[start:stop])

    def to(self, where: torch.device) -> "Batch":
        """The batch on a device; to a GPU without waiting for the copy."""
        if where.type == "cpu":
            return self

        def put(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(where, non_blocking=True)

        return self._each(put)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        parts = {field.name: getattr(self.draw, field.name) for field in fields(Draw)}
        draw = {name: change(part) for name, part in parts.items() if part is not None}
        return Batch(change(self.clean), change(self.labels), Draw(**draw))


def batch_at(step: int, config: Training, latents: Latents, patches: int, rank: int = 0, world: int = 1) -> Batch:
    """A rank's share of a step's global batch.

    Each sample, its noise, mask, mirror and dropped label are a function of (seed, step, place in the global batch) alone:
    whatever ran before, and however many ranks share the batch.
    """
    share = config.batch // world
    first = step * config.batch + rank * share
    rows = order(config.seed, len(latents.labels), first, first + share)
    shape = (latents.space.channels, latents.space.side, latents.space.side)
    posterior, noise = np.empty((2, share, *shape), np.float32)
    uniform = np.empty((share, patches + 2), np.float32)  # mask scores, label drop, mirror
    normal = np.empty(share, np.float32)
    for place in range(share):
        source = generator(config.seed, "step", step, rank * share + place)
        normal[place] = source.standard_normal(dtype=np.float32)
        source.standard_normal(dtype=np.float32, out=posterior[place])
        source.standard_normal(dtype=np.float32, out=noise[place])
        source.random(dtype=np.float32, out=uniform[place])
    mirrors = (uniform[:, -1] * latents.mirrors).astype(int)
    clean = latents.draw(rows, mirrors, posterior)
    parts = [normal, noise, uniform[:, :patches].copy(), uniform[:, patches].copy()]
    if config.route:  # by draws of its own: noise and dropped labels are those of a training that routes nothing
        sources = (generator(config.seed, "route", step, rank * share + place) for place in range(share))
        parts.append(np.stack([source.random(patches, dtype=np.float32) for source in sources]))
    draw = Draw(*map(torch.from_numpy, parts))
    return Batch(torch.from_numpy(clean), torch.from_numpy(latents.labels[rows]), draw)


def ahead(make: Callable[[int], Batch], start: int, stop: int) -> Iterator[tuple[Batch, float]]:
    """The batches of the steps from `start` to `stop`, each made while the one before is used, and the seconds waited for it."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, start)
        for step in range(start, stop):
            began = time.perf_counter()
            batch = coming.result()
            waited = time.perf_counter() - began
            if step + 1 < stop:
                coming = pool.submit(make, step + 1)
            yield batch, waited
