"""Encoded pictures to pixels: what is opened at all, how it becomes RGB, and ADM's crop."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from maskdit.config.base import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no others are tried: some decoders of Pillow run programs
LONGEST = 100  # times the shorter side: a thinner image would fill the memory when its shorter side is enlarged

warnings.simplefilter("error", Image.DecompressionBombWarning)  # once, for what each thread sets and resets is set for all


def decode(data: bytes, name: str = "image") -> Image.Image:
    """An encoded image as RGB: CMYK, grey and palettes converted, transparency laid on white, 16 bits cut to 8.

    EXIF's orientation is not applied, as ADM does not. Raises UserError if it is damaged, or large enough to be a bomb.
    """
    try:
        image = opened(data)
        image.load()
        return flat(image)
    except Exception as error:  # decoders raise whatever hostile bytes make them
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())[:160]
        raise UserError(f"{name}: damaged ({reason or type(error).__name__})") from None


def opened(data: bytes) -> Image.Image:
    """An image whose format, mode and size are known, not decoded yet; raises what Pillow raises, ValueError for a thread."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels")
    return image


def flat(image: Image.Image) -> Image.Image:
    """A decoded image as RGB of 8 bits; raises ValueError for one of floating-point numbers."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """The centre (side, side, 3) of an image whose shorter side is brought to `side`, as ADM prepares ImageNet.

    It is halved by averaging while it is at least twice as large, and then resized by bicubic interpolation.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]
