"""Sections of params.yaml: pretraining, finetuning, and weights that others have published."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from maskdit.config.base import Count, Fraction, Key, Positive, Precision, Section, Seed, Sha, Url


class Transformer(Section):
    """Depth, width and heads of one half of the model."""

    depth: Count
    width: Count
    heads: Count

    @field_validator("heads")
    @classmethod
    def _divides_width(cls, heads: int, info: Any) -> int:
        width = info.data.get("width")
        if width is not None and width % heads:
            raise ValueError(f"heads {heads} must divide width {width}")
        if width is not None and width % 4:
            raise ValueError(f"width {width} must be a multiple of 4 (two-dimensional sine and cosine positions)")
        return heads


class Encoder(Transformer):
    """The half that sees the kept tokens only."""

    patch: Count


class Route(Section):
    """TREAD (Krause et al. 2025): in training some tokens skip blocks of the encoder, and come back to their places after them."""

    first: Annotated[int, Field(ge=0)]  # of the blocks, counted from 0
    last: Annotated[int, Field(ge=0)]
    ratio: Annotated[float, Field(gt=0, lt=1)]  # share of the tokens that skip them

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last {self.last} comes before first {self.first}")
        return self


class Training(Section):
    """What pretraining and finetuning have in common (PAPER: AdamW, constant rate, EMA, class dropout)."""

    seed: Seed
    mask_ratio: Fraction  # share of tokens hidden from the encoder; int(tokens * (1 - ratio)) are kept
    mask_schedule: Literal["constant", "cosine4"] = "constant"  # cosine4: mask_ratio * cos(pi / 2 * step / schedule_steps)^4
    schedule_steps: Count | None = None
    defer: Annotated[int, Field(ge=0)] = 0  # blocks of the encoder that see all tokens before the mask hides some (MicroDiT)
    route: Route | None = None
    mae_weight: Annotated[float, Field(ge=0)]  # lambda of the reconstruction term
    dsm: Literal["kept", "all"] = "kept"  # the tokens that the denoising term is taken over; kept is the paper's
    batch: Count  # images per step over all ranks
    micro_batch: Count | None = None  # images at once on one rank; null is its whole share
    milestones: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]  # steps; the last one ends the phase
    lr: Positive
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    warmup: Annotated[int, Field(ge=0)]  # steps of linear warm-up
    ema: Fraction
    ema_warmup: Count  # decay at step t is min(ema, (t + 1) / (t + ema_warmup)); 1 means no warm-up
    posthoc_ema: Annotated[tuple[Positive, ...], Field(strict=False)] = ()  # relative widths of EDM2's averages, as 0.05
    label_dropout: Fraction
    precision: Precision
    compile: bool = False  # torch.compile each block
    checkpointing: bool = False  # compute each block again in the backward pass instead of keeping its activations

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError("steps must ascend")
        return milestones

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        if (self.schedule_steps is None) != (self.mask_schedule == "constant"):
            raise ValueError("schedule_steps is for a mask_schedule other than constant, and each such one needs it")
        if self.route and (self.mask_ratio or self.defer):
            raise ValueError("route sends all tokens on their way: set mask_ratio: 0.0 and defer: 0")
        if self.defer and not self.mask_ratio:
            raise ValueError("defer waits for a mask: set a mask_ratio above 0, or defer: 0")
        return self

    def recipe(self) -> dict[str, Any]:
        """What determines a step: the entry without its length and without what only trades memory for time."""
        return self.model_dump(mode="json", exclude={"milestones", "micro_batch", "checkpointing", "compile"})

    def mask_at(self, step: int) -> float:
        """The mask ratio of a step, counted from 0."""
        if self.schedule_steps is None:
            return self.mask_ratio
        return self.mask_ratio * math.cos(math.pi / 2 * min(1.0, step / self.schedule_steps)) ** 4


class Pretrain(Training):
    """A run from random weights; decoder null and mask_ratio 0 make it DiT under the same loop."""

    dataset: Key
    encoder: Encoder
    decoder: Transformer | None


class Finetune(Training):
    """A second phase of a run; the architecture comes from its checkpoint."""

    run: Key  # an entry of pretrain
    dataset: Key


class Released(Section):
    """Weights that others have published, for sampling and evaluation beside ours."""

    url: Url
    sha256: Sha | None  # null: trust what comes, and say its hash
    format: Literal["upstream", "dit"]
    vae: Key  # the autoencoder that made the latents
    dataset: Key  # the reference that its samples are measured against
    step: Count
    heads: Annotated[tuple[Count, ...], Field(strict=False, max_length=2)] = ()  # of encoder and decoder, if not the usual ones


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """How many of `tokens` the encoder sees: int(tokens * (1 - mask_ratio))."""
    return int(tokens * (1 - mask_ratio))


def ema_file(step: int) -> str:
    """Name of a milestone's averaged weights."""
    return f"ema-{step:07d}.safetensors"


def net_file(step: int) -> str:
    """Name of a milestone's raw weights, from which a finetuning starts."""
    return f"net-{step:07d}.safetensors"


def posthoc_file(number: int, step: int) -> str:
    """Name of a milestone's average by a power function, the `number`-th of posthoc_ema."""
    return f"posthoc-{number}-{step:07d}.safetensors"
