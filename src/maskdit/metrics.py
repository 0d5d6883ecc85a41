"""Distances between sets of features: NumPy only.

Shapes: N images, F features, C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def moments(features_NF: Array) -> tuple[Array, Array]:
    """Mean (F,) and covariance (F, F) in float64."""
    features = features_NF.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def frechet_distance(one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians given by mean and covariance (Dowson and Landau 1982).

    The trace of the root is the sum of the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric.
    """
    (mu1, sigma1), (mu2, sigma2) = one, other
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ sigma2 @ root
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap)


def inception_score(probabilities_NC: Array) -> float:
    """Exp of the mean KL divergence of each image's class probabilities from their mean (Salimans et al. 2016), one split."""
    p = probabilities_NC.astype(np.float64).clip(min=1e-16)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def squared_distances(a_NF: Array, b_MF: Array) -> Array:
    """Squared Euclidean distances (N, M) in float64."""
    a, b = a_NF.astype(np.float64), b_MF.astype(np.float64)
    return (np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T).clip(min=0)


def precision_recall(generated_NF: Array, real_MF: Array, k: int) -> tuple[float, float]:
    """Share of generated features within the real manifold, and of real ones within the generated (Kynkaanniemi et al. 2019).

    A manifold is the union of balls around its points that reach to their k-th nearest neighbour.
    """

    def radii(points: Array) -> Array:
        return np.partition(squared_distances(points, points), k, axis=1)[:, k]  # the nearest is the point itself

    across = squared_distances(generated_NF, real_MF)
    precision = (across <= radii(real_MF)[None, :]).any(1).mean()
    recall = (across <= radii(generated_NF)[:, None]).any(0).mean()
    return float(precision), float(recall)
