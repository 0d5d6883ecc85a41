"""Distances between sets of features: NumPy only.

Shapes: N images, F features, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SPLIT = 5000  # images of one Inception Score, as in ADM's evaluator
BLOCK = 2**26  # distances held at once, 256 MiB


def moments(features_NF: Array) -> tuple[Array, Array]:
    """Mean (F,) and covariance (F, F) in float64."""
    features = features_NF.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def merged(parts: Sequence[tuple[int, Array, Array]]) -> tuple[Array, Array]:
    """Mean and covariance of all images, from the number, mean and covariance of each part (Chan, Golub and LeVeque 1979)."""
    counts = np.array([count for count, _, _ in parts], np.float64)
    means = np.stack([mean for _, mean, _ in parts])
    mean = counts @ means / counts.sum()
    within = sum((count - 1) * sigma for count, _, sigma in parts)
    apart = (means - mean) * np.sqrt(counts)[:, None]
    return mean, (within + apart.T @ apart) / (counts.sum() - 1)


def frechet_distance(one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians given by mean and covariance (Dowson and Landau 1982).

    The trace of the root is the sum of the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric.
    """
    (mu1, sigma1), (mu2, sigma2) = (tuple(part.astype(np.float64) for part in pair) for pair in (one, other))
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ sigma2 @ root
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap)


def frechet_at_infinity(features_NF: Array, real: tuple[Array, Array], rng: np.random.Generator) -> float:
    """The distance of unboundedly many images: a line in 1 / N through fifteen numbers of them (Chong and Forsyth 2020)."""
    sizes = np.linspace(len(features_NF) / 10, len(features_NF), 15).astype(int)
    found = [frechet_distance(moments(features_NF[rng.permutation(len(features_NF))[:size]]), real) for size in sizes]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def softmax(logits_NC: Array) -> Array:
    """Class probabilities in float64."""
    shifted = logits_NC.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def inception_score(probabilities_NC: Array) -> float:
    """Exp of the mean KL divergence of each image's class probabilities from their mean (Salimans et al. 2016).

    As in ADM's evaluator the images are taken as they come, 5,000 at a time, and the scores are averaged.
    """

    def score(part: Array) -> float:
        p = part.astype(np.float64).clip(min=1e-300)
        return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))

    return float(np.mean([score(probabilities_NC[at : at + SPLIT]) for at in range(0, len(probabilities_NC), SPLIT)]))


def squared_distances(a_NF: Array, b_MF: Array) -> Array:
    """Squared Euclidean distances (N, M), in the features' precision."""
    return (np.square(a_NF).sum(1)[:, None] + np.square(b_MF).sum(1)[None] - 2 * a_NF @ b_MF.T).clip(min=0)


def blocks(count: int, across: int) -> list[slice]:
    """Slices of `count` rows that have at most BLOCK distances to `across` others."""
    size = max(1, BLOCK // across)
    return [slice(at, at + size) for at in range(0, count, size)]


def radii(points_NF: Array, k: int) -> Array:
    """Squared distance of each point to its k-th nearest neighbour; the nearest of all is the point itself."""
    parts = (
        np.partition(squared_distances(points_NF[at], points_NF), k, axis=1)[:, k] for at in blocks(len(points_NF), len(points_NF))
    )
    return np.concatenate(list(parts))


def precision_recall(generated_NF: Array, real_MF: Array, k: int) -> tuple[float, float]:
    """Share of generated features within the real manifold, and of real ones within the generated (Kynkaanniemi et al. 2019).

    A manifold is the union of balls around its points that reach to their k-th nearest neighbour, borders included.
    """
    of_real, of_generated = radii(real_MF, k), radii(generated_NF, k)
    inside, reached = np.zeros(len(generated_NF), bool), np.zeros(len(real_MF), bool)
    for at in blocks(len(generated_NF), len(real_MF)):
        across = squared_distances(generated_NF[at], real_MF)
        inside[at] = (across <= of_real[None]).any(1)
        reached |= (across <= of_generated[at, None]).any(0)
    return float(inside.mean()), float(reached.mean())


def density_coverage(generated_NF: Array, real_MF: Array, k: int = 5) -> tuple[float, float]:
    """How many real balls hold a generated feature, over k; share of real balls that hold one (Naeem et al. 2020)."""
    of_real = radii(real_MF, k)
    held, covered = 0, np.zeros(len(real_MF), bool)
    for at in blocks(len(generated_NF), len(real_MF)):
        within = squared_distances(generated_NF[at], real_MF) < of_real[None]
        held += int(within.sum())
        covered |= within.any(0)
    return held / (k * len(generated_NF)), float(covered.mean())


def kernel_distance(one_NF: Array, other_MF: Array, rng: np.random.Generator, size: int = 1000, subsets: int = 100) -> float:
    """KID: mean over subsets of the unbiased squared MMD with the kernel (x y / F + 1)^3 (Binkowski et al. 2018)."""
    size = min(size, len(one_NF), len(other_MF))

    def once() -> float:
        x, y = (points[rng.permutation(len(points))[:size]].astype(np.float64) for points in (one_NF, other_MF))
        within = [(a @ a.T / a.shape[1] + 1) ** 3 for a in (x, y)]
        own = sum((kernel.sum() - np.trace(kernel)) / (size * (size - 1)) for kernel in within)
        return float(own - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean())

    return float(np.mean([once() for _ in range(subsets)]))
