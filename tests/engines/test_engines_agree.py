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
from snakemake.exceptions import RuleException
from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

from maskdit.artifacts.step import STEPS
from maskdit.cli import parser, signature
from maskdit.config.expand import expanded
from maskdit.config.load import load
from maskdit.config.params import OF_REPORT, Params
from project import ROOT, TOY, edit, project


@dataclass(frozen=True)
class Node:
    """What an engine knows of a node: everything that it runs or hashes."""

    command: str
    inputs: set[str]
    outputs: set[str]
    params: str


Graph = dict[str, Node]  # VERB@KEY, which is what DVC calls its stages


def canonical(value: Any) -> str:
    """A value as JSON: 1, 1.0, true and "1" are four."""
    return json.dumps(value, sort_keys=True)


def dvc_graph(where: Path) -> Graph:
    """The stages; a dependency on a folder into which stages write stands for those files."""
    with Repo(where, config={"core": {"site_cache_dir": str(where / ".dvc" / "tmp" / "site")}}) as repo:
        stages = list(repo.index.stages)
        tree = load_yaml(str(where / "params.yaml"))  # once: DVC's own reading of a stage's parameters parses the file anew
        long = expanded(tree)
        outputs = {stage.name: {out.def_path for out in stage.outs} for stage in stages}
        every = set().union(*outputs.values())

        def node(stage: Any) -> Node:
            verb, key = stage.name.split("@")
            source = tree["sample"][key]["reference"] if verb in ("features", "evaluate") else key
            named = [name for params in stage.params for name in params.params]
            known = named == [f"{verb}.{source}", *["sample"] * (verb in OF_REPORT)]
            values = [long[verb][key]] if known else named
            paths = [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)]
            inputs = [{out for out in every if out.startswith(f"{path}/")} or {path} for path in paths]
            check, command = stage.cmd
            assert check == "maskdit check"
            return Node(command, set().union(*inputs), outputs[stage.name], canonical(values))

        return {stage.name: node(stage) for stage in stages}


def snakemake_graph(where: Path, targets: set[str]) -> Graph:
    """The jobs behind the targets and behind rule demo, without that rule and without each command's log."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        opened = api.workflow(ResourceSettings(cores=1), snakefile=where / "Snakefile", workdir=where)
        opened.dag(DAGSettings(targets={"demo", *targets}, forceall=True))
        workflow = opened._workflow  # no public accessor of the jobs
        workflow._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
        try:
            workflow._build_dag()
            jobs = [job for job in workflow.dag.jobs if job.rule.name != "demo"]
        finally:
            workflow.sourcecache.runtime_cache.cleanup()

        def node(job: Any) -> Node:
            command = re.sub(rf" 2>&1 \| tee (-a )?{job.log}$", "", job.shellcmd)  # a training's log goes on where it went on
            return Node(command, {str(path) for path in job.input}, {str(path) for path in job.output}, canonical(list(job.params)))

        return {f"{job.rule.name}@{job.wildcards.key}": node(job) for job in jobs}


def both(where: Path) -> tuple[Graph, Graph]:
    """DVC's graph, and what Snakemake makes of each output that DVC knows."""
    stages = dvc_graph(where)
    return stages, snakemake_graph(where, set().union(*(node.outputs for node in stages.values())))


def differences(dvc: Graph, snakemake: Graph) -> Iterator[str]:
    """Each thing that one engine knows otherwise than the other, one line each."""
    for name in sorted(dvc.keys() ^ snakemake.keys()):
        yield f"{name}: only {'DVC' if name in dvc else 'Snakemake'} has it"
    for name in sorted(dvc.keys() & snakemake.keys()):
        for what, ours in vars(dvc[name]).items():
            theirs = getattr(snakemake[name], what)
            if ours != theirs:
                yield f"{name}: {what} {ours} in DVC, {theirs} in Snakemake"


THEIRS = """released:
  demo-theirs:
    url: https://example.org/weights.pt
    sha256: null
    format: upstream
    vae: demo
    dataset: demo
    step: 7
    heads: [2, 2]
"""


@pytest.fixture(scope="module", params=["study", "toy", "released"])
def where(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, the toy, and the toy with samples of released weights."""
    place = tmp_path_factory.getbasetemp() / f"graphs-{request.param}"
    if place.exists():
        return place
    made = project(place, ROOT / "params.yaml" if request.param == "study" else TOY)
    if request.param == "released":
        edit(made / "params.yaml", "released: {}\n", THEIRS)
        edit(made / "params.yaml", "run: demo-maskdit\n    phase: finetune", "run: demo-theirs\n    phase: released")
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


def test_a_command_names_the_files_of_its_node(graphs: tuple[Graph, Graph]) -> None:
    for name, node in graphs[0].items():
        words = vars(parser(verb := name.split("@")[0]).parse_args(node.command.split()[1:]))
        assert (verb, name) == (words["verb"], f"{words.pop('verb')}@{words.pop('key')}")
        assert str(words.pop("out")) in node.outputs
        assert words.pop("part", None) is None
        assert words.pop("against", None) is None
        for path in node.inputs:
            assert any(Path(path).is_relative_to(word) for word in words.values()), name
        for word in words.values():
            assert any(Path(path).is_relative_to(word) for path in node.inputs), name


def test_a_node_depends_on_what_its_step_demands(graphs: tuple[Graph, Graph], params: Params) -> None:
    maker = {path: name.replace("@", "/") for name, node in graphs[0].items() for path in node.outputs}
    for name, node in graphs[0].items():
        verb, key = name.split("@")
        edges = {maker[path] for path in node.inputs}
        demanded = params.upstream(verb, key)
        folder = verb in ("table", "curves", "efficiency", "strip")
        assert demanded <= edges if folder else demanded == edges, name


DATA, TRAIN, REPORT, COMMON = (f"workflow/rules/{name}.smk" for name in ("data", "train", "report", "common"))
DRIFTS = {  # file, what is there, what is there instead, what the comparison says
    "a changed path": (
        DATA,
        'directory("artifacts/reference/{key}")',
        'directory("artifacts/stats/{key}")',
        "artifacts/reference/demo",
    ),
    "an output that only DVC has": ("dvc.yaml", "results/table_${key}.md", "results/table_${key}.txt", "table_demo.txt"),
    "a stage that only Snakemake has": ("dvc.yaml", "foreach: ${grid}", "foreach: {}", "grid@.*only Snakemake"),
    "a dropped input": ("dvc.yaml", "        - artifacts/runs/${item.run}/pretrain\n      outs", "      outs", "finetune@.*inputs"),
    "a dropped input of what is shown": (REPORT, '        curves="results/curves_{key}.csv",\n', "", "report@.*inputs"),
    "a ledger of another study": ("dvc.yaml", "        - results/curves_${item.study}_crossing.csv\n", "", "claims@claims: inputs"),
    "a changed word": (DATA, "encode {wildcards.key} --images", "encode {wildcards.key} --pixels", "encode@.*command"),
    "a missing parameter": (TRAIN, 'entry_of("pretrain"),', "", "pretrain@.*params"),
    "another entry": ("dvc.yaml", "- features.${item.reference}", "- sample.${key}", "features@.*params"),
    "a lost evaluation": (COMMON, "entry.bench == wildcards.key]", "'guided' in key]", "curves@.*inputs"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_comparison_sees_a_drift(drift: str, tmp_path: Path) -> None:
    file, old, new, expected = DRIFTS[drift]
    edit(project(tmp_path) / file, old, new)
    try:
        seen = "\n".join(differences(*both(tmp_path)))
    except RuleException as error:
        seen = str(error)
    assert re.search(expected, seen)
