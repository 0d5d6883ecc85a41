"""Crossing between the engines: Snakemake judges artifacts by themselves, DVC has to be told of them."""

import subprocess
import sys
from pathlib import Path

from maskdit.artifacts.freshness import Freshness
from maskdit.config.base import UserError
from maskdit.config.graph import nodes_of
from maskdit.config.load import load
from maskdit.config.paths import output


def dvc(*words: str) -> None:
    """Run DVC; raises UserError with its first complaint if it fails."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        start = next((place for place, line in enumerate(lines) if "error" in line.lower()), -1)
        raise UserError(f"handoff: dvc {words[0]} failed: {' '.join(lines[start:][:2])}")


def demand_inside() -> None:
    """Raise UserError if artifacts or results lies outside the project, by a link, where DVC tracks nothing."""
    for folder in ("artifacts", "results"):
        place = Path(folder).resolve()
        if not place.is_relative_to(Path.cwd()):
            advice = "mount the other disk there (mount --bind), move the whole project to it, or use Snakemake"
            raise UserError(f"{folder}: leads to {place}, and DVC tracks nothing outside the project; {advice}")


def handoff(to: str, bench: str) -> None:
    """Tell one engine what the other has made of a study, so that it makes nothing again.

    To dvc: commits the artifacts to DVC's lock and cache; raises UserError, and changes nothing, unless all of them exist and
    are current and in the project's own folders. To snakemake: pulls what is missing from DVC's remote or cache, as far as
    it is there.
    """
    params = load()
    nodes, fresh = nodes_of(params, bench), Freshness(params)
    stages = [node.replace("/", "@") for node in nodes]
    if to == "dvc":
        demand_inside()
        for node in nodes:
            verdict = fresh.verdict(node)
            if verdict.state != "current":
                why = f"{verdict.state}{': ' * bool(verdict.why)}{verdict.why}"
                raise UserError(f"handoff: {node} is {why}; run snakemake, or maskdit {node.replace('/', ' ')}")
        dvc("commit", "--force", "--no-relink", *stages)
        print(f"handoff: dvc now knows {bench}")
        return
    if Path("dvc.lock").exists() and not all(output(params, node).exists() for node in nodes):
        demand_inside()
        dvc("pull", "--allow-missing", *stages)
        fresh = Freshness(params)
    unmade = sum(node in fresh.unmade for node in nodes)
    print(f"handoff: snakemake has {f'{unmade} of {len(nodes)} nodes' if unmade else 'nothing'} of {bench} to make")
