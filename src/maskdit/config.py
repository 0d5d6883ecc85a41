"""Every number of every study, typed: params.yaml has one dictionary per step and one entry per node of the graph."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file or key and says what to do."""


class Section(BaseModel):
    """One entry of params.yaml: frozen, unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    revision: Count = 1  # raised by hand when a change of code changes this step's results


class Fetch(Section):
    """Images of one data set: where they come from, their size, and the split by emoji."""

    source: Literal["openmoji"]
    resolution: Count
    per_class: Count  # at most so many images of a class, drawn by the seed
    images: Count  # how many there must be in all: fetch fails if it finds another number
    heldout: Annotated[float, Field(gt=0, lt=1)]
    seed: int


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
    seed: int

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


class Reference(Section):
    """Statistics of the real images in a feature space, and a class probe fitted on them."""

    dataset: Key
    family: Literal["mobilenet-v2"]
    batch: Count


class Transformer(Section):
    """Depth, width and heads of one half of the model."""

    depth: Count
    width: Count
    heads: Count

    @field_validator("heads")
    @classmethod
    def _divides_width(cls, heads: int, info: Any) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            raise ValueError(f"heads {heads} must divide width {width}")
        if width % 4:
            raise ValueError(f"width {width} must be a multiple of 4 (two-dimensional sine and cosine positions)")
        return heads


class Encoder(Transformer):
    """The half that sees the kept tokens only."""

    patch: Count


class Training(Section):
    """What pretraining and finetuning have in common (PAPER: AdamW, constant rate, EMA, class dropout)."""

    seed: int
    mask_ratio: Fraction  # share of tokens hidden from the encoder; int(tokens * (1 - ratio)) are kept
    mae_weight: Annotated[float, Field(ge=0)]  # lambda of the reconstruction term
    batch: Count  # images per step over all ranks
    milestones: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]  # steps; the last one ends the phase
    lr: Positive
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    warmup: Annotated[int, Field(ge=0)]  # steps of linear warm-up
    ema: Fraction
    ema_warmup: Count  # decay at step t is min(ema, (t + 1) / (t + ema_warmup)); 1 means no warm-up
    label_dropout: Fraction
    precision: Literal["fp32", "bf16"]

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError("steps must ascend")
        return milestones

    def recipe(self) -> dict[str, Any]:
        """The entry without its length: two runs of one recipe share their first steps."""
        return self.model_dump(mode="json", exclude={"milestones"})


class Pretrain(Training):
    """A run from random weights; decoder null and mask_ratio 0 make it DiT under the same loop."""

    dataset: Key
    encoder: Encoder
    decoder: Transformer | None


class Finetune(Training):
    """A second phase of the run of the same key; the architecture comes from its checkpoint."""

    dataset: Key


class Sample(Section):
    """Images from one checkpoint (EDM Heun): NFE is 2 * solver_steps - 1."""

    run: Key
    vae: Key
    phase: Literal["pretrain", "finetune"]
    step: Count | Literal["final"]
    guidance: Annotated[float, Field(ge=1)]  # 1 is no guidance
    images: Count
    labels: Literal["random", "balanced"]
    solver_steps: Count
    batch: Count
    shards: Count
    precision: Literal["fp32", "bf16"]
    seed: int


class Features(Section):
    """Images to feature vectors."""

    family: Literal["mobilenet-v2"]
    batch: Count


class Evaluate(Section):
    """Metrics of one evaluation against the reference of its data set."""

    bench: Key
    dataset: Key
    family: Literal["mobilenet-v2"]
    neighbours: Count  # k of precision and recall


class Grid(Section):
    """A picture of samples by class beside real images."""

    dataset: Key
    sample: Key
    columns: Count


class Table(Section):
    """Rows of a benchmark's table, in order."""

    title: str
    evals: Annotated[tuple[Key, ...], Field(strict=False, min_length=1)]


class Curves(Section):
    """Points of a benchmark's curves: evaluations at milestones."""

    title: str
    evals: Annotated[tuple[Key, ...], Field(strict=False, min_length=1)]


