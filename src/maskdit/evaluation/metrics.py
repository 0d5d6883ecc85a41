"""Distances between sets of features, in NumPy only. Shapes: N and M images, F features, C classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskdit.config.base import UserError

Array = NDArray[Any]
Draws = np.random.Generator | np.random.RandomState
SPLIT = 5000  # images per Inception Score, as in ADM's evaluator
SUBSET, SUBSETS = 1000, 100  # images per KID, and number of KIDs averaged, as in torch-fidelity
DIRECTIONS = 1000  # projections of MIND, as in its paper
NEAR = 5  # neighbours of density and coverage, as in their paper
BLOCK = 2**26  # distances held at once, 256 MiB in float32
PART = 4096  # images held at once in float64
CANCELS = 2.0**-6  # squared distance over squared length below which float32 loses digits that matter


@dataclass(frozen=True)
class Sums:
    """Sums of features in float64: number of images, mean (F,), and sum of outer products of deviations from the mean (F, F)."""

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features_NF: Array) -> "Sums":
        """From all images at once; they are converted to float64 part by part."""
        mean = features_NF.mean(0, dtype=np.float64)
        scatter = np.zeros((len(mean), len(mean)))
        for at in range(0, len(features_NF), PART):
            apart = features_NF[at : at + PART].astype(np.float64) - mean
            scatter += apart.T @ apart
        return cls(len(features_NF), mean, scatter)

    def __add__(self, other: "Sums") -> "Sums":
        """Sums of both sets (Chan, Golub and LeVeque 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart * (self.count * other.count / count))
        return Sums(count, self.mean + apart * (other.count / count), scatter)

    def moments(self) -> tuple[Array, Array]:
        """Mean and unbiased covariance, which is 0 for one image."""
        return self.mean, self.scatter / max(1, self.count - 1)


def moments(features_NF: Array) -> tuple[Array, Array]:
    """Mean (F,) and unbiased covariance (F, F) in float64."""
    return Sums.of(features_NF).moments()


def factor(sigma_FF: Array) -> Array:
    """A matrix A (F, R) with A A^T equal to this covariance of rank R."""
    values, vectors = np.linalg.eigh(sigma_FF)
    real = values > values[-1] * len(values) * np.finfo(values.dtype).eps  # smaller eigenvalues are rounding errors
    return vectors[:, real] * np.sqrt(values[real])


