"""Preconditioning, loss, samplers and guidance of EDM (Karras et al. 2022), MaskDiT and DiT: formulas only.

Symbols: x0 clean latent, y = x0 + sigma * eps noisy latent, D denoiser, F raw network.
The released DiT is a VP model (Ho et al. 2020): abar_t is its share of signal, so that sigma_t^2 = (1 - abar_t) / abar_t.
Shapes: B batch, C channels, H height, W width, L patches, K kept patches, P numbers in a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskdit.model.masking import masked, patchify, sample_mask

SIGMA_DATA = 0.5
P_MEAN, P_STD = -1.2, 1.2

VP_STEPS = 1000
VP_BETA_MIN, VP_BETA_MAX = 1e-4, 0.02

Network = Callable[..., Tensor]  # of latents, noise levels, labels, and what is hidden
Ask = Callable[[Network, Tensor, Tensor, Tensor], Tensor]  # of a network: y, sigma and labels to D, or to what else it predicts
Denoiser = Callable[[Tensor, Tensor], Tensor]  # y and sigma, labels and guidance inside


@dataclass(frozen=True)
class Draw:
    """All the randomness of one training step: the loss is a deterministic function of it."""

    normal_B: Tensor  # ln sigma before scaling
    noise_BCHW: Tensor
    scores_BL: Tensor  # uniform; the smallest are kept
    drop_B: Tensor  # uniform; below the rate the label is dropped
    routes_BL: Tensor | None = None  # uniform; the smallest stay on the whole way, where tokens are routed

    def sigma(self) -> Tensor:
        """Noise levels (B,): ln sigma ~ N(-1.2, 1.2^2), EDM table 1."""
        return (self.normal_B * P_STD + P_MEAN).exp()


def denoise(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor, *hidden: Tensor | None) -> Tensor:
    """D(y; sigma) = c_skip * y + c_out * F(c_in * y; c_noise), EDM eq. 7; the network computes in its own precision.

    `labels_B` holds class numbers; -1 is the null label. `hidden` says which patches the encoder sees (none: all).
    """
    sigma = sigma_B.reshape(-1, 1, 1, 1)
    total = sigma**2 + SIGMA_DATA**2
    c_skip, c_out, c_in = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt()
    c_noise = sigma_B.log() / 4
    raw = net(c_in * y_BCHW, c_noise, labels_B, *(hidden or (None,)))
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
    dsm: Literal["kept", "all"] = "kept",
    stay: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The two terms of MaskDiT's loss per sample, (B,) each: their sum is what is minimised.

    DSM: mean over the kept patches (or over all) of (sigma^2 + 0.25) / (0.5 sigma)^2 * mean((D - x0)^2).
    MAE: mae_weight * mean over the hidden patches of mean((D - normalised noisy patch)^2), each patch of y normalised by its
    own mean and unbiased variance. With nothing hidden it is 0 and the loss is EDM's. `stay`: how many tokens skip no block.
    """
    sigma_B = draw.sigma()
    y = x0_BCHW + sigma_B.reshape(-1, 1, 1, 1) * draw.noise_BCHW
    labels_B = torch.where(draw.drop_B < label_dropout, -1, labels_B)
    patches = draw.scores_BL.shape[1]
    kept = sample_mask(draw.scores_BL, keep) if keep < patches else None
    hidden = [kept]
    if stay is not None:
        assert draw.routes_BL is not None
        hidden.append(sample_mask(draw.routes_BL, stay))
    D = patchify(denoise(net, y, sigma_B, labels_B, *hidden), patch)

    weight_B = (sigma_B**2 + SIGMA_DATA**2) / (sigma_B * SIGMA_DATA) ** 2
    error_BL = (D - patchify(x0_BCHW, patch)).square().mean(-1)
    if kept is None:
        return weight_B * error_BL.mean(1), torch.zeros_like(sigma_B)
    hidden_BL = masked(kept, patches)
    denoising = weight_B * (error_BL.mean(1) if dsm == "all" else (error_BL * ~hidden_BL).sum(1) / keep)
    noisy = patchify(y, patch)
    target = (noisy - noisy.mean(-1, keepdim=True)) / (noisy.var(-1, keepdim=True) + 1e-6).sqrt()
    mae = ((D - target).square().mean(-1) * hidden_BL).sum(1) / (patches - keep)
    return denoising, mae_weight * mae


def vp_sigmas() -> Tensor:
    """sigma_t of the timesteps 0 to 999, in float64: about 0.01 to 157 (linear betas, Ho et al. 2020)."""
    betas = torch.linspace(VP_BETA_MIN, VP_BETA_MAX, VP_STEPS, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    return ((1 - abar) / abar).sqrt()


def timestep(sigma_B: Tensor) -> Tensor:
    """The timestep (B,) whose noise level is sigma, between two of them interpolated in ln sigma; at most 999, at least 0."""
    grid, log_B = vp_sigmas().to(sigma_B.device).log(), sigma_B.double().log()
    above_B = torch.searchsorted(grid, log_B).clamp(1, VP_STEPS - 1)
    low_B, high_B = grid[above_B - 1], grid[above_B]
    return (above_B - 1 + (log_B - low_B) / (high_B - low_B)).clamp(0, VP_STEPS - 1)


def predict_vp(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
    """All that a VP network says of y: eps, and for a learned variance as many channels again, (B, 2 C, H, W)."""
    c_in = 1 / (sigma_B.reshape(-1, 1, 1, 1) ** 2 + 1).sqrt()
    return net((c_in * y_BCHW).float(), timestep(sigma_B).float(), labels_B, None)


def denoise_vp(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
    """D(y; sigma) = y - sigma * eps of a network that predicts eps: EDM table 1, column VP, with DiT's discrete timesteps."""
    eps = predict_vp(net, y_BCHW, sigma_B, labels_B)[:, : y_BCHW.shape[1]]
    return y_BCHW - sigma_B.reshape(-1, 1, 1, 1) * eps.to(y_BCHW.dtype)


def guided(
    net: Network,
    labels_B: Tensor,
    guidance: float,
    *,
    ask: Ask = denoise,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """Classifier-free guidance: D_null + w * (D_label - D_null), for whatever `ask` predicts; w = 1 asks with the label only.

    Only the first `channels` are guided (None: all), the others are as the label has them: DiT guides three of its four.
    Only sigmas with low < sigma <= high of `interval` are (Kynkäänniemi et al. 2024); elsewhere the label alone is asked.
    """

    def denoiser(y: Tensor, sigma: Tensor) -> Tensor:
        # all images of a solver's step have one sigma
        if guidance == 1 or (interval and not interval[0] < sigma[0] <= interval[1]):
            return ask(net, y, sigma, labels_B)
        labels = torch.cat([labels_B, torch.full_like(labels_B, -1)])
        given, null = ask(net, torch.cat([y, y]), torch.cat([sigma, sigma]), labels).chunk(2)
        mixed = null + guidance * (given - null)
        return mixed if channels is None else torch.cat([mixed[:, :channels], given[:, channels:]], dim=1)

    return denoiser
