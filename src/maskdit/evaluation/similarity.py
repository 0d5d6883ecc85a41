"""Structural similarity of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of the Gaussian window
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(one_BHWC: Tensor, other_BHWC: Tensor) -> Tensor:
    """SSIM of each of two batches of uint8 images (B,), each channel by itself (Wang et al. 2004): Gaussian window, no padding."""
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    window = torch.outer(weights, weights)[None, None]

    def blurred(images: Tensor) -> Tensor:
        return F.conv2d(images.flatten(0, 1)[:, None], window)

    x, y = (images.permute(0, 3, 1, 2).double() for images in (one_BHWC, other_BHWC))
    mx, my = blurred(x), blurred(y)
    vx, vy, cov = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    found = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return found.reshape(len(x), -1).mean(1)
