"""Both engines do what `status` says, whatever has happened to a project: in real Snakemake and DVC, with steps that only hash."""

import copy
import os
import random
import shutil
from pathlib import Path
from subprocess import run as execute

import pytest

import warm
from hashes import TREE, holds, params_of, run, value
from maskdit.artifacts import publish
from maskdit.artifacts.freshness import Freshness
from maskdit.config import yaml_subset
from project import SNAKEMAKE, STAGES, environment, project, says, twin

pytestmark = pytest.mark.pipeline


class Project:
    """A project whose steps only hash, and to which things happen."""

    def __init__(self, where: Path, seed: int) -> None:
        self.where, self.dice, self.tree, self.past = where, random.Random(seed), copy.deepcopy(TREE), []

    def engine(self, name: str) -> tuple[set[str], str]:
        """Run an engine on the whole study; the nodes that it made, and what it said."""
        command = {"snakemake": SNAKEMAKE, "dvc": ("dvc", "repro", "--allow-missing", *STAGES)}[name]
        log = self.where / "made.log"
        log.unlink(missing_ok=True)
        variables = environment(self.where) | {"HASHED": "1"}
        variables["PATH"] = f"{warm.folder()}{os.pathsep}{variables['PATH']}"
        done = execute(command, cwd=self.where, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{self.past}\n{done.stdout}{done.stderr}"
        return set(log.read_text().split()) if log.exists() else set(), done.stdout + done.stderr

    def happens(self) -> None:
        """One thing."""
        kind = self.dice.choice(("change", "restore", "milestones", "touch", "copy", "forget", "delete", "digit"))
        self.past.append(kind)
        getattr(self, kind)()
        (self.where / "params.yaml").write_text(yaml_subset.write(self.tree))

    def change(self) -> None:
        places = [("vae", "demo", "steps"), ("pretrain", "demo-dit", "warmup"), ("finetune", "demo-maskdit", "seed")]
        verb, key, field = self.dice.choice([*places, ("evaluate", "demo", "neighbours"), ("table", "demo", "title")])
        number = self.dice.randrange(2, 9)
        self.tree[verb][key][field] = f"Table {number}" if field == "title" else number

    def restore(self) -> None:
        self.tree = copy.deepcopy(TREE)

    def milestones(self) -> None:
        self.tree["pretrain"]["demo-dit"]["milestones"] = self.dice.choice([[2, 4], [2, 4, 6], [1, 2, 4]])

    def touch(self) -> None:
        for folder in ("artifacts", "results"):
            for path in (self.where / folder).rglob("*"):
                os.utime(path, (at := self.dice.randrange(2, 2**31), at))

    def copy(self) -> None:
        for folder in ("artifacts", "results"):
            shutil.copytree(self.where / folder, self.where / "new", copy_function=shutil.copyfile)
            shutil.rmtree(self.where / folder)
            (self.where / "new").rename(self.where / folder)

    def forget(self) -> None:
        for folder in (".snakemake", ".scratch"):
            shutil.rmtree(self.where / folder, ignore_errors=True)

    def delete(self) -> None:
        found = [*sorted((self.where / "artifacts").glob("samples/*")), *sorted((self.where / "results").glob("table_demo.*"))]
        for path in found[:1]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def digit(self) -> None:
        file = self.where / "results" / "table_demo.csv"
        if file.exists():
            file.write_text(file.read_text().swapcase())


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, made, which DVC knows."""
    where = project(tmp_path_factory.mktemp("known"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(publish, "made_by", dict)
        run(params_of(TREE))
    says(where, "maskdit", "handoff", "--to", "dvc", "demo")
    return where


@pytest.fixture
def made(known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which commands run."""
    monkeypatch.chdir(twin(known, tmp_path))
    return tmp_path


def agree(where: Path, seed: int, engine: str, length: int) -> None:
    """After each few things that happen an engine makes what `status` says, and then nothing; results are as from nothing."""
    here = Project(where, seed)
    for _ in range(length):
        for _ in range(here.dice.randrange(1, 4)):
            here.happens()
        params = params_of(here.tree)
        wanted = {node for node in Freshness(params).unmade if Freshness(params).verdict(node).state != "current"}
        ran, _ = here.engine(engine)
        assert wanted <= ran <= set(Freshness(params).edges), here.past
        fresh = Freshness(params)
        assert fresh.unmade == set(), here.past
        for node in ("table/demo", *(f"evaluate/{key}" for key in params.evaluate)):
            assert holds(params, node) == value(params, node), (node, here.past)
        again, said = here.engine(engine)
        assert again == set(), here.past
        assert engine == "dvc" or "Nothing to be done" in said


@pytest.mark.parametrize("engine", ["snakemake", "dvc"])
@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 6))])
def test_an_engine_makes_what_status_says(seed: int, engine: str, made: Path) -> None:
    agree(made, seed, engine, 1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["snakemake", "dvc"])
@pytest.mark.parametrize("seed", range(100, 110))
def test_an_engine_makes_what_status_says_for_long(seed: int, engine: str, made: Path) -> None:
    agree(made, seed, engine, 3)
