"""Reproducible randomness: every random draw, and the order in which training visits the samples."""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """A Philox generator whose key and counter depend only on (seed, purpose, step, index)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, index]))


@lru_cache(maxsize=2)  # of this pass and the next: drawing one for ImageNet takes as long as a step on a GPU
def _visits(seed: int, count: int, epoch: int) -> NDArray[np.int64]:
    return generator(seed, "order", epoch).permutation(count)


def order(seed: int, count: int, start: int, stop: int) -> NDArray[np.int64]:
    """Indices of the samples visited at positions `start` to `stop` - 1; each pass over the data is a new permutation."""
    passes = range(start // count, (stop - 1) // count + 1)
    return np.concatenate([_visits(seed, count, epoch)[max(0, start - epoch * count) : stop - epoch * count] for epoch in passes])
