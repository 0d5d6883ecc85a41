"""Expands params.yaml as the user writes it to one entry for each node of the graph.

In the file, `features` and `evaluate` have one entry per reference, shared by all samples measured against it. Tables, curves,
strips, efficiency and sweeps say which samples they select. A sample names the sweeps that chose its values as `best_of`.
Expansion replaces all of that with explicit entries and lists.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskdit.config.base import Count, Key, Section, UserError
from maskdit.config.errors import first, nearest
from maskdit.config.evaluation import Judged
from maskdit.config.params import SELECTING
from maskdit.config.sampling import Phase, Step

COST = ("micro_batch", "checkpointing", "compile", "posthoc_ema")  # fields of a training that do not change its network


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
    """What a table, curve or strip shows: the samples that `select` matches, by default all samples of its study.

    Only tables show samples with `best_of`.
    """

    select: Annotated[list[Choice], Field(min_length=1)] = [Choice()]


class Drawn(BaseModel):
    """Where a sample belongs: the study that shows it, the reference that it is measured against, and what chose its values."""

    model_config = ConfigDict(extra="allow")
    study: Key
    reference: Key
    best_of: Key | list[Key] = []

    @property
    def sweeps(self) -> list[str]:
        """The sweeps that chose its values."""
        return self.best_of if isinstance(self.best_of, list) else [self.best_of]


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
    rescore: dict[Key, Any] = {}
    table: dict[Key, Shown]
    curves: dict[Key, Shown]
    efficiency: dict[Key, Shown]
    strip: dict[Key, Shown]
    sweep: dict[Key, Shown] = {}


def expanded(tree: Mapping[str, Any], path: Path = Path("params.yaml")) -> dict[str, Any]:
    """The tree with an entry of features and evaluate for each sample, and `evals` for `select`; raises UserError for mistakes."""
    try:
        written = Written.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{path}: {first(error, Written)}") from None
    samples = {key: place.model_extra or {} for key, place in written.sample.items()}  # all fields but study and reference
    long = {**tree, "sample": samples, "features": {}, "evaluate": {}}
    for key, place in written.sample.items():
        needed = {} if place.study in written.sweep else {"table": place.study}
        needed |= dict.fromkeys(("reference", "features", "evaluate"), place.reference)
        needed["fetch"] = f"{place.reference}-features"  # the extractor of a reference, by its name
        for verb, name in needed.items():
            if name not in (known := getattr(written, verb)):
                where = f"{path}: sample.{key}.{'study' if verb == 'table' else 'reference'}"
                raise UserError(f"{where}: {verb} has no entry '{name}'{nearest(name, known)}")
        for name in place.sweeps:
            if name not in written.sweep:
                raise UserError(f"{path}: sample.{key}.best_of: sweep has no entry '{name}'{nearest(name, written.sweep)}")
        if not f"{key}-".startswith(f"{place.study}-"):
            raise UserError(f"{path}: sample.{key}: the key must begin with its study, {place.study}")
        long["features"][key] = {"extractor": f"{place.reference}-features", **tree["features"][place.reference]}
        long["evaluate"][key] = {"bench": place.study, "dataset": place.reference, **tree["evaluate"][place.reference]}
    for verb in SELECTING:
        long[verb] = {}
        for name, shown in getattr(written, verb).items():
            mine = [key for key, place in written.sample.items() if place.study == name and (verb == "table" or not place.sweeps)]
            evals = [key for key in mine if any(choice.fits(samples[key]) for choice in shown.select)]
            long[verb][name] = {**tree[verb][name], "evals": evals}
            long[verb][name].pop("select", None)
            if verb == "table" and (chosen := {key: written.sample[key].sweeps for key in evals if written.sample[key].sweeps}):
                long[verb][name]["chosen"] = chosen
            if verb == "table" and (rescored := [key for key in evals if key in written.rescore]):
                long[verb][name]["rescored"] = rescored
            if verb == "sweep":
                theirs = {key: samples[key] for key, place in written.sample.items() if name in place.sweeps}
                long[verb][name] |= swept(tree, tree[verb][name].get("axis"), {key: samples[key] for key in evals}, theirs)
    return long


def swept(tree: Mapping[str, Any], axis: Any, points: Mapping[str, Any], reported: Mapping[str, Any]) -> dict[str, Any]:
    """`arms` and `reports` of a sweep, from the entries of its points and of the samples that name it."""
    first: dict[str, Any] = {}  # what an arm's points have in common -> its first run
    arms = {key: first.setdefault(arm(tree, entry, axis)[0], entry.get("run")) for key, entry in points.items()}
    reports = {}
    for key, entry in reported.items():
        common, lr = arm(tree, entry, axis)
        values = {"lr": lr, "guidance": entry.get("guidance"), "ema_width": entry.get("ema_width")}
        reports[key] = {"arm": first.get(common), **values}
    return {"arms": arms, "reports": reports}


def arm(tree: Mapping[str, Any], sample: Mapping[str, Any], axis: Any) -> tuple[str, Any]:
    """What the samples of one arm have in common but the seed, as text, and the learning rate of its pretraining.

    Of a sweep of the guidance, that is a checkpoint; of a sweep of the rate, a pretraining without its rate and length.
    """
    phase, run, chain, lr = sample.get("phase"), sample.get("run"), [], None
    for _ in ("finetune", "pretrain"):
        section = tree.get(phase) if phase in ("finetune", "pretrain") else None
        entry = section.get(run) if isinstance(section, Mapping) and isinstance(run, str) else None
        if not isinstance(entry, Mapping):
            break
        if axis == "lr" and phase == "pretrain":
            chain = [{field: value for field, value in entry.items() if field not in ("seed", "lr", "milestones", *COST)}]
        elif axis != "lr":
            chain.append({field: value for field, value in entry.items() if field not in ("seed", "run", *COST)})
        lr = entry.get("lr") if phase == "pretrain" else None
        phase, run = (entry.get("phase", "pretrain"), entry.get("run")) if phase == "finetune" else ("", "")
    place = [] if axis == "lr" else [sample.get("phase"), sample.get("step")]
    return json.dumps([chain, place, run], sort_keys=True, default=str), lr
