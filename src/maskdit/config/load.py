"""Loads params.yaml: reads it, types it, and rejects entries that do not fit together."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path

from pydantic import ValidationError

from maskdit.config.base import Section, UserError
from maskdit.config.claims import Ratio
from maskdit.config.errors import first, nearest
from maskdit.config.expand import expanded
from maskdit.config.images import Autoencoder, Extractor, Npz, Pictures
from maskdit.config.latents import DownloadedVae
from maskdit.config.params import OF_REPORT, READS, SELECTING, VERBS, Params
from maskdit.config.training import Finetune, Released
from maskdit.config.yaml_subset import read_file

SAMPLING: tuple[str, ...] = ("ema_width", "guidance", "guidance_channels", "guidance_interval", "solver", "solver_steps")
SAMPLING += ("vae_precision",)
# As READS, for entries that must exist but whose artifacts are not read.
UNREAD = {"reconstruct": {"bench": "recon"}, "released": {"dataset": "reference"}, "claims": {"study": "table"}}
UNREAD |= {"report": {"sweeps": "sweep"}}


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check a params.yaml. Raises UserError for misspelt keys, wrong types and impossible combinations."""
    return validate(read_file(path), path)


def validate(tree: object, path: Path = Path("params.yaml")) -> Params:
    """Typed parameters of a parsed file; raises UserError as `load` does."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: expected a mapping with one section per step")
    if strange := [name for name in tree if name not in VERBS]:
        raise UserError(f"{path}: {strange[0]}: unknown key{nearest(str(strange[0]), VERBS)}")
    try:
        params = Params.model_validate(expanded(tree, path))
    except ValidationError as error:
        raise UserError(f"{path}: {first(error, Params)}") from None
    try:
        import_module("maskdit.methods.entries").name_code(params)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    checks = (keys_unfit, names_unknown, sources_unfit, sizes_unfit, phases_unfit, sweeps_unfit, protocols_unfit, methods_unfit)
    for problem in chain.from_iterable(check(params) for check in checks):  # each check relies on those before it
        raise UserError(f"{path}: {problem}")
    return params


def keys_unfit(params: Params) -> Iterator[str]:
    """Keys that do not begin with the key of a table. Like every check, yields one line per mistake, beginning with the key."""
    if not params.table:
        yield "table: has no entry; add one, because every key begins with the key of a table"
    for verb in (verb for verb in VERBS if verb not in ("bench", "claims")):  # which do not belong to one study
        for key in getattr(params, verb):
            if not any(f"{key}-".startswith(f"{bench}-") for bench in params.table):
                yield f"{verb}.{key}: the key must begin with the key of a table, one of {', '.join(sorted(params.table))}"


def names_unknown(params: Params) -> Iterator[str]:
    """References to entries that do not exist."""
    for verb, fields in chain(READS.items(), UNREAD.items()):
        for key in getattr(params, verb):
            for field, target, name in params.named(verb, key, fields):
                known = getattr(params, target)
                if name not in known:
                    yield f"{verb}.{key}.{field}: {target} has no entry '{name}'{nearest(name, known)}"
    for key in params.rescore:
        if key not in params.sample:
            yield f"rescore.{key}: sample has no entry '{key}'{nearest(key, params.sample)}"
    for key, ledger in params.claims.items():
        for claim, verbs, name in ledger.needs():
            known = {each for verb in verbs for each in getattr(params, verb)}
            if name not in known:
                yield f"claims.{key}.claims.{claim}: {' and '.join(verbs)} has no entry '{name}'{nearest(name, known)}"


def sources_unfit(params: Params) -> Iterator[str]:
    """References to entries of fetch that have the wrong kind of source."""
    for verb, fields in READS.items():
        for key, entry in getattr(params, verb).items():
            for field, target, name in params.named(verb, key, fields):
                want: type[Section] = Extractor if field == "extractor" else Npz if verb == "calibrate" else Pictures
                if isinstance(entry, DownloadedVae):
                    want = Autoencoder
                if target == "fetch" and not isinstance(params.fetch[name], want):
                    kind = "an image source" if want is Pictures else f"source {want.__name__.lower()}"
                    yield f"{verb}.{key}.{field}: fetch.{name} has source {params.fetch[name].source}, but this field needs {kind}"


def sizes_unfit(params: Params) -> Iterator[str]:
    """Image sizes, patches, batches and masks that do not fit together."""
    for verb in ("vae", "encode", "reconstruct"):
        for key, entry in getattr(params, verb).items():
            vae, field = (entry, "channels") if verb == "vae" else (params.vae[entry.vae], "vae")
            if not isinstance(entry, DownloadedVae) and (side := params.pictures(entry.dataset).resolution) % vae.factor:
                yield f"{verb}.{key}.{field}: the downsampling factor {vae.factor} does not divide resolution {side}"
    for verb in ("vae", "pretrain", "finetune"):
        for key, entry in getattr(params, verb).items():
            if not isinstance(entry, DownloadedVae):
                dataset = entry.dataset if verb == "vae" else params.encode[entry.dataset].dataset
                if entry.batch > (count := params.pictures(dataset).training):
                    yield f"{verb}.{key}.batch: {entry.batch} is larger than the data ({count} training images of fetch.{dataset})"
    for key, run in params.pretrain.items():
        encode = params.encode[run.dataset]
        side = params.pictures(encode.dataset).resolution // params.vae[encode.vae].factor
        if side % run.encoder.patch:
            yield f"pretrain.{key}.encoder.patch: {run.encoder.patch} does not divide the latent's side of {side}"
    for key, tuning in params.finetune.items():
        if tuning.phase == "released":
            yield from (f"finetune.{key}.{problem}" for problem in published_unfit(params, tuning))


def methods_unfit(params: Params) -> Iterator[str]:
    """Trainings and samples that do not fit their methods, which may be code of the user's, above this room."""
    yield from import_module("maskdit.methods.entries").unfit(params)


