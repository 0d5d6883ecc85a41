"""All sections of params.yaml: one dictionary per step, one entry per node of the graph, and the references between entries."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from maskdit.config.base import Key, UserError
from maskdit.config.benchmark import Bench
from maskdit.config.claims import Claims
from maskdit.config.errors import nearest
from maskdit.config.evaluation import Calibrate, Evaluate, Features, Reconstruct, Reference, Rescore
from maskdit.config.images import Fetch, Pictures
from maskdit.config.latents import DownloadedVae, Encode, Vae
from maskdit.config.reporting import Curves, Efficiency, Grid, Recon, Report, Strip, Sweep, Table
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Pretrain, Released, milestone_file

OF_REPORT = ("table", "curves", "efficiency", "strip")  # sections that a report shows, under its own key
SELECTING = (*OF_REPORT, "sweep")  # sections that show the samples of the study of their key that `select` matches
READS = {  # verb -> field -> verb of the entries that the field names, whose artifacts the step reads; phase: as that field says
    "vae": {"dataset": "fetch"},
    "encode": {"dataset": "fetch", "vae": "vae"},
    "reference": {"dataset": "fetch", "extractor": "fetch"},
    "rescore": {"reference": "reference", "extractor": "fetch"},
    "reconstruct": {"dataset": "fetch", "vae": "vae", "extractor": "fetch"},
    "recon": {"evals": "reconstruct"},
    "calibrate": {"dataset": "fetch", "reference": "reference", "extractor": "fetch"},
    "pretrain": {"dataset": "encode"},
    "finetune": {"dataset": "encode", "run": "phase"},
    "released": {"vae": "vae"},
    "sample": {"run": "phase", "vae": "vae"},
    "grid": {"dataset": "fetch", "sample": "sample"},
    "claims": {"study": "curves"},
    "report": {"grids": "grid", "ledger": "claims"},
    **{verb: {"evals": "evaluate", **({"rescored": "rescore"} if verb == "table" else {})} for verb in SELECTING},
}
OPTIONS = {"dataset": "images", "run": "run", "sample": "samples", **{name: name for name in ("extractor", "reference", "vae")}}
OF_TRAINING = {"dataset": "latents", "run": "pretrained"}  # field -> the option of the step for what it names


def rescored(key: str) -> str:
    """The name of the record that the step rescore writes beside that of the evaluation KEY."""
    return f"{key}_rescore"


class Params(BaseModel):
    """The entries of every step, by key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    fetch: dict[Key, Annotated[Fetch, Field(discriminator="source")]]
    vae: dict[Key, Annotated[Vae | DownloadedVae, Field(discriminator="source")]]
    encode: dict[Key, Encode]
    reference: dict[Key, Reference]
    pretrain: dict[Key, Pretrain]
    finetune: dict[Key, Finetune]
    released: dict[Key, Released]
    sample: dict[Key, Sample]
    features: dict[Key, Features]
    evaluate: dict[Key, Evaluate]
    rescore: dict[Key, Rescore] = Field(default={})
    grid: dict[Key, Grid]
    strip: dict[Key, Strip]
    table: dict[Key, Table]
    curves: dict[Key, Curves]
    efficiency: dict[Key, Efficiency]
    sweep: dict[Key, Sweep] = Field(default={})
    reconstruct: dict[Key, Reconstruct]
    recon: dict[Key, Recon]
    calibrate: dict[Key, Calibrate]
    bench: dict[Key, Bench]
    claims: dict[Key, Claims]
    report: dict[Key, Report]

    def entry(self, verb: str, key: str) -> Any:
        """The entry of a step; raises UserError, with the nearest known key, if it does not exist."""
        entries = getattr(self, verb) if verb in VERBS else {}
        if key not in entries:
            raise UserError(f"params.yaml: {verb} has no entry '{key}'{nearest(key, entries)}")
        return entries[key]

    def sources(self, verb: str, key: str) -> dict[str, str]:
        """The inputs of a step that are one node's artifact each: the name of its option, and the node VERB/KEY."""
        entry = self.entry(verb, key)
        match verb:
            case "features":
                return {"samples": f"sample/{key}", "extractor": f"fetch/{entry.extractor}"}
            case "evaluate":
                return {"features": f"features/{key}", "reference": f"reference/{entry.dataset}"}
        options = OPTIONS | (OF_TRAINING if verb in ("pretrain", "finetune") else {})
        named = self.named(verb, key, READS.get(verb, {}))
        found = {options[field]: f"{target}/{name}" for field, target, name in named if field in options}
        return {"samples": f"sample/{key}", **found} if verb == "rescore" else found

    def named(self, verb: str, key: str, fields: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
        """For each entry that the `fields` of an entry name: the field, and the verb and key of the named entry."""
        entry = self.entry(verb, key)
        for field, target in fields.items():
            names = getattr(entry, field)
            for name in names if isinstance(names, tuple) else (names,):
                yield field, entry.phase if target == "phase" else target, name

    def upstream(self, verb: str, key: str) -> set[str]:
        """The nodes VERB/KEY whose artifacts a node reads."""
        nodes = {f"{target}/{name}" for _, target, name in self.named(verb, key, READS.get(verb, {}))}
        entry = self.entry(verb, key)
        match verb:
            case "claims":
                nodes |= self.measured(entry.study)
            case "report":
                nodes |= {f"{each}/{key}" for each in OF_REPORT} | self.measured(key)
        return nodes | set(self.sources(verb, key).values())

    def reads(self, verb: str, key: str) -> dict[str, tuple[str, ...]]:
        """The files that a node reads of a training's artifact, by that node; the other inputs are read as a whole."""
        entry = self.entry(verb, key)
        if getattr(entry, "phase", "") == "released":
            return {}
        if verb == "finetune":
            step = self.pretrain[entry.run].milestones[-1] if entry.start == "final" else entry.start
            kinds = ("ema", "net") if entry.start == "final" else ("ema",)
            return {f"pretrain/{entry.run}": tuple(milestone_file(kind, step) for kind in kinds)}
        if verb != "sample":
            return {}
        training = getattr(self, entry.phase)[entry.run]
        step = training.milestones[-1] if entry.step == "final" else entry.step
        files = [milestone_file("ema", step)]
        if entry.ema_width:
            marks = [mark for mark in training.milestones if mark <= step]
            files += [milestone_file(f"posthoc-{number}", mark) for mark in marks for number in range(len(training.posthoc_ema))]
        return {f"{entry.phase}/{entry.run}": tuple(files)}

    def beside(self, verb: str, key: str) -> set[str]:
        """The nodes of other studies whose results a node reads if they exist: evidence of claims, sweeps that a report names."""
        if verb == "report":
            return {f"sweep/{name}" for name in self.report[key].sweeps}
        if verb != "claims":
            return set()
        ledger = self.claims[key]
        needed = {f"{each}/{name}" for _, verbs, name in ledger.needs() for each in verbs if name in getattr(self, each)}
        return needed - self.upstream(verb, key)

    @property
    def studies(self) -> tuple[str, ...]:
        """The names of all studies: those with a table, and those of sweeps."""
        return (*self.table, *self.sweep)

    def of(self, bench: str) -> tuple[str, ...]:
        """The evaluations of a benchmark."""
        return tuple(name for name, entry in self.evaluate.items() if entry.bench == bench)

    def rescores(self, bench: str) -> tuple[str, ...]:
        """The evaluations of a benchmark whose samples are measured by another network, too."""
        return tuple(name for name, entry in self.rescore.items() if entry.bench == bench)

    def measured(self, bench: str) -> set[str]:
        """The nodes that write the records of a benchmark."""
        return {f"evaluate/{name}" for name in self.of(bench)} | {f"rescore/{name}" for name in self.rescores(bench)}

    def evals(self, verb: str, key: str) -> tuple[str, ...] | None:
        """The records that a node reads of a folder: those that its entry names and, for a report or claims, all of its study."""
        if verb in ("report", "claims"):
            named = self.claims[key].evals if verb == "claims" else ()
            study = key if verb == "report" else self.claims[key].study
            return (*self.of(study), *map(rescored, self.rescores(study)), *named)
        entry = self.entry(verb, key)
        return (*entry.evals, *map(rescored, getattr(entry, "rescored", ()))) if hasattr(entry, "evals") else None

    def resolution(self, released: str) -> int:
        """Pixels of the images of published weights: as many as the images have that their samples are measured against."""
        return self.pictures(self.reference[self.released[released].dataset].dataset).resolution

    def pictures(self, dataset: str) -> Pictures:
        """An entry of fetch that is known to be a source of images."""
        entry = self.fetch[dataset]
        assert isinstance(entry, Pictures)
        return entry


VERBS = tuple(Params.model_fields)
