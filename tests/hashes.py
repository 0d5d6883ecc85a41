"""A toy study whose artifacts are hashes of all that they depend on: made in a moment, and known to be right or wrong."""

import copy
import json
from pathlib import Path

import pytest

from maskdit.artifacts import publish
from maskdit.artifacts.atomic import digest
from maskdit.artifacts.freshness import CURRENT, Freshness
from maskdit.artifacts.publish import publishing
from maskdit.artifacts.step import origins
from maskdit.config import yaml_subset
from maskdit.config.load import validate
from maskdit.config.params import Params
from maskdit.config.paths import inputs, output
from maskdit.config.training import milestone_file
from project import TOY

BESIDE = {"table": (".md", ".tex"), "curves": (".png", ".svg", "_crossing.csv"), "efficiency": (".md", ".tex"), "claims": (".md",)}
TREE = yaml_subset.read(TOY.read_text())


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project; nothing waits for the disk or asks git."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(publish, "sync", lambda path: None)
    monkeypatch.setattr("maskdit.artifacts.atomic.sync", lambda path: None)
    monkeypatch.setattr(publish, "made_by", dict)
    return tmp_path


def value(params: Params, node: str) -> str:
    """What a node's artifact holds: a hash of its entry and of the values that it reads."""
    verb, key = node.split("/")
    entry = params.entry(verb, key).model_dump(mode="json")
    read = params.reads(verb, key)
    before = params.upstream(verb, key) - read.keys()
    parts = [weights(params, run, step(name)) for run, names in read.items() for name in names]
    return digest([entry, *(value(params, each) for each in sorted(before)), *parts])


def weights(params: Params, run: str, at: int) -> str:
    """What a checkpoint holds: the recipe without its length, and the step."""
    verb, key = run.split("/")
    rest = [value(params, each) for each in sorted(params.upstream(verb, key) - params.reads(verb, key).keys())]
    start = [weights(params, each, step(name)) for each, names in params.reads(verb, key).items() for name in names]
    return digest([params.entry(verb, key).recipe(), at, *rest, *start])


def step(name: str) -> int:
    return int(name.removesuffix(".safetensors").split("-")[-1])


def make(params: Params, node: str) -> None:
    """What a step does: publish the value, with the origins that its inputs have now."""
    verb, key = node.split("/")
    ancestors, read = origins(params, verb, key, inputs(params, verb, key))
    training = verb in ("pretrain", "finetune")
    entry = params.entry(verb, key)
    with publishing(output(params, node), node, entry.model_dump(mode="json"), ancestors, read, "ema-" * training, True) as place:
        if training:
            for at in entry.milestones:
                (place / milestone_file("ema", at)).write_text(weights(params, node, at))
            (place / milestone_file("net", at)).write_text(weights(params, node, at))
        elif not place.suffix:
            (place / "value.txt").write_text(value(params, node))
        else:
            place.write_text(json.dumps({"value": value(params, node)}))
            for end in BESIDE.get(verb, ()):
                (place.parent / f"{place.stem}{end}").write_text(f"{value(params, node)}\n")
            if verb == "table":
                (place.parent / "scores" / key).mkdir(parents=True)
                (place.parent / "scores" / key / "one.yaml").write_text("one: 1\n")


def run(params: Params) -> list[str]:
    """What an engine does: of the nodes to make those that are not current by then; their names, in order."""
    fresh = Freshness(params)
    planned, made = set(fresh.unmade), []
    while planned:
        ready = sorted(node for node in planned if not (fresh.edges[node] & planned))
        for node in ready:
            if Freshness(params).verdict(node) != CURRENT:
                make(params, node)
                made.append(node)
        planned -= set(ready)
    return made


def holds(params: Params, node: str) -> str:
    """The value in an artifact."""
    out = output(params, node)
    return json.loads(out.read_text())["value"] if out.suffix else (out / "value.txt").read_text()


def params_of(tree: dict) -> Params:
    return validate(tree)


def changed(*path_and_value: object) -> Params:
    """The study with one number changed."""
    *path, last = path_and_value
    tree = copy.deepcopy(TREE)
    place = tree
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = last
    return params_of(tree)


@pytest.fixture
def made(study: Path) -> Params:
    """The study, made from nothing."""
    params = params_of(TREE)
    assert set(run(params)) == set(Freshness(params).edges)
    assert Freshness(params).unmade == set()
    return params


def command(verb: str, key: str = "") -> None:
    """What `maskdit VERB KEY` does in a project of this study: nothing if it is current, else one line of made.log."""
    if verb == "check":
        return
    publish.made_by = dict
    params = validate(yaml_subset.read_file(Path("params.yaml")))
    node = f"{verb}/{key}"
    if Freshness(params).verdict(node) != CURRENT:
        make(params, node)
        with Path("made.log").open("a") as log:
            log.write(f"{node}\n")
