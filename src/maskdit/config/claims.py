"""The section of params.yaml about the paper's claims and the evidence for each."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdit.config.base import Key, Line, ListOf, Section, new

RECORDS = ("evaluate", "reconstruct")
Evals = Annotated[ListOf[Key], Field(min_length=1)]  # seeds of one recipe


class Metric(Section):
    """A metric of evaluations or reconstructions."""

    kind: Literal["metric"]
    metric: str
    evals: Evals


class Ratio(Section):
    """The ratio of some evaluations to others: of a metric, or of the speed or memory of the trainings behind them.

    Evaluations in `over` that differ in more than the seed are alternatives. Each has a ratio with an interval of its own, and the
    one that speaks least for the claim decides.
    """

    kind: Literal["ratio"]
    metric: str
    of: Evals
    over: Evals  # seeds of one recipe or of several


class Crossing(Section):
    """The cost at which a model reaches the quality of DiT's last milestone, as a fraction of DiT's cost."""

    kind: Literal["crossing"]
    study: Key  # an entry of curves
    axis: Literal["steps", "images", "tflop", "seconds", "device_hours", "cost"]
    model: Line = new("MaskDiT")  # the name of a method


class Pair(Section):
    """The ratio of a pair of the benchmark."""

    kind: Literal["pair"]
    bench: Key
    pair: str


class Cell(Section):
    """A column of the benchmark's factorial: the ratio of one model to another at the same settings."""

    kind: Literal["factorial"]
    bench: Key
    column: str
    of: str
    over: str


Evidence = Annotated[Metric | Ratio | Crossing | Pair | Cell, Field(discriminator="kind")]


class Claim(Section):
    """One claim: a number that ours should reach, or a ratio that should be below (or above) 1, for which `paper` may be null."""

    says: str
    source: str
    paper: float | None = None
    better: Literal["lower", "higher"] = "lower"
    evidence: Evidence | None  # null: a project that cannot have any of the paper's size
    scaled: Evidence | None = None  # the same at a smaller size, which can show a direction at most
    control: Evidence | None = new(None)  # a ratio known to be below 1 (above 1) that the smaller size must show, too

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.evidence is None and self.scaled is None:
            raise ValueError("evidence is null, so scaled must be given")
        if isinstance(self.evidence, Metric) and self.paper is None:
            raise ValueError("evidence of kind metric is compared with the paper's number, but paper is missing")
        for name in ("scaled", "control"):
            if isinstance(getattr(self, name), Metric):
                raise ValueError(f"{name} cannot be a metric; use a ratio, crossing, pair or factorial")
        if self.control and not self.scaled:
            raise ValueError("control is of the scaled evidence, but scaled is missing")
        return self


class Claims(Section):
    """A ledger of claims."""

    title: str
    study: Key  # its results are made first; results of other studies are read if they exist
    claims: Annotated[dict[Key, Claim], Field(min_length=1)]

    def needs(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """For each entry that a claim needs: the claim, the verbs of which one must have the entry, and its key."""
        for name, claim in self.claims.items():
            for evidence in (claim.evidence, claim.scaled, claim.control):
                match evidence:
                    case Metric():
                        yield from ((name, RECORDS, each) for each in evidence.evals)
                    case Ratio():
                        yield from ((name, RECORDS, each) for each in (*evidence.of, *evidence.over))
                    case Crossing():
                        yield name, ("curves",), evidence.study
                    case Pair() | Cell():
                        yield name, ("bench",), evidence.bench

    @property
    def evals(self) -> tuple[str, ...]:
        """All evaluations and reconstructions that the claims refer to, without duplicates."""
        return tuple(dict.fromkeys(name for _, verbs, name in self.needs() if verbs == RECORDS))
