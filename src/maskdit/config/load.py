"""params.yaml as a whole: read, typed, and refused where its entries do not fit together."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from maskdit.config.base import Section, UserError
from maskdit.config.errors import first, nearest
from maskdit.config.expand import expanded
from maskdit.config.images import Autoencoder, Extractor, Npz, Pictures
from maskdit.config.latents import DownloadedVae, Vae
from maskdit.config.params import OF_REPORT, VERBS, Params
from maskdit.config.sampling import Sample
from maskdit.config.training import Finetune, Released, kept_tokens
from maskdit.config.yaml_subset import read_file

SAMPLING: tuple[str, ...] = ("ema_width", "guidance", "guidance_channels", "guidance_interval", "solver", "solver_steps")
REFERENCES = (
    ("vae", "dataset", "fetch"),
    ("encode", "dataset", "fetch"),
    ("encode", "vae", "vae"),
    ("reference", "dataset", "fetch"),
    ("reference", "extractor", "fetch"),
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
    ("grid", "dataset", "fetch"),
    ("grid", "sample", "sample"),
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
    if strange := [name for name in tree if name not in VERBS]:
        raise UserError(f"{path}: {strange[0]}: unknown key{nearest(str(strange[0]), VERBS)}")
    try:
        params = Params.model_validate(expanded(tree, path))
    except ValidationError as error:
        raise UserError(f"{path}: {first(error, Params)}") from None
    for problem in problems(params):
        raise UserError(f"{path}: {problem}")
    return params


def problems(params: Params) -> Iterator[str]:
    """Impossible combinations between entries, one line each, beginning with the key at fault."""
    benches = set(params.table)
    if not benches:
        yield "table: has no entry; each key begins with the name of one"
    for verb in (verb for verb in VERBS if verb not in ("bench", "claims")):  # which are of no study
        for key in getattr(params, verb):
            if not any(key == bench or key.startswith(f"{bench}-") for bench in benches):
                yield f"{verb}.{key}: a key begins with its benchmark, one of {', '.join(sorted(benches))}"
    missing = list(names_unknown(params))
    yield from missing
    kinds = [] if missing else list(sources_unfit(params))
    yield from kinds
    if not missing and not kinds:  # the rest follows the references
        yield from sizes_unfit(params)
        yield from phases_unfit(params)
        yield from protocols_unfit(params)


def names_unknown(params: Params) -> Iterator[str]:
    """References to entries that there are none of."""
    for verb, field, target in REFERENCES:
        for key, entry in getattr(params, verb).items():
            place = entry.phase if field == "run" and verb == "sample" else target
            if place == "finetune":
                continue  # what is missing then is the phase
            known = getattr(params, place)
            names = getattr(entry, field)
            for name in names if isinstance(names, tuple) else (names,):
                if name not in known:
                    yield f"{verb}.{key}.{field}: {place} has no entry '{name}'{nearest(name, known)}"
    for key, ledger in params.claims.items():
        for claim, verbs, name in ledger.needs():
            known = {each for verb in verbs for each in getattr(params, verb)}
            if name not in known:
                yield f"claims.{key}.claims.{claim}: {' and '.join(verbs)} has no entry '{name}'{nearest(name, known)}"


def sources_unfit(params: Params) -> Iterator[str]:
    """References to entries of fetch whose source cannot be what is asked of it."""
    for verb, field, target in REFERENCES:
        if target != "fetch":
            continue
        for key, entry in getattr(params, verb).items():
            name = getattr(entry, field)
            want: type[Section] = Extractor if field == "extractor" else Npz if verb == "calibrate" else Pictures
            if isinstance(entry, DownloadedVae):
                want = Autoencoder
            if not isinstance(params.fetch[name], want):
                kind = "an image source" if want is Pictures else f"source {want.__name__.lower()}"
                yield f"{verb}.{key}.{field}: fetch.{name} has source {params.fetch[name].source}, this needs {kind}"


def sizes_unfit(params: Params) -> Iterator[str]:
    """Sides, patches, batches and masks that do not fit together."""
    for key, vae in params.vae.items():
        if isinstance(vae, Vae):
            yield from does_not_divide(params, f"vae.{key}.channels", vae.factor, vae.dataset)
            yield from batch_too_large(params, f"vae.{key}", vae.batch, vae.dataset)
    for verb in ("encode", "reconstruct"):
        for key, entry in getattr(params, verb).items():
            if isinstance(params.vae[entry.vae], DownloadedVae):
                yield from does_not_divide(params, f"{verb}.{key}.vae", params.vae[entry.vae].factor, entry.dataset)
    for verb in ("pretrain", "finetune"):
        for key, run in getattr(params, verb).items():
            encode = params.encode[run.dataset]
            side = params.pictures(encode.dataset).resolution // params.vae[encode.vae].factor
            start = run.run if isinstance(run, Finetune) else key
            patch, depth = params.pretrain[start].encoder.patch, params.pretrain[start].encoder.depth
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
            if run.mask_ratio and params.pretrain[start].decoder is None:
                yield f"{verb}.{key}.mask_ratio: {run.mask_ratio} needs a decoder, and pretrain.{start}.decoder is null"
            yield from batch_too_large(params, f"{verb}.{key}", run.batch, encode.dataset)


def does_not_divide(params: Params, where: str, factor: int, dataset: str) -> Iterator[str]:
    """A factor that does not divide the images' side."""
    resolution = params.pictures(dataset).resolution
    if resolution % factor:
        yield f"{where}: {factor} pixels per latent do not divide resolution {resolution}"


