"""What the paper claims, and what would show it: the claims of params.yaml, typed."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdit.config.base import Key, Section

RECORDS = ("evaluate", "reconstruct")
Evals = Annotated[
    tuple[Key, ...], Field(strict=False, min_length=1)
]  # seeds of one recipe, or recipes of which the best one counts


class Metric(Section):
    """A number of evaluations or reconstructions."""

    kind: Literal["metric"]
    metric: str
    evals: Evals


class Ratio(Section):
    """A number of some evaluations over that of others: a metric, or speed or memory of the training behind them."""

    kind: Literal["ratio"]
    metric: str
    of: Evals
    over: Evals


class Crossing(Section):
    """What MaskDiT has spent, in parts of what DiT has, when it is as good as DiT at its last milestone."""

    kind: Literal["crossing"]
    study: Key  # an entry of curves
    axis: Literal["steps", "images", "tflop", "seconds", "device_hours", "cost"]


class Pair(Section):
    """The ratio of a pair of the benchmark."""

    kind: Literal["pair"]
    bench: Key
    pair: str


class Cell(Section):
    """A column of the benchmark's factorial, of one model over that of another at the same settings."""

    kind: Literal["factorial"]
    bench: Key
    column: str
    of: str
    over: str


Evidence = Annotated[Metric | Ratio | Crossing | Pair | Cell, Field(discriminator="kind")]


class Claim(Section):
    """One claim: a number, which ours should reach, or that something is less (or more) than something else.

    The second kind has a ratio as its evidence; a claimed size of it is `paper`, null if it is not known here.
    """

    says: str
    source: str
    paper: float | None = None
    better: Literal["lower", "higher"] = "lower"
    evidence: Evidence
    scaled: Evidence | None = None  # the same at a smaller size, which tells a direction at best

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if isinstance(self.evidence, Metric) and self.paper is None:
            raise ValueError("a number is compared with the paper's, and paper is missing")
        if isinstance(self.scaled, Metric):
            raise ValueError("a number of a smaller size compares with nothing; scaled takes a ratio, crossing, pair or factorial")
        return self


class Claims(Section):
    """A ledger of claims."""

    title: str
    study: Key  # whose results are made before; of all others what is there is read
    claims: Annotated[dict[Key, Claim], Field(min_length=1)]

    def needs(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Each claim, the verbs one of which must have an entry, and the key of that entry."""
        for name, claim in self.claims.items():
            for evidence in (claim.evidence, claim.scaled):
                match evidence:
                    case Metric():
                        yield from ((name, RECORDS, each) for each in evidence.evals)
                    case Ratio():
                        yield from ((name, RECORDS, each) for each in (*evidence.of, *evidence.over))
                    case Crossing():
                        yield name, ("curves",), evidence.study
                    case Pair() | Cell():
                        yield name, ("bench",), evidence.bench

    def compared(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each claim with records that are set beside each other, and those."""
        for name, claim in self.claims.items():
            for evidence in (claim.evidence, claim.scaled):
                if isinstance(evidence, Ratio):
                    yield name, (*evidence.of, *evidence.over)

    @property
    def evals(self) -> tuple[str, ...]:
        """The records that are looked for."""
        return tuple(dict.fromkeys(name for _, verbs, name in self.needs() if verbs == RECORDS))
