"""Snakemake and DVC run one graph: the same nodes, commands, files and numbers, from one params.yaml."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml
from snakemake.api import SnakemakeApi
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import MissingRuleException
from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

from maskdit.artifacts.manifest import manifest_file
from maskdit.artifacts.step import STEPS
from maskdit.cli import signature
from maskdit.config.load import load
from maskdit.config.params import SELECTING, Params
from maskdit.config.paths import inputs, output
from project import ROOT, TOY, edit, project, with_rescore, with_sweep


@dataclass(frozen=True)
class Node:
    """What an engine knows of a node: its command, the nodes that it waits for, and the files that it makes.

    Snakemake knows the nodes alone of folders and records, by their stamps: its files are the results that people look at.
    """

    command: str
    before: set[str]
    outputs: set[str]


Graph = dict[str, Node]  # VERB@KEY, which is what DVC calls its stages


def canonical(value: Any) -> str:
    """A value as JSON: 1, 1.0, true and "1" are four."""
    return json.dumps(value, sort_keys=True)


def dvc_graph(where: Path) -> Graph:
    """The stages; a dependency on a folder into which stages write stands for those that write there."""
    with Repo(where, config={"core": {"site_cache_dir": str(where / ".dvc" / "tmp" / "site")}}) as repo:
        stages = list(repo.index.stages)
        outputs = {stage.name: {out.def_path for out in stage.outs} for stage in stages}
        makers = {path: name for name, paths in outputs.items() for path in paths}

        def node(stage: Any) -> Node:
            paths = [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)]
            before = {maker for out, maker in makers.items() for path in paths if f"{out}/".startswith(f"{path}/")}
            check, command = stage.cmd
            assert check == "maskdit check"
            return Node(command, before, {path for path in outputs[stage.name] if not internal(path)})

        return {stage.name: node(stage) for stage in stages}


def internal(path: str) -> bool:
    """Whether a file is none of Snakemake's: of artifacts and records it knows stamps, of manifests nothing."""
    return path.startswith(("artifacts/", "results/metrics/", "results/reconstructions/", "results/manifests/"))


def snakemake_graph(where: Path, targets: set[str]) -> Graph:
    """The jobs behind the targets and behind rule all, without that rule."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        opened = api.workflow(ResourceSettings(cores=1), snakefile=where / "Snakefile", workdir=where)
        opened.dag(DAGSettings(targets={"all", *targets}, forceall=True))
        workflow = opened._workflow  # no public accessor of the jobs
        workflow._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
        try:
            workflow._build_dag()
            jobs = [job for job in workflow.dag.jobs if job.rule.name != "all"]
            names = {job: f"{job.rule.name}@{job.wildcards.key}" for job in jobs}
            before = {job: {names[each] for each in workflow.dag.dependencies[job]} for job in jobs}
        finally:
            workflow.sourcecache.runtime_cache.cleanup()
        made = {job: {str(path) for path in job.output if not str(path).startswith(".scratch/")} for job in jobs}
        return {names[job]: Node(job.shellcmd, before[job], made[job]) for job in jobs}


def both(where: Path) -> tuple[Graph, Graph]:
    """DVC's graph, and what Snakemake makes of each node that DVC knows."""
    stages = dvc_graph(where)
    targets = {f".scratch/made/{name.replace('@', '/')}" for name, node in stages.items() if not node.outputs}
    return stages, snakemake_graph(where, targets.union(*(node.outputs for node in stages.values())))


def differences(dvc: Graph, snakemake: Graph) -> Iterator[str]:
    """Each thing that one engine knows otherwise than the other, one line each."""
    for name in sorted(dvc.keys() ^ snakemake.keys()):
        yield f"{name}: only {'DVC' if name in dvc else 'Snakemake'} has it"
    for name in sorted(dvc.keys() & snakemake.keys()):
        for what, ours in vars(dvc[name]).items():
            theirs = getattr(snakemake[name], what)
            folder = what == "before" and name.split("@")[0] in SELECTING  # for DVC they wait for all records of their study
            if ours != theirs and not (folder and theirs <= ours):
                yield f"{name}: {what} {ours} in DVC, {theirs} in Snakemake"


THEIRS = """  demo-theirs: {run: demo-theirs, phase: released, dataset: demo, mask_ratio: 0.5, mae_weight: 0.1, batch: 8,
    milestones: [2], lr: 1.0e-3, betas: [0.9, 0.99], warmup: 0, ema: 0.9, ema_warmup: 1, label_dropout: 0.1, precision: auto,
    seed: 1}

released:
  demo-theirs:
    url: https://example.org/weights.pt
    sha256: null
    format: upstream
    vae: demo
    dataset: demo
    step: 7
    heads: [2, 2]
"""


