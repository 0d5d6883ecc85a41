"""Sections of params.yaml: the autoencoder, and the latents it produces."""

from typing import Annotated, Literal

from pydantic import Field

from maskdit.config.base import Count, Key, ListOf, Natural, Positive, Section, Seed, new


class DownloadedVae(Section):
    """A published autoencoder."""

    source: Literal["download"]
    dataset: Key  # an entry of fetch whose source is autoencoder
    factor: Count  # pixels per latent position along one side
    latent_channels: Count


class Vae(Section):
    """An autoencoder trained by this pipeline: diffusers' AutoencoderKL with len(channels) levels."""

    source: Literal["train"]
    dataset: Key
    channels: Annotated[ListOf[Count], Field(min_length=1)]
    layers_per_block: Count
    latent_channels: Count
    steps: Count
    batch: Count
    lr: Positive
    kl_weight: Annotated[float, Field(ge=0)]
    precision: Literal["auto", "fp32", "bf16"]
    seed: Seed

    @property
    def factor(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.channels) - 1)


class Encode(Section):
    """Posterior moments of the VAE for every image, stored as float16."""

    dataset: Key
    vae: Key
    batch: Count
    mirror: bool  # also store the moments of the mirrored image, because latents must not be flipped
    shards: Count = 1  # number of files; any number of processes can share the work
    heldout: Natural = new(0)  # held-out images, or as many as there are, whose denoising loss the trainings log
