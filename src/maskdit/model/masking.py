"""Patches of a latent and the mask that selects those the encoder sees.

Shapes: B batch, C channels, H height, W width, L patches, K kept patches, D width of a token, P numbers in a patch.
"""

import torch
from torch import Tensor


def patchify(latent_BCHW: Tensor, patch: int) -> Tensor:
    """Cut a latent into patches of patch * patch * C numbers, in (row, column, channel) order, row by row."""
    B, C, H, W = latent_BCHW.shape
    tiles = latent_BCHW.reshape(B, C, H // patch, patch, W // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // patch) * (W // patch), patch * patch * C)


def unpatchify(patches_BLP: Tensor, patch: int, channels: int) -> Tensor:
    """Assemble patches into a square latent; the inverse of `patchify`."""
    B, L, _ = patches_BLP.shape
    side = round(L**0.5)
    tiles = patches_BLP.reshape(B, side, side, patch, patch, channels)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(B, channels, side * patch, side * patch)


def sample_mask(scores_BL: Tensor, keep: int) -> Tensor:
    """Indices (B, K), ascending, of the patches with the `keep` smallest scores. Uniform scores make all subsets equally likely."""
    return scores_BL.argsort(dim=1)[:, :keep].sort(dim=1).values


def masked(kept_BK: Tensor, patches: int) -> Tensor:
    """Mask (B, L) that is true where a patch is hidden."""
    hidden = torch.ones(kept_BK.shape[0], patches, dtype=torch.bool, device=kept_BK.device)
    return hidden.scatter_(1, kept_BK, False)


def gather(tokens_BLD: Tensor, kept_BK: Tensor) -> Tensor:
    """The kept tokens (B, K, D) in the order of the indices."""
    return tokens_BLD.gather(1, kept_BK.unsqueeze(-1).expand(-1, -1, tokens_BLD.shape[-1]))


def restore(tokens_BKD: Tensor, kept_BK: Tensor, patches: int, filler_D: Tensor) -> Tensor:
    """Tokens (B, L, D) at their indices, with the filler elsewhere; the filler broadcasts to (B, L, D)."""
    B, _, D = tokens_BKD.shape
    filled = filler_D.to(tokens_BKD.dtype).expand(B, patches, D)
    return filled.scatter(1, kept_BK.unsqueeze(-1).expand(-1, -1, D), tokens_BKD)
