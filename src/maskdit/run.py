"""One step, whichever it is: its inputs checked, its work spread, what it made published, what it spent recorded."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # no help text waits for it
    from maskdit.params import Params

STEPS = {  # verb -> module
    "fetch": "fetch",
    "vae": "vae",
    "encode": "encode",
    "reference": "reference",
    "pretrain": "train",
    "finetune": "train",
    "released": "convert",
    "sample": "sample",
    "features": "features",
    "evaluate": "evaluate",
    "grid": "grid",
    "strip": "grid",
    "table": "table",
    "curves": "curves",
    "efficiency": "efficiency",
    "reconstruct": "reconstruct",
    "recon": "table",
    "calibrate": "calibrate",
    "bench": "bench",
    "claims": "claims",
    "report": "report",
}
SHARDED = {"encode", "sample", "features", "reference", "reconstruct", "calibrate"}  # any number of processes may share the work


def step(verb: str, key: str, paths: dict[str, Path], share: tuple[int, int] | None = None, **options: Path | None) -> None:
    """Run one step: check its inputs against today's params.yaml, run it on its own entry, publish what it made.

    What it has spent is written to the ledger, however it ends.
    Raises UserError if an input is missing, damaged, stale, or not the one that params.yaml names.
    """
    from maskdit.journal import recorded
    from maskdit.params import load

    params = load()
    params.entry(verb, key)
    with recorded(verb, key, code_of) as spent:
        work(params, verb, key, paths, share, spent, options)


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
    from maskdit import runtime
    from maskdit.config import UserError

    entry = params.entry(verb, key)
    threads = runtime.threads()
    for library in ("OMP", "OPENBLAS", "MKL"):  # read when NumPy is imported
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    from maskdit.files import inputs_of, lineage, published_digest, publishing

    runtime.KEY = key
    training = STEPS[verb] == "train"
    if "RANK" not in os.environ:
        code = spread(verb, key, paths, share, spent)
        if code or (training and code is not None):
            sys.exit(code)
    if verb in SHARDED and "RANK" in os.environ:
        share = (int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"]))
    runtime.PART = share
    if share:
        spent["part"] = f"{share[0]}/{share[1]}"
    inputs = {name: path for name, path in paths.items() if name != "out"}
    found = [item for path in inputs.values() for item in inputs_of(path, params.evals(verb, key))]
    upstream = params.upstream(verb, key) | params.beside(verb, key)
    for path, manifest in found:
        if manifest.node not in upstream:
            raise UserError(f"{path}: holds {manifest.node}, {verb}.{key} wants {' and '.join(sorted(upstream))}")
    ancestors = lineage(found, params)
    run = getattr(import_module(f"maskdit.{STEPS[verb]}"), verb)
    if share or (training and not runtime.first_rank()):
        run(entry, **inputs, out=paths["out"])  # which another process publishes
        return
    numbers = entry.model_dump(mode="json")
    with publishing(paths["out"], f"{verb}/{key}", numbers, ancestors) as place:
        run(entry, **inputs, **options, out=place)
        if runtime.PRECISION:
            numbers["precision"] = runtime.PRECISION
    spent["digest"] = published_digest(paths["out"], f"{verb}/{key}")
    runtime.tidy()


def spread(verb: str, key: str, paths: dict[str, Path], share: tuple[int, int] | None, spent: dict[str, Any]) -> int | None:
    """Run a step in several processes where there are several devices or nodes; its exit code, None: it is for this process.

    `spent` is told how many devices it holds.
    """
    from maskdit import ranks, slurm

    training, number = STEPS[verb] == "train", slurm.job()
    if number or not training:
        slurm.supersede(verb, key)
    if share or not (training or verb in SHARDED):
        return None
    words = [word for name in paths for word in (f"--{name}", str(paths[name]))]
    command = [sys.executable, "-m", "maskdit.cli", verb, key, *words]
    if training and number:
        granted = slurm.granted(number)
        spent["devices"] = max(spent["devices"], granted.devices)
        return slurm.over_nodes(granted, command)
    place, count = slurm.place() if training else slurm.Place(), ranks.local_ranks()
    if count * place.nodes == 1:
        return None
    spent["devices"] = max(spent["devices"], count * place.nodes)
    return ranks.launch(command, count, place.node, place.nodes, place.address, place.port)


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error."""
    from maskdit.config import UserError
    from maskdit.ranks import STOPPED, Stopped

    match error:
        case Stopped():
            return STOPPED
        case UserError() | OSError():
            return 2
        case KeyboardInterrupt():
            return 130
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1
