"""TREAD (Krause et al. 2025): in training, some tokens skip a range of blocks and rejoin after it; no decoder is needed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from maskdit.config.training import Training, kept_tokens
from maskdit.methods.contract import Method, State

if TYPE_CHECKING:
    from torch import Tensor

    from maskdit.model.diffusion import Draw, Network
    from maskdit.model.transformer import MaskDiT


class Tread(Method):
    """Routed training."""

    name = "TREAD"
    reads = ("route",)

    @property
    def model(self) -> str:
        """That of the network, which has no route when it samples."""
        return "MaskDiT" if self.decoder else "DiT"

    def misfits(self, config: Training) -> Iterator[str]:
        """The route must end within the encoder, and tokens must stay on their way."""
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
        if not config or not config.route:
            return [kept] * self.encoder["depth"]
        routed = range(config.route.first, config.route.last + 1)
        return [self.stay(config) if block in routed else kept for block in range(self.encoder["depth"])]

    def draws(self, config: Training) -> int:
        """One for each token; the tokens of the smallest pass through every block."""
        return self.tokens

    def network(self, config: Training | None = None) -> "MaskDiT":
        """DiT, or MaskDiT's network where the entry has a decoder."""
        from maskdit.model.transformer import MaskDiT

        net = MaskDiT(**self.architecture)
        if config:
            net.checkpointing, net.route = config.checkpointing, config.route
        return net

    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """EDM's loss over all tokens, and zeros."""
        from maskdit.model.diffusion import loss

        usual = {"patch": self.encoder["patch"], "mae_weight": config.mae_weight, "label_dropout": config.label_dropout}
        return loss(net, x0_BCHW, labels_B, draw, keep=keep, **usual, stay=self.stay(config))

    def exported(self, tensors: State) -> State:
        """All of them."""
        return tensors