def published_unfit(params: Params, run: Finetune) -> Iterator[str]:
    """What does not fit between a finetuning and the published weights that it starts from, as far as params.yaml tells."""
    theirs, encode = params.released[run.run], params.encode[run.dataset]
    if encode.vae != theirs.vae:
        yield f"dataset: encode.{run.dataset} has vae {encode.vae}, but released.{run.run} needs {theirs.vae}"
    side, wanted = params.pictures(encode.dataset).resolution, params.resolution(run.run)
    if side != wanted:
        yield f"dataset: fetch.{encode.dataset} has resolution {side}, but released.{run.run} needs {wanted}"
    if run.mask_ratio and theirs.format == "dit":
        yield f"mask_ratio: {run.mask_ratio} needs a decoder, and released.{run.run} is a DiT; set it to 0.0"


def phases_unfit(params: Params) -> Iterator[str]:
    """Samples, evaluations and reports that do not fit their runs."""
    for key, finetune in params.finetune.items():
        if finetune.phase == "pretrain" and finetune.dataset != (dataset := params.pretrain[finetune.run].dataset):
            yield f"finetune.{key}.dataset: must be {dataset}, as in pretrain.{finetune.run}"
        marks = ("final", *params.pretrain[finetune.run].milestones) if finetune.phase == "pretrain" else ("final",)
        if finetune.start not in marks:
            yield f"finetune.{key}.start: {finetune.start} is no milestone of pretrain.{finetune.run}; it has {marks[1:]}"
    for key, sample in params.sample.items():
        run, evaluate = f"{sample.phase}.{sample.run}", params.evaluate[key]
        phase = getattr(params, sample.phase)[sample.run]
        released = isinstance(phase, Released)
        milestones = (phase.step,) if released else phase.milestones
        if sample.step != "final" and sample.step not in milestones:
            yield f"sample.{key}.step: {sample.step} is not a milestone of {run} {milestones}"
        vae = phase.vae if released else params.encode[phase.dataset].vae
        if sample.vae != vae:
            yield f"sample.{key}.vae: must be {vae}, as in {run}"
        ours, theirs = params.features[key].extractor, params.reference[evaluate.dataset].extractor
        if ours != theirs:
            yield f"reference.{evaluate.dataset}.extractor: {theirs}, but the features of its samples are by {ours}"
        if evaluate.dataset != phase.dataset:
            yield f"sample.{key}.reference: must be {phase.dataset}, as in {run}"
        if evaluate.neighbours >= sample.images:
            least = f"{evaluate.neighbours} needs more than the {sample.images} images of sample.{key}"
            yield f"evaluate.{evaluate.dataset}.neighbours: {least}"
        images = phase.dataset if released else params.encode[phase.dataset].dataset
        if sample.guidance != 1 and getattr(params.fetch.get(images), "classes", "") == "none":
            yield f"sample.{key}.guidance: {sample.guidance} needs classes, and fetch.{images} has classes: none; set it to 1.0"
        if sample.shards > sample.images:
            yield f"sample.{key}.shards: {sample.shards} is more than the {sample.images} images"
    for key, rescore in params.rescore.items():
        ours, reference = params.features[key].extractor, params.reference[rescore.reference]
        own = params.reference[params.evaluate[key].dataset]
        if rescore.bench != params.evaluate[key].bench:
            yield f"rescore.{key}.bench: must be {params.evaluate[key].bench}, the study of sample.{key}"
        if rescore.extractor != reference.extractor:
            yield f"rescore.{key}.extractor: must be {reference.extractor}, as in reference.{rescore.reference}"
        if params.entry("fetch", ours).family == (family := params.entry("fetch", rescore.extractor).family):
            yield f"rescore.{key}.extractor: {family} is what the sample's own reference has, too; name one of another family"
        if (side := params.pictures(own.dataset).resolution) != params.pictures(reference.dataset).resolution:
            yield f"rescore.{key}.reference: fetch.{reference.dataset} must have resolution {side}, as the sample"
    for verb in SELECTING:
        for key, entry in getattr(params, verb).items():
            if not entry.evals:
                yield f"{verb}.{key}.select: matches no sample of the study {key}; correct it, or add the sample"
    for key, recon in params.recon.items():
        for name in recon.evals:
            if params.reconstruct[name].bench != key:
                yield f"recon.{key}.evals: '{name}' belongs to bench {params.reconstruct[name].bench}"
    for key, strip in params.strip.items():
        if max(strip.images) >= (count := min(params.sample[name].images for name in strip.evals)):
            yield f"strip.{key}.images: {max(strip.images)} is not one of the {count} images, counted from 0"
    for key, report in params.report.items():
        for verb in OF_REPORT:
            if key not in getattr(params, verb):
                yield f"report.{key}: {verb} has no entry '{key}'; a report needs one in each of {', '.join(OF_REPORT)}"
        if (study := params.claims[report.ledger].study) != key:
            yield f"report.{key}.ledger: claims.{report.ledger} belongs to study {study}"
        for name in report.grids:
            if (bench := params.evaluate[params.grid[name].sample].bench) != key:
                yield f"report.{key}.grids: '{name}' belongs to bench {bench}"


