"""Crossing between the engines: each learns what the other has made, but only of what is finished and current."""

import subprocess
import sys
from pathlib import Path

from maskdit.artifacts.manifest import inputs_of, lineage
from maskdit.config.base import UserError
from maskdit.config.graph import study
from maskdit.config.load import load
from maskdit.config.params import Params


def engine(*words: str) -> str:
    """What an engine prints; raises UserError with its first complaint if it fails."""
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        start = next((place for place, line in enumerate(lines) if "error" in line.lower()), -1)
        raise UserError(f"handoff: {' '.join(words[:2])} failed: {' '.join(lines[start:][:2])}")
    return said


def targets(params: Params, bench: str) -> tuple[list[str], list[str]]:
    """The last nodes of a benchmark as Snakemake's files and as DVC's stages."""
    params.entry("table", bench)
    pictures = [("grid", key) for key, entry in params.grid.items() if params.evaluate[entry.sample].bench == bench]
    pictures += [("strip", key) for key in params.strip if key == bench]
    verbs = ["table", *(verb for verb in ("curves", "efficiency") if bench in getattr(params, verb))]
    ledgers = [key for key, entry in params.claims.items() if entry.study == bench]
    reports = [key for key in params.report if key == bench]
    files = [f"results/{verb}_{bench}.csv" for verb in verbs] + [f"results/{key}.csv" for key in ledgers]
    stages = [f"{verb}@{bench}" for verb in verbs] + [f"claims@{key}" for key in ledgers]
    files += [*(f"results/{verb}_{key}.png" for verb, key in pictures), *(f"results/report_{key}.html" for key in reports)]
    return files, [*stages, *(f"{verb}@{key}" for verb, key in pictures), *(f"report@{key}" for key in reports)]


def handoff(to: str, bench: str) -> None:
    """Tell one engine what the other has made of a benchmark, so that it runs nothing again.

    To dvc: commits the files to DVC's lock and cache. To snakemake: writes Snakemake's provenance, so that a later change of a
    number is seen. Raises UserError, and changes nothing, unless the engine that ran has nothing left to do and each artifact
    was made with today's params.yaml.
    """
    params = load()
    files, stages = targets(params, bench)
    if to == "dvc":
        said = engine("snakemake", "--dry-run", *files)
        if "missing provenance" in said:
            raise UserError(f"handoff: Snakemake did not make these files (no provenance): run snakemake {files[0]} first")
        if "Nothing to be done" not in said:
            raise UserError(f"handoff: Snakemake has jobs left: run snakemake {' '.join(files)} first")
    else:
        said = engine("dvc", "repro", "--dry", "--allow-missing", *stages)
        if "Running stage" in said:
            raise UserError(f"handoff: DVC has stages left: run dvc repro {' '.join(stages)} first")
    folder = Path("results") / "metrics" / bench
    records = [folder / f"{key}.json" for key, entry in params.evaluate.items() if entry.bench == bench]
    for path in records:
        if not path.exists():
            raise UserError(f"handoff: {path} is not here: run {'dvc pull' if to == 'snakemake' else f'snakemake {path}'} first")
    lineage([found for path in records for found in inputs_of(path)], params)
    if to == "dvc":
        behind = {node for stage in stages for before in study(params, stage.replace("@", "/")).values() for node in before}
        ends = [stage for stage in stages if stage.replace("@", "/") not in behind]  # DVC commits what is before each of them anew
        engine("dvc", "commit", "--force", "--no-relink", "--with-deps", *ends)
    else:
        engine("snakemake", "--touch", "--forceall", *files)
    print(f"handoff: {to} now knows {bench}")