def frechet_distance(one: tuple[Array, Array], other: tuple[Array, Array], factored: Array | None = None) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians given by mean and covariance (Dowson and Landau 1982).

    The trace of the root is the sum of the square roots of the eigenvalues of the symmetric A^T S1 A, where S2 = A A^T.
    `factored` is A, if it is known.
    """
    (mu1, sigma1), (mu2, sigma2) = one, other
    half = factor(sigma2) if factored is None else factored
    product = half.T @ sigma1 @ half
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap)


def frechet_at_infinity(features_NF: Array, real: tuple[Array, Array], rng: Draws) -> float:
    """Fréchet distance for infinitely many images: a line in 1 / N through the distances of 15 subsets (Chong and Forsyth 2020).

    The sizes go from a tenth of the images, which should be no fewer than the features, to all; draws are without replacement.
    """
    sizes = np.linspace(len(features_NF) / 10, len(features_NF), 15).astype(int)
    draws = (np.sort(rng.permutation(len(features_NF))[:size]) for size in sizes)
    half = factor(real[1])
    found = [frechet_distance(moments(features_NF[rows]), real, half) for rows in draws]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def inception_score(logits_NC: Array) -> float:
    """Exp of the mean KL divergence of each image's class probabilities from their mean (Salimans et al. 2016), in float64.

    As in ADM's evaluator, the score is the average over consecutive parts of 5,000 images.
    """

    def score(part: Array) -> float:
        shifted = part.astype(np.float64)
        shifted -= shifted.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        p = np.exp(logs)
        mean = p.mean(0).clip(min=np.finfo(float).tiny)  # a class without images adds nothing
        return float(np.exp((p * (logs - np.log(mean))).sum(1).mean()))

    return float(np.mean([score(logits_NC[at : at + SPLIT]) for at in range(0, len(logits_NC), SPLIT)]))


def squared_norms(points_NF: Array) -> Array:
    """Squared length of each row."""
    return np.concatenate([np.square(points_NF[at : at + 1024]).sum(1) for at in range(0, len(points_NF), 1024)])


def in_range(one_NF: Array, other_MF: Array) -> tuple[Array, Array]:
    """Both sets, divided by a power of two if squares of their features would leave float32's range: no order of distances changes.

    Raises UserError if a feature is not finite.
    """
    for what, points in (("samples", one_NF), ("reference", other_MF)):
        if not np.isfinite(points).all():
            raise UserError(f"the features of the {what} are not all finite numbers; make the features of the {what} again")
    most = max(float(np.abs(points).max()) for points in (one_NF, other_MF))
    if not most or -40 < (power := np.ceil(np.log2(most))) < 40:
        return one_NF, other_MF
    return np.ldexp(one_NF, -int(power)), np.ldexp(other_MF, -int(power))


def squared_distances(a_NF: Array, b_MF: Array, without_NK: Array | None = None) -> Iterator[tuple[slice, Array]]:
    """Squared Euclidean distances (N, M) in the features' precision: blocks of rows, each after the slice of its row numbers.

    As in ADM's evaluator: |a|^2 - 2 a b + |b|^2, clipped at 0. Rows in which that cancels are computed in float64.
    The distances of each row to the K rows of b that it is `without` are infinite.
    """
    lengths, size, same = squared_norms(b_MF), max(1, BLOCK // len(b_MF)), a_NF is b_MF and without_NK is None
    for start in range(0, len(a_NF), size):
        at = slice(start, min(start + size, len(a_NF)))
        own = squared_norms(a_NF[at])
        block = a_NF[at] @ b_MF.T
        block *= -2
        block += own[:, None]
        block += lengths[None]
        diagonal = (np.arange(at.stop - start), np.arange(start, at.stop))
        if same:
            block[diagonal] = np.inf
        if without_NK is not None:
            np.put_along_axis(block, without_NK[at], np.inf, axis=1)
        if block.dtype != np.float64 and (near := np.flatnonzero(block.min(1) < CANCELS * own)).size:
            rows = a_NF[at][near].astype(np.float64)
            for place in range(0, len(b_MF), PART):
                other = b_MF[place : place + PART].astype(np.float64)
                exact = squared_norms(rows)[:, None] - 2 * (rows @ other.T) + squared_norms(other)
                block[near, place : place + PART] = exact
            if without_NK is not None:
                np.put_along_axis(block, without_NK[at], np.inf, axis=1)
        if same:
            block[diagonal] = 0
        yield at, np.maximum(block, 0, out=block)


def radii(points_NF: Array, *neighbours: int) -> Array:
    """Squared distance of each point to its k-th nearest neighbour, one row per k; the 0-th is the point itself."""
    found = np.empty((len(neighbours), len(points_NF)), points_NF.dtype)
    for at, block in squared_distances(points_NF, points_NF):
        block.partition(neighbours, axis=1)
        found[:, at] = block[:, neighbours].T
    return found


@dataclass(frozen=True)
class Overlap:
    """How two sets of features cover each other."""

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(generated_NF: Array, real_MF: Array, k: int, near: int = NEAR) -> Overlap:
    """Precision and recall with k neighbours (Kynkaanniemi et al. 2019), density and coverage with `near` (Naeem et al. 2020).

    A manifold is the union of balls around its points that reach to their k-th nearest neighbour. Precision is the share of
    generated features in the real manifold, recall that of real features in the generated one; borders count as inside. Density is
    the mean number of real balls that contain a generated feature, divided by `near`; coverage is the share of real balls that
    contain one; borders count as outside.
    """
    generated_NF, real_MF = in_range(generated_NF, real_MF)
    (of_generated,), (of_real, close) = radii(generated_NF, k), radii(real_MF, k, near)
    inside = np.zeros(len(generated_NF), bool)
    reached, covered = np.zeros((2, len(real_MF)), bool)
    held = 0
    for at, block in squared_distances(generated_NF, real_MF):
        inside[at] = (block <= of_real).any(1)
        reached |= (block <= of_generated[at, None]).any(0)
        within = block < close
        held += int(within.sum())
        covered |= within.any(0)
    return Overlap(float(inside.mean()), float(reached.mean()), held / (near * len(generated_NF)), float(covered.mean()))


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each of N points: its row, its distance, and its distance to its own nearest training image."""

    rows_N: Array
    distances_N: Array
    own_N: Array

    @property
    def copied(self) -> float:
        """Share of points no farther from their nearest training image than that one is from its own nearest neighbour.

        That is 1 minus the authenticity of Alaa et al. 2022 (How faithful is your synthetic data?, section 4), ties included.
        For points of the training images' distribution it is the probability of being mutual nearest neighbours: among very many
        images 2/3 in one dimension and 0.6215 in two (Schilling 1986), in a feature space far less, so it has to be measured.
        """
        return float((self.distances_N <= self.own_N).mean())


