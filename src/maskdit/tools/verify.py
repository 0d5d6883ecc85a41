"""Whether a study's files are those that its manifests name, from a cell of a table to its weights."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from maskdit.artifacts.atomic import digest
from maskdit.artifacts.freshness import TRAININGS, Freshness
from maskdit.artifacts.manifest import Manifest, damage
from maskdit.config.base import UserError
from maskdit.config.graph import nodes_of, study
from maskdit.config.params import Params
from maskdit.config.paths import output

GOOD, BAD, ABSENT = "ok", "CHANGED", "not here"


@dataclass(frozen=True)
class Check:
    """What was found of one node: ok, changed (and how), or not here to be checked."""

    node: str
    found: str
    told: str


def verify(params: Params, name: str) -> bool:
    """`maskdit verify STUDY|CELL`: hash every file of a study, or of all behind one evaluation; print what was found.

    Returns whether nothing has changed. Raises UserError for a name that is neither a study nor an evaluation.
    """
    if name in params.studies:
        nodes = nodes_of(params, name)
    elif name in params.evaluate:
        nodes = list(study(params, f"evaluate/{name}"))
    else:
        raise UserError(f"verify: '{name}' is no study and no evaluation; name a key of table: or of sample: in params.yaml")
    checks = list(checked(Freshness(params), nodes, name in params.evaluate))
    for check in checks:
        print(f"{check.found:8}  {check.node}: {check.told}")
    counts = Counter(check.found for check in checks)
    print(f"\n{name}: " + ", ".join(f"{counts[found]} {found}" for found in (GOOD, BAD, ABSENT) if counts[found]))
    return not counts[BAD]


def checked(fresh: Freshness, nodes: list[str], chain: bool) -> Iterator[Check]:
    """The nodes, and with `chain` what each was made by."""
    trusted = {node: fresh.known(node) for node in nodes}
    behind: dict[str, set[str]] = {}
    for known in filter(None, trusted.values()):
        for node, origin in known.lineage.items():
            behind.setdefault(node, set()).add(origin.digest)
    for node in nodes:
        out, manifest = output(fresh.params, node), trusted[node]
        if manifest is None:
            digests = " and ".join(sorted(each[:12] for each in behind.get(node, ())))
            found = fresh.manifest(node)
            if isinstance(found, str):
                yield Check(node, BAD, found)
            else:
                yield Check(node, ABSENT, f"{out} does not exist" + (f"; what was made of it names {digests}" if digests else ""))
        elif manifest.node != node or node not in manifest.lineage:
            yield Check(node, BAD, f"{out} has a manifest that is not of {node}")
        elif problem := damage(out, manifest, math.inf) or rewritten(node, manifest):
            yield Check(node, BAD, problem)
        elif others := behind[node] - {manifest.lineage[node].digest}:
            yield Check(node, BAD, f"{out} has digest {manifest.lineage[node].digest[:12]}, what was made of it {min(others)[:12]}")
        else:
            yield Check(node, GOOD, facts(out, manifest) if chain else f"{out}, {len(manifest.files)} files")


def rewritten(node: str, manifest: Manifest) -> str:
    """Whether a manifest's digest is not that of its files; '' for a training, whose digest stays when it becomes longer."""
    if (
        node.startswith(TRAININGS)
        or digest({name: asdict(known) for name, known in manifest.files.items()}) == manifest.lineage[node].digest
    ):
        return ""
    return "its manifest was changed: the digest is not that of its files"


def facts(out: Path, manifest: Manifest) -> str:
    """Where an artifact lies and what made it."""
    made, origin = manifest.made, manifest.lineage[manifest.node]
    told = [
        str(out),
        f"digest {origin.digest[:12]}",
        f"commit {made.get('commit', 'unknown')[:12]}",
        f"device {made.get('device')}",
    ]
    told += [f"read {name} {sha[:12]}" for files in origin.read.values() for name, sha in files.items()]
    numbers = {
        name: origin.config[name] for name in ("seed", "step", "guidance", "solver", "solver_steps") if name in origin.config
    }
    return ", ".join([*told, *(f"{name} {value}" for name, value in numbers.items())])
