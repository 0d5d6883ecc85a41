"""Samples of a folder that `maskdit export --format diffusers` has written, or of a repository on the hub with its files.

python examples/sample_exported.py FOLDER OUT [COUNT]      # PNGs of COUNT images of each class
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image

from maskdit import MaskDiT, decode, sample


def main(source: str, out: Path, count: int = 2) -> None:
    """Draw `count` images of each class with guidance, and write them."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    net = MaskDiT.from_pretrained(source).to(where)
    vae = AutoencoderKL.from_pretrained(source, subfolder="vae", use_safetensors=True, low_cpu_mem_usage=False).to(where)
    labels = torch.arange(len(net.class_names)).repeat(count)

    # Guidance only at noise levels between 0.3 and 5; image i depends on the seed and its number i alone.
    latents = sample(net, labels, seed=0, steps=18, guidance=2.0, interval=(0.3, 5.0))
    images = decode(vae, latents)  # uint8 (N, H, W, 3)

    out.mkdir(parents=True, exist_ok=True)
    for number, (label, pixels) in enumerate(zip(labels.tolist(), images.numpy(), strict=True)):
        Image.fromarray(pixels).save(out / f"{number:04d}-{net.class_names[label]}.png")
    print(f"{len(images)} images in {out}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