def nearest(points_NF: Array, real_MF: Array, left_out_N: Array | None = None) -> Nearest:
    """The nearest of M training images to each point. left_out: for each point the row of an image that does not count.

    Where the points are rows of `real`, leaving each out makes it a real image that nobody was trained on. Needs M > 2.
    """
    points_NF, real_MF = in_range(points_NF, real_MF)
    without_NK = np.empty((len(points_NF), 0), int) if left_out_N is None else left_out_N[:, None]
    rows_N = closest(points_NF, real_MF, without_NK)
    its_N = closest(real_MF[rows_N], real_MF, np.column_stack([without_NK, rows_N]))
    return Nearest(rows_N, distances(points_NF, real_MF, rows_N), distances(real_MF[rows_N], real_MF, its_N))


def closest(points_NF: Array, real_MF: Array, without_NK: Array) -> Array:
    """Row of the nearest of `real` to each point; the rows `without` of each do not count."""
    rows_N = np.empty(len(points_NF), int)
    for at, block in squared_distances(points_NF, real_MF, without_NK):
        rows_N[at] = block.argmin(1)
    return rows_N


def distances(points_NF: Array, real_MF: Array, rows_N: Array) -> Array:
    """Distance of each point to one row of `real`: exactly 0 for equal ones."""
    parts = [slice(at, at + PART) for at in range(0, len(rows_N), PART)]
    return np.concatenate([np.linalg.norm(points_NF[part] - real_MF[rows_N[part]], axis=1) for part in parts])


def kernel_distance(one_NF: Array, other_MF: Array, rng: Draws, size: int = SUBSET, subsets: int = SUBSETS) -> float:
    """KID: mean over subsets of the unbiased squared MMD with the kernel (x y / F + 1)^3 (Binkowski et al. 2018), in float64.

    If a set has fewer than `size` images, subsets are as large as the smaller set.
    """
    size = min(size, len(one_NF), len(other_MF))

    def kernel(x: Array, y: Array) -> Array:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def once() -> float:
        x, y = (points[rng.permutation(len(points))[:size]].astype(np.float64) for points in (one_NF, other_MF))
        own = sum(found.sum() - np.trace(found) for found in (kernel(x, x), kernel(y, y)))
        return float(own / (size * (size - 1)) - 2 * kernel(x, y).mean())

    whole = len(one_NF) == len(other_MF) == size  # all draws are equal
    return float(np.mean([once() for _ in range(1 if whole else subsets)]))


def monge_distance(one_NF: Array, other_MF: Array, rng: Draws, directions: int = DIRECTIONS) -> float:
    """MIND: 3 F times the mean squared 2-Wasserstein distance of projections on random directions (Berthet et al. 2026).

    In one dimension optimal transport pairs the sorted values. Of the larger set as many images are drawn as the smaller one has.
    For Gaussians of equal covariance it is in the mean 3 |mu1 - mu2|^2.
    """
    count, width = min(len(one_NF), len(other_MF)), one_NF.shape[1]
    rows = [np.sort(rng.permutation(len(points))[:count]) for points in (one_NF, other_MF)]
    centre = other_MF.mean(0, dtype=np.float64)  # which changes no distance, but float32 would lose digits to it
    one, other = (
        np.concatenate([(points[kept[at : at + PART]] - centre).astype(np.float32) for at in range(0, count, PART)])
        for points, kept in zip((one_NF, other_MF), rows, strict=True)
    )
    total = 0.0
    for start in range(0, directions, size := max(1, BLOCK // 4 // count)):
        onto = rng.standard_normal((min(size, directions - start), width))
        onto = (onto / np.linalg.norm(onto, axis=1, keepdims=True)).astype(np.float32)
        apart = np.sort(onto @ one.T, axis=1) - np.sort(onto @ other.T, axis=1)
        total += float(np.square(apart, dtype=np.float64).sum())
    return 3 * width * total / (directions * count)


def halves(real_NF: Array, most: int, rng: Draws) -> tuple[Array, Array]:
    """Two sets of real images that share none: at most `most` each, at most half of all."""
    order = rng.permutation(len(real_NF))[: 2 * min(most, len(real_NF) // 2)]
    return real_NF[np.sort(order[::2])], real_NF[np.sort(order[1::2])]
