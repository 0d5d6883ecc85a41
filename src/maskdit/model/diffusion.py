"""Preconditioning, loss and guidance of EDM (Karras et al. 2022), MaskDiT and DiT. Formulas only.

Symbols: x0 clean latent, y = x0 + sigma * eps noisy latent, D denoiser, F raw network.
The released DiT is a VP model (Ho et al. 2020) with signal level abar_t, so sigma_t^2 = (1 - abar_t) / abar_t.
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

VP_STEPS, VP_BETA_MIN, VP_BETA_MAX = 1000, 1e-4, 0.02

Network = Callable[..., Tensor]  # (latents, noise levels, labels, kept tokens)
Ask = Callable[[Network, Tensor, Tensor, Tensor], Tensor]  # (network, y, sigma, labels) to D or another prediction
Denoiser = Callable[[Tensor, Tensor], Tensor]  # (y, sigma) to D, with labels and guidance already applied


@dataclass(frozen=True)
class Draw:
    """All random numbers of one training step; given them, the loss is deterministic."""

    normal_B: Tensor  # standard normal, for ln sigma
    noise_BCHW: Tensor  # standard normal
    scores_BL: Tensor  # uniform; the smallest are kept
    drop_B: Tensor  # uniform; the label is dropped if it is below the dropout rate
    extra_BN: Tensor | None = None  # uniform; as many as the method asks for, as TREAD does for its route


def denoise(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor, *hidden: Tensor | None) -> Tensor:
    """D(y; sigma) = c_skip * y + c_out * F(c_in * y; c_noise), EDM eq. 7; the network computes in its own precision.

    In `labels_B`, -1 is the null label. `hidden` holds the network's `kept_BK` and `stay_BK` (default: nothing is hidden).
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
    """The two terms of MaskDiT's loss per sample, (B,) each; their sum is minimised. ln sigma ~ N(-1.2, 1.2^2), EDM table 1.

    DSM: mean over the kept patches (or over all) of (sigma^2 + 0.25) / (0.5 sigma)^2 * mean((D - x0)^2).
    MAE: mae_weight * mean over the hidden patches of mean((D - target)^2), with each noisy patch normalised by its own mean and
    unbiased variance as target; 0 if nothing is hidden, so that the loss is EDM's. `stay`: number of tokens that skip no block.
    """
    sigma_B = (draw.normal_B * P_STD + P_MEAN).exp()
    y = x0_BCHW + sigma_B.reshape(-1, 1, 1, 1) * draw.noise_BCHW
    labels_B = torch.where(draw.drop_B < label_dropout, -1, labels_B)
    patches = draw.scores_BL.shape[1]
    kept = sample_mask(draw.scores_BL, keep) if keep < patches else None
    hidden = [kept]
    if stay is not None:
        assert draw.extra_BN is not None
        hidden.append(sample_mask(draw.extra_BN, stay))
    D = patchify(denoise(net, y, sigma_B, labels_B, *hidden), patch)

    weight_B = (sigma_B**2 + SIGMA_DATA**2) / (sigma_B * SIGMA_DATA) ** 2
    error_BL = (D - patchify(x0_BCHW, patch)).square().mean(-1)
    if kept is None:
        return weight_B * error_BL.mean(1), torch.zeros_like(sigma_B)
    hidden_BL = masked(kept, patches)
    denoising = weight_B * (error_BL.mean(1) if dsm == "all" else (error_BL * ~hidden_BL).sum(1) / keep)
    return denoising, mae_weight * reconstruction(D, patchify(y, patch), hidden_BL, patches - keep)


def reconstruction(D_BLP: Tensor, noisy_BLP: Tensor, hidden_BL: Tensor, count: int) -> Tensor:
    """MaskDiT's second term (B,): the mean over the `count` hidden patches of mean((D - target)^2), for the target see `loss`."""
    target = (noisy_BLP - noisy_BLP.mean(-1, keepdim=True)) / (noisy_BLP.var(-1, keepdim=True) + 1e-6).sqrt()
    return ((D_BLP - target).square().mean(-1) * hidden_BL).sum(1) / count


