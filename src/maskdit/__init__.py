"""Fast training of diffusion models with masked transformers, from images to the paper's tables.

The names below are the library. Each is imported when it is first asked for, so that `import maskdit` waits for no other package.
docs/library.md shows them in use; everything else in the package may change without notice.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskdit.config.base import UserError
    from maskdit.config.training import kept_tokens
    from maskdit.evaluation.extractors import Extractor
    from maskdit.evaluation.metrics import (
        frechet_distance,
        inception_score,
        kernel_distance,
        moments,
        monge_distance,
        overlap,
    )
    from maskdit.model.diffusion import Draw, denoise, guided, loss
    from maskdit.model.ema import EMA
    from maskdit.model.masking import gather, masked, patchify, restore, sample_mask, unpatchify
    from maskdit.model.samplers import dpmpp_2m, heun, sigma_steps
    from maskdit.sampling.latents import decode, sample
    from maskdit.training.batches import draw
    from maskdit.weights.pretrained import DiT, MaskDiT

    __version__: str

_HOMES = {
    "config.base": ("UserError",),
    "config.training": ("kept_tokens",),
    "evaluation.extractors": ("Extractor",),
    "evaluation.metrics": ("frechet_distance", "inception_score", "kernel_distance", "moments", "monge_distance", "overlap"),
    "model.diffusion": ("Draw", "denoise", "guided", "loss"),
    "model.ema": ("EMA",),
    "model.masking": ("gather", "masked", "patchify", "restore", "sample_mask", "unpatchify"),
    "model.samplers": ("dpmpp_2m", "heun", "sigma_steps"),
    "sampling.latents": ("decode", "sample"),
    "training.batches": ("draw",),
    "weights.pretrained": ("DiT", "MaskDiT"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "EMA",
    "DiT",
    "Draw",
    "Extractor",
    "MaskDiT",
    "UserError",
    "decode",
    "denoise",
    "dpmpp_2m",
    "draw",
    "frechet_distance",
    "gather",
    "guided",
    "heun",
    "inception_score",
    "kept_tokens",
    "kernel_distance",
    "loss",
    "masked",
    "moments",
    "monge_distance",
    "overlap",
    "patchify",
    "restore",
    "sample",
    "sample_mask",
    "sigma_steps",
    "unpatchify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("maskdit")
    if name not in _HOME:
        raise AttributeError(f"module 'maskdit' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(f"maskdit.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
