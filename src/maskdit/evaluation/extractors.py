"""The frozen feature networks: Inception of 2015, for FID; torchvision's MobileNetV2, whose weights come in a pip package; DINOv2.

What MobileNetV2 measures is called `..._mobilenet`, never FID.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maskdit.artifacts.atomic import read_json, sha256
from maskdit.config.base import UserError
from maskdit.evaluation.inception import Inception
from maskdit.runtime.device import device
from maskdit.runtime.environment import demand_own
from maskdit.runtime.progress import progress

SIDE = 64  # pixels of MobileNetV2, after resizing: twice the demo's
DINO = "vit_large_patch14_dinov2.lvd142m"  # of timm
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Arrays = dict[str, NDArray[np.float32]]


def resized(pixels_BHWC: Tensor, side: int, mode: str) -> Tensor:
    """uint8 images to what networks trained on ImageNet see (B, 3, side, side): resized, then normalised."""
    images = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, size=(side, side), mode=mode, align_corners=False, antialias=mode == "bicubic")
    mean, std = (torch.tensor(triple, device=images.device).reshape(1, 3, 1, 1) for triple in (MEAN, STD))
    return (images - mean) / std


class MobileNet(torch.nn.Module):
    """uint8 images (B, H, W, 3) to features (B, 1280) and logits (B, 1000) of ImageNet, float32."""

    RESIZE, WIDTHS = f"{SIDE} pixels, bilinear", {"features": 1280}

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        from torchvision.models import mobilenet_v2

        super().__init__()
        self.net = mobilenet_v2(weights=None)
        self.net.load_state_dict(tensors)
        self.eval().requires_grad_(False)

    def forward(self, pixels_BHWC: Tensor) -> dict[str, Tensor]:
        features = self.net.features(resized(pixels_BHWC, SIDE, "bilinear")).mean((2, 3))
        return {"features": features, "logits": self.net.classifier(features)}


class Dino(torch.nn.Module):
    """uint8 images (B, H, W, 3) to DINOv2's features (B, 1024): ViT-L/14 at 224 pixels, its positions resampled as timm does."""

    RESIZE, WIDTHS = "224 pixels, bicubic with antialiasing; timm", {"features": 1024}

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        self.net = timm.create_model(DINO, pretrained=False, num_classes=0, img_size=224)
        self.net.load_state_dict(checkpoint_filter_fn(tensors, self.net))
        self.eval().requires_grad_(False)

    def forward(self, pixels_BHWC: Tensor) -> dict[str, Tensor]:
        return {"features": self.net(resized(pixels_BHWC, 224, "bicubic"))}


NETWORKS: dict[str, Any] = {"mobilenet-v2": MobileNet, "inception-2015": Inception, "dinov2": Dino}


class Network:
    """The network of a folder that `fetch` has made: its family, the sha256 of its weights, and what it says of images.

    Raises UserError if the weights are damaged, or those of another network.
    """

    def __init__(self, folder: Path) -> None:
        index = read_json(folder / "index.json", "kind")
        if index["kind"] != "extractor":
            raise UserError(f"{folder}: holds no feature network; name an entry of fetch whose source is extractor")
        self.family, self.sha256, path = index["family"], index["sha256"], folder / index["file"]
        demand_own(path)
        if sha256(path) != self.sha256:
            raise UserError(f"{path}: damaged (sha256 differs); fetch it again")
        self.where = device()
        try:
            safe = path.suffix == ".safetensors"
            with warnings.catch_warnings(action="ignore"):  # of what it then refuses
                tensors = load_file(path) if safe else torch.load(path, weights_only=True, map_location="cpu")
            self.net = NETWORKS[self.family](tensors).to(self.where)
        except (RuntimeError, UnpicklingError, SafetensorError, AttributeError, TypeError, EOFError, KeyError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{path}: not the weights of {self.family} ({reason[:120]})") from None

    def protocol(self) -> dict[str, str]:
        """What a record says of it."""
        return {"family": self.family, "extractor_sha256": self.sha256, "resize": NETWORKS[self.family].RESIZE}

    def see(self, pixels_BHWC: NDArray[np.uint8]) -> Arrays:
        """What the network says of a batch, in float32: no TF32, no autocast, no choice of kernels by their speed."""
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        torch.set_float32_matmul_precision("highest")
        with torch.inference_mode(), exact, torch.autocast(self.where.type, enabled=False):
            found = self.net(torch.from_numpy(pixels_BHWC).to(self.where))
            return {name: out.float().cpu().numpy() for name, out in found.items()}

    def stream(self, pixels: Any, rows: NDArray[Any], batch: int) -> Iterator[Arrays]:
        """What the network says of the images numbered `rows` of an array-like (N, H, W, 3) of uint8, by name, batch by batch.

        Batches are filled up to one size, so that it does not depend on which images come together. One is read while the one
        before is looked at.
        """
        starts = range(0, len(rows), batch)

        def read(number: int) -> NDArray[np.uint8]:
            chosen = rows[starts[number] : starts[number] + batch]
            return np.ascontiguousarray(pixels[np.resize(chosen, batch)])

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(read, 0) if starts else None
            for number in progress(range(len(starts)), "features", len(starts)):
                assert coming is not None
                here = coming.result()
                coming = pool.submit(read, number + 1) if number + 1 < len(starts) else None
                count = min(batch, len(rows) - starts[number])
                yield {name: array[:count] for name, array in self.see(here).items()}

    def extract(self, pixels: Any, rows: NDArray[Any], batch: int) -> Arrays:
        """The same of all of them at once."""
        parts = list(self.stream(pixels, rows, batch))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
