"""MaskDiT (Zheng et al. 2024): most blocks see the kept tokens only, and a small decoder fills in the others."""

from collections.abc import Iterator
from typing import Any

from maskdit.config.training import Training
from maskdit.methods.dit import Dit


class MaskDit(Dit):
    """Masked training; `defer` blocks see all tokens before the mask is applied (MicroDiT, Sehwag et al. 2024)."""

    name = "MaskDiT"
    reads = ("mask_ratio", "defer")
    decodes = True

    def misfits(self, config: Training) -> Iterator[str]:
        """The mask must come before the last block, too."""
        if config.defer >= self.encoder["depth"]:
            yield f"defer: {config.defer} must be less than the encoder's depth of {self.encoder['depth']}"
        yield from super().misfits(config)

    def seen(self, config: Training | None, kept: int) -> list[int]:
        """All tokens in the first blocks, then the kept ones."""
        defer = config.defer if config else 0
        return [self.tokens if block < defer else kept for block in range(self.encoder["depth"])]

    def network(self, config: Training | None = None) -> Any:
        """Encoder, bridge and decoder."""
        net = super().network(config)
        net.defer = config.defer if config else 0
        return net
