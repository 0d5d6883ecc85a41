"""Averages of weights: the usual EMA, and the power-function EMA with its post-hoc reconstruction of other widths.

The second is by Karras et al. 2024, section 3 and appendix C.

At step t, the average of width sigma_rel gives the weights of step s the factor (gamma + 1) s^gamma / t^(gamma + 1).
"""

from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def warmed(decay: float, step: int, warmup: int) -> float:
    """Decay of the usual EMA at a step, counted from 0: min(decay, (step + 1) / (step + warmup))."""
    return min(decay, (step + 1) / (step + warmup))


class EMA:
    """The moving average of a network's weights: `net`, a copy in evaluation mode, for sampling."""

    def __init__(self, net: nn.Module, decay: float = 0.9999, warmup: int = 10) -> None:
        self.net = deepcopy(net).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Average the weights of `net` after a step, counted from 0: with the rate that `maskdit pretrain` takes."""
        part = 1 - warmed(self.decay, step, self.warmup)
        known = dict(net.named_parameters())
        for name, average in self.net.named_parameters():
            if known[name].requires_grad:
                average.lerp_(known[name].to(average), part)


def exponent(sigma_rel: float) -> float:
    """Gamma of a relative width: the root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), eq. 3 of the paper."""
    square = sigma_rel**-2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def decay(sigma_rel: float, step: int) -> float:
    """Decay of the average at step t, counted from 1: (1 - 1/t)^(gamma + 1)."""
    return (1 - 1 / step) ** (exponent(sigma_rel) + 1)


def product(gamma_a: float, step_a: float, gamma_b: float, step_b: float) -> float:
    """Inner product of the profiles of two averages over training time."""
    until = min(step_a, step_b)
    scaled = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scaled * (until / step_a) ** gamma_a * (until / step_b) ** gamma_b * until / (step_a * step_b)


def combination(kept: list[tuple[float, int]], sigma_rel: float, step: int) -> NDArray[np.floating]:
    """Factors of the stored averages (sigma_rel, step) whose weighted sum is the least-squares fit of the wanted average."""
    gammas = [(exponent(width), float(at)) for width, at in kept]
    target = (exponent(sigma_rel), float(step))
    matrix = [[product(*one, *other) for other in gammas] for one in gammas]
    return np.linalg.solve(matrix, [product(*one, *target) for one in gammas])
