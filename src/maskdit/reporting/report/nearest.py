"""The samples that are most like copies of a training image, each above that image."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.manifest import config_of
from maskdit.images.dataset import Images
from maskdit.reporting.report.page import PIECES


def nearest(name: str, record: dict[str, Any], results: Path) -> Markup:
    """The pairs in a record of `evaluate` with `memorisation`, the most suspicious first; empty if it has none.

    Raises UserError if the samples are not those that were evaluated.
    """
    if not (pairs := record.get("nearest")):
        return Markup("")
    from maskdit.evaluation.reference import drawn
    from maskdit.reporting.pictures import behind, images_of, scored  # which wait for Matplotlib

    samples = scored(name, record, results)
    folder, same = behind(record, f"fetch/{config_of(record, 'reference')['dataset']}", results) or (None, False)
    if samples is None or folder is None or not same:
        return PIECES.paragraph(
            f"The training images nearest to samples of {name} are not shown: the images are not here any more."
        )
    real = Images.load(folder)
    kept = drawn(real.rows(heldout=False), record["protocol"]["memorised_from"])
    made = images_of(samples)[0][np.array([pair["sample"] for pair in pairs])]
    known = real.pixels[kept[[pair["row"] for pair in pairs]]]
    told = [f"sample {pair['sample']}: {pair['distance']:.3g}, its own nearest {pair['own']:.3g}" for pair in pairs]
    shares = [
        next(share for each, share in of.items() if each.startswith("memorised"))
        for of in (record["metrics"], record["real"]["memorisation"])
    ]
    caption = (
        f"The samples of {name} that are most like copies, above their nearest training image, with the distance of their features "
    )
    caption += "and that of the training image to its own nearest. No farther than that are "
    caption += f"{shares[0]:.1%} of all samples, and {shares[1]:.1%} of real images when each is left out in turn."
    return PIECES.pairs(list(zip(map(png, made), map(png, known), told, strict=True)), caption)


def png(pixels: Array) -> str:
    """An image (H, W, 3) as the PNG of a data address."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
