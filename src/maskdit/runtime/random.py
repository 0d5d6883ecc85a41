"""Reproducible randomness: every random draw, and the order in which training visits the samples."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """A Philox generator whose key and counter depend only on (seed, purpose, step, index)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, index]))


def order(seed: int, count: int, start: int, stop: int) -> NDArray[np.int64]:
    """Indices of the samples visited at positions `start` to `stop` - 1; each pass over the data is a new permutation."""
    passes = range(start // count, (stop - 1) // count + 1)
    whole = np.concatenate([generator(seed, "order", epoch).permutation(count) for epoch in passes])
    return whole[start - passes[0] * count : stop - passes[0] * count]
