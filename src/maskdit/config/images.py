"""The section `fetch` of params.yaml: one model per source of images or weights."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, StringConstraints, model_validator

from maskdit.config.base import Count, Family, Fraction, Line, Natural, Section, Seed, Sha, Url, new

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"  # weights of an autoencoder in diffusers' layout, next to config.json
INDEX = ".safetensors.index.json"  # the end of the name of a file that lists the shards of weights
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", INDEX)  # the ends of names of files that may be weights
RESOLUTION = 32  # of a study of one's own images, unless published weights need another
Root = Annotated[Line, StringConstraints(min_length=1)]
Policy = Literal["fail", "skip", "list"]  # damaged images: fail, skip them, or list all and then fail
Naming = Literal["auto", "first", "last", "path", "none"]  # which folder above an image names its class; none: there are no classes


def _square(value: object) -> object:
    if isinstance(value, list | tuple | str):
        raise ValueError(f"images are square; give the pixels of one side as a whole number, not {value!r}")
    return value


class Pictures(Section):
    """Labelled images of one side length."""

    resolution: Annotated[Count, BeforeValidator(_square)]  # pixels of one side
    images: Count  # expected number; fetch fails if it finds another

    @property
    def training(self) -> int:
        """The minimum number of training images."""
        return self.images


class Divided(Pictures):
    """Images without their own validation set: a fraction of them, drawn by the seed, is held out."""

    heldout: Fraction = 0.0
    seed: Seed = 0

    @property
    def training(self) -> int:
        """The minimum number of training images."""
        return int(self.images * (1 - self.heldout))


class Openmoji(Divided):
    """OpenMoji drawings, split by emoji."""

    source: Literal["openmoji"]
    per_class: Count | None  # maximum number of images per class, drawn by the seed; null: all


class Fashion(Pictures):
    """Fashion-MNIST, padded to 32 pixels. `images` counts the training images; the test images are held out."""

    source: Literal["fashion-mnist"]
    root: Annotated[str, StringConstraints(min_length=1)]  # holds the four files, unless Debian's dataset-fashion-mnist has them
    url: Url | None  # of a folder to download them from if they are in neither place
    resolution: Literal[32]


class Folder(Divided):
    """The user's own images: ROOT/CLASS/…/image, or tar or zip files that contain CLASS/…/image. Root may be one such file.

    docs/own-images.md has the other layouts.
    """

    source: Literal["folder"]
    root: Root  # relative to the project, or absolute
    bad: Policy
    orientation: Literal["ignore", "apply"] = new("ignore")  # apply: turn photographs as EXIF says; ADM ignores it for ImageNet
    classes: Naming = new("auto")  # the folder that names a class; auto: the first, or a dataset.json or notes; none: no classes
    validation: Natural = new(0)  # expected number of images below test/ or val/, held out; `images` then counts those below train/
    left_out: Fraction = new(0.05)  # largest share of the images that may be left out, because they are damaged or not read

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.validation and self.heldout:
            raise ValueError("heldout must be 0.0 with validation: the folder itself says which images are held out")
        return self


class ImageNet(Pictures):
    """ImageNet-1k (ILSVRC 2012), in any supported form found in root. `images` counts the training images."""

    source: Literal["imagenet"]
    root: Root
    origin: Literal["local", "huggingface", "official", "kaggle"]  # where to download it from if root lacks it
    validation: Natural  # expected number of held-out images; 0: none needed
    classes: Count
    bad: Policy


class PublishedLatents(Pictures):
    """Published latent moments in the format of the authors' code. Nothing is encoded again."""

    source: Literal["latents"]
    format: Literal["lmdb", "webdataset"]
    root: Root
    classes: Count


class Npz(Pictures):
    """A batch of images in the format of ADM's evaluator, with or without statistics of a larger set."""

    source: Literal["npz"]
    url: Url
    sha256: Sha | None  # null: accept any file and report its hash


class Autoencoder(Section):
    """A published autoencoder, in a model repository of the Hugging Face Hub or one with the same layout."""

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
