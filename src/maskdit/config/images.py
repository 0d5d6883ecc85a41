"""What comes from outside: one model per source of fetch."""

import math
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from maskdit.config.base import Count, Family, Fraction, Line, Section, Seed, Sha, Url

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"  # of an autoencoder in diffusers' layout, beside its config.json
Root = Annotated[Line, StringConstraints(min_length=1)]
Policy = Literal[
    "fail", "skip", "list"
]  # what a damaged image does: ends at the first, is left out, or all are listed, then it ends


class Pictures(Section):
    """Labelled images of one side."""

    resolution: Count
    images: Count  # how many there must be: fetch fails if it finds another number

    @property
    def training(self) -> int:
        """How many of the images are trained on, at least."""
        return self.images


class Divided(Pictures):
    """Images without a validation set of their own: a share of them is set aside by the seed."""

    heldout: Fraction = 0.0
    seed: Seed = 0

    @property
    def training(self) -> int:
        """How many of the images are trained on, at least."""
        return math.floor(self.images * (1 - self.heldout))


class Openmoji(Divided):
    """OpenMoji's drawings, split by emoji."""

    source: Literal["openmoji"]
    per_class: Count | None  # at most so many images of a class, drawn by the seed; null: all


class Fashion(Pictures):
    """Fashion-MNIST on a border that makes its side 32; `images` counts the training images, the test images are held out."""

    source: Literal["fashion-mnist"]
    root: Annotated[str, StringConstraints(min_length=1)]  # holds the four files, or Debian's dataset-fashion-mnist does
    url: Url | None  # of a folder to fetch them from if they are in neither place
    resolution: Literal[32]


class Folder(Divided):
    """Images of one's own: ROOT/CLASS/…/image, tar or zip files with CLASS/…/image inside; root may be one such file."""

    source: Literal["folder"]
    root: Root  # relative to the project, or absolute
    bad: Policy


class ImageNet(Pictures):
    """ImageNet-1k (ILSVRC 2012), from whatever form of it lies in root; `images` counts the training images."""

    source: Literal["imagenet"]
    root: Root
    origin: Literal["local", "huggingface", "official", "kaggle"]  # where it is got from if root lacks it
    validation: Annotated[int, Field(ge=0)]  # how many held-out images there must be; 0: none are needed
    classes: Count
    bad: Policy


class PublishedLatents(Pictures):
    """Moments that others have encoded, as upstream stores them: nothing is encoded again."""

    source: Literal["latents"]
    format: Literal["lmdb", "webdataset"]
    root: Root
    classes: Count


class Npz(Pictures):
    """A batch of images as ADM's evaluator stores it, with or without statistics of a larger set."""

    source: Literal["npz"]
    url: Url
    sha256: Sha | None  # null: trust what comes, and say its hash


class Autoencoder(Section):
    """A published autoencoder, in a model repository of the Hugging Face hub or of its layout."""

    source: Literal["autoencoder"]
    url: Url  # of a folder that holds config.json and the weights
    sha256: Sha | None  # of the weights


class Extractor(Section):
    """The weights of a feature network."""

    source: Literal["extractor"]
    family: Family
    url: Url | None  # null: from a pip package
    sha256: Sha | None


Fetch = Openmoji | Fashion | Folder | ImageNet | PublishedLatents | Npz | Autoencoder | Extractor