def vp_sigmas() -> Tensor:
    """sigma_t of the timesteps 0 to 999 in float64: about 0.01 to 157 (linear betas, Ho et al. 2020)."""
    betas = torch.linspace(VP_BETA_MIN, VP_BETA_MAX, VP_STEPS, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    return ((1 - abar) / abar).sqrt()


def timestep(sigma_B: Tensor) -> Tensor:
    """The timestep (B,) in [0, 999] of each noise level, interpolated in ln sigma."""
    grid, log_B = vp_sigmas().to(sigma_B.device, non_blocking=True).log(), sigma_B.double().log()
    above_B = torch.searchsorted(grid, log_B).clamp(1, VP_STEPS - 1)
    low_B, high_B = grid[above_B - 1], grid[above_B]
    return (above_B - 1 + (log_B - low_B) / (high_B - low_B)).clamp(0, VP_STEPS - 1)


def predict_vp(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor, *hidden: Tensor | None) -> Tensor:
    """Full output of a VP network: eps (B, C, H, W), or (B, 2 C, H, W) if it also predicts a variance. `hidden`: see `denoise`."""
    c_in = 1 / (sigma_B.reshape(-1, 1, 1, 1) ** 2 + 1).sqrt()
    return net((c_in * y_BCHW).float(), timestep(sigma_B).float(), labels_B, *(hidden or (None,)))


def denoise_vp(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
    """D(y; sigma) = y - sigma * eps for a network that predicts eps: EDM table 1, column VP, with DiT's discrete timesteps."""
    eps = predict_vp(net, y_BCHW, sigma_B, labels_B)[:, : y_BCHW.shape[1]]
    return y_BCHW - sigma_B.reshape(-1, 1, 1, 1) * eps.to(y_BCHW.dtype)


def loss_vp(
    net: Network, x0_BCHW: Tensor, labels_B: Tensor, draw: Draw, *, keep: int, label_dropout: float, stay: int | None = None
) -> tuple[Tensor, Tensor]:
    """The simple loss of Ho et al. (eq. 14) per sample, mean((eps_net - eps)^2) at a uniform timestep, and zeros.

    DiT's further term, which trains its variance alone, is left out. `keep` must be all patches, because DiT has no decoder.
    `stay`: number of tokens that skip no block.
    """
    assert keep == draw.scores_BL.shape[1]
    step_B = (torch.special.ndtr(draw.normal_B) * VP_STEPS).long().clamp(max=VP_STEPS - 1)
    sigma_B = vp_sigmas().to(x0_BCHW.device, non_blocking=True)[step_B].to(x0_BCHW.dtype)
    y = x0_BCHW + sigma_B.reshape(-1, 1, 1, 1) * draw.noise_BCHW
    labels_B = torch.where(draw.drop_B < label_dropout, -1, labels_B)
    hidden = [None, *([sample_mask(draw.extra_BN, stay)] if stay is not None and draw.extra_BN is not None else [])]
    eps = predict_vp(net, y, sigma_B, labels_B, *hidden)
    return (eps.to(y.dtype) - draw.noise_BCHW).square().flatten(1).mean(1), torch.zeros_like(sigma_B)


def guided(
    net: Network,
    labels_B: Tensor,
    guidance: float,
    *,
    ask: Ask = denoise,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """Classifier-free guidance of what `ask` predicts: D_null + w * (D_label - D_null). With w = 1 only D_label is evaluated.

    Only the first `channels` are guided (None: all); the others are those of D_label. DiT guides three of its four channels.
    With an `interval`, guidance applies only where low < sigma <= high (Kynkäänniemi et al. 2024).
    """

    def denoiser(y: Tensor, sigma: Tensor) -> Tensor:
        # all images of a solver step share one sigma
        if guidance == 1 or (interval and not interval[0] < sigma[0] <= interval[1]):
            return ask(net, y, sigma, labels_B)
        labels = torch.cat([labels_B, torch.full_like(labels_B, -1)])
        given, null = ask(net, torch.cat([y, y]), torch.cat([sigma, sigma]), labels).chunk(2)
        mixed = null + guidance * (given - null)
        return mixed if channels is None else torch.cat([mixed[:, :channels], given[:, channels:]], dim=1)

    return denoiser
