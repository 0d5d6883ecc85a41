"""Sections of params.yaml: references, features, metrics, reconstructions, calibration."""

from typing import Literal, Self

from pydantic import model_validator

from maskdit.config.base import Count, Key, Positive, Section, Seed, new


class Reference(Section):
    """Statistics of the real images in a feature space, and a class probe fitted to them."""

    dataset: Key
    extractor: Key  # an entry of fetch whose source is extractor
    batch: Count
    shards: Count = 1
    neighbours_from: Count | None = None  # number of images drawn for precision and recall; null: all
    memorisation: bool = new(False)  # whether to keep the features of all images, which memorisation is then taken over


class Features(Section):
    """Feature vectors of images."""

    extractor: Key  # an entry of fetch whose source is extractor
    batch: Count


class Judged(Section):
    """How metrics are computed for each sample of a reference."""

    neighbours: Count  # k of precision and recall
    mind: bool = new(False)  # whether to compute MIND
    floor: bool = new(False)  # whether to compute the distances between two halves of the real images
    memorisation: bool = new(False)  # whether to compute the share of samples that look like copies of training images


class Evaluate(Judged):
    """Metrics of one evaluation against the reference of its dataset."""

    bench: Key
    dataset: Key


class Rescore(Section):
    """The samples of the same key, measured by another network: further columns of their row in the table."""

    bench: Key  # the study of the sample
    reference: Key
    extractor: Key  # an entry of fetch whose source is extractor: that of the reference
    batch: Count
    mind: bool = False  # whether to compute MIND
    floor: bool = False  # whether to compute the distances between two halves of the real images


class Reconstruct(Section):
    """Held-out images encoded and decoded by an autoencoder: rFID, PSNR, SSIM."""

    bench: Key
    dataset: Key
    vae: Key
    extractor: Key
    posterior: Literal["sample", "mean"]  # what is decoded
    batch: Count
    shards: Count
    seed: Seed


class Calibrate(Section):
    """A check of the evaluator on images whose metrics are published."""

    dataset: Key  # an entry of fetch whose source is npz: the images
    reference: Key
    extractor: Key
    batch: Count
    shards: Count
    neighbours: Count
    expected: dict[str, float]  # metric -> published value
    tolerance: dict[str, Positive]  # metric -> largest allowed absolute difference

    @model_validator(mode="after")
    def _same(self) -> Self:
        if self.expected.keys() != self.tolerance.keys():
            raise ValueError("expected and tolerance must name the same metrics")
        return self
