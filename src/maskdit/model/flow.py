"""Flow matching on the linear path x_t = (1 - t) x0 + t eps (Lipman et al. 2023; SiT, Ma et al. 2024). Formulas only.

The network predicts the velocity v = E[eps - x0 | x_t]. With y = x_t / (1 - t) and sigma = t / (1 - t) the path is EDM's
y = x0 + sigma * eps, and x_t - t * v is its denoiser D(y; sigma) exactly.
"""

from typing import Literal

import torch
from torch import Tensor

from maskdit.model.diffusion import Draw, Network, reconstruction
from maskdit.model.masking import masked, patchify, sample_mask

TIMESTEPS = 1000  # the network is told 1000 t, so that its embedding has the range of DiT's timesteps


def times(normal_B: Tensor, sampling: Literal["uniform", "logit-normal"]) -> Tensor:
    """T (B,) in [0, 1] from standard normal numbers: uniform as in SiT, or the sigmoid of them (Esser et al. 2024)."""
    return torch.special.ndtr(normal_B) if sampling == "uniform" else normal_B.sigmoid()


def velocity(net: Network, x_BCHW: Tensor, t_B: Tensor, labels_B: Tensor, *hidden: Tensor | None) -> Tensor:
    """v(x_t, t); the network computes in its own precision. `hidden`: see `diffusion.denoise`."""
    return net(x_BCHW, TIMESTEPS * t_B, labels_B, *(hidden or (None,))).to(x_BCHW.dtype)


def denoise_flow(net: Network, y_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
    """D(y; sigma) = x_t - t * v with t = sigma / (1 + sigma) and x_t = y / (1 + sigma)."""
    t_B = sigma_B / (1 + sigma_B)
    x = y_BCHW / (1 + sigma_B).reshape(-1, 1, 1, 1)
    return x - t_B.reshape(-1, 1, 1, 1) * velocity(net, x, t_B, labels_B)


def loss_flow(
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
    sampling: Literal["uniform", "logit-normal"] = "uniform",
) -> tuple[Tensor, Tensor]:
    """The two terms per sample, (B,) each: mean((v - (eps - x0))^2) over the kept patches (or all), and MaskDiT's second term.

    The second is mae_weight * `diffusion.reconstruction` of the hidden patches by D = x_t - t * v; 0 if nothing is hidden.
    """
    t_B = times(draw.normal_B, sampling)
    t = t_B.reshape(-1, 1, 1, 1)
    x = (1 - t) * x0_BCHW + t * draw.noise_BCHW
    labels_B = torch.where(draw.drop_B < label_dropout, -1, labels_B)
    patches = draw.scores_BL.shape[1]
    kept = sample_mask(draw.scores_BL, keep) if keep < patches else None
    v = velocity(net, x, t_B, labels_B, kept)
    error_BL = patchify(v - (draw.noise_BCHW - x0_BCHW), patch).square().mean(-1)
    if kept is None:
        return error_BL.mean(1), torch.zeros_like(t_B)
    hidden_BL = masked(kept, patches)
    matching = error_BL.mean(1) if dsm == "all" else (error_BL * ~hidden_BL).sum(1) / keep
    return matching, mae_weight * reconstruction(patchify(x - t * v, patch), patchify(x, patch), hidden_BL, patches - keep)
