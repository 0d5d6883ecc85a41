"""Inception of 2015 as in ADM's evaluator: torch-fidelity's network, extended by the spatial features of sFID."""

import io
from typing import Any

import torch
from torch import Tensor

CHANNELS = 7  # of 192: 17 x 17 x 7 = 2023 numbers


class Inception(torch.nn.Module):
    """uint8 images (B, H, W, 3) to features (B, 2048), spatial (B, 2023) and logits without bias (B, 1008), float32.

    The spatial features are the first seven channels of what TensorFlow calls mixed_6/conv, position by position, channels last.
    """

    RESIZE, WIDTHS = "299 pixels, bilinear as in TensorFlow 1", {"features": 2048, "spatial": 2023}

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        copy = io.BytesIO()  # given a path, torch-fidelity would load the file without weights_only; given none, download one
        torch.save(tensors, copy)
        copy.seek(0)
        self.net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy)
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, given: Any, found_BCHW: Tensor) -> None:
        self.spatial = found_BCHW[:, :CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def forward(self, pixels_BHWC: Tensor) -> dict[str, Tensor]:
        features, logits = self.net(pixels_BHWC.permute(0, 3, 1, 2))
        return {"features": features, "spatial": self.spatial, "logits": logits}
