"""One step, whichever it is: its inputs checked, its work spread, what it made published, what it spent recorded."""

import os
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # no help text waits for them
    from maskdit.artifacts.manifest import Origin
    from maskdit.config.params import Params

STEPS = {  # verb -> module of this package
    "fetch": "images.fetch",
    "vae": "latents.vae",
    "encode": "latents.encode",
    "reference": "evaluation.reference",
    "pretrain": "training.train",
    "finetune": "training.train",
    "released": "weights.importing",
    "sample": "sampling.sample",
    "features": "evaluation.features",
    "evaluate": "evaluation.evaluate",
    "rescore": "evaluation.rescore",
    "grid": "reporting.pictures",
    "strip": "reporting.pictures",
    "table": "reporting.table",
    "curves": "reporting.curves",
    "efficiency": "reporting.efficiency",
    "sweep": "reporting.sweep",
    "reconstruct": "evaluation.reconstruct",
    "recon": "reporting.table",
    "calibrate": "evaluation.calibrate",
    "bench": "benchmark.bench",
    "claims": "reporting.verdicts",
    "report": "reporting.report.report",
}
ALONE = {"vae": 1, "bench": 2}  # steps that share no work among processes, and how many GPUs they use where there are as many
# Steps whose work any number of processes may share
SHARDED = {"encode", "sample", "features", "reference", "rescore", "reconstruct", "calibrate"}


def step(verb: str, key: str, paths: dict[str, Path], share: tuple[int, int] | None = None, **options: Path | None) -> None:
    """Run one step: check its inputs against today's params.yaml, run it on its own entry, publish what it made.

    Paths that are not given are those of `config.paths`. A step whose output there is current ends at once, unless MASKDIT_FORCE=1.
    What it has spent is written to the ledger, however it ends.
    Raises UserError if an input is missing, damaged, stale, or not the one that params.yaml names.
    """
    from maskdit.artifacts.compute_log import INSIDE, recorded
    from maskdit.artifacts.freshness import CURRENT, Freshness
    from maskdit.config.base import UserError
    from maskdit.config.load import load
    from maskdit.config.paths import inputs, output
    from maskdit.runtime import slurm
    from maskdit.runtime.engine import ending_with_engine, engine
    from maskdit.runtime.gpu_leases import leased
    from maskdit.runtime.lock import running
    from maskdit.runtime.logs import keep_log, log_file
    from maskdit.runtime.progress import say
    from maskdit.runtime.variables import flag, group

    params, node, ranks, training = load(), f"{verb}/{key}", group(), STEPS[verb] == "training.train"
    params.entry(verb, key)
    if ranks and INSIDE not in os.environ and not (training and engine() is None):  # what it makes, nobody would publish
        told = f"RANK={ranks[0]} and WORLD_SIZE={ranks[1]} make this one process of several"
        raise UserError(f"{node}: {told}; unset them: the step starts its own processes")
    usual = {**inputs(params, verb, key), "out": output(params, node)}
    paths = usual | paths
    asked = any(options.values()) or flag("MASKDIT_FORCE") or bool(ranks)
    fresh = Freshness(params)
    if paths == usual and not asked and fresh.verdict(node) == CURRENT:
        say(f"{node}: {paths['out']} is current, nothing to do; MASKDIT_FORCE=1 makes it again")
        return
    for source in sorted(params.upstream(verb, key)):
        if source.startswith("fetch/") and (told := fresh.moved(source)):
            say(f"{source}: {told}; run maskdit fetch {source[6:]}, this step goes by what was fetched before")
    if not ranks and (slurm.job() or not training):
        slurm.supersede(verb, key, share)
    keep_log(log_file(verb, key, share), goes_on=bool(ranks) or training)
    showing = nullcontext(say) if ranks else running(verb, key, share)
    watching = nullcontext() if ranks and training else ending_with_engine()
    with showing as tell, watching, leased(gpus_of(verb, share), tell) as waited:
        if waited and paths == usual and not asked and Freshness(params).verdict(node) == CURRENT:
            say(f"{node}: another process has made it meanwhile")
            return
        with recorded(verb, key, code_of) as spent:
            work(params, verb, key, paths, share, spent, options)


def gpus_of(verb: str, share: tuple[int, int] | None) -> int | None:
    """The number of GPUs that a step uses; None: one for each of its processes, of which it starts as many as there are GPUs."""
    if verb in ALONE or share:
        return ALONE.get(verb, 1)
    if verb not in SHARDED and STEPS[verb] != "training.train":
        return 0
    from maskdit.runtime.variables import MOST, whole

    return whole("MASKDIT_RANKS", most=MOST)


