"""params.yaml as it is written, to one entry for each node of the graph: what entries share is written once.

`features` and `evaluate` have an entry for each reference, which every sample that is measured against it takes. Tables, curves,
strips and efficiency say what their samples are, and get the list of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskdit.config.base import Count, Key, Section, UserError
from maskdit.config.errors import first, nearest
from maskdit.config.params import OF_REPORT
from maskdit.config.sampling import Phase, Step


class Choice(BaseModel):
    """Samples of which each field that is given has the value, or one of several."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    run: Key | list[Key] | None = None
    phase: Phase | list[Phase] | None = None
    step: Step | list[Step] | None = None
    guidance: float | list[float] | None = None

    def fits(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of sample is one of them."""
        wanted = {name: value if isinstance(value, list) else [value] for name, value in self if value is not None}
        return all(entry.get(name) in values for name, values in wanted.items())


class Shown(BaseModel):
    """What a table, curve or strip shows: `select`, or else each sample of its study."""

    select: Annotated[list[Choice], Field(min_length=1)] = [Choice()]


class Drawn(BaseModel):
    """Where a sample belongs: the table whose row it may be, and the reference that it is measured against."""

    model_config = ConfigDict(extra="allow")
    study: Key
    reference: Key


class Measured(Section):
    """How features are computed, for each sample of a reference."""

    batch: Count


class Judged(Section):
    """How metrics are computed, for each sample of a reference."""

    neighbours: Count  # k of precision and recall


class Written(BaseModel):
    """The parts of params.yaml that become several entries, or a list."""

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
    """The tree with an entry of features and evaluate for each sample, and the evaluations that each table and curve shows.

    The extractor of a reference NAME is the entry NAME-features of fetch. Raises UserError for what cannot be expanded.
    """
    try:
        written = Written.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{path}: {first(error, Written)}") from None
    for problem in unknown(written):
        raise UserError(f"{path}: {problem}")
    entries = {key: without(entry, *Drawn.model_fields) for key, entry in tree["sample"].items()}
    long = {**tree, "sample": entries, "features": {}, "evaluate": {}}
    for key, place in written.sample.items():
        long["features"][key] = {"extractor": f"{place.reference}-features", **tree["features"][place.reference]}
        long["evaluate"][key] = {"bench": place.study, "dataset": place.reference, **tree["evaluate"][place.reference]}
    for verb in OF_REPORT:
        long[verb] = {}
        for name, shown in getattr(written, verb).items():
            evals = [
                key
                for key, place in written.sample.items()
                if place.study == name and any(choice.fits(entries[key]) for choice in shown.select)
            ]
            long[verb][name] = {**without(tree[verb][name], "select"), "evals": evals}
    return long


def without(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """An entry without some of its fields."""
    return {name: value for name, value in entry.items() if name not in names}


def unknown(written: Written) -> Iterator[str]:
    """Samples whose study or reference is not there, or lacks an entry that it needs."""
    for key, place in written.sample.items():
        needed = [("study", "table", place.study)]
        needed += [("reference", verb, place.reference) for verb in ("reference", "features", "evaluate")]
        for field, verb, name in (*needed, ("reference", "fetch", f"{place.reference}-features")):
            if name not in (known := getattr(written, verb)):
                yield f"sample.{key}.{field}: {verb} has no entry '{name}'{nearest(name, known)}"
        if not f"{key}-".startswith(f"{place.study}-"):
            yield f"sample.{key}: a key begins with its study, {place.study}"
