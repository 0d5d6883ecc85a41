"""Images between two others: their start noise on a great circle, the vectors of their classes on a line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskdit.artifacts.arrays import Array
from maskdit.config.base import UserError

TABLE = "y_embedder.embedding_table.weight"  # (width, classes)


def slerp(first: Array, second: Array, part: float) -> Array:
    """Noise at a `part` of the way between two draws, by spherical interpolation (Shoemake 1985); 0 and 1 are the draws.

    The length of normal noise is nearly the same everywhere on this way, while it would shrink by 0.7 in the middle of a line.
    """
    if part in (0, 1):
        return second if part else first
    one, two = first.astype(np.float64), second.astype(np.float64)
    cosine = float((one * two).sum() / np.sqrt((one * one).sum() * (two * two).sum()))
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-6:  # the same noise twice
        return first
    return ((np.sin((1 - part) * angle) * one + np.sin(part * angle) * two) / np.sin(angle)).astype(first.dtype)


def with_mixtures(
    tensors: dict[str, Tensor], facts: dict[str, Any], mixtures: Sequence[tuple[int, int, float]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A network with further classes after its own: for each mixture (first, second, part) the vector at that part of the line."""
    if TABLE not in tensors:
        raise UserError(f"draw: there is nothing between two classes for {facts['model']}, whose network has no {TABLE}")
    table, architecture = tensors[TABLE], facts["architecture"]
    added = [torch.lerp(table[:, first], table[:, second], part) for first, second, part in mixtures]
    wider = torch.stack([*table.unbind(1), *added], dim=1)
    return {**tensors, TABLE: wider}, {**facts, "architecture": {**architecture, "classes": wider.shape[1]}}