def sweeps_unfit(params: Params) -> Iterator[str]:
    """Sweeps that would report the samples that they chose by, or that choose for another training."""
    for key, sweep in params.sweep.items():
        for verb in OF_REPORT:
            if key in getattr(params, verb):
                yield f"sweep.{key}: {verb} has an entry '{key}', too; a sweep needs a study of its own, which nothing reports"
        for name in sweep.evals:
            sample = params.sample[name]
            first = params.finetune[sample.run].phase if sample.phase == "finetune" else sample.phase
            if sweep.axis == "lr" and first == "released":
                yield f"sweep.{key}.axis: lr, but sample.{name} is of published weights; use guidance, or another select"
        for name, reported in sweep.reports.items():
            if params.evaluate[name].bench in params.sweep:
                yield f"sample.{name}.best_of: a point of a sweep is not reported; remove this key, or give it another study"
            if reported.arm is None:
                alike = "pretraining, whatever its rate and length" if sweep.axis == "lr" else "training, phase and step"
                yield f"sample.{name}.best_of: no point of {key} is of the same {alike}; add one, or remove this key"
            for point in sweep.evals:
                for field in ("seed", "images"):
                    if (value := getattr(params.sample[point], field)) == getattr(params.sample[name], field):
                        told = f"{value} is that of {name}, whose values sweep.{key} chooses"
                        yield f"sample.{point}.{field}: {told}; a sweep needs another seed and another number of images"


def protocols_unfit(params: Params) -> Iterator[str]:
    """Solvers and averages that a run does not support, and comparisons of samples with different sampling settings."""
    for key, sample in params.sample.items():
        run = f"{sample.phase}.{sample.run}"
        if sample.solver == "ddpm" and not 2 <= sample.solver_steps <= 1000:
            yield f"sample.{key}.solver_steps: ddpm takes 2 to 1000 steps (got {sample.solver_steps})"
        if sample.solver == "ddpm" and sample.phase != "released":
            yield f"sample.{key}.solver: ddpm needs a released network that predicts noise and its variance; {run} has none"
        if sample.ema_width and len(getattr(getattr(params, sample.phase)[sample.run], "posthoc_ema", ())) < 2:
            yield f"sample.{key}.ema_width: {run} does not keep two averages; give it posthoc_ema: [0.05, 0.1]"
    compared = [(f"strip.{key}.select", strip.evals, (*SAMPLING, "seed", "labels", "vae")) for key, strip in params.strip.items()]
    compared += [(f"curves.{key}.select", curves.evals, SAMPLING) for key, curves in params.curves.items()]
    fixed = tuple(field for field in SAMPLING if field not in ("ema_width", "guidance"))
    compared += [(f"sweep.{key}.select", (*sweep.evals, *sweep.reports), fixed) for key, sweep in params.sweep.items()]
    for key, ledger in params.claims.items():
        for name, claim in ledger.claims.items():
            ratios = [each for each in (claim.evidence, claim.scaled, claim.control) if isinstance(each, Ratio)]
            compared += [(f"claims.{key}.claims.{name}", (*ratio.of, *ratio.over), SAMPLING) for ratio in ratios]
    for where, evals, fields in compared:
        for field in fields:
            if len(values := {getattr(params.sample[name], field) for name in evals if name in params.sample}) > 1:
                yield f"{where}: the samples must have the same {field}, but have {sorted(values, key=str)}"
