"""Decodes encoded images to RGB pixels, for allowed formats only, and crops them as ADM does."""

import io
import re
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from maskdit.config.base import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no others: some of Pillow's decoders run programs
LONGEST = 100  # maximum aspect ratio: the crop of a thinner image would need too much memory
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB: generators of images store their whole recipe there

warnings.simplefilter("error", Image.DecompressionBombWarning)  # set once at import, because filters are not thread-safe


class TooThin(ValueError):  # noqa: N818, no fault of the file
    """An image that is whole, but too long for its width."""


def decode(data: bytes, name: str = "image") -> Image.Image:
    """Decode an image to RGB, ignoring EXIF's orientation as ADM does.

    Raises UserError if it is damaged, or whole but beyond a limit, which is named.
    """
    try:
        image = opened(data)
        image.load()
        return flat(image)
    except Exception as error:  # decoders raise all kinds of errors for malformed bytes
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())[:160]
        raise UserError(f"{name}: {beyond(error) or f'damaged ({reason or type(error).__name__})'}") from None


def beyond(error: Exception) -> str:
    """The limit that a whole image exceeds; '' if the error is another one."""
    if isinstance(error, TooThin):
        return f"{error}, and the limit is {LONGEST} times as long as wide"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"{int(re.findall('[0-9]+', str(error))[0]):,} pixels, and the limit is {Image.MAX_IMAGE_PIXELS:,}"
    return f"its text is longer than the limit of {PngImagePlugin.MAX_TEXT_CHUNK >> 20} MiB" if "MAX_TEXT" in str(error) else ""


def opened(data: bytes) -> Image.Image:
    """An image with known format, mode and size, not decoded yet. Raises Pillow's errors, or TooThin if it is too thin."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if max(image.size) > LONGEST * min(image.size):
        raise TooThin(f"{image.width} x {image.height} pixels")
    return image


def flat(image: Image.Image) -> Image.Image:
    """Convert to RGB with 8 bits, the upper ones of 16, and transparency on white. Raises ValueError for floating-point pixels."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """The centre (side, side, 3) of an image, after its shorter side is resized to `side` as ADM prepares ImageNet.

    The image is halved with a box filter while it is at least twice as large, then resized with bicubic interpolation.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]
