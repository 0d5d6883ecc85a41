"""DiT (Peebles and Xie 2023) with EDM's preconditioning and loss: every block sees every token. All other arms begin from it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from maskdit.config.sampling import Sample
from maskdit.config.training import Training, kept_tokens
from maskdit.methods.contract import Block, Method, State
from maskdit.model.flops import forward

if TYPE_CHECKING:
    from torch import Tensor

    from maskdit.artifacts.arrays import Array
    from maskdit.model.diffusion import Draw, Network


class Dit(Method):
    """The baseline. `reads`: which of mask_ratio, defer and route it knows. `decodes`: whether it needs a decoder; None: either."""

    name = "DiT"
    reads: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool | None] = False

    def misfits(self, config: Training) -> Iterator[str]:
        """A decoder that is missing or has no use, and fields of the entry that the method does not know."""
        if self.decodes and not self.decoder:
            yield f"method: {self.name} needs a decoder, and the network has none (decoder: null)"
        if self.decodes is False and self.decoder:
            yield f"method: {self.name} has no decoder; set decoder: null"
        if not kept_tokens(self.tokens, config.mask_ratio):
            yield f"mask_ratio: {config.mask_ratio} keeps none of {self.tokens} tokens"
        if config.mask_ratio and "mask_ratio" not in self.reads and not self.decoder:
            yield f"mask_ratio: {config.mask_ratio} needs a decoder, and the network has none (decoder: null)"
        for field in ("mask_ratio", "defer", "route"):
            if getattr(config, field) and field not in self.reads:
                yield f"{field}: has no effect with {self.name}; leave it out, or set it to 0"

    def kept(self, config: Training, step: int) -> int:
        """As many as the mask ratio of the step says."""
        return kept_tokens(self.tokens, config.mask_at(step))

    def seen(self, config: Training | None, kept: int) -> list[int]:
        """Tokens that each block of the encoder sees: in training with `kept` tokens, or without a config in sampling."""
        return [kept] * self.encoder["depth"]

    def flops(self, config: Training | None, kept: int) -> int:
        """By the tokens that each block sees; 2 per multiply-add of a matrix product."""
        encoder, decoder, channels = self.encoder, self.decoder, self.architecture["channels"]
        numbers, out = (count * encoder["patch"] ** 2 for count in (channels, self.architecture.get("out_channels") or channels))
        inner, depth = (decoder["width"], decoder["depth"]) if decoder else (encoder["width"], None)
        return forward(self.tokens, kept, numbers, encoder["width"], self.seen(config, kept), inner, out, depth)

    def blocks(self, config: Training) -> list[Block]:
        """Those of the encoder, and of a decoder, which sees all tokens."""
        halves = [(self.encoder, count) for count in self.seen(config, self.kept(config, config.milestones[-1]))]
        halves += [(self.decoder, self.tokens)] * self.decoder["depth"] if self.decoder else []
        return [(half["width"], half["heads"], count) for half, count in halves]

    def draws(self, config: Training) -> int:
        """None."""
        return 0

    def network(self, config: Training | None = None) -> Any:
        """MaskDiT's network, which is DiT's if there is no decoder."""
        from maskdit.model.transformer import MaskDiT

        net = MaskDiT(**self.architecture)
        net.checkpointing = bool(config and config.checkpointing)
        return net

    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """EDM's loss over the kept tokens, and MaskDiT's reconstruction of the hidden ones; zeros, if there are none."""
        from maskdit.model.diffusion import loss

        return loss(net, x0_BCHW, labels_B, draw, keep=keep, **self.usual(config))

    def usual(self, config: Training) -> dict[str, Any]:
        """The numbers of a loss that the entry has."""
        numbers = {name: getattr(config, name) for name in ("mae_weight", "label_dropout", "dsm")}
        return {"patch": self.encoder["patch"], **numbers}

    def denoise(self, net: "Network", y_BCHW: "Tensor", sigma_B: "Tensor", labels_B: "Tensor") -> "Tensor":
        """By EDM's preconditioning."""
        from maskdit.model.diffusion import denoise

        return denoise(net, y_BCHW, sigma_B, labels_B)

    def solvers(self) -> tuple[str, ...]:
        """Those that ask for D."""
        return ("heun", "dpmpp-2m")

    def sigma_range(self) -> tuple[float, float]:
        """EDM's."""
        from maskdit.model.samplers import SIGMA_MAX, SIGMA_MIN

        return SIGMA_MIN, SIGMA_MAX

    def sampled(self, config: Sample, net: "Network", rows: "Array", noise_BCHW: "Tensor", labels_B: "Tensor") -> "Tensor":
        """On EDM's noise levels."""
        from maskdit.model.diffusion import guided
        from maskdit.model.samplers import dpmpp_2m, heun, sigma_steps

        solve = heun if config.solver == "heun" else dpmpp_2m
        denoiser = guided(net, labels_B, config.guidance, ask=self.denoise, **self.guidance(config))
        return solve(denoiser, noise_BCHW, sigma_steps(config.solver_steps, *self.sigma_range()))

    def guidance(self, config: Sample) -> dict[str, Any]:
        """The channels that are guided, which are never those of a variance, and the noise levels, as `guided` takes them."""
        channels = self.architecture["channels"]
        some = channels if config.guidance_channels == "all" else min(3, channels)
        return {"channels": some, "interval": config.guidance_interval}

    def exported(self, tensors: State) -> State:
        """All of them."""
        return tensors