def work(
    params: "Params",
    verb: str,
    key: str,
    paths: dict[str, Path],
    share: tuple[int, int] | None,
    spent: dict[str, Any],
    options: dict[str, Path | None],
) -> None:
    """What `step` does; `spent` is told what only this function knows."""
    from maskdit.runtime import device, environment, progress, variables

    entry, node, out = params.entry(verb, key), f"{verb}/{key}", paths["out"]
    threads, ranks = variables.threads(), variables.group()
    for library in ("OMP", "OPENBLAS", "MKL"):  # read when NumPy is imported
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    environment.without_matplotlibrc()
    from maskdit.artifacts.freshness import Freshness
    from maskdit.artifacts.manifest import read_manifest
    from maskdit.artifacts.publish import demand_replaceable, publishing
    from maskdit.config.paths import output

    usual = out == output(params, node)
    demand_replaceable(out, node, usual)
    progress.KEY = key
    training = STEPS[verb] == "training.train"
    if training:
        variables.loggers()  # refused before other processes start
    if not ranks:
        code = spread(verb, key, paths, share, spent)
        if code or (training and code is not None):
            sys.exit(code)
    if verb in SHARDED and ranks:
        share = (ranks[0] + 1, ranks[1])
    environment.PART = share
    if share:
        spent["part"] = f"{share[0]}/{share[1]}"
    inputs = {name: path for name, path in paths.items() if name != "out"}
    ancestors, read = origins(params, verb, key, inputs)
    run = getattr(import_module(f"maskdit.{STEPS[verb]}"), verb)
    if share or (training and not progress.first_rank()):
        run(entry, **inputs, out=out)  # which another process publishes
        return
    if training and usual and Freshness(params).verdict(node).longer:
        options = {"published": out}
    numbers = entry.model_dump(mode="json")
    with publishing(out, node, numbers, ancestors, read, "ema-" * training, usual) as place:
        run(entry, **inputs, **options, out=place)
        if device.PRECISION:
            numbers["precision"] = device.PRECISION
    spent["digest"] = read_manifest(out).lineage[node].digest
    environment.tidy()


def origins(
    params: "Params", verb: str, key: str, inputs: dict[str, Path]
) -> tuple[dict[str, "Origin"], dict[str, dict[str, str]]]:
    """The ancestors of what a step makes, and the sha256 of the files that it reads of a training.

    Raises UserError if an input is missing, damaged, stale, or not the one that params.yaml names.
    """
    from maskdit.artifacts.manifest import SMALL, damage, inputs_of, lineage, manifest_file, read_manifest
    from maskdit.config.base import UserError
    from maskdit.config.paths import is_result, output

    found = [item for path in inputs.values() for item in inputs_of(path, params.evals(verb, key))]
    upstream, partly = params.upstream(verb, key) | params.beside(verb, key), params.reads(verb, key)
    read: dict[str, dict[str, str]] = {}
    for path, manifest in found:
        if manifest.node not in upstream:
            raise UserError(f"{path}: holds {manifest.node}, {verb}.{key} wants {' and '.join(sorted(upstream))}")
        if names := partly.get(manifest.node):
            if missing := [name for name in names if name not in manifest.files]:
                raise UserError(f"{path}: has no {missing[0]}; rerun {manifest.node.replace('/', ' ')}")
            read[manifest.node] = {name: manifest.files[name].sha256 for name in names}
    ancestors = lineage(found, params, partly)
    for node in upstream:  # tables, curves and pictures, which are read by their names
        out = output(params, node)
        if is_result(out) and out.exists() and manifest_file(out).exists():
            manifest = read_manifest(out)
            if why := damage(out, manifest, SMALL):
                raise UserError(f"{why}; rerun maskdit {node.replace('/', ' ')}")
            ancestors[node] = manifest.lineage[node]
    return ancestors, read


def spread(verb: str, key: str, paths: dict[str, Path], share: tuple[int, int] | None, spent: dict[str, Any]) -> int | None:
    """Run a step in several processes where there are several devices or nodes; its exit code, None: it is for this process.

    `spent` is told how many devices it holds.
    """
    from maskdit.runtime import process_group, slurm

    training, number = STEPS[verb] == "training.train", slurm.job()
    if share or not (training or verb in SHARDED):
        return None
    words = [word for name in paths for word in (f"--{name}", str(paths[name]))]
    command = [sys.executable, "-m", "maskdit.cli", verb, key, *words]
    if training and number:
        granted = slurm.granted(number)
        spent["devices"] = max(spent["devices"], granted.devices)
        return slurm.over_nodes(granted, command)
    place, count = slurm.place() if training else slurm.Place(), process_group.local_ranks()
    if training:
        slurm.demand_all(count * place.nodes)
    if count * place.nodes == 1:
        return None
    spent["devices"] = max(spent["devices"], count * place.nodes)
    return process_group.launch(command, count, place.node, place.nodes, place.address, place.port)


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error."""
    from maskdit.config.base import UserError
    from maskdit.runtime.process_group import STOPPED, Stopped

    match error:
        case Stopped():
            return STOPPED
        case UserError() | OSError() | UnicodeEncodeError():
            return 2
        case KeyboardInterrupt():
            return 130
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1
