"""Expands params.yaml as the user writes it to one entry for each node of the graph.

In the file, `features` and `evaluate` have one entry per reference, shared by all samples measured against it. Tables, curves,
strips and efficiency say which samples they select. Expansion replaces both with explicit entries and lists.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskdit.config.base import Count, Key, Section, UserError
from maskdit.config.errors import first, nearest
from maskdit.config.evaluation import Judged
from maskdit.config.params import OF_REPORT
from maskdit.config.sampling import Phase, Step


class Choice(BaseModel):
    """Selects the samples whose fields have the given value, or one of the given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    run: Key | list[Key] | None = None
    phase: Phase | list[Phase] | None = None
    step: Step | list[Step] | None = None
    guidance: float | list[float] | None = None
    images: Count | list[Count] | None = None

    def fits(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of sample is selected."""
        wanted = {name: value if isinstance(value, list) else [value] for name, value in self if value is not None}
        return all(entry.get(name) in values for name, values in wanted.items())


class Shown(BaseModel):
    """What a table, curve or strip shows: the samples that `select` matches, by default all samples of its study."""

    select: Annotated[list[Choice], Field(min_length=1)] = [Choice()]


class Drawn(BaseModel):
    """Where a sample belongs: the study that shows it, and the reference that it is measured against."""

    model_config = ConfigDict(extra="allow")
    study: Key
    reference: Key


class Measured(Section):
    """How features are computed for each sample of a reference."""

    batch: Count


class Written(BaseModel):
    """The sections of params.yaml that expansion reads."""

    fetch: dict[Key, Any]
    reference: dict[Key, Any]
    sample: dict[Key, Drawn]
    features: dict[Key, Measured]
    evaluate: dict[Key, Judged]
    table: dict[Key, Shown]
    curves: dict[Key, Shown]
    efficiency: dict[Key, Shown]
    strip: dict[Key, Shown]


def expanded(tree: Mapping[str, Any], path: Path = Path("params.yaml")) -> dict[str, Any]:
    """The tree with an entry of features and evaluate for each sample, and `evals` for `select`; raises UserError for mistakes."""
    try:
        written = Written.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{path}: {first(error, Written)}") from None
    samples = {key: place.model_extra or {} for key, place in written.sample.items()}  # all fields but study and reference
    long = {**tree, "sample": samples, "features": {}, "evaluate": {}}
    for key, place in written.sample.items():
        needed = {"table": place.study} | dict.fromkeys(("reference", "features", "evaluate"), place.reference)
        needed["fetch"] = f"{place.reference}-features"  # the extractor of a reference, by its name
        for verb, name in needed.items():
            if name not in (known := getattr(written, verb)):
                where = f"{path}: sample.{key}.{'study' if verb == 'table' else 'reference'}"
                raise UserError(f"{where}: {verb} has no entry '{name}'{nearest(name, known)}")
        if not f"{key}-".startswith(f"{place.study}-"):
            raise UserError(f"{path}: sample.{key}: the key must begin with its study, {place.study}")
        long["features"][key] = {"extractor": f"{place.reference}-features", **tree["features"][place.reference]}
        long["evaluate"][key] = {"bench": place.study, "dataset": place.reference, **tree["evaluate"][place.reference]}
    for verb in OF_REPORT:
        long[verb] = {}
        for name, shown in getattr(written, verb).items():
            mine = [key for key, place in written.sample.items() if place.study == name]
            evals = [key for key in mine if any(choice.fits(samples[key]) for choice in shown.select)]
            long[verb][name] = {**tree[verb][name], "evals": evals}
            long[verb][name].pop("select", None)
    return long
