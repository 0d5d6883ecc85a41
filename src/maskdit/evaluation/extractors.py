"""Frozen feature networks: Inception of 2015 for FID, MobileNetV2, whose metrics are never called FID, and DINOv2."""

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
from maskdit.model.checkpoint import backend
from maskdit.runtime.device import device
from maskdit.runtime.environment import demand_own
from maskdit.runtime.progress import progress

SIDE = 64  # pixels of MobileNetV2's input: twice the demo's images
DINO = "vit_large_patch14_dinov2.lvd142m"  # in timm
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Arrays = dict[str, NDArray[np.float32]]


def resized(pixels_BHWC: Tensor, side: int, mode: str) -> Tensor:
    """uint8 images, resized and normalised for networks trained on ImageNet (B, 3, side, side)."""
    images = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, size=(side, side), mode=mode, align_corners=False, antialias=mode == "bicubic")
    mean, std = (torch.tensor(triple, device=images.device).reshape(1, 3, 1, 1) for triple in (MEAN, STD))
    return (images - mean) / std


class MobileNet(torch.nn.Module):
    """uint8 images (B, H, W, 3) to features (B, 1280) and ImageNet logits (B, 1000), float32."""

    RESIZE, WIDTHS = f"{SIDE} pixels, bilinear", {"features": 1280}

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        from torchvision.models import mobilenet_v2

        super().__init__()
        self.net = mobilenet_v2(weights=None)
        self.net.load_state_dict(tensors)

    def forward(self, pixels_BHWC: Tensor) -> dict[str, Tensor]:
        features = self.net.features(resized(pixels_BHWC, SIDE, "bilinear")).mean((2, 3))
        return {"features": features, "logits": self.net.classifier(features)}


class Dino(torch.nn.Module):
    """uint8 images (B, H, W, 3) to DINOv2 features (B, 1024) by ViT-L/14 at 224 pixels, with positions resampled as timm does."""

    RESIZE, WIDTHS = "224 pixels, bicubic with antialiasing; timm", {"features": 1024}

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        self.net = timm.create_model(DINO, pretrained=False, num_classes=0, img_size=224)
        self.net.load_state_dict(checkpoint_filter_fn(tensors, self.net))

    def forward(self, pixels_BHWC: Tensor) -> dict[str, Tensor]:
        return {"features": self.net(resized(pixels_BHWC, 224, "bicubic"))}


NETWORKS: dict[str, Any] = {"mobilenet-v2": MobileNet, "inception-2015": Inception, "dinov2": Dino}


class Extractor:
    """A frozen feature network, in float32, on the GPU if there is one (MASKDIT_DEVICE=cpu: on the CPU).

    family: mobilenet-v2, inception-2015 or dinov2. weights: its file; None: of the pip package that holds MobileNet's.
    digest: the sha256 of the file, if it is known.
    Raises UserError if there are none, or if they are those of another network.
    """

    def __init__(self, family: str = "mobilenet-v2", weights: Path | None = None, digest: str | None = None) -> None:
        if family not in NETWORKS:
            raise UserError(f"family {family}: must be one of {', '.join(NETWORKS)}")
        if weights is None:
            from maskdit.images.fetch import packaged

            weights = packaged(family)
        demand_own(weights)
        self.family, self.sha256, self.where = family, digest or sha256(weights), device()
        try:
            safe = weights.suffix == ".safetensors"
            with warnings.catch_warnings(action="ignore"):  # torch.load warns about files that it then refuses
                tensors = (
                    load_file(weights, backend=backend()) if safe else torch.load(weights, weights_only=True, map_location="cpu")
                )
            self.net = NETWORKS[family](tensors).eval().requires_grad_(False).to(self.where)
        except (RuntimeError, UnpicklingError, SafetensorError, AttributeError, TypeError, EOFError, KeyError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{weights}: not the weights of {family} ({reason[:120]})") from None

    def protocol(self) -> dict[str, str]:
        """Fields of a record that identify the network and its resizing."""
        return {"family": self.family, "extractor_sha256": self.sha256, "resize": NETWORKS[self.family].RESIZE}

    def __call__(self, pixels_BHWC: NDArray[np.uint8], batch: int = 64) -> Arrays:
        """The network's outputs for images (B, H, W, 3) in uint8: `features` (B, F), and others by name.

        An image's outputs depend on the size of a batch in their last digits.
        """
        if pixels_BHWC.dtype != np.uint8 or pixels_BHWC.ndim != 4 or pixels_BHWC.shape[3] != 3 or not len(pixels_BHWC):
            raise ValueError(f"images: must be uint8 (B, H, W, 3), not {pixels_BHWC.dtype} {pixels_BHWC.shape}")
        return self.extract(pixels_BHWC, np.arange(len(pixels_BHWC)), batch)

    def see(self, pixels_BHWC: NDArray[np.uint8]) -> Arrays:
        """The network's outputs for a batch, by name, in float32: without TF32, autocast, and the choice of kernels by speed."""
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        torch.set_float32_matmul_precision("highest")
        with torch.inference_mode(), exact, torch.autocast(self.where.type, enabled=False):
            found = self.net(torch.from_numpy(pixels_BHWC).to(self.where))
            return {name: out.float().cpu().numpy() for name, out in found.items()}

    def stream(self, pixels: Any, rows: NDArray[Any], batch: int) -> Iterator[Arrays]:
        """The network's outputs for the images numbered `rows` of an array-like (N, H, W, 3) of uint8, batch by batch.

        The last batch is padded to full size, so outputs do not depend on the number of images in it. The next batch is read while
        the network processes the current one.
        """
        starts = range(0, len(rows), batch)

        def read(start: int) -> NDArray[np.uint8]:
            return np.ascontiguousarray(pixels[np.resize(rows[start : start + batch], batch)])

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(read, 0)
            for start in progress(starts, "features", len(starts), unit=f"batches of {batch}"):
                here = coming.result()
                if start + batch < len(rows):
                    coming = pool.submit(read, start + batch)
                yield {name: array[: len(rows) - start] for name, array in self.see(here).items()}

    def extract(self, pixels: Any, rows: NDArray[Any], batch: int) -> Arrays:
        """The outputs of `stream`, concatenated."""
        parts = list(self.stream(pixels, rows, batch))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Network(Extractor):
    """The feature network in a folder made by `fetch`. Raises UserError if its weights are damaged or of another network."""

    def __init__(self, folder: Path) -> None:
        index = read_json(folder / "index.json", "kind")
        if index["kind"] != "extractor":
            raise UserError(f"{folder}: contains no feature network; name an entry of fetch whose source is extractor")
        path = folder / index["file"]
        demand_own(path)
        if sha256(path) != index["sha256"]:
            raise UserError(f"{path}: damaged (sha256 differs); rerun fetch")
        super().__init__(index["family"], path, index["sha256"])