def batch_too_large(params: Params, where: str, batch: int, dataset: str) -> Iterator[str]:
    """A batch that is larger than the data."""
    count = params.pictures(dataset).training
    if batch > count:
        yield f"{where}.batch: {batch} is larger than the data ({count} training images of fetch.{dataset})"


def phases_unfit(params: Params) -> Iterator[str]:
    """Samples, evaluations and what is shown of them that do not fit their runs."""
    for key, finetune in params.finetune.items():
        if finetune.dataset != params.pretrain[finetune.run].dataset:
            yield f"finetune.{key}.dataset: pretrain.{finetune.run} has {params.pretrain[finetune.run].dataset}"
    for key, sample in params.sample.items():
        phase = getattr(params, sample.phase).get(sample.run)
        if phase is None:
            yield f"sample.{key}.phase: {sample.phase} has no entry '{sample.run}'"
            continue
        milestones = (phase.step,) if isinstance(phase, Released) else phase.milestones
        if sample.step != "final" and sample.step not in milestones:
            yield f"sample.{key}.step: {sample.step} is no milestone of {sample.phase}.{sample.run} {milestones}"
        dataset = phase.dataset
        vae = phase.vae if isinstance(phase, Released) else params.encode[dataset].vae
        if sample.vae != vae:
            yield f"sample.{key}.vae: the run {sample.run} has {vae}"
        evaluate = params.evaluate[key]
        ours, theirs = params.features[key].extractor, params.reference[evaluate.dataset].extractor
        if ours != theirs:
            yield f"reference.{evaluate.dataset}.extractor: {theirs}, but the features of its samples are by {ours}"
        if evaluate.dataset != dataset:
            yield f"sample.{key}.reference: the run {sample.run} has {dataset}"
        if evaluate.neighbours >= sample.images:
            least = f"{evaluate.neighbours} needs more than the {sample.images} images of sample.{key}"
            yield f"evaluate.{evaluate.dataset}.neighbours: {least}"
        if sample.shards > sample.images:
            yield f"sample.{key}.shards: {sample.shards} shards of {sample.images} images"
    for verb in OF_REPORT:
        for key, entry in getattr(params, verb).items():
            if not entry.evals:
                yield f"{verb}.{key}.select: no sample of the study {key} fits; correct it, or add the sample"
    for key, recon in params.recon.items():
        for name in recon.evals:
            if params.reconstruct[name].bench != key:
                yield f"recon.{key}.evals: '{name}' belongs to bench {params.reconstruct[name].bench}"
    for key, strip in params.strip.items():
        if strip.evals and max(strip.images) >= (count := min(params.sample[name].images for name in strip.evals)):
            yield f"strip.{key}.images: {max(strip.images)} is none of {count} images, counted from 0"
    for key, report in params.report.items():
        for verb in OF_REPORT:
            if key not in getattr(params, verb):
                yield f"report.{key}: {verb} has no entry '{key}'; a report has the key of {', '.join(OF_REPORT)}"
        if params.claims[report.ledger].study != key:
            yield f"report.{key}.ledger: claims.{report.ledger} is of study {params.claims[report.ledger].study}"
        for name in report.grids:
            if params.evaluate[params.grid[name].sample].bench != key:
                yield f"report.{key}.grids: '{name}' shows bench {params.evaluate[params.grid[name].sample].bench}"


def phase_of(params: Params, sample: Sample) -> Section:
    """The training or release that a sample comes from."""
    return getattr(params, sample.phase)[sample.run]


def protocols_unfit(params: Params) -> Iterator[str]:
    """Solvers and averages that a run cannot serve, and comparisons of samples that were drawn in other ways."""
    for key, sample in params.sample.items():
        if sample.solver == "ddpm" and sample.phase != "released":
            yield f"sample.{key}.solver: ddpm needs a released network that predicts noise; {sample.phase} has EDM's denoiser"
        if sample.ema_width and len(getattr(phase_of(params, sample), "posthoc_ema", ())) < 2:
            yield f"sample.{key}.ema_width: {sample.phase}.{sample.run} keeps no two averages; give it posthoc_ema: [0.05, 0.1]"
    noise = (*SAMPLING, "seed", "labels", "vae")
    compared = [(f"strip.{key}.select: the same noise has one", it.evals, noise) for key, it in params.strip.items()]
    compared += [(f"curves.{key}.select: the points of a curve have one", it.evals, SAMPLING) for key, it in params.curves.items()]
    for key, ledger in params.claims.items():
        compared += [(f"claims.{key}.claims.{name}: what is compared has one", it, SAMPLING) for name, it in ledger.compared()]
    for what, evals, fields in compared:
        for field in fields:
            if len(values := {getattr(params.sample[name], field) for name in evals if name in params.sample}) > 1:
                yield f"{what} {field}, these have {sorted(values, key=str)}"
