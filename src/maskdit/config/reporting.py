"""What is shown of results: one model per step that makes tables, curves, pictures and reports."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from maskdit.config.base import Count, Key, Line, Place, Positive, Section


class Recon(Section):
    """Rows of a table of reconstructions."""

    title: Line
    published: Key | None = None
    evals: Annotated[tuple[Key, ...], Field(strict=False, min_length=1)]


class Grid(Section):
    """A picture of samples by class beside real images."""

    dataset: Key
    sample: Key
    columns: Count
    classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()  # whose rows are shown; (): all


class Strip(Section):
    """A picture of the same noise and classes through training: evaluations of one protocol at milestones of several runs."""

    images: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]  # by their numbers
    evals: Annotated[tuple[Key, ...], Field(strict=False)]  # that its `select` fits, in the order of params.yaml


class Table(Section):
    """Rows of a benchmark's table, in order."""

    title: Line
    published: Key | None = None  # the benchmark in published.csv whose rows are added: what others report
    evals: Annotated[tuple[Key, ...], Field(strict=False)]  # that its `select` fits, in the order of params.yaml
    reproduces: dict[Key, str] = Field(default={})  # evaluation -> the method in published.csv whose row it should reproduce
    numbers: Annotated[tuple[Place, ...], Field(strict=False)] = ()  # shown as columns: what the rows of an ablation differ in

    @model_validator(mode="after")
    def _reproduced(self) -> Self:
        if strange := [name for name in self.reproduces if name not in self.evals]:
            raise ValueError(f"reproduces names '{strange[0]}', which is not among its evals")
        return self


class Curves(Section):
    """Points of a benchmark's curves: evaluations at milestones."""

    title: Line
    published: Annotated[tuple[Key, ...], Field(strict=False)] = ()  # benchmarks in published.csv whose points are overlaid
    price_per_device_hour: Positive | None = None  # in any currency; null: no curve of cost
    evals: Annotated[tuple[Key, ...], Field(strict=False)]  # that its `select` fits, in the order of params.yaml


class Efficiency(Section):
    """Rows of a table of speed and memory: the trainings behind these evaluations, the first one being the yardstick."""

    title: Line
    published: Key | None = None
    evals: Annotated[tuple[Key, ...], Field(strict=False)]  # that its `select` fits, in the order of params.yaml


class Report(Section):
    """A benchmark's report: its key is that of a table and of curves."""

    grids: Annotated[tuple[Key, Key], Field(strict=False)]  # samples of the two models
    ledger: Key  # an entry of claims
    mixed: bool = False  # whether artifacts may be of several commits
