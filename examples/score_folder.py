"""Distances between two folders of images, on MobileNet's features: no FID, which needs Inception of 2015 and 50,000 images.

python examples/score_folder.py SAMPLES REAL [SIDE]      # SIDE: pixels, to which both are resized (default 32)
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from maskdit import Extractor, frechet_distance, inception_score, kernel_distance, moments, overlap


def images(folder: Path, side: int) -> np.ndarray:
    """All images below a folder, uint8 (N, side, side, 3)."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        sys.exit(f"{folder}: holds no PNG or JPEG")
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in files])


def main(samples: Path, real: Path, side: int = 32) -> dict[str, float]:
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
