"""DiT (Peebles and Xie 2023) with EDM's preconditioning and loss: every block sees every token."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from maskdit.config.training import Training
from maskdit.methods.contract import Method, State

if TYPE_CHECKING:
    from torch import Tensor

    from maskdit.model.diffusion import Draw, Network
    from maskdit.model.transformer import MaskDiT


class Dit(Method):
    """The baseline."""

    name = "DiT"

    def misfits(self, config: Training) -> Iterator[str]:
        """A mask needs a decoder."""
        if self.decoder:
            yield f"method: {self.name} has no decoder; set decoder: null"
        if config.mask_ratio:
            yield f"mask_ratio: {config.mask_ratio} needs a decoder, and the network has none (decoder: null)"
        yield from super().misfits(config)

    def seen(self, config: Training | None, kept: int) -> list[int]:
        """All tokens."""
        return [kept] * self.encoder["depth"]

    def network(self, config: Training | None = None) -> "MaskDiT":
        """MaskDiT's network without a decoder."""
        from maskdit.model.transformer import MaskDiT

        net = MaskDiT(**self.architecture)
        net.checkpointing = bool(config and config.checkpointing)
        return net

    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """EDM's loss over all tokens, and zeros."""
        from maskdit.model.diffusion import loss

        usual = {"patch": self.encoder["patch"], "mae_weight": config.mae_weight, "label_dropout": config.label_dropout}
        return loss(net, x0_BCHW, labels_B, draw, keep=keep, **usual)

    def exported(self, tensors: State) -> State:
        """All of them."""
        return tensors
