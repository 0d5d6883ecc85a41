"""Masked training in a plain torch loop: any latents (N, C, H, W), here random drawings of two classes, without an autoencoder.

python examples/train_masked.py OUT [STEPS]      # a folder that MaskDiT.from_pretrained opens
"""

import sys

import torch

from maskdit import EMA, MaskDiT, draw, kept_tokens, loss

SIDE, BATCH, MASK_RATIO = 16, 32, 0.5


def drawings(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, side, side) of a bright half, left in class 0 and on top in class 1, scaled to the spread that EDM expects."""
    labels = torch.arange(BATCH) % 2
    height = torch.rand(BATCH, 1, 1, generator=torch.Generator().manual_seed(step)) + 0.5
    half = (torch.arange(SIDE) < SIDE // 2).float()
    flat = torch.where(labels[:, None, None] == 0, half[None, None, :], half[None, :, None])
    return ((flat - 0.5) * height)[:, None].expand(-1, 1, SIDE, SIDE).contiguous(), labels


def main(out: str, steps: int = 200) -> list[float]:
    """Train, print the loss, and save the average of the weights. Returns the mean loss of each step."""
    torch.manual_seed(0)
    encoder, decoder = {"patch": 4, "depth": 2, "width": 64, "heads": 4}, {"depth": 1, "width": 32, "heads": 4}
    net = MaskDiT(side=SIDE, channels=1, classes=2, encoder=encoder, decoder=decoder, class_names=("left", "top"))
    optimizer = torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], lr=1e-3, weight_decay=0.0)
    ema, keep, losses = EMA(net, decay=0.99), kept_tokens(net.tokens, MASK_RATIO), []
    for step in range(steps):
        clean, labels = drawings(step)
        numbers = draw(0, step, clean, net.tokens)  # all that is random; the loss is a function of it
        denoising, reconstruction = loss(
            net, net.scaled(clean), labels, numbers, patch=net.patch, keep=keep, mae_weight=0.1, label_dropout=0.1
        )
        total = (denoising + reconstruction).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        ema.update(net, step)
        losses.append(total.item())
        if step % 50 == 0 or step + 1 == steps:
            print(f"step {step}: loss {losses[-1]:.3f}")
    ema.net.save_pretrained(out)
    return losses


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
