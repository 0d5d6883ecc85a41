"""The denoising loss of held-out images at fixed noise levels: the quickest sign of a training's health.

Images, noise and levels are the same whenever it is measured, and in every training on these latents. So unlike the
loss of a batch it has no noise that hides small changes, and it compares models that are trained with different masks.
"""

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, distributed

from maskdit.config.training import HELDOUT_LOSS
from maskdit.latents.dataset import Latents
from maskdit.methods.contract import Method
from maskdit.model.diffusion import P_MEAN, P_STD, SIGMA_DATA
from maskdit.runtime.device import autocast
from maskdit.runtime.process_group import Ranks
from maskdit.runtime.random import generator

LEVELS = 8
SIGMAS = tuple(math.exp(P_MEAN + P_STD * NormalDist().inv_cdf((level + 0.5) / LEVELS)) for level in range(LEVELS))
GROWTH = 1.5  # of the step between two measurements
BATCH = 64  # images at once


def field(sigma: float) -> str:
    """The name of a level in logs, records and tables."""
    return f"{HELDOUT_LOSS}_{sigma:.3f}"


def due(step: int, unit: int) -> bool:
    """Whether the loss is measured after so many steps: at multiples of `unit`, first all, then ever fewer."""
    if step % unit:
        return False
    count = step // unit
    return math.floor(math.log(count, GROWTH)) != math.floor(math.log(count - 1, GROWTH)) if count > 1 else True


class Heldout:
    """Measures the loss of held-out latents with the moving average of a training's weights, without a mask.

    The images are divided among the ranks.
    """

    def __init__(self, method: Method, latents: Latents, precision: str, where: torch.device, ranks: Ranks) -> None:
        self.precision, self.where, self.ranks, self.count = precision, where, ranks, len(latents.labels)
        self.denoise = method.denoise
        self.net = method.network().to(where).eval().requires_grad_(False)
        mine = np.arange(self.count)[ranks.rank :: ranks.world]
        shape = (LEVELS + 1, latents.space.channels, latents.space.side, latents.space.side)
        draws = [generator(0, "heldout", row).standard_normal(shape, dtype=np.float32) for row in mine]
        normal = np.stack(draws) if draws else np.zeros((0, *shape), np.float32)
        clean = latents.draw(mine, np.zeros(len(mine), int), normal[:, -1])
        self.clean, self.noise = torch.from_numpy(clean), torch.from_numpy(normal)
        self.labels = torch.from_numpy(latents.labels[mine])

    @torch.no_grad()
    def loss(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """The mean loss at each level by its name in the log, and their mean. It is EDM's weight times mean((D - x0)^2)."""
        self.net.load_state_dict(weights, assign=True)
        sums = torch.zeros(LEVELS, device=self.where)
        for start in range(0, len(self.clean), BATCH):
            part = slice(start, start + BATCH)
            clean, labels, noise = (tensor[part].to(self.where) for tensor in (self.clean, self.labels, self.noise))
            for level, sigma in enumerate(SIGMAS):
                with autocast(self.where, self.precision):
                    found = self.denoise(
                        self.net, clean + sigma * noise[:, level], torch.full_like(clean[:, 0, 0, 0], sigma), labels
                    )
                weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
                sums[level] += weight * (found - clean).square().flatten(1).mean(1).sum()
        if self.ranks.world > 1:
            distributed.all_reduce(sums)
        values = (sums / self.count).tolist()
        return {HELDOUT_LOSS: sum(values) / LEVELS, **{field(sigma): value for sigma, value in zip(SIGMAS, values, strict=True)}}
