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
from maskdit.config.training import Finetune, Pretrain, Released


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

    def upstream(self, verb: str, key: str) -> set[str]:
        """The nodes VERB/KEY whose artifacts a node reads."""
        entry = self.entry(verb, key)
        match verb:
            case "vae":
                return {f"fetch/{entry.dataset}"}
            case "reference":
                return {f"fetch/{entry.dataset}", f"fetch/{entry.extractor}"}
            case "encode":
                return {f"fetch/{entry.dataset}", f"vae/{entry.vae}"}
            case "pretrain":
                return {f"encode/{entry.dataset}"}
            case "finetune":
                return {f"encode/{entry.dataset}", f"pretrain/{entry.run}"}
            case "released":
                return {f"vae/{entry.vae}"}
            case "sample":
                return {f"{entry.phase}/{entry.run}", f"vae/{entry.vae}"}
            case "features":
                return {f"sample/{key}", f"fetch/{entry.extractor}"}
            case "evaluate":
                return {f"features/{key}", f"reference/{entry.dataset}"}
            case "grid":
                return {f"fetch/{entry.dataset}", f"sample/{entry.sample}"}
            case "table" | "curves" | "efficiency" | "strip":
                return {f"evaluate/{name}" for name in entry.evals}
            case "claims":
                return {f"curves/{entry.study}"} | {f"evaluate/{name}" for name in self.of(entry.study)}
            case "report":
                made = {f"{each}/{key}" for each in OF_REPORT} | {f"grid/{name}" for name in entry.grids}
                return made | {f"claims/{entry.ledger}"} | {f"evaluate/{name}" for name in self.of(key)}
            case "reconstruct":
                return {f"fetch/{entry.dataset}", f"vae/{entry.vae}", f"fetch/{entry.extractor}"}
            case "recon":
                return {f"reconstruct/{name}" for name in entry.evals}
            case "calibrate":
                return {f"fetch/{entry.dataset}", f"fetch/{entry.extractor}", f"reference/{entry.reference}"}
        return set()

    def beside(self, verb: str, key: str) -> set[str]:
        """The nodes of other studies that a node reads where they are there: those that a ledger names."""
        names = self.claims[key].evals if verb == "claims" else ()
        return {f"{'evaluate' if name in self.evaluate else 'reconstruct'}/{name}" for name in names}

    def of(self, bench: str) -> tuple[str, ...]:
        """The evaluations of a benchmark."""
        return tuple(name for name, entry in self.evaluate.items() if entry.bench == bench)

    def evals(self, verb: str, key: str) -> tuple[str, ...] | None:
        """The records that a node reads of a folder: those that its entry names, for a report all of its benchmark; else None."""
        if verb == "report":
            return self.of(key)
        return getattr(self.entry(verb, key), "evals", None)

    def pictures(self, dataset: str) -> Pictures:
        """An entry of fetch that is known to hold images."""
        entry = self.fetch[dataset]
        assert isinstance(entry, Pictures)
        return entry


VERBS = tuple(Params.model_fields)
OF_REPORT = ("table", "curves", "efficiency", "strip")  # what a report shows of its own key
