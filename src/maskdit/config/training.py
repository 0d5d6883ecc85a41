"""Sections of params.yaml: pretraining, finetuning, and published weights."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from maskdit.config.base import Count, Fraction, Key, Line, ListOf, Natural, Positive, Precision, Section, Seed, Sha, Url, new

HELDOUT_LOSS = "heldout"  # in logs and records the mean over the noise levels; heldout_SIGMA is the loss at one of them


class Transformer(Section):
    """Depth, width and heads of one half of the model."""

    depth: Count
    width: Count
    heads: Count

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        if self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 (two-dimensional sine and cosine positions)")
        return self


class Encoder(Transformer):
    """The half that processes the kept tokens only."""

    patch: Count


class Route(Section):
    """TREAD (Krause et al. 2025): in training, some tokens skip a range of encoder blocks and rejoin after it."""

    first: Natural  # block index, counted from 0
    last: Natural
    ratio: Annotated[float, Field(gt=0, lt=1)]  # fraction of the tokens that skip the blocks

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last {self.last} comes before first {self.first}")
        return self


class Training(Section):
    """What pretraining and finetuning have in common (PAPER: AdamW, constant rate, EMA, class dropout)."""

    seed: Seed
    mask_ratio: Fraction  # fraction of tokens hidden from the encoder; int(tokens * (1 - ratio)) are kept
    mask_schedule: Literal["constant", "cosine4"] = "constant"  # cosine4: mask_ratio * cos(pi / 2 * step / schedule_steps)^4
    schedule_steps: Count | None = None
    defer: Natural = 0  # encoder blocks that see all tokens before the mask is applied (MicroDiT)
    route: Route | None = None
    options: dict[str, Any] = new({})  # of its method; a finetuning has those of its run, but for the ones that it names
    mae_weight: Annotated[float, Field(ge=0)]  # lambda of the reconstruction term
    dsm: Literal["kept", "all"] = "kept"  # tokens that the denoising term covers; the paper uses kept
    batch: Count  # images per step over all ranks
    micro_batch: Count | Literal["auto"] | None = None  # images per pass of a rank; null: its whole share; auto: what fits
    milestones: Annotated[ListOf[Count], Field(min_length=1)]  # steps; the last one ends the phase
    lr: Positive
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    warmup: Natural  # steps of linear warm-up
    ema: Fraction
    ema_warmup: Count  # decay at step t is min(ema, (t + 1) / (t + ema_warmup)); 1: no warm-up
    posthoc_ema: ListOf[Positive] = ()  # relative widths of EDM2's averages, for example 0.05
    label_dropout: Fraction
    precision: Precision
    compile: bool = False  # torch.compile each block
    checkpointing: bool = False  # recompute each block's activations in the backward pass

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must ascend, not {list(self.milestones)}")
        if (self.schedule_steps is None) != (self.mask_schedule == "constant"):
            raise ValueError("schedule_steps is required with mask_schedule cosine4, and not allowed with constant")
        if self.route and (self.mask_ratio or self.defer):
            raise ValueError("route cannot be combined with a mask; set mask_ratio: 0.0 and defer: 0")
        if self.defer and not self.mask_ratio:
            raise ValueError("defer has no effect without a mask; set a mask_ratio above 0, or defer: 0")
        return self

    def recipe(self) -> dict[str, Any]:
        """What determines a step: the entry without its length and without settings that only trade memory for time."""
        return self.model_dump(mode="json", exclude={"milestones", "micro_batch", "checkpointing", "compile"})

    def accepts(self, made: Section) -> bool:
        """Whether a training made with the entry `made` is current for this one, whatever its `micro_batch`."""
        return super().accepts(made.model_copy(update={"micro_batch": self.micro_batch}))

    def mask_at(self, step: int) -> float:
        """The mask ratio of a step, counted from 0."""
        if self.schedule_steps is None:
            return self.mask_ratio
        return self.mask_ratio * math.cos(math.pi / 2 * min(1.0, step / self.schedule_steps)) ** 4


class Pretrain(Training):
    """A run from random weights. Without `method` it is DiT, or MaskDiT with a decoder, or TREAD with a route."""

    dataset: Key
    method: Line | None = new(None)  # dit, maskdit, tread, sit, mask-sit, or your own: methods/mine.py:Mine
    method_sha256: SkipJsonSchema[str | None] = new(None)  # of the file of such a class; computed
    encoder: Encoder
    decoder: Transformer | None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, entry: Any) -> Any:
        """A method that the entry implies is not recorded: naming it changes no recipe."""
        if isinstance(entry, dict) and entry.get("method") == implied(entry.get("decoder"), entry.get("route")):
            return {**entry, "method": None}
        return entry


class Finetune(Training):
    """A second phase of a run, or of published weights. The architecture comes from their checkpoint."""

    run: Key  # an entry of the section that phase names
    phase: Literal["pretrain", "released"] = new("pretrain")  # where its weights come from; DVC needs the key in the file
    start: Count | Literal["final"] = new(
        "final"
    )  # a milestone whose average it branches off; final: the last with its raw weights
    dataset: Key
    classes: dict[Line, Natural | Line] = new({})  # class -> number or ImageNet name of the published class that it starts from

    @model_validator(mode="after")
    def _published(self) -> Self:
        if self.classes and self.phase != "released":
            raise ValueError("classes need phase: released, because a run of pretrain has the classes of its images")
        if self.start != "final" and self.phase == "released":
            raise ValueError("start needs phase: pretrain, because published weights have one milestone")
        return self


class Released(Section):
    """Published weights, to be sampled and evaluated for comparison with ours, or to be finetuned."""

    url: Url
    sha256: Sha | None  # null: accept any file and report its hash
    format: Literal["upstream", "dit"]
    vae: Key  # the autoencoder that produced the latents
    dataset: Key  # the reference for evaluating its samples
    step: Count
    heads: Annotated[ListOf[Count], Field(max_length=2)] = ()  # of encoder and decoder, if they differ from the usual ones


def implied(decoder: object, route: object) -> str:
    """The method of an entry that names none."""
    return "tread" if route else "maskdit" if decoder else "dit"


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """How many of `tokens` the encoder sees: int(tokens * (1 - mask_ratio))."""
    return int(tokens * (1 - mask_ratio))


def milestone_file(kind: str, step: int) -> str:
    """File name of a milestone's weights: kind `ema`, `net` (raw; finetuning starts from them) or `posthoc-K` (of posthoc_ema)."""
    return f"{kind}-{step:07d}.safetensors"