@pytest.fixture(scope="module", params=["study", "toy", "released", "sweep", "rescore"])
def where(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, the toy, the toy with samples and a finetuning of released weights, with a sweep, with another network."""
    place = tmp_path_factory.getbasetemp() / f"graphs-{request.param}"
    if place.exists():
        return place
    made = project(place, ROOT / "params.yaml" if request.param == "study" else TOY)
    if request.param == "released":
        edit(made / "params.yaml", "\nreleased: {}\n", THEIRS)
        edit(made / "params.yaml", "run: demo-maskdit\n    phase: finetune", "run: demo-theirs\n    phase: released")
    if request.param == "sweep":
        with_sweep(made / "params.yaml")
    if request.param == "rescore":
        with_rescore(made / "params.yaml")
    return made


KNOWN: dict[Path, tuple[Graph, Graph]] = {}  # pytest makes a fixture with parameters more than once


@pytest.fixture(scope="module")
def graphs(where: Path) -> tuple[Graph, Graph]:
    if where not in KNOWN:
        KNOWN[where] = both(where)
    return KNOWN[where]


@pytest.fixture(scope="module")
def params(where: Path) -> Params:
    return load(where / "params.yaml")


def test_both_engines_have_the_same_graph(graphs: tuple[Graph, Graph], params: Params) -> None:
    assert list(differences(*graphs)) == []
    assert set(graphs[0]) == {f"{verb}@{key}" for verb in STEPS for key in getattr(params, verb)}


def test_both_engines_read_the_same_values(where: Path) -> None:
    path = str(where / "params.yaml")
    assert canonical(load_configfile(path)) == canonical(load_yaml(path))


@pytest.mark.parametrize("value", ["1e-4", "5e-05", "1.0e4", "on", "010", "12:30:00"])
def test_the_comparison_of_values_sees_where_yaml_1_1_and_1_2_part(value: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"pretrain: {{demo: {{lr: {value}}}}}\n")
    assert canonical(load_configfile(str(path))) != canonical(load_yaml(str(path)))


def test_one_name_per_step(where: Path, graphs: tuple[Graph, Graph]) -> None:
    stages, rules = ({name.split("@")[0] for name in graph} for graph in graphs)
    sections = load_yaml(str(where / "params.yaml"))
    assert set(STEPS) == set(sections)
    assert stages == rules == {verb for verb, entries in sections.items() if entries}  # a study need not use released weights
    for verb in STEPS:
        assert signature(verb)[0][-1] == "out"  # read from the function of that name in the step's module


def test_a_stage_has_the_files_that_its_step_reads_and_writes(where: Path, params: Params) -> None:
    with Repo(where, config={"core": {"site_cache_dir": str(where / ".dvc" / "tmp" / "site")}}) as repo:
        for stage in repo.index.stages:
            verb, key = stage.name.split("@")
            made = {out.def_path for out in stage.outs}
            read = {Path(dep.def_path) for dep in stage.deps if not isinstance(dep, ParamsDependency)}
            place = output(params, f"{verb}/{key}")
            assert str(place) in made, stage.name
            assert place.suffix in ("", ".json") or str(manifest_file(place)) in made, stage.name
            for name, path in inputs(params, verb, key).items():
                assert any(each.is_relative_to(path) for each in read), f"{stage.name}: {name}"
            assert signature(verb)[0] == [*inputs(params, verb, key), "out"]


def test_a_stage_runs_again_when_its_entry_changes(where: Path, params: Params) -> None:
    tree = load_yaml(str(where / "params.yaml"))
    with Repo(where, config={"core": {"site_cache_dir": str(where / ".dvc" / "tmp" / "site")}}) as repo:
        for stage in repo.index.stages:
            verb, key = stage.name.split("@")
            source = tree["sample"][key]["reference"] if verb in ("features", "evaluate") else key
            named = [name for each in stage.params for name in each.params]
            others = [*["sample"] * (verb in SELECTING), *["pretrain", "finetune"] * (verb == "sweep")]
            others += ["rescore"] * (verb == "table")
            assert named == [f"{verb}.{source}", *others], stage.name


def test_a_node_waits_for_what_its_step_demands(graphs: tuple[Graph, Graph], params: Params) -> None:
    for name, node in graphs[1].items():
        assert node.before == {each.replace("/", "@") for each in params.upstream(*name.split("@"))}, name


DATA, REPORT = (f"workflow/rules/{name}.smk" for name in ("data", "report"))
DRIFTS = {  # file, what is there, what is there instead, what the comparison says
    "an output that only DVC has": ("dvc.yaml", "results/table_${key}.md", "results/table_${key}.txt", "table_demo.txt"),
    "a stage that only Snakemake has": ("dvc.yaml", "foreach: ${grid}", "foreach: {}", "grid@.*only Snakemake"),
    "a dropped dependency": (
        "dvc.yaml",
        "        - artifacts/runs/${item.run}/${item.phase}\n      outs:\n        - artifacts/runs/${key}/finetune",
        "      outs:\n        - artifacts/runs/${key}/finetune",
        "finetune@.*before",
    ),
    "a ledger of another study": ("dvc.yaml", "        - results/curves_${item.study}_crossing.csv\n", "", "claims@claims: before"),
    "a dropped input": (REPORT, '        made_before("report"),\n', "", "report@.*before"),
    "another word": (DATA, "maskdit encode {wildcards.key}", "maskdit encode {wildcards.key} --part 1/2", "encode@.*command"),
    "another verb": ("dvc.yaml", "maskdit vae ${key}", "maskdit encode ${key}", "vae@.*command"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_comparison_sees_a_drift(drift: str, tmp_path: Path) -> None:
    file, old, new, expected = DRIFTS[drift]
    edit(project(tmp_path) / file, old, new)
    try:
        seen = "\n".join(differences(*both(tmp_path)))
    except MissingRuleException as error:
        seen = str(error)
    assert re.search(expected, seen)
