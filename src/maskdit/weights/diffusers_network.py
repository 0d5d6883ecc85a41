"""The network as a component of a diffusers pipeline. `export` copies this file; no other module imports it."""

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from maskdit.model.transformer import MaskDiT


class MaskDiTNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """F(c_in * y; c_noise, label). The config also describes a latent: the network sees (latent - shift) * scale."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        side: int,
        channels: int,
        classes: int,
        encoder: dict[str, int],
        decoder: dict[str, int] | None = None,
        latent_shift: tuple[float, ...] = (),
        latent_scale: tuple[float, ...] = (),
        class_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.net = MaskDiT(side=side, channels=channels, classes=classes, encoder=encoder, decoder=decoder)

    def forward(self, x_BCHW: Tensor, c_noise_B: Tensor, labels_B: Tensor, kept_BK: Tensor | None = None) -> Any:
        return self.net(x_BCHW, c_noise_B, labels_B, kept_BK)
