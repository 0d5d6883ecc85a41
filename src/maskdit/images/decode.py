"""Decodes encoded images to RGB pixels, for allowed formats only, and crops them as ADM does."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from maskdit.config.base import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no others: some of Pillow's decoders run programs
TURNS = {  # EXIF's orientation: what sets the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LONGEST = 100  # maximum aspect ratio: the crop of a thinner image would need too much memory
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB: generators of images store their whole recipe there

warnings.simplefilter("error", Image.DecompressionBombWarning)  # set once at import, because filters are not thread-safe


class TooThin(ValueError):  # noqa: N818, no fault of the file
    """An image that is whole, but too long for its width."""


def decode(data: bytes, name: str = "image", upright: bool = False) -> Image.Image:
    """Decode an image to RGB; of several frames the first. upright: turn it as EXIF says, which ADM does not do for ImageNet.

    Raises UserError if it is damaged, or whole but beyond a limit, which is named.
    """
    with refused(name):
        image = opened(data)
        image.load()
        turn = TURNS.get(orientation(image)) if upright else None
        return flat(image) if turn is None else flat(image).transpose(turn)


@contextmanager
def refused(name: str) -> Iterator[None]:
    """Raise UserError for whatever a decoder raises within."""
    try:
        yield
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


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of a loaded image; 1, upright, if it has none that can be read. A TIFF is already turned."""
    with suppress(Exception):  # EXIF of strangers
        return int(image.getexif().get(0x0112, 1))
    return 1


def frames(image: Image.Image) -> bool:
    """Whether an image has several frames or pages; a photograph's second picture for a preview or for depth is none."""
    with suppress(Exception):  # of a later frame
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    return False


def flat(image: Image.Image) -> Image.Image:
    """Convert to RGB with 8 bits and transparency on white.

    Raises ValueError for floating-point pixels, and for whole numbers that fill neither 8 nor 16 bits.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        return Image.fromarray(in_8_bits(np.asarray(image).astype(np.int64))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def in_8_bits(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Grey values as they are if they fit in 8 bits, and the upper 8 bits of 16.

    Raises ValueError for others: whether 4095 is white, as with 12 bits, or dark grey cannot be known.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or 2**8 <= high < 2**14 or high >= 2**16:
        raise ValueError(f"its values from {low} to {high} fill neither 8 nor 16 bits; scale them to 0 to 255")
    return (values >> (8 if high >= 2**8 else 0)).astype(np.uint8)


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