class Params(BaseModel):
    """The whole of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    fetch: dict[Key, Fetch]
    vae: dict[Key, Vae]
    encode: dict[Key, Encode]
    reference: dict[Key, Reference]
    pretrain: dict[Key, Pretrain]
    finetune: dict[Key, Finetune]
    sample: dict[Key, Sample]
    features: dict[Key, Features]
    evaluate: dict[Key, Evaluate]
    grid: dict[Key, Grid]
    table: dict[Key, Table]
    curves: dict[Key, Curves]

    def entry(self, verb: str, key: str) -> Any:
        """The entry that a verb sees.

        Raises UserError, with the nearest known key, if there is none.
        """
        entries = getattr(self, verb)
        if key not in entries:
            raise UserError(f"params.yaml: {verb} has no entry '{key}'{_nearest(key, entries)}")
        return entries[key]

    def upstream(self, verb: str, key: str) -> set[str]:
        """The nodes VERB/KEY whose artifacts a node reads."""
        entry = self.entry(verb, key)
        match verb:
            case "vae" | "reference":
                return {f"fetch/{entry.dataset}"}
            case "encode":
                return {f"fetch/{entry.dataset}", f"vae/{entry.vae}"}
            case "pretrain":
                return {f"encode/{entry.dataset}"}
            case "finetune":
                return {f"encode/{entry.dataset}", f"pretrain/{key}"}
            case "sample":
                return {f"{entry.phase}/{entry.run}", f"vae/{entry.vae}"}
            case "features":
                return {f"sample/{key}"}
            case "evaluate":
                return {f"features/{key}", f"reference/{entry.dataset}"}
            case "grid":
                return {f"fetch/{entry.dataset}", f"sample/{entry.sample}"}
            case "table" | "curves":
                return {f"evaluate/{name}" for name in entry.evals}
        return set()

    def problems(self) -> Iterator[str]:
        """Impossible combinations between entries, one line each, beginning with the key at fault."""
        benches = set(self.table)
        for verb in VERBS:
            for key in getattr(self, verb):
                if not any(key == bench or key.startswith(f"{bench}-") for bench in benches):
                    yield f"{verb}.{key}: a key begins with its benchmark, one of {', '.join(sorted(benches))}"
        missing = list(self._missing())
        yield from missing
        if not missing:  # the rest follows the references
            yield from self._sizes()
            yield from self._phases()

    def _missing(self) -> Iterator[str]:
        for verb, field, target in REFERENCES:
            known = getattr(self, target)
            for key, entry in getattr(self, verb).items():
                names = getattr(entry, field)
                for name in names if isinstance(names, tuple) else (names,):
                    if name not in known:
                        yield f"{verb}.{key}.{field}: {target} has no entry '{name}'{_nearest(name, known)}"
        for key in self.finetune:
            if key not in self.pretrain:
                yield f"finetune.{key}: pretrain has no entry '{key}'{_nearest(key, self.pretrain)}"
        for other in ("features", "evaluate"):
            for key in set(self.sample) ^ set(getattr(self, other)):
                have, lack = ("sample", other) if key in self.sample else (other, "sample")
                yield f"{have}.{key}: has no twin in {lack}; sample, features and evaluate have the same keys"

    def _sizes(self) -> Iterator[str]:
        for key, vae in self.vae.items():
            data = self.fetch[vae.dataset]
            if data.resolution % vae.factor:
                yield f"vae.{key}.channels: {vae.factor} pixels per latent do not divide resolution {data.resolution}"
            yield from self._batch_fits(f"vae.{key}", vae.batch, vae.dataset)
        for verb in ("pretrain", "finetune"):
            for key, run in getattr(self, verb).items():
                encode = self.encode[run.dataset]
                side = self.fetch[encode.dataset].resolution // self.vae[encode.vae].factor
                patch = self.pretrain[key].encoder.patch
                if side % patch:
                    yield f"pretrain.{key}.encoder.patch: {patch} does not divide the latent's side of {side}"
                elif not kept_tokens((side // patch) ** 2, run.mask_ratio):
                    yield f"{verb}.{key}.mask_ratio: {run.mask_ratio} keeps none of {(side // patch) ** 2} tokens"
                if run.mask_ratio and self.pretrain[key].decoder is None:
                    yield f"{verb}.{key}.mask_ratio: {run.mask_ratio} needs a decoder, and pretrain.{key}.decoder is null"
                yield from self._batch_fits(f"{verb}.{key}", run.batch, encode.dataset)

    def _batch_fits(self, where: str, batch: int, dataset: str) -> Iterator[str]:
        data = self.fetch[dataset]
        count = math.floor(data.images * (1 - data.heldout))
        if batch > count:
            yield f"{where}.batch: {batch} is larger than the data ({count} training images of fetch.{dataset})"

    def _phases(self) -> Iterator[str]:
        for key, finetune in self.finetune.items():
            if finetune.dataset != self.pretrain[key].dataset:
                yield f"finetune.{key}.dataset: pretrain.{key} has {self.pretrain[key].dataset}"
        for key, sample in self.sample.items():
            phase = getattr(self, sample.phase).get(sample.run)
            if phase is None:
                yield f"sample.{key}.phase: {sample.phase} has no entry '{sample.run}'"
            elif sample.step != "final" and sample.step not in phase.milestones:
                yield f"sample.{key}.step: {sample.step} is no milestone of {sample.phase}.{sample.run} {phase.milestones}"
            dataset = self.pretrain[sample.run].dataset
            if sample.vae != self.encode[dataset].vae:
                yield f"sample.{key}.vae: the run {sample.run} has {self.encode[dataset].vae}"
            evaluate = self.evaluate[key]
            if evaluate.dataset != dataset:
                yield f"evaluate.{key}.dataset: the run {sample.run} has {dataset}"
            for where, family in (("features", self.features[key].family), ("evaluate", evaluate.family)):
                if family != self.reference[evaluate.dataset].family:
                    yield f"{where}.{key}.family: reference.{evaluate.dataset} has {self.reference[evaluate.dataset].family}"
            if evaluate.neighbours >= sample.images:
                yield f"evaluate.{key}.neighbours: {evaluate.neighbours} needs more than {sample.images} images"
            if sample.shards > sample.images:
                yield f"sample.{key}.shards: {sample.shards} shards of {sample.images} images"
        for verb in ("table", "curves"):
            for key, entry in getattr(self, verb).items():
                for name in entry.evals:
                    if self.evaluate[name].bench != key:
                        yield f"{verb}.{key}.evals: '{name}' belongs to bench {self.evaluate[name].bench}"


VERBS = tuple(Params.model_fields)
REFERENCES = (
    ("vae", "dataset", "fetch"),
    ("encode", "dataset", "fetch"),
    ("encode", "vae", "vae"),
    ("reference", "dataset", "fetch"),
    ("pretrain", "dataset", "encode"),
    ("finetune", "dataset", "encode"),
    ("sample", "run", "pretrain"),
    ("sample", "vae", "vae"),
    ("evaluate", "dataset", "reference"),
    ("evaluate", "bench", "table"),
    ("grid", "dataset", "fetch"),
    ("grid", "sample", "sample"),
    ("table", "evals", "evaluate"),
    ("curves", "evals", "evaluate"),
)


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """How many of `tokens` the encoder sees: int(tokens * (1 - mask_ratio))."""
    return int(tokens * (1 - mask_ratio))


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check a params.yaml (YAML 1.2).

    Raises UserError, in one line that names the key, for misspelt keys, wrong types and impossible combinations.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run maskdit where params.yaml lies") from None
    except YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return validate(tree, path)


def validate(tree: Any, path: Path = Path("params.yaml")) -> Params:
    """Typed parameters of an already parsed file; raises UserError as `load` does."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: expected a dictionary of steps")
    try:
        params = Params.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from None
    for problem in params.problems():
        raise UserError(f"{path}: {problem}")
    return params


