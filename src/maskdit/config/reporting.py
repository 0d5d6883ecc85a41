"""Sections of params.yaml: tables, curves, pictures and reports."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdit.config.base import Count, Key, Line, ListOf, Natural, Place, Positive, Section, new


class Recon(Section):
    """Rows of a table of reconstructions."""

    title: Line
    published: Key | None = None
    evals: Annotated[ListOf[Key], Field(min_length=1)]


class Grid(Section):
    """A picture of samples by class, next to real images."""

    dataset: Key
    sample: Key
    columns: Count
    classes: ListOf[Natural] = ()  # classes to show; (): all


class Strip(Section):
    """A picture of the same noise and classes at milestones of several runs, sampled with the same settings."""

    images: Annotated[ListOf[Natural], Field(min_length=1)]  # indices of the images
    evals: ListOf[Key]  # matched by `select`, in the order of params.yaml


class Table(Section):
    """Rows of a benchmark's table, in order."""

    title: Line
    published: Key | None = None  # benchmark in published.csv whose reported rows are added
    evals: ListOf[Key]  # matched by `select`, in the order of params.yaml
    reproduces: dict[Key, str] = Field(default={})  # evaluation -> the method in published.csv that it should reproduce
    numbers: ListOf[Place] = ()  # shown as columns: the settings that differ between rows of an ablation
    chosen: dict[Key, ListOf[Key]] = new({})  # evaluation -> the sweeps that its `best_of` names
    rescored: ListOf[Key] = new(())  # the evaluations that have an entry of rescore

    @model_validator(mode="after")
    def _reproduced(self) -> Self:
        if strange := [name for name in self.reproduces if name not in self.evals]:
            raise ValueError(f"reproduces names '{strange[0]}', which is not among its evals")
        return self


class Curves(Section):
    """Points of a benchmark's curves: evaluations at milestones."""

    title: Line
    published: ListOf[Key] = ()  # benchmarks in published.csv whose points are overlaid
    price_per_device_hour: Positive | None = None  # in any currency; null: no cost curve
    evals: ListOf[Key]  # matched by `select`, in the order of params.yaml


class Efficiency(Section):
    """Rows of a table of speed and memory: the trainings behind these evaluations. The first row is the baseline."""

    title: Line
    published: Key | None = None
    evals: ListOf[Key]  # matched by `select`, in the order of params.yaml


class Reported(Section):
    """A sample that names a sweep as what chose its values, with those values."""

    arm: Key | None  # null: no point of the sweep is of its training
    lr: Positive | None  # of pretraining; null: of published weights
    guidance: float
    ema_width: Positive | None


class Sweep(Section):
    """Points of one study that choose values for samples of another: the best of each arm, by the first Fréchet distance."""

    title: Line
    axis: Literal["guidance", "lr"]  # guidance: with EMA widths, of finished trainings; lr: the learning rate of pretraining
    evals: ListOf[Key]  # matched by `select`, in the order of params.yaml
    arms: dict[Key, Key]  # evaluation -> its arm, by the name of the arm's first run
    reports: dict[Key, Reported] = new({})  # the samples whose `best_of` names this one


class Report(Section):
    """A benchmark's report. A table, curves, efficiency and a strip with the same key must exist."""

    grids: Annotated[tuple[Key, Key], Field(strict=False)]  # samples of the two models
    ledger: Key  # an entry of claims
    mixed: bool = False  # whether artifacts from different commits are allowed
    sweeps: ListOf[Key] = new(())  # whose figures are shown, if they exist
