"""How the artifacts of a study were made and what they cost, from their manifests and the ledger."""

import json
from typing import Any

from markupsafe import Markup

from maskdit.artifacts.atomic import read_json
from maskdit.artifacts.freshness import Freshness
from maskdit.artifacts.manifest import Manifest
from maskdit.artifacts.provenance import VERSIONS
from maskdit.artifacts.stamps import stamped
from maskdit.config.base import UserError
from maskdit.config.graph import Edges
from maskdit.config.params import Params
from maskdit.config.paths import output
from maskdit.reporting.report.page import PIECES, table

ENDS = {2: "refused", 85: "stopped on request, can be resumed", 130: "interrupted", 138: "SIGUSR1", 143: "SIGTERM"}
MADE, AWAY, STALE, ABSENT = "made", "not here", "stale", "not run"

Found = dict[str, Manifest]  # node -> the manifest of its artifact
Lines = list[dict[str, Any]]


def manifests(fresh: Freshness, edges: Edges) -> Found:
    """The manifests of the artifacts that exist."""
    known = {node: fresh.known(node) for node in edges}
    return {node: manifest for node, manifest in known.items() if manifest and node in manifest.lineage}


def refuse_mixed(params: Params, found: Found, bench: str) -> None:
    """Raise UserError, naming two artifacts, if not all folders and records were made at one commit."""
    commits = {
        output(params, node): manifest.made.get("commit", "unknown") for node, manifest in found.items() if stamped(params, node)
    }
    for path, commit in commits.items():
        first = next(iter(commits))
        if commit != commits[first]:
            told = f"{first} was made at commit {brief(commits[first])}, {path} at {brief(commit)}"
            raise UserError(f"{told}: rerun one of them, or set report.{bench}.mixed: true")


def brief(text: str) -> str:
    """A shortened hash; keeps the +changes after a commit."""
    sha, plus, rest = text.partition("+")
    return f"{sha[:12]}{plus}{rest}"


def states(fresh: Freshness, edges: Edges, found: Found) -> dict[str, str]:
    """The state of each artifact: made, not here (but a later artifact records it), stale and why, or not run.

    The report itself, which is being written, counts as made.
    """
    recorded = {other for node, manifest in found.items() for other in manifest.lineage if other != node}
    told = {}
    for node in edges:
        verdict = fresh.verdict(node)
        if verdict.state == "current" or node.startswith("report/"):
            told[node] = MADE
        elif verdict.state == "stale":
            told[node] = f"{STALE}: {verdict.why}"
        else:
            told[node] = AWAY if node in recorded else ABSENT
    return told


def provenance(edges: Edges, found: Found, told: dict[str, str], spent: Lines) -> Markup:
    """One row per artifact: its inputs, code, settings, hardware and cost."""
    known = {node: origin for manifest in found.values() for node, origin in manifest.lineage.items()}
    digests = {node: origin.digest for node, origin in known.items()}
    rows = []
    for node, before in edges.items():
        made = found[node].made if node in found else {}
        commit, _, dirty = made.get("commit", "").partition("+")
        config = known[node].config if node in known else {}
        lines = [line for line in spent if line["node"] == node]
        last = next((line for line in reversed(lines) if line.get("digest") and line["digest"] == digests.get(node)), {})
        code = {"commit": PIECES.hashed(commit), "uncommitted changes": "yes" if dirty else "no" if commit else ""}
        code |= {"lock": PIECES.hashed(made.get("lock")), "digest": PIECES.hashed(digests.get(node))}
        origin = {
            "made from": Markup("<br>").join(f"{each} {digests.get(each, '')[:12]}".strip() for each in sorted(before)),
            "seed": str(config.get("seed", "")),
            "numbers": unfolded(config),
            "hardware": ", ".join(dict.fromkeys(made[name] for name in ("device", "processor") if made.get(name))),
            "versions": ", ".join(f"{name} {made[name]}" for name in ("python", *VERSIONS) if name in made),
        }
        cost = {
            "wall s": number(last.get("seconds")),
            "device s": number(last.get("device_seconds")),
            "peak MB": number(last.get("peak_device_memory") or last.get("peak_memory"), 1e6),
            "joules": number(last.get("joules")),
            "Slurm job": str(last.get("slurm_job") or ""),
        }
        tried = {"attempts": str(len(lines) or ""), "failed": str(len(failures(lines)) if lines else "")}
        rows.append({"artifact": node, "state": told[node], **code, **origin, **cost, **tried})
    return table(rows, "How each artifact was made")


