"""Every number of every study, typed: one model per step of the pipeline, for its entries in params.yaml."""

import math
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator


def _parsed(url: str) -> str:
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        raise ValueError(f"no address: {error}") from None
    return url


Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
LONGEST = 4000  # letters of a refusal
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]  # one line of text, nothing that controls
Place = Annotated[str, StringConstraints(pattern=r"^(pretrain|finetune|sample)(\.[a-z_]+)+$")]  # of a number behind an evaluation
Count = Annotated[int, Field(ge=1, lt=2**63)]
Url = Annotated[str, StringConstraints(pattern=r"^(https|file)://[!-~]+$"), AfterValidator(_parsed)]
Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Family = Literal["mobilenet-v2", "inception-2015", "dinov2"]  # the network whose features are compared
Computed = Literal["fp32", "tf32", "bf16", "fp16"]  # what matrix products are rounded to; weights, sums and averages are float32
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]  # auto: what the device is fastest in, settled when work begins


def new(neutral: Any) -> Any:
    """The default of a field that has come since 0.1.0: neutral, and then neither recorded nor hashed.

    So what was made before the field came stays current, and a training that was begun then goes on.
    """
    return Field(default=neutral, exclude_if=lambda value: value == neutral)


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file or key and says what to do.

    What it quotes may be a stranger's: nothing in it moves a terminal's cursor, and it ends somewhere.
    """

    def __init__(self, line: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[:LONGEST]))


class Section(BaseModel):
    """One entry of params.yaml: frozen, unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    revision: Count = 1  # raised by hand when a change of code changes this step's results

    def accepts(self, made: "Section") -> bool:
        """Whether what was made with an entry is what this one asks for: the same numbers; precision auto takes any precision."""
        if getattr(self, "precision", None) == "auto":
            made = made.model_copy(update={"precision": "auto"})
        return self == made


class DownloadedVae(Section):
    """An autoencoder that others have published."""

    source: Literal["download"]
    dataset: Key  # an entry of fetch whose source is autoencoder
    factor: Count  # pixels per latent position along one side
    latent_channels: Count


class Vae(Section):
    """The autoencoder, trained here: diffusers' AutoencoderKL with len(channels) levels."""

    source: Literal["train"]
    dataset: Key
    channels: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
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
    """Images to posterior moments of the VAE, stored as float16."""

    dataset: Key
    vae: Key
    batch: Count
    mirror: bool  # also store the moments of the mirrored image: a latent must not be flipped
    shards: Count = 1  # files, each made by one of any number of processes


class Reference(Section):
    """Statistics of the real images in a feature space, and a class probe fitted on them."""

    dataset: Key
    extractor: Key  # an entry of fetch whose source is extractor
    batch: Count
    shards: Count = 1
    neighbours_from: Count | None = None  # precision and recall see so many of the images, drawn by the number; null: all


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


class Sample(Section):
    """Images from one checkpoint: heun asks the denoiser 2 * solver_steps - 1 times, the other solvers solver_steps times."""

    run: Key
    vae: Key
    phase: Literal["pretrain", "finetune", "released"]
    step: Count | Literal["final"]
    ema_width: Positive | None = None  # relative width of an average made from a run's posthoc_ema; null: its ema
    guidance: Annotated[float, Field(ge=1)]  # 1 is no guidance
    guidance_channels: Literal["all", "first3"] = "all"  # first3 is DiT's
    guidance_interval: Annotated[tuple[float, float], Field(strict=False)] | None = None  # guided where low < sigma <= high
    images: Count
    labels: Literal["random", "balanced"]
    solver: Literal["heun", "dpmpp-2m", "ddpm"] = "heun"
    solver_steps: Count
    batch: Count
    shards: Count
    precision: Precision
    quantisation: Literal["round", "floor"] = "round"  # floor is the published code's of MaskDiT
    seed: Seed

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"an interval goes from a low sigma to a higher one, not {list(interval)}")
        return interval

    @field_validator("solver_steps")
    @classmethod
    def _timesteps(cls, steps: int, info: Any) -> int:
        if info.data.get("solver") == "ddpm" and not 2 <= steps <= 1000:
            raise ValueError("ddpm takes 2 to 1000 steps")
        return steps


class Features(Section):
    """Images to feature vectors."""

    extractor: Key  # an entry of fetch whose source is extractor
    batch: Count


class Evaluate(Section):
    """Metrics of one evaluation against the reference of its data set."""

    bench: Key
    dataset: Key
    neighbours: Count  # k of precision and recall


class Reconstruct(Section):
    """Held-out images through an autoencoder and back: rFID, PSNR, SSIM."""

    bench: Key
    dataset: Key
    vae: Key
    extractor: Key
    posterior: Literal["sample", "mean"]  # what is decoded
    batch: Count
    shards: Count
    seed: Seed


class Calibrate(Section):
    """Images whose metrics others have published: what the evaluator must find."""

    dataset: Key  # an entry of fetch whose source is npz: the images
    reference: Key
    extractor: Key
    batch: Count
    shards: Count
    neighbours: Count
    expected: dict[str, float]  # metric -> published value
    tolerance: dict[str, Positive]  # metric -> largest absolute difference

    @model_validator(mode="after")
    def _same(self) -> Self:
        if self.expected.keys() != self.tolerance.keys():
            raise ValueError("expected and tolerance name the same metrics")
        return self


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """How many of `tokens` the encoder sees: int(tokens * (1 - mask_ratio))."""
    return int(tokens * (1 - mask_ratio))
