"""The whole of params.yaml: one dictionary per step, one entry per node of the graph, and how the entries refer to each other."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from maskdit.config.base import Key, UserError
from maskdit.config.benchmark import Bench
from maskdit.config.claims import Claims
from maskdit.config.errors import nearest
from maskdit.config.evaluation import Calibrate, Evaluate, Features, Reconstruct, Reference
from maskdit.config.images import Fetch, Pictures
from maskdit.config.latents import DownloadedVae, Encode, Vae
from maskdit.config.reporting import Curves, Efficiency, Grid, Recon, Report, Strip, Table
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Pretrain, Released, ema_file, net_file, posthoc_file


class Params(BaseModel):
    """Every step's entries by key."""

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
    grid: dict[Key, Grid]
    strip: dict[Key, Strip]
    table: dict[Key, Table]
    curves: dict[Key, Curves]
    efficiency: dict[Key, Efficiency]
    reconstruct: dict[Key, Reconstruct]
    recon: dict[Key, Recon]
    calibrate: dict[Key, Calibrate]
    bench: dict[Key, Bench]
    claims: dict[Key, Claims]
    report: dict[Key, Report]

    def entry(self, verb: str, key: str) -> Any:
        """The entry that a verb sees.

        Raises UserError, with the nearest known key, if there is none.
        """
        entries = getattr(self, verb) if verb in VERBS else {}
        if key not in entries:
            raise UserError(f"params.yaml: {verb} has no entry '{key}'{nearest(key, entries)}")
        return entries[key]

    def sources(self, verb: str, key: str) -> dict[str, str]:
        """The inputs of a step that are one node's artifact each: the name of its option, and the node VERB/KEY."""
        entry = self.entry(verb, key)
        match verb:
            case "vae":
                return {"images": f"fetch/{entry.dataset}"}
            case "reference":
                return {"images": f"fetch/{entry.dataset}", "extractor": f"fetch/{entry.extractor}"}
            case "encode":
                return {"images": f"fetch/{entry.dataset}", "vae": f"vae/{entry.vae}"}
            case "pretrain":
                return {"latents": f"encode/{entry.dataset}"}
            case "finetune":
                return {"latents": f"encode/{entry.dataset}", "pretrained": f"pretrain/{entry.run}"}
            case "released":
                return {"vae": f"vae/{entry.vae}"}
            case "sample":
                return {"run": f"{entry.phase}/{entry.run}", "vae": f"vae/{entry.vae}"}
            case "features":
                return {"samples": f"sample/{key}", "extractor": f"fetch/{entry.extractor}"}
            case "evaluate":
                return {"features": f"features/{key}", "reference": f"reference/{entry.dataset}"}
            case "grid":
                return {"images": f"fetch/{entry.dataset}", "samples": f"sample/{entry.sample}"}
            case "reconstruct":
                return {"images": f"fetch/{entry.dataset}", "vae": f"vae/{entry.vae}", "extractor": f"fetch/{entry.extractor}"}
            case "calibrate":
                reference, extractor = f"reference/{entry.reference}", f"fetch/{entry.extractor}"
                return {"images": f"fetch/{entry.dataset}", "reference": reference, "extractor": extractor}
        return {}

    def upstream(self, verb: str, key: str) -> set[str]:
        """The nodes VERB/KEY whose artifacts a node reads."""
        entry = self.entry(verb, key)
        match verb:
            case "table" | "curves" | "efficiency" | "strip":
                return {f"evaluate/{name}" for name in entry.evals}
            case "claims":
                return {f"curves/{entry.study}"} | {f"evaluate/{name}" for name in self.of(entry.study)}
            case "report":
                made = {f"{each}/{key}" for each in OF_REPORT} | {f"grid/{name}" for name in entry.grids}
                return made | {f"claims/{entry.ledger}"} | {f"evaluate/{name}" for name in self.of(key)}
            case "recon":
                return {f"reconstruct/{name}" for name in entry.evals}
        return set(self.sources(verb, key).values())

    def reads(self, verb: str, key: str) -> dict[str, tuple[str, ...]]:
        """The files that a node reads of a training's artifact, by that node; the other inputs are read as a whole."""
        entry = self.entry(verb, key)
        if verb == "finetune":
            last = self.pretrain[entry.run].milestones[-1]
            return {f"pretrain/{entry.run}": (ema_file(last), net_file(last))}
        if verb != "sample" or entry.phase == "released":
            return {}
        training = getattr(self, entry.phase)[entry.run]
        step = training.milestones[-1] if entry.step == "final" else entry.step
        files = [ema_file(step)]
        if entry.ema_width:
            marks = [mark for mark in training.milestones if mark <= step]
            files += [posthoc_file(number, mark) for mark in marks for number in range(len(training.posthoc_ema))]
        return {f"{entry.phase}/{entry.run}": tuple(files)}

    def beside(self, verb: str, key: str) -> set[str]:
        """The nodes of other studies whose results a node reads if they exist: the evidence that a ledger of claims names."""
        if verb != "claims":
            return set()
        ledger = self.claims[key]
        needed = {f"{each}/{name}" for _, verbs, name in ledger.needs() for each in verbs if name in getattr(self, each)}
        return needed - self.upstream(verb, key)

    def of(self, bench: str) -> tuple[str, ...]:
        """The evaluations of a benchmark."""
        return tuple(name for name, entry in self.evaluate.items() if entry.bench == bench)

    def evals(self, verb: str, key: str) -> tuple[str, ...] | None:
        """The records that a node reads of a folder: those that its entry names and, for a report or claims, all of its study."""
        if verb in ("report", "claims"):
            named = self.claims[key].evals if verb == "claims" else ()
            return (*self.of(key if verb == "report" else self.claims[key].study), *named)
        return getattr(self.entry(verb, key), "evals", None)

    def pictures(self, dataset: str) -> Pictures:
        """An entry of fetch that is known to hold images."""
        entry = self.fetch[dataset]
        assert isinstance(entry, Pictures)
        return entry


VERBS = tuple(Params.model_fields)
OF_REPORT = ("table", "curves", "efficiency", "strip")  # what a report shows of its own key