def left_out(params: Params, found: Found) -> Markup:
    """How the user's images were read, and what was left out of them and why; nothing for other sources."""
    lines = []
    for node in found:
        path = output(params, node) / "report.json"
        tree = read_json(path) if node.startswith("fetch/") and path.exists() else {}
        if "left_out" in tree:
            known = tree["left_out"].items()
            reasons = [f"{reason}: {part['count']:,} ({', '.join(part['first'][:3])})" for reason, part in known]
            lines.append(f"{node}: {tree['layout']}. Left out: {'; '.join(reasons) or 'nothing'}.")
    return PIECES.items(lines) if lines else Markup("")


def unfolded(config: dict[str, Any]) -> str:
    """An entry of params.yaml that unfolds."""
    if not config:
        return ""
    return PIECES.folded(f"{len(config)} fields", Markup("<pre>{}</pre>").format(json.dumps(config, indent=1)))


def number(value: float | None, unit: float = 1.0) -> str:
    """A number in a unit; '' if unknown."""
    return "" if value is None else f"{value / unit:.1f}"


def costs(edges: Edges, spent: Lines) -> Markup:
    """The cost of all commands, including failed ones, and the failures of this study."""
    if not spent:
        return PIECES.paragraph("There is no ledger (logs/ledger.jsonl), so the costs are unknown.", "absent")
    here = [line for line in spent if line["node"] in edges]
    groups = {verb: [line for line in here if line["verb"] == verb] for verb in dict.fromkeys(line["verb"] for line in here)}
    groups |= {"other studies": [line for line in spent if line["node"] not in edges], "this study": here}
    rows = [total(name, lines) for name, lines in groups.items() if lines or name == "this study"]
    failed = [ended(line) for line in failures(here)]
    text = PIECES.items(failed) if failed else PIECES.paragraph("No recorded command of this study has failed.")
    note = PIECES.paragraph("A process ended by SIGKILL or by a machine failure leaves no line in the ledger.")
    return table(rows, "Costs by verb", "ledger.jsonl") + Markup("<h3>Failures</h3>") + text + note


def failures(lines: Lines) -> Lines:
    """The commands that did not succeed."""
    return [line for line in lines if line.get("exit") != 0]


def total(name: str, lines: Lines) -> dict[str, str]:
    """The totals of some lines of the ledger."""
    joules = [line["joules"] for line in lines if line.get("joules") is not None]
    memory = max((float(line.get("peak_memory") or 0) for line in lines), default=0)
    row = {"verb": name, "commands": str(len(lines)), "failed": str(len(failures(lines)))}
    row["wall s"] = number(sum(line["seconds"] for line in lines))
    row["device s"] = number(sum(float(line.get("device_seconds") or 0) for line in lines))
    return {**row, "most memory MB": number(memory, 1e6), "joules": number(sum(joules)) if joules else ""}


def ended(line: dict[str, Any]) -> str:
    """A failure in words."""
    code = line.get("exit")
    why = ENDS.get(code, "an error") if isinstance(code, int) else "an error"
    job = f", Slurm job {line['slurm_job']}" if line.get("slurm_job") else ""
    which = f"{line['node']}, attempt {line.get('attempt', '?')}, {line.get('start', '')}{job}"
    return f"{which}: {why} (exit code {code}) after {line['seconds']:.1f} s"
