"""How the artifacts of a study were made and what that has cost, from their manifests and the ledger."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from maskdit.artifacts.manifest import MANIFEST, Manifest, inputs_of, read_manifest
from maskdit.artifacts.provenance import VERSIONS, marked
from maskdit.config.base import UserError
from maskdit.config.graph import Edges
from maskdit.config.params import Params
from maskdit.reporting.report.page import PIECES, table

FOLDERS = {  # verb -> what it publishes, beside results/
    "fetch": "artifacts/raw/{key}",
    "vae": "artifacts/vae/{key}",
    "encode": "artifacts/latents/{key}",
    "reference": "artifacts/reference/{key}",
    "pretrain": "artifacts/runs/{key}/pretrain",
    "finetune": "artifacts/runs/{key}/finetune",
    "released": "artifacts/runs/{key}/released",
    "sample": "artifacts/samples/{key}",
    "features": "artifacts/features/{key}",
}
MARKED = {"table": ".md", "curves": ".svg", "grid": ".png", "strip": ".png"}  # what others have has no mark
ENDS = {2: "refused", 85: "asked to stop, its state is kept", 130: "interrupted", 138: "SIGUSR1", 143: "SIGTERM"}
MADE, AWAY, OTHER, ABSENT = "made", "not here", "another than was used", "not run"

Found = dict[str, tuple[Path, Manifest]]
Lines = list[dict[str, Any]]


def manifests(params: Params, edges: Edges, results: Path) -> Found:
    """Where the artifacts lie that are here, and their manifests."""
    found: Found = {}
    for node in edges:
        verb, key = node.split("/")
        if verb == "evaluate":
            path = results / "metrics" / params.evaluate[key].bench / f"{key}.json"
            if path.exists():
                found[node] = inputs_of(path)[0]
        elif verb in FOLDERS:
            folder = results.parent / FOLDERS[verb].format(key=key)
            if (folder / MANIFEST).exists():
                found[node] = folder, read_manifest(folder)
    return found


def refuse_mixed(found: Found, bench: str) -> None:
    """Raise UserError, naming two artifacts, if not all were made at one commit."""
    commits = {path: manifest.made.get("commit", "unknown") for path, manifest in found.values()}
    for path, commit in commits.items():
        first = next(iter(commits))
        if commit != commits[first]:
            told = f"{first} was made at commit {brief(commits[first])}, {path} at {brief(commit)}"
            raise UserError(f"{told}: rerun one of them, or set report.{bench}.mixed: true")


def brief(text: str) -> str:
    """A hash, shortened; +changes after a commit stays."""
    sha, plus, rest = text.partition("+")
    return f"{sha[:12]}{plus}{rest}"


def states(edges: Edges, found: Found, results: Path) -> dict[str, str]:
    """Of each artifact: made, not here (but known from what was made of it), of another making than that, or not run."""
    behind: dict[str, set[str]] = {}
    for node, (_, manifest) in found.items():
        for other, origin in manifest.lineage.items():
            if other != node:
                behind.setdefault(other, set()).add(origin.digest)
    told = {}
    for node in edges:
        verb, key = node.split("/")
        if node in found:
            told[node] = MADE if behind.get(node, set()) <= {found[node][1].lineage[node].digest} else OTHER
        elif verb in FOLDERS or verb == "evaluate":
            told[node] = AWAY if node in behind else ABSENT
        else:
            suffix = ".png" if verb in ("grid", "strip") else ".csv"
            file = results / (f"{key}.csv" if verb == "claims" else f"{verb}_{key}{suffix}")
            told[node] = MADE if verb == "report" or file.exists() else ABSENT
    return told


def provenance(edges: Edges, found: Found, told: dict[str, str], spent: Lines, results: Path) -> Markup:
    """A row an artifact: from what, by which code, with which numbers, where, and what it took."""
    digests = {node: origin.digest for _, manifest in found.values() for node, origin in manifest.lineage.items()}
    configs = {node: origin.config for _, manifest in found.values() for node, origin in manifest.lineage.items()}
    rows = []
    for node, before in edges.items():
        verb, key = node.split("/")
        made = found[node][1].made if node in found else marked(results / f"{verb}_{key}{MARKED.get(verb, '')}")
        commit, _, dirty = made.get("commit", "").partition("+")
        config = configs.get(node, {})
        lines = [line for line in spent if line["node"] == node]
        last = next((line for line in reversed(lines) if line.get("digest") and line["digest"] == digests.get(node)), {})
        rows.append(
            {
                "artifact": node,
                "state": told[node],
                "commit": hashed(commit),
                "code changed since": "yes" if dirty else "no" if commit else "",
                "lock": hashed(made.get("lock", "")),
                "digest": hashed(digests.get(node, "")),
                "made from": joined(f"{each} {digests.get(each, '')[:12]}".strip() for each in sorted(before)),
                "seed": str(config.get("seed", "")),
                "numbers": unfolded(config),
                "hardware": ", ".join(dict.fromkeys(made[name] for name in ("device", "processor") if made.get(name))),
                "versions": ", ".join(f"{name} {made[name]}" for name in ("python", *VERSIONS) if name in made),
                "wall s": number(last.get("seconds")),
                "device s": number(last.get("device_seconds")),
                "peak MB": number(last.get("peak_device_memory") or last.get("peak_memory"), 1e6),
                "joules": number(last.get("joules")),
                "Slurm job": str(last.get("slurm_job") or ""),
                "attempts": str(len(lines) or ""),
                "failed": str(len(failures(lines)) if lines else ""),
            }
        )
    return table(rows, "How each artifact was made")


def hashed(text: str) -> str:
    """A hash, shortened, with the whole of it beside."""
    return PIECES.hashed(text) if text else ""


def joined(lines: Iterable[str]) -> Markup:
    """Lines of one cell."""
    return Markup("<br>").join(lines)


def unfolded(config: dict[str, Any]) -> str:
    """An entry of params.yaml, to unfold."""
    if not config:
        return ""
    return PIECES.folded(f"{len(config)} fields", Markup("<pre>{}</pre>").format(json.dumps(config, indent=1)))


def number(value: float | None, unit: float = 1.0) -> str:
    """A number in a unit; '' if it is not known."""
    return "" if value is None else f"{value / unit:.1f}"


def costs(edges: Edges, spent: Lines) -> Markup:
    """What all commands of the study have spent, those that failed too, and which those were."""
    if not spent:
        return PIECES.paragraph("No ledger is here (logs/ledger.jsonl): what was spent is not known.", "absent")
    groups: dict[str, Lines] = {}
    for line in spent:
        groups.setdefault(line["verb"] if line["node"] in edges else "other studies", []).append(line)
    here = [line for line in spent if line["node"] in edges]
    rows = [total(name, lines) for name, lines in sorted(groups.items(), key=lambda each: each[0] == "other studies")]
    failed = [ended(line) for line in failures(here)]
    text = PIECES.items(failed) if failed else PIECES.paragraph("No command of this study that ended has failed.")
    note = PIECES.paragraph("A process that is killed outright, by SIGKILL or with its machine, leaves no line in the ledger.")
    return table([*rows, total("this study", here)], "What was spent", "ledger.jsonl") + Markup("<h3>Failures</h3>") + text + note


def failures(lines: Lines) -> Lines:
    """The commands that did not end well."""
    return [line for line in lines if line.get("exit") != 0]


def total(name: str, lines: Lines) -> dict[str, str]:
    """The sum of some lines of the ledger."""
    joules = [line["joules"] for line in lines if line.get("joules") is not None]
    return {
        "verb": name,
        "commands": str(len(lines)),
        "failed": str(len(failures(lines))),
        "wall s": number(sum(line["seconds"] for line in lines)),
        "device s": number(sum(float(line.get("device_seconds") or 0) for line in lines)),
        "most memory MB": number(max((float(line.get("peak_memory") or 0) for line in lines), default=0), 1e6),
        "joules": number(sum(joules)) if joules else "",
    }


def ended(line: dict[str, Any]) -> str:
    """A failure in words."""
    code = line.get("exit")
    why = ENDS.get(code, "an error") if isinstance(code, int) else "an error"
    job = f", Slurm job {line['slurm_job']}" if line.get("slurm_job") else ""
    which = f"{line['node']}, attempt {line.get('attempt', '?')}, {line.get('start', '')}{job}"
    return f"{which}: {why} (exit code {code}) after {line['seconds']:.1f} s"
