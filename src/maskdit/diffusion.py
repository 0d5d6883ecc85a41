"""Preconditioning, loss, sampler and guidance of EDM (Karras et al. 2022) and MaskDiT: formulas only.

Symbols: x0 clean latent, y = x0 + sigma * eps noisy latent, D denoiser, F raw network.
Shapes: B batch, C channels, H height, W width, L patches, K kept patches, P numbers in a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from maskdit.masking import masked, patchify, sample_mask

SIGMA_DATA = 0.5
P_MEAN, P_STD = -1.2, 1.2
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Draw:
    """All the randomness of one training step: the loss is a deterministic function of it."""

    normal_B: Tensor  # ln sigma before scaling
    noise_BCHW: Tensor
    scores_BL: Tensor  # uniform; the smallest are kept
    drop_B: Tensor  # uniform; below the rate the label is dropped

    def sigma(self) -> Tensor:
        """Noise levels (B,): ln sigma ~ N(-1.2, 1.2^2), EDM table 1."""
        return (self.normal_B * P_STD + P_MEAN).exp()


def denoise(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor, kept_BK: Tensor | None = None) -> Tensor:
    """D(y; sigma) = c_skip * y + c_out * F(c_in * y; c_noise), EDM eq. 7; the network computes in its own precision.

    `labels_B` holds class numbers; -1 is the null label. `kept_BK` are the patches that the encoder sees (None: all).
    """
    sigma = sigma_B.reshape(-1, 1, 1, 1)
    total = sigma**2 + SIGMA_DATA**2
    c_skip, c_out, c_in = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt()
    c_noise = sigma_B.log() / 4
    raw = net(c_in * y_BCHW, c_noise, labels_B, kept_BK)
    return c_skip * y_BCHW + c_out * raw.to(y_BCHW.dtype)


def loss(
    net: Network,
    x0_BCHW: Tensor,
    labels_B: Tensor,
    draw: Draw,
    *,
    patch: int,
    keep: int,
    mae_weight: float,
    label_dropout: float,
) -> tuple[Tensor, Tensor]:
    """The two terms of MaskDiT's loss per sample, (B,) each: their sum is what is minimised.

    DSM: mean over the kept patches of (sigma^2 + 0.25) / (0.5 sigma)^2 * mean((D - x0)^2).
    MAE: mae_weight * mean over the hidden patches of mean((D - normalised noisy patch)^2), each patch of y normalised by its
    own mean and unbiased variance. With nothing hidden it is 0 and the loss is EDM's.
    """
    sigma_B = draw.sigma()
    y = x0_BCHW + sigma_B.reshape(-1, 1, 1, 1) * draw.noise_BCHW
    labels_B = torch.where(draw.drop_B < label_dropout, -1, labels_B)
    patches = draw.scores_BL.shape[1]
    kept = sample_mask(draw.scores_BL, keep) if keep < patches else None
    D = patchify(denoise(net, y, sigma_B, labels_B, kept), patch)

    weight_B = (sigma_B**2 + SIGMA_DATA**2) / (sigma_B * SIGMA_DATA) ** 2
    error_BL = (D - patchify(x0_BCHW, patch)).square().mean(-1)
    if kept is None:
        return weight_B * error_BL.mean(1), torch.zeros_like(sigma_B)
    hidden_BL = masked(kept, patches)
    dsm = weight_B * (error_BL * ~hidden_BL).sum(1) / keep
    noisy = patchify(y, patch)
    target = (noisy - noisy.mean(-1, keepdim=True)) / (noisy.var(-1, keepdim=True) + 1e-6).sqrt()
    mae = ((D - target).square().mean(-1) * hidden_BL).sum(1) / (patches - keep)
    return dsm, mae_weight * mae


def guided(net: Network, labels_B: Tensor, guidance: float) -> Denoiser:
    """Classifier-free guidance on all channels: D_null + w * (D_label - D_null); w = 1 asks the network once."""
    if guidance == 1:
        return lambda y, sigma: denoise(net, y, sigma, labels_B)

    def both(y: Tensor, sigma: Tensor) -> Tensor:
        labels = torch.cat([labels_B, torch.full_like(labels_B, -1)])
        given, null = denoise(net, torch.cat([y, y]), torch.cat([sigma, sigma]), labels).chunk(2)
        return null + guidance * (given - null)

    return both


def sigma_steps(steps: int) -> Tensor:
    """Noise levels (steps + 1,) in float64 from 80 to 0.002 and then 0, EDM eq. 5 with rho 7."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return torch.cat([(high + ramp * (low - high)) ** RHO, torch.zeros(1, dtype=torch.float64)])


def heun(denoiser: Denoiser, noise_BCHW: Tensor, steps: int) -> Tensor:
    """Integrate dy/dsigma = (y - D(y; sigma)) / sigma from sigma 80 to 0 by Heun's method, EDM algorithm 1, state in float64.

    `noise_BCHW` is standard normal. The last step is Euler's, so the denoiser is asked 2 * steps - 1 times.
    """
    sigmas = sigma_steps(steps).to(noise_BCHW.device)
    y = noise_BCHW.double() * sigmas[0]

    def slope(at: Tensor, sigma: Tensor) -> Tensor:
        return (at - denoiser(at, sigma.expand(len(at))).double()) / sigma

    for now, following in pairwise(sigmas):
        first = slope(y, now)
        euler = y + (following - now) * first
        y = euler if following == 0 else y + (following - now) * (first + slope(euler, following)) / 2
    return y