def _first(error: ValidationError) -> str:
    """The first complaint of pydantic as one line: the key, what is wrong, what would be right."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part != "[key]"]
    where = ".".join(str(part) for part in place)
    got = first.get("input")
    if first["type"] == "extra_forbidden":
        known = _fields_at(place[:-1])
        return f"{where}: unknown key{_nearest(str(place[-1]), known)}"
    if first["type"] == "missing":
        return f"{where}: missing"
    message = re.sub(r"^Value error, ", "", first["msg"])
    if isinstance(got, str) and re.fullmatch(r"[\d.]+e[+-]?\d+", got, re.I):
        message += f"; YAML 1.1 reads {got} as text, write a point and a sign, as in 1.0e-4"
    if isinstance(got, str | int | float):
        message += f" (got {got!r})"
    return f"{where}: {' '.join(message.split())}"


def _fields_at(place: list[Any]) -> list[str]:
    """Names of the fields that the models know at a place such as ['pretrain', 'demo-dit', 'encoder']."""
    if not place:
        return list(Params.model_fields)
    section: Any = {name: kind for name, kind in zip(VERBS, SECTIONS, strict=True)}.get(place[0], Section)
    if len(place) > 2:
        section = {"encoder": Encoder, "decoder": Transformer}.get(place[2], Section)
    return list(section.model_fields)


SECTIONS = (Fetch, Vae, Encode, Reference, Pretrain, Finetune, Sample, Features, Evaluate, Grid, Table, Curves)


def _nearest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known)) or 'none'}"
