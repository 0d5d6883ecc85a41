"""What an arm of training is. `plan` and `status` read it too, so torch is imported by the functions that compute with it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from maskdit.config.base import Section
from maskdit.config.sampling import Sample
from maskdit.config.training import Training, kept_tokens
from maskdit.model.flops import forward
from maskdit.model.memory import Block

if TYPE_CHECKING:
    from torch import Tensor, nn

    from maskdit.artifacts.arrays import Array
    from maskdit.model.diffusion import Draw, Network

State = dict[str, "Tensor"]


class MethodOptions(BaseModel):
    """What an entry may hold below `options:`. It is frozen; unknown keys and wrong types are errors."""

    model_config = Section.model_config


class Method(ABC):
    """One arm of training: a subclass says how it differs from DiT with EDM's loss. B images, L tokens, C channels of H x W."""

    name: ClassVar[str]  # one word: in tables, curves and claims
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    reads: ClassVar[tuple[str, ...]] = ()  # of mask_ratio, defer and route, those that it knows
    preconditioning: ClassVar[str] = "edm"  # what its network predicts: edm, vp or flow

    def __init__(self, architecture: dict[str, Any], options: MethodOptions, source: dict[str, Any]) -> None:
        """architecture: side, channels and classes of the latents, encoder and decoder. source: how checkpoints name the method."""
        self.architecture, self.options, self.source = architecture, options, source
        self.encoder, self.decoder = architecture["encoder"], architecture["decoder"]
        self.tokens = (architecture["side"] // self.encoder["patch"]) ** 2

    def named(self) -> dict[str, Any]:
        """How recipes and checkpoints name the method; empty for one that follows from the entry."""
        return {"method": self.source} if self.source else {}

    # 1. What is known without torch

    def misfits(self, config: Training) -> Iterator[str]:
        """The fields of an entry that do not fit the method or its network: `field: why and what to do`."""
        if not kept_tokens(self.tokens, config.mask_ratio):
            yield f"mask_ratio: {config.mask_ratio} keeps none of {self.tokens} tokens"
        for field in ("mask_ratio", "defer", "route"):
            if getattr(config, field) and field not in self.reads:
                yield f"{field}: has no effect with {self.name}; leave it out, or set it to 0"

    def kept(self, config: Training, step: int) -> int:
        """Tokens that the loss of a step, counted from 0, is told to keep."""
        return kept_tokens(self.tokens, config.mask_at(step))

    @abstractmethod
    def seen(self, config: Training | None, kept: int) -> list[int]:
        """Tokens that each block of the encoder sees: in training with `kept` tokens, or without a config in sampling."""

    def flops(self, config: Training | None, kept: int) -> int:
        """FLOPs of one image's forward pass, 2 per multiply-add of a matrix product. The arguments are those of `seen`."""
        encoder, decoder, channels = self.encoder, self.decoder, self.architecture["channels"]
        numbers, out = (count * encoder["patch"] ** 2 for count in (channels, self.architecture.get("out_channels") or channels))
        inner, depth = (decoder["width"], decoder["depth"]) if decoder else (encoder["width"], None)
        return forward(self.tokens, kept, numbers, encoder["width"], self.seen(config, kept), inner, out, depth)

    def blocks(self, config: Training) -> list[Block]:
        """Width, heads and most tokens of each block in training, from which the memory of a step is estimated."""
        seen = self.seen(config, self.kept(config, config.milestones[-1]))
        blocks = [(self.encoder["width"], self.encoder["heads"], count) for count in seen]
        return blocks + (
            [(self.decoder["width"], self.decoder["heads"], self.tokens)] * self.decoder["depth"] if self.decoder else []
        )

    def draws(self, config: Training) -> int:
        """Uniform numbers per image that its loss needs besides the usual ones; it finds them in `draw.extra_BN`."""
        return 0

    # 2. Training and sampling

    @property
    def model(self) -> str:
        """The name of the network in checkpoints."""
        return self.name

    @abstractmethod
    def network(self, config: Training | None = None) -> "nn.Module":
        """The network in training, or without a config in sampling. Their parameters have the same names."""

    @abstractmethod
    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """Two terms per image (B,), which are minimised: that of the objective, and an auxiliary one or zeros. It draws nothing."""

    def solvers(self) -> tuple[str, ...]:
        """The solvers that can sample it."""
        return ("heun", "dpmpp-2m")

    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest noise level of `heun` and `dpmpp-2m`."""
        from maskdit.model.samplers import SIGMA_MAX, SIGMA_MIN

        return SIGMA_MIN, SIGMA_MAX

    def denoise(self, net: "Network", y_BCHW: "Tensor", sigma_B: "Tensor", labels_B: "Tensor") -> "Tensor":
        """D(y; sigma), the mean of x0 given y = x0 + sigma * eps. Label -1 is no class."""
        from maskdit.model.diffusion import denoise

        return denoise(net, y_BCHW, sigma_B, labels_B)

    def sampled(self, config: Sample, net: "Network", rows: "Array", noise_BCHW: "Tensor", labels_B: "Tensor") -> "Tensor":
        """The latents of the images `rows` from standard normal noise, with the entry's solver and guidance."""
        from maskdit.model.diffusion import guided
        from maskdit.model.samplers import dpmpp_2m, heun, sigma_steps

        solve = heun if config.solver == "heun" else dpmpp_2m
        denoiser = guided(net, labels_B, config.guidance, ask=self.denoise, **self.guidance(config))
        return solve(denoiser, noise_BCHW, sigma_steps(config.solver_steps, *self.sigma_range()))

    def guidance(self, config: Sample) -> dict[str, Any]:
        """Where guidance applies: channels, never those of a variance, and noise levels, as `guided` takes them."""
        channels = self.architecture["channels"]
        return {
            "channels": channels if config.guidance_channels == "all" else min(3, channels),
            "interval": config.guidance_interval,
        }

    # 3. Export

    def exported(self, tensors: State) -> State:
        """The weights as those of MaskDiT's network with EDM's preconditioning, which the formats of `maskdit export` hold.

        Raises ValueError, saying why, if they are not.
        """
        raise ValueError(f"{self.name} has a network of its own, which neither format can hold; share the folder of the run")
