"""MaskDiT (Zheng et al. 2024): most blocks see the kept tokens only, and a small decoder fills in the others."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from maskdit.config.training import Training
from maskdit.methods.contract import Method, State

if TYPE_CHECKING:
    from torch import Tensor

    from maskdit.model import transformer
    from maskdit.model.diffusion import Draw, Network


class MaskDit(Method):
    """Masked training; `defer` blocks see all tokens before the mask is applied (MicroDiT, Sehwag et al. 2024)."""

    name = "MaskDiT"
    reads = ("mask_ratio", "defer")

    def misfits(self, config: Training) -> Iterator[str]:
        """The mask must leave tokens, and come before the last block."""
        depth = self.encoder["depth"]
        if not self.decoder:
            yield f"method: {self.name} needs a decoder, and the network has none (decoder: null)"
        if config.defer >= depth:
            yield f"defer: {config.defer} must be less than the encoder's depth of {depth}"
        yield from super().misfits(config)

    def seen(self, config: Training | None, kept: int) -> list[int]:
        """All tokens in the first blocks, then the kept ones."""
        defer = config.defer if config else 0
        return [self.tokens if block < defer else kept for block in range(self.encoder["depth"])]

    def network(self, config: Training | None = None) -> "transformer.MaskDiT":
        """Encoder, bridge and decoder."""
        from maskdit.model.transformer import MaskDiT

        net = MaskDiT(**self.architecture)
        if config:
            net.checkpointing, net.defer = config.checkpointing, config.defer
        return net

    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """EDM's loss over the kept tokens, and the reconstruction of the hidden ones."""
        from maskdit.model.diffusion import loss

        usual = {"patch": self.encoder["patch"], "mae_weight": config.mae_weight, "label_dropout": config.label_dropout}
        return loss(net, x0_BCHW, labels_B, draw, keep=keep, **usual, dsm=config.dsm)

    def exported(self, tensors: State) -> State:
        """All of them."""
        return tensors
