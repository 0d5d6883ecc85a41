"""Distances between two folders of images, on MobileNet's features: no FID, which needs Inception of 2015 and 50,000 images.

python examples/score_folder.py SAMPLES REAL [SIDE]      # SIDE: pixels, to which both are resized (default: not at all)
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from maskdit import Extractor, frechet_distance, inception_score, kernel_distance, moments, overlap


def images(folder: Path, side: int | None) -> np.ndarray:
    """All images below a folder, which have one size or are resized to `side` pixels, uint8 (N, H, W, 3)."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        sys.exit(f"{folder}: holds no PNG or JPEG")
    pictures = [Image.open(file).convert("RGB") for file in files]
    if len({picture.size for picture in pictures}) > 1 and not side:
        sys.exit(f"{folder}: holds images of several sizes; name the SIDE to which all are resized")
    return np.stack([np.asarray(picture.resize((side, side)) if side else picture) for picture in pictures])


def main(samples: Path, real: Path, side: int | None = None) -> dict[str, float]:
    """Print the metrics, and return them."""
    extractor = Extractor("mobilenet-v2")
    ours, theirs = extractor(images(samples, side)), extractor(images(real, side))
    shared = overlap(ours["features"], theirs["features"], k=3)
    scores = {
        "fd_mobilenet": frechet_distance(moments(ours["features"]), moments(theirs["features"])),
        "kid_mobilenet": kernel_distance(ours["features"], theirs["features"], np.random.RandomState(0)),
        "is_mobilenet": inception_score(ours["logits"]),
        "precision_mobilenet": shared.precision,
        "recall_mobilenet": shared.recall,
    }
    for name, value in scores.items():
        print(f"{name:20} {value:.4f}")
    return scores


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
