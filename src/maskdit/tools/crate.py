"""A study as a Provenance Run Crate: its workflow, results and records, and each step as an action; no artifact's bytes."""

import json
import shutil
import tempfile
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maskdit.artifacts.atomic import as_new, sha256
from maskdit.artifacts.compute_log import NUMBERS, rows
from maskdit.artifacts.freshness import Freshness
from maskdit.artifacts.manifest import Manifest, Origin, manifest_file
from maskdit.config.base import UserError
from maskdit.config.graph import nodes_of
from maskdit.config.params import Params
from maskdit.config.paths import is_result, output
from maskdit.runtime.progress import say
from maskdit.tools.verify import BAD, checked

PROFILES = {  # each extends those before it
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
TERMS = {  # of the profile's context, written out: who reads the crate needs no network
    name: f"https://w3id.org/ro/terms/workflow-run#{name}" for name in ("environment", "resourceUsage", "sha256")
}
METADATA = "ro-crate-metadata.json"
LICENCE = "https://spdx.org/licenses/Apache-2.0"
SOURCES = ("params.yaml", "requirements.lock", "dvc.yaml", "LICENSE", "workflow/**/*")  # beside Snakefile
UNITS = {"seconds": "SEC", "device_seconds": "SEC", "peak_memory": "BYTE", "peak_device_memory": "BYTE", "joules": "J"}  # by QUDT
KINDS = {".csv": "text/csv", ".json": "application/json", ".html": "text/html", ".md": "text/markdown", ".png": "image/png"}
KINDS |= {".svg": "image/svg+xml", ".yaml": "application/yaml"}


def crate(params: Params, bench: str, out: Path | None = None) -> None:
    """`maskdit crate STUDY`: write a Provenance Run Crate (profile 0.5) of a study to a folder, by default crate_STUDY.

    Artifacts are folders that contain their manifest alone, which has the sha256 of each file. Of what was deleted after use, the
    digest is told. Raises UserError, in one line, if something is not made, stale or changed, or if `out` is not a crate.
    """
    out = out or Path(f"crate_{bench}")
    if out.exists() and not (out / METADATA).is_file():
        raise UserError(f"{out}: exists and is no crate; name another folder with --out")
    fresh, nodes = Freshness(params), nodes_of(params, bench)
    if unmade := [node for node in nodes if node in fresh.unmade]:
        others = f" and {len(unmade) - 1} others" if len(unmade) > 1 else ""
        raise UserError(f"crate: {unmade[0]}{others} missing or stale; make the study first (maskdit status {bench} lists them)")
    if bad := next((check for check in checked(fresh, nodes, chain=False) if check.found == BAD), None):
        raise UserError(f"crate: {bad.node}: {bad.told}; maskdit verify {bench} lists all that has changed")
    out.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    old = place.with_name(f"{place.name}.old")  # of this name until the new one is in its place
    try:
        study = Study(params, bench, fresh, nodes)
        study.write(place)
        for path in (path for path in place.rglob("*") if path.is_file()):
            as_new(path)
        place.chmod(0o755)
        if out.exists():
            out.replace(old)
        place.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    gone = f"; deleted since, so named by digest alone: {', '.join(study.gone)}" if study.gone else ""
    say(f"crate: {len(nodes)} steps in {out}{gone}")


def described(path: Path) -> dict[str, Any]:
    """What a crate says of a file."""
    kind = KINDS.get(path.suffix, "text/plain")
    return {"name": str(path), "encodingFormat": kind, "contentSize": str(path.stat().st_size), "sha256": sha256(path)}


class Study:
    """The entities of a study. `gone`: the nodes of which only the digest is known."""

    def __init__(self, params: Params, bench: str, fresh: Freshness, nodes: list[str]) -> None:
        from rocrate.rocrate import ROCrate  # which waits for requests

        self.params, self.bench, self.fresh, self.nodes = params, bench, fresh, nodes
        self.crate: Any = ROCrate(version="1.1")
        self.crate.metadata.extra_contexts.append(TERMS)
        self.gone: list[str] = []
        self.made = {node: self.artifact(node) for node in nodes}

    def add(self, address: str, kind: str, **facts: Any) -> Any:
        """An entity that is no file, made once."""
        from rocrate.model.contextentity import ContextEntity

        if (found := self.crate.get(address)) is None:
            found = self.crate.add(ContextEntity(self.crate, address, properties={"@type": kind}))
            for each, value in facts.items():
                found[each] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return found

    def file(self, path: Path) -> Any:
        """A file of the project, which is copied into the crate."""
        return self.crate.get(path.as_posix()) or self.crate.add_file(path, path.as_posix(), properties=described(path))

    @cached_property
    def origins(self) -> dict[str, Origin]:
        """How each node was made, as those that are here tell."""
        known = [manifest for node in self.nodes if (manifest := self.fresh.known(node))]
        return {node: origin for manifest in known for node, origin in manifest.lineage.items()}

    @cached_property
    def spent(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The line of the ledger of each making: of a node, with a digest."""
        return {(row["node"], row["digest"]): row for row in rows() if row.get("digest")}

    def artifact(self, node: str) -> list[Any]:
        """What a node has made: files, or a folder with its manifest alone, or, if it is gone, its digest."""
        out, manifest = output(self.params, node), self.fresh.known(node)
        if manifest is None:
            self.gone.append(node)
            told = "Deleted after use. The digest is the sha256 of the names, sizes and sha256 of its files."
            return [self.add(f"#{node}", "Collection", name=str(out), identifier=self.origins[node].digest, description=told)]
        if is_result(out):
            return [self.file(path) for path in [*(out.parent / name for name in manifest.files), manifest_file(out)]]
        if out.suffix:
            return [self.file(out)]
        told = f"{len(manifest.files)} files, whose sha256 are in the manifest; the files themselves are not in this crate."
        size = str(sum(known.bytes for known in manifest.files.values()))
        facts = {"name": str(out), "description": told, "contentSize": size, "identifier": manifest.lineage[node].digest}
        folder = self.crate.add_dataset(None, f"{out.as_posix()}/", properties=facts)
        folder["hasPart"] = self.file(manifest_file(out))
        return [folder]

    def run(self, node: str) -> Any:
        """The action of a step: its entry of params.yaml, its inputs and outputs, its code, its machine, what it has spent."""
        verb, key = node.split("/")
        origin, manifest = self.origins[node], self.fresh.known(node)
        entry = self.add(f"#entry/{node}", "PropertyValue", name=f"{verb}.{key}", value=json.dumps(origin.config))
        inputs = [each for before in sorted(self.params.upstream(verb, key)) for each in self.made.get(before, ())]
        action = self.add(
            f"#run/{node}",
            "CreateAction",
            name=f"maskdit {verb} {key}",
            instrument=self.tool(verb, manifest),
            object=[entry, *inputs],
            result=self.made[node],
            actionStatus="http://schema.org/CompletedActionStatus",
        )
        if manifest:
            told = manifest.made.items()
            action["environment"] = [
                self.add(f"#made/{name}/{value}", "PropertyValue", name=name, value=value) for name, value in told
            ]
        if row := self.row(node):
            action["startTime"], action["endTime"] = row["start"], row["end"]
            action["resourceUsage"] = [self.spending(node, name, row[name]) for name in NUMBERS if row.get(name) is not None]
        return action

    def spending(self, node: str, name: str, value: float) -> Any:
        """A number of the ledger, with its unit."""
        facts = {"propertyID": name, "name": name, "value": str(value), "unitCode": f"https://qudt.org/vocab/unit/{UNITS[name]}"}
        return self.add(f"#spent/{node}/{name}", "PropertyValue", **facts)

    def tool(self, verb: str, manifest: Manifest | None) -> Any:
        """The command of a step, at the commit that made an artifact."""
        made = manifest.made if manifest else {}
        release, commit = made.get("maskdit", "unknown"), made.get("commit", "unknown")
        told = f"{release}, commit {commit}"
        return self.add(f"#maskdit/{verb}/{commit}", "SoftwareApplication", name=f"maskdit {verb}", softwareVersion=told)

    def write(self, place: Path) -> None:
        """Write the crate into an empty folder."""
        title = self.params.table[self.bench].title
        kinds = {"@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"], **described(Path("Snakefile"))}
        flow = self.crate.add_workflow("Snakefile", "Snakefile", main=True, lang="snakemake", properties=kinds)
        runs = {node: self.run(node) for node in self.nodes}
        steps, controls = [], []
        for number, (node, action) in enumerate(runs.items(), 1):
            tool = action["instrument"]
            steps.append(self.add(f"#step/{node}", "HowToStep", name=node, position=str(number), workExample=tool))
            controls.append(self.add(f"#control/{node}", "ControlAction", name=f"run {node}", instrument=steps[-1], object=action))
        for path in (path for pattern in SOURCES for path in sorted(Path().glob(pattern)) if path.is_file()):
            self.file(path)
        flow["hasPart"] = list({action["instrument"].id: action["instrument"] for action in runs.values()}.values())
        flow["step"] = steps
        results = [each for node in self.nodes if is_result(output(self.params, node)) for each in self.made[node]]
        times = {name: [row[name] for node in self.nodes if (row := self.row(node))] for name in ("start", "end")}
        whole = self.add("#run", "CreateAction", name=title, instrument=flow, object=self.file(Path("params.yaml")), result=results)
        engine = self.add("#engine", "SoftwareApplication", name="Snakemake or DVC, which run the same commands")
        organised = self.add("#engine-run", "OrganizeAction", name=f"all steps of {self.bench}", instrument=engine)
        organised["object"], organised["result"] = controls, whole
        for action in (whole, organised) if times["end"] else ():
            action["startTime"], action["endTime"] = min(times["start"]), max(times["end"])
        root = self.crate.root_dataset
        root["name"], root["description"] = f"maskdit {self.bench}", f"{title}. Written by maskdit {version('maskdit')}."
        root["author"] = root["publisher"] = self.add("#contributors", "Organization", name="The maskdit contributors")
        root["datePublished"] = max(times["end"], default="1970-01-01")
        told = "Of the workflow. Pictures show images under the licences of their data sets."
        root["license"] = self.add(LICENCE, "CreativeWork", name="Apache-2.0", description=told)
        root["conformsTo"] = [
            self.add(name, "CreativeWork", name=told, version=name.split("/")[-1]) for name, told in PROFILES.items()
        ]
        root["mentions"] = [whole, organised, *runs.values()]
        self.crate.write(place)

    def row(self, node: str) -> dict[str, Any] | None:
        """The line of the ledger of a node's making."""
        return self.spent.get((node, self.origins[node].digest))
