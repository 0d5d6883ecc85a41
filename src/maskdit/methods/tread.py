"""TREAD (Krause et al. 2025): in training, some tokens skip a range of blocks and rejoin after it; no decoder is needed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maskdit.config.training import Training, kept_tokens
from maskdit.methods.dit import Dit

if TYPE_CHECKING:
    from torch import Tensor

    from maskdit.model.diffusion import Draw, Network


class Tread(Dit):
    """Routed training, of MaskDiT's network too if the entry has a decoder."""

    name = "TREAD"
    reads = ("route",)
    decodes = None

    @property
    def model(self) -> str:
        """That of the network, which has no route when it samples."""
        return "MaskDiT" if self.decoder else "DiT"

    def misfits(self, config: Training) -> Iterator[str]:
        """The route must end within the encoder, and tokens must stay on their way, too."""
        depth = self.encoder["depth"]
        if not config.route:
            yield f"method: {self.name} needs a route; add route: {{first: 1, last: {depth - 2}, ratio: 0.5}}"
        elif config.route.last >= depth:
            yield f"route.last: {config.route.last} must be less than the encoder's depth of {depth}"
        elif not self.stay(config):
            yield f"route.ratio: {config.route.ratio} leaves none of {self.tokens} tokens"
        yield from super().misfits(config)

    def stay(self, config: Training) -> int:
        """Number of tokens that skip no block."""
        return kept_tokens(self.tokens, config.route.ratio) if config.route else self.tokens

    def seen(self, config: Training | None, kept: int) -> list[int]:
        """All tokens but for the blocks that some skip."""
        routed = range(config.route.first, config.route.last + 1) if config and config.route else range(0)
        return [self.stay(config) if config and block in routed else kept for block in range(self.encoder["depth"])]

    def draws(self, config: Training) -> int:
        """One for each token; the tokens of the smallest pass through every block."""
        return self.tokens

    def network(self, config: Training | None = None) -> Any:
        """The network with its route."""
        net = super().network(config)
        net.route = config.route if config else None
        return net

    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """EDM's loss over all tokens, and zeros."""
        from maskdit.model.diffusion import loss

        return loss(net, x0_BCHW, labels_B, draw, keep=keep, **self.usual(config), stay=self.stay(config))
