"""Training batches: latents in seeded order with all their random draws."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from maskdit.artifacts.arrays import Array
from maskdit.config.training import Training
from maskdit.latents.dataset import Latents
from maskdit.model.diffusion import Draw
from maskdit.runtime.device import upload
from maskdit.runtime.random import generator, order

AHEAD = 2  # batches that are made while one is in use, each by a thread: most of a draw runs without the GIL


@dataclass(frozen=True)
class Batch:
    """Clean latents, labels and the random draws of one step."""

    clean: Tensor  # B, C, H, W
    labels: Tensor  # B
    draw: Draw

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Batch":
        """The samples `start` to `stop` - 1."""
        return self._each(lambda tensor: tensor[start:stop])

    def to(self, where: torch.device) -> "Batch":
        """The batch on a device."""
        return self._each(lambda tensor: upload(tensor, where))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        draw = {name: change(part) for name, part in vars(self.draw).items() if part is not None}
        return Batch(change(self.clean), change(self.labels), Draw(**draw))


def batch_at(step: int, config: Training, latents: Latents, patches: int, rank: int = 0, world: int = 1, extra: int = 0) -> Batch:
    """A rank's share of a step's global batch. Each sample's draws depend only on (seed, step, place in the global batch).

    extra: uniform numbers that the method draws besides the usual ones.
    """
    share = config.batch // world
    first = rank * share
    rows = order(config.seed, len(latents.labels), step * config.batch + first, step * config.batch + first + share)
    shape = (latents.space.channels, latents.space.side, latents.space.side)
    found, posterior, flip = draws(config.seed, step, share, shape, patches, first, extra=extra)
    clean = latents.draw(rows, (flip * latents.mirrors).astype(int), posterior)
    return Batch(torch.from_numpy(clean), torch.from_numpy(latents.labels[rows]), found)


def draws(
    seed: int, step: int, count: int, shape: tuple[int, ...], patches: int, first: int = 0, *, extra: int = 0
) -> tuple[Draw, Array, Array]:
    """Random numbers of a step, see `draw`; and those of its latents: posterior noise (B, C, H, W), uniform numbers (B,)."""
    posterior, noise = np.empty((2, count, *shape), np.float32)
    uniform = np.empty((count, patches + 2), np.float32)  # mask scores, label drop, mirror
    normal = np.empty(count, np.float32)
    for place in range(count):
        source = generator(seed, "step", step, first + place)
        normal[place] = source.standard_normal(dtype=np.float32)
        source.standard_normal(dtype=np.float32, out=posterior[place])
        source.standard_normal(dtype=np.float32, out=noise[place])
        source.random(dtype=np.float32, out=uniform[place])
    parts = [normal, noise, uniform[:, :patches].copy(), uniform[:, patches].copy()]
    if extra:  # from a separate stream, so that all other draws equal those of a training without them
        sources = (generator(seed, "route", step, first + place) for place in range(count))
        parts.append(np.stack([source.random(extra, dtype=np.float32) for source in sources]))
    return Draw(*map(torch.from_numpy, parts)), posterior, uniform[:, -1]


def draw(seed: int, step: int, latent_BCHW: Tensor, patches: int, first: int = 0, *, extra: int = 0) -> Draw:
    """All random numbers of one training step for a batch like `latent_BCHW`, on its device.

    Those of each sample depend only on (seed, step, place in the global batch), and equal those of `maskdit pretrain`; `first` is
    the place of the first one. `patches`: tokens of a latent. `extra`: uniform numbers per image that a method needs besides, as
    many as tokens for TREAD.
    """
    count, *shape = latent_BCHW.shape
    found = vars(draws(seed, step, count, tuple(shape), patches, first, extra=extra)[0])
    return Draw(**{name: upload(part, latent_BCHW.device) for name, part in found.items() if part is not None})


def ahead(make: Callable[[int], Batch], start: int, stop: int) -> Iterator[tuple[Batch, float]]:
    """Batches of the steps `start` to `stop` - 1, of which the next ones are made in threads, with the seconds waited for each."""
    steps = iter(range(start, stop))
    with ThreadPoolExecutor(AHEAD) as pool:
        coming = deque(pool.submit(make, step) for step in islice(steps, AHEAD))
        while coming:
            began = time.perf_counter()
            batch = coming.popleft().result()
            waited = time.perf_counter() - began
            coming.extend(pool.submit(make, step) for step in islice(steps, 1))
            yield batch, waited
