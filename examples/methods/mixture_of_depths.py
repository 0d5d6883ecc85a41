"""Mixture-of-Depths (Raposo et al. 2024): every second block computes only the tokens that its router picks.

The other tokens pass the block by. The gate of a token lets its router learn. Shapes: B images, L tokens, K picked, D width.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from maskdit.config.training import Training, kept_tokens
from maskdit.methods.contract import MethodOptions
from maskdit.methods.dit import Dit

if TYPE_CHECKING:
    from torch import nn


class MixtureOptions(MethodOptions):
    """What an entry may write below `options:`."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the tokens that pass a routed block by


class Mixture(Dit):
    """DiT's loss and sampler, with another network, in training and in sampling."""

    name = "MoD"
    Options = MixtureOptions

    def picked(self) -> int:
        """Tokens that a routed block computes."""
        return kept_tokens(self.tokens, self.options.ratio)

    def misfits(self, config: Training) -> Any:
        """A ratio may leave nothing to compute."""
        if not self.picked():
            yield f"options.ratio: leaves none of {self.tokens} tokens"
        yield from super().misfits(config)

    def seen(self, config: Training | None, kept: int) -> list[int]:
        """All tokens, then the picked ones, in turn."""
        return [self.picked() if block % 2 else kept for block in range(self.encoder["depth"])]

    def flops(self, config: Training | None, kept: int) -> int:
        """The blocks, and the routers: a product of the width for each token."""
        return super().flops(config, kept) + 2 * self.tokens * self.encoder["width"] * (self.encoder["depth"] // 2)

    def network(self, config: Training | None = None) -> "nn.Module":
        """MaskDiT's network without a decoder, whose blocks are entered in another way."""
        net = routed(self.architecture, self.picked())
        net.checkpointing = bool(config and config.checkpointing)
        return net


def routed(architecture: dict[str, Any], picked: int) -> Any:
    """The network. It is made in a function, so that `maskdit plan` need not wait for torch."""
    import torch
    from torch import Tensor, nn

    from maskdit.model.masking import gather
    from maskdit.model.transformer import MaskDiT

    class Routed(MaskDiT):
        def __init__(self) -> None:
            super().__init__(**architecture)
            width = architecture["encoder"]["width"]
            self.routers = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in self.blocks[1::2])

        def through(self, block: nn.Module, x_BLD: Tensor, condition_BD: Tensor) -> Tensor:
            number = list(self.blocks).index(block)
            if number % 2 == 0:
                return super().through(block, x_BLD, condition_BD)
            scores_BL = self.routers[number // 2](x_BLD).squeeze(-1)
            picked_BK = scores_BL.topk(picked).indices.sort().values
            before_BKD = gather(x_BLD, picked_BK)
            after_BKD = super().through(block, before_BKD, condition_BD)
            gate_BK1 = torch.sigmoid(scores_BL.gather(1, picked_BK)).unsqueeze(-1)
            moved_BKD = before_BKD + gate_BK1 * (after_BKD - before_BKD)
            return x_BLD.scatter(1, picked_BK.unsqueeze(-1).expand_as(before_BKD), moved_BKD.to(x_BLD.dtype))

    return Routed()
