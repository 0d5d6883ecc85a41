"""What an arm of training is. `plan` and `status` read it too, so torch is imported by the functions that compute with it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from maskdit.config.base import Section
from maskdit.config.sampling import Sample
from maskdit.config.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from maskdit.artifacts.arrays import Array
    from maskdit.model.diffusion import Draw, Network

State = dict[str, "Tensor"]
Block = tuple[int, int, int]  # width, heads and tokens


class MethodOptions(BaseModel):
    """What an entry may hold below `options:`. It is frozen; unknown keys and wrong types are errors."""

    model_config = Section.model_config


class Method(ABC):
    """One arm of training. `methods/dit.py` has every part; a subclass of it says what differs. B images, C channels of H x W."""

    name: ClassVar[str]  # one word: in tables, curves and claims
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    preconditioning: ClassVar[str] = "edm"  # what its network predicts: edm, vp or flow

    def __init__(self, architecture: dict[str, Any], options: MethodOptions, source: dict[str, Any]) -> None:
        """architecture: side, channels, classes, encoder and decoder. source: how checkpoints name the method."""
        self.architecture, self.options, self.source = architecture, options, source
        self.encoder, self.decoder = architecture["encoder"], architecture["decoder"]
        self.tokens = (architecture["side"] // self.encoder["patch"]) ** 2

    @abstractmethod
    def misfits(self, config: Training) -> Iterator[str]:
        """What in an entry does not fit the method: `field: why and what to do`. No torch."""

    @abstractmethod
    def kept(self, config: Training, step: int) -> int:
        """Tokens that the loss of a step, counted from 0, is told to keep. No torch."""

    @abstractmethod
    def flops(self, config: Training | None, kept: int) -> int:
        """FLOPs of one image's forward pass in training with `kept` tokens, or without a config in sampling. No torch."""

    @abstractmethod
    def blocks(self, config: Training) -> list[Block]:
        """Each block in training with the most tokens that it sees, from which memory is estimated. No torch."""

    @abstractmethod
    def draws(self, config: Training) -> int:
        """Uniform numbers per image that its loss needs besides the usual ones; they are in `draw.extra_BN`. No torch."""

    @abstractmethod
    def network(self, config: Training | None = None) -> "nn.Module":
        """The network in training, or without a config in sampling. The parameters of both have the same names."""

    @abstractmethod
    def loss(
        self, net: "Network", config: Training, x0_BCHW: "Tensor", labels_B: "Tensor", draw: "Draw", keep: int
    ) -> tuple["Tensor", "Tensor"]:
        """Two terms per image (B,), which are minimised: that of the objective, and an auxiliary one or zeros. It draws nothing."""

    @abstractmethod
    def denoise(self, net: "Network", y_BCHW: "Tensor", sigma_B: "Tensor", labels_B: "Tensor") -> "Tensor":
        """D(y; sigma), the mean of x0 given y = x0 + sigma * eps. Label -1 is no class."""

    @abstractmethod
    def solvers(self) -> tuple[str, ...]:
        """The solvers of `config/sampling.py` that can sample it. No torch."""

    @abstractmethod
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest noise level of the solvers."""

    @abstractmethod
    def sampled(self, config: Sample, net: "Network", rows: "Array", noise_BCHW: "Tensor", labels_B: "Tensor") -> "Tensor":
        """The latents of the images `rows` from standard normal noise, with the entry's solver and guidance."""

    @abstractmethod
    def exported(self, tensors: State) -> State:
        """Weights of MaskDiT's network with EDM's preconditioning, for `maskdit export`. Raises ValueError if they are others."""

    @property
    def model(self) -> str:
        """The name of the network in checkpoints."""
        return self.name

    def named(self) -> dict[str, Any]:
        """How recipes and checkpoints name the method; empty for one that follows from the entry."""
        return {"method": self.source} if self.source else {}
