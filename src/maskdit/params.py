"""The whole of params.yaml: one dictionary per step, one entry per node of the graph, and how the entries refer to each other."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskdit.cases import Bench
from maskdit.complaints import first, nearest
from maskdit.config import (
    Calibrate,
    DownloadedVae,
    Encode,
    Evaluate,
    Features,
    Finetune,
    Key,
    Pretrain,
    Reconstruct,
    Reference,
    Released,
    Sample,
    Section,
    UserError,
    Vae,
    kept_tokens,
)
from maskdit.dialect import read_file
from maskdit.ledger import Claims
from maskdit.shown import Curves, Efficiency, Grid, Recon, Report, Strip, Table
from maskdit.sources import Autoencoder, Extractor, Fetch, Npz, Pictures


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

    def problems(self) -> Iterator[str]:
        """Impossible combinations between entries, one line each, beginning with the key at fault."""
        benches = set(self.table)
        if not benches:
            yield "table: has no entry; each key begins with the name of one"
        for verb in (verb for verb in VERBS if verb not in ("bench", "claims")):  # which are of no study
            for key in getattr(self, verb):
                if not any(key == bench or key.startswith(f"{bench}-") for bench in benches):
                    yield f"{verb}.{key}: a key begins with its benchmark, one of {', '.join(sorted(benches))}"
        missing = list(self._missing())
        yield from missing
        kinds = [] if missing else list(self._kinds())
        yield from kinds
        if not missing and not kinds:  # the rest follows the references
            yield from self._sizes()
            yield from self._phases()
            yield from self._solvers()

    def _missing(self) -> Iterator[str]:
        for verb, field, target in REFERENCES:
            for key, entry in getattr(self, verb).items():
                place = entry.phase if field == "run" and verb == "sample" else target
                if place == "finetune":
                    continue  # what is missing then is the phase
                known = getattr(self, place)
                names = getattr(entry, field)
                for name in names if isinstance(names, tuple) else (names,):
                    if name not in known:
                        yield f"{verb}.{key}.{field}: {place} has no entry '{name}'{nearest(name, known)}"
        for key, ledger in self.claims.items():
            for claim, verbs, name in ledger.needs():
                known = {each for verb in verbs for each in getattr(self, verb)}
                if name not in known:
                    yield f"claims.{key}.claims.{claim}: {' and '.join(verbs)} has no entry '{name}'{nearest(name, known)}"
        for other in ("features", "evaluate"):
            for key in set(self.sample) ^ set(getattr(self, other)):
                have, lack = ("sample", other) if key in self.sample else (other, "sample")
                yield f"{have}.{key}: has no twin in {lack}; sample, features and evaluate have the same keys"

    def _kinds(self) -> Iterator[str]:
        for verb, field, target in REFERENCES:
            if target != "fetch":
                continue
            for key, entry in getattr(self, verb).items():
                name = getattr(entry, field)
                want: type[Section] = Extractor if field == "extractor" else Npz if verb == "calibrate" else Pictures
                if isinstance(entry, DownloadedVae):
                    want = Autoencoder
                if not isinstance(self.fetch[name], want):
                    kind = "an image source" if want is Pictures else f"source {want.__name__.lower()}"
                    yield f"{verb}.{key}.{field}: fetch.{name} has source {self.fetch[name].source}, this needs {kind}"

    def pictures(self, dataset: str) -> Pictures:
        """An entry of fetch that is known to hold images."""
        entry = self.fetch[dataset]
        assert isinstance(entry, Pictures)
        return entry

    def _sizes(self) -> Iterator[str]:
        for key, vae in self.vae.items():
            if isinstance(vae, Vae):
                yield from self._divides(f"vae.{key}.channels", vae.factor, vae.dataset)
                yield from self._batch_fits(f"vae.{key}", vae.batch, vae.dataset)
        for verb in ("encode", "reconstruct"):
            for key, entry in getattr(self, verb).items():
                if isinstance(self.vae[entry.vae], DownloadedVae):
                    yield from self._divides(f"{verb}.{key}.vae", self.vae[entry.vae].factor, entry.dataset)
        for verb in ("pretrain", "finetune"):
            for key, run in getattr(self, verb).items():
                encode = self.encode[run.dataset]
                side = self.pictures(encode.dataset).resolution // self.vae[encode.vae].factor
                start = run.run if isinstance(run, Finetune) else key
                patch, depth = self.pretrain[start].encoder.patch, self.pretrain[start].encoder.depth
                if side % patch:
                    yield f"pretrain.{start}.encoder.patch: {patch} does not divide the latent's side of {side}"
                elif not kept_tokens((side // patch) ** 2, run.mask_ratio):
                    yield f"{verb}.{key}.mask_ratio: {run.mask_ratio} keeps none of {(side // patch) ** 2} tokens"
                if run.defer >= depth:
                    yield f"{verb}.{key}.defer: {run.defer} leaves none of {depth} blocks to the kept tokens"
                if run.route and run.route.last >= depth:
                    yield f"{verb}.{key}.route.last: {run.route.last} is no block of {depth}, counted from 0"
                if run.route and not kept_tokens((side // patch) ** 2, run.route.ratio):
                    yield f"{verb}.{key}.route.ratio: {run.route.ratio} leaves none of {(side // patch) ** 2} tokens"
                if run.mask_ratio and self.pretrain[start].decoder is None:
                    yield f"{verb}.{key}.mask_ratio: {run.mask_ratio} needs a decoder, and pretrain.{start}.decoder is null"
                yield from self._batch_fits(f"{verb}.{key}", run.batch, encode.dataset)

    def _divides(self, where: str, factor: int, dataset: str) -> Iterator[str]:
        resolution = self.pictures(dataset).resolution
        if resolution % factor:
            yield f"{where}: {factor} pixels per latent do not divide resolution {resolution}"

    def _batch_fits(self, where: str, batch: int, dataset: str) -> Iterator[str]:
        count = self.pictures(dataset).training
        if batch > count:
            yield f"{where}.batch: {batch} is larger than the data ({count} training images of fetch.{dataset})"

    def _phases(self) -> Iterator[str]:
        for key, finetune in self.finetune.items():
            if finetune.dataset != self.pretrain[finetune.run].dataset:
                yield f"finetune.{key}.dataset: pretrain.{finetune.run} has {self.pretrain[finetune.run].dataset}"
        for key, sample in self.sample.items():
            phase = getattr(self, sample.phase).get(sample.run)
            if phase is None:
                yield f"sample.{key}.phase: {sample.phase} has no entry '{sample.run}'"
                continue
            milestones = (phase.step,) if isinstance(phase, Released) else phase.milestones
            if sample.step != "final" and sample.step not in milestones:
                yield f"sample.{key}.step: {sample.step} is no milestone of {sample.phase}.{sample.run} {milestones}"
            dataset = phase.dataset
            vae = phase.vae if isinstance(phase, Released) else self.encode[dataset].vae
            if sample.vae != vae:
                yield f"sample.{key}.vae: the run {sample.run} has {vae}"
            evaluate = self.evaluate[key]
            ours, theirs = self.features[key].extractor, self.reference[evaluate.dataset].extractor
            if ours != theirs:
                yield f"features.{key}.extractor: {ours}, but reference.{evaluate.dataset} has {theirs}"
            if evaluate.dataset != dataset:
                yield f"evaluate.{key}.dataset: the run {sample.run} has {dataset}"
            if evaluate.neighbours >= sample.images:
                yield f"evaluate.{key}.neighbours: {evaluate.neighbours} needs more than {sample.images} images"
            if sample.shards > sample.images:
                yield f"sample.{key}.shards: {sample.shards} shards of {sample.images} images"
        for verb in (*OF_REPORT, "recon"):
            made: Mapping[str, Evaluate | Reconstruct] = self.reconstruct if verb == "recon" else self.evaluate
            for key, entry in getattr(self, verb).items():
                for name in entry.evals:
                    if made[name].bench != key:
                        yield f"{verb}.{key}.evals: '{name}' belongs to bench {made[name].bench}"
        for key, strip in self.strip.items():
            if max(strip.images) >= (count := min(self.sample[name].images for name in strip.evals)):
                yield f"strip.{key}.images: {max(strip.images)} is none of {count} images, counted from 0"
        for key, report in self.report.items():
            for verb in OF_REPORT:
                if key not in getattr(self, verb):
                    yield f"report.{key}: {verb} has no entry '{key}'; a report has the key of {', '.join(OF_REPORT)}"
            if self.claims[report.ledger].study != key:
                yield f"report.{key}.ledger: claims.{report.ledger} is of study {self.claims[report.ledger].study}"
            for name in report.grids:
                if self.evaluate[self.grid[name].sample].bench != key:
                    yield f"report.{key}.grids: '{name}' shows bench {self.evaluate[self.grid[name].sample].bench}"

    def _phase_of(self, sample: Sample) -> Section:
        return getattr(self, sample.phase)[sample.run]

    def _solvers(self) -> Iterator[str]:
        for key, sample in self.sample.items():
            if sample.solver == "ddpm" and sample.phase != "released":
                yield f"sample.{key}.solver: ddpm needs a released network that predicts noise; {sample.phase} has EDM's denoiser"
            if sample.ema_width and len(getattr(self._phase_of(sample), "posthoc_ema", ())) < 2:
                yield f"sample.{key}.ema_width: {sample.phase}.{sample.run} keeps no two averages; give it posthoc_ema: [0.05, 0.1]"
        noise = (*SAMPLING, "seed", "labels", "vae")
        compared = [(f"strip.{key}.evals: the same noise has one", it.evals, noise) for key, it in self.strip.items()]
        compared += [(f"curves.{key}.evals: the points of a curve have one", it.evals, SAMPLING) for key, it in self.curves.items()]
        for key, ledger in self.claims.items():
            compared += [(f"claims.{key}.claims.{name}: what is compared has one", it, SAMPLING) for name, it in ledger.compared()]
        for what, evals, fields in compared:
            for field in fields:
                if len(values := {getattr(self.sample[name], field) for name in evals if name in self.sample}) > 1:
                    yield f"{what} {field}, these have {sorted(values, key=str)}"


VERBS = tuple(Params.model_fields)
OF_REPORT = ("table", "curves", "efficiency", "strip")  # what a report shows of its own key
SAMPLING: tuple[str, ...] = ("ema_width", "guidance", "guidance_channels", "guidance_interval", "solver", "solver_steps")
REFERENCES = (
    ("vae", "dataset", "fetch"),
    ("encode", "dataset", "fetch"),
    ("encode", "vae", "vae"),
    ("reference", "dataset", "fetch"),
    ("reference", "extractor", "fetch"),
    ("features", "extractor", "fetch"),
    ("reconstruct", "dataset", "fetch"),
    ("reconstruct", "extractor", "fetch"),
    ("reconstruct", "vae", "vae"),
    ("reconstruct", "bench", "recon"),
    ("recon", "evals", "reconstruct"),
    ("calibrate", "dataset", "fetch"),
    ("calibrate", "extractor", "fetch"),
    ("calibrate", "reference", "reference"),
    ("pretrain", "dataset", "encode"),
    ("finetune", "dataset", "encode"),
    ("finetune", "run", "pretrain"),
    ("released", "vae", "vae"),
    ("released", "dataset", "reference"),
    ("sample", "run", "pretrain"),  # or released
    ("sample", "vae", "vae"),
    ("evaluate", "dataset", "reference"),
    ("evaluate", "bench", "table"),
    ("grid", "dataset", "fetch"),
    ("grid", "sample", "sample"),
    *((verb, "evals", "evaluate") for verb in OF_REPORT),
    ("claims", "study", "table"),
    ("claims", "study", "curves"),
    ("report", "grids", "grid"),
    ("report", "ledger", "claims"),
)


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check a params.yaml.

    Raises UserError, in one line that names the key, for misspelt keys, wrong types and impossible combinations.
    """
    return validate(read_file(path), path)


def validate(tree: object, path: Path = Path("params.yaml")) -> Params:
    """Typed parameters of an already parsed file; raises UserError as `load` does."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: expected a dictionary of steps")
    try:
        params = Params.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{path}: {first(error, Params)}") from None
    for problem in params.problems():
        raise UserError(f"{path}: {problem}")
    return params
