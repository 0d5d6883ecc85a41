"""`maskdit init`: a project for both engines from the installed package, whole or not at all."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdit.cli import main
from maskdit.config import project as files
from maskdit.config.load import load
from maskdit.config.project import PARTS, parts, template
from maskdit.tools import init
from project import ROOT, SNAKEMAKE, TOY, commit, nodes, run, says


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without anything, in which a user stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["init", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def photographs(folder: Path) -> Path:
    source = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(24):
            Image.fromarray(source.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / label / f"{number}.png")
    return folder


def agreed(where: Path, study: str) -> set[str]:
    """The nodes of a new project, which both engines plan."""
    planned = nodes(says(where, *SNAKEMAKE, "--dry-run"))
    status = says(where, "dvc", "status", f"report@{study}")
    assert f"report@{study}:" in status
    stages = re.findall(r"^([a-z]+@[a-z0-9-]+)\s", says(where, "dvc", "stage", "list"), re.M)
    assert planned <= set(stages)
    assert f"results/report_{study}.html" in says(where, "dvc", "dag", "--outs", f"report@{study}")
    return planned


def test_a_project_of_the_demo_runs_by_both_engines(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "flowers"]) == 0
    assert "flowers has a project with the study demo" in capsys.readouterr().out
    where = here / "flowers"
    assert {path.name for path in where.iterdir()} == {part.split("/")[0] for part in PARTS} | {".git", "slurm"}
    planned = agreed(where, "demo")
    assert {node.split("@")[1].split("-")[0] for node in planned} == {"demo", "claims"}
    assert {"report@demo", "pretrain@demo-maskdit", "claims@claims"} <= planned


def test_the_demo_of_a_project_has_the_numbers_of_the_repository(here: Path) -> None:
    assert main(["init", "flowers"]) == 0
    ours, theirs = load(ROOT / "params.yaml"), load(Path("flowers/params.yaml"))
    assert list(theirs.table) == ["demo"]
    for verb in ("fetch", "vae", "encode", "pretrain", "finetune", "sample", "evaluate", "report"):
        known = getattr(theirs, verb)
        assert known
        assert all(getattr(ours, verb)[key] == entry for key, entry in known.items())
    evidence = theirs.claims["claims"].claims
    assert evidence
    assert all(ours.claims["claims"].claims[key].scaled == claim.scaled for key, claim in evidence.items())


def test_a_project_of_one_s_own_images_has_that_study_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = photographs(here / "My Pets")
    assert main(["init", "pets", "--images", "My Pets"]) == 0
    assert "the study my-pets: 48 images of 2 classes" in capsys.readouterr().out
    params = load(Path("pets/params.yaml"))
    assert list(params.table) == ["my-pets"]
    assert params.fetch["my-pets"].root == str(images)
    assert agreed(here / "pets", "my-pets")
    assert "results/curves_my-pets.csv" in (here / "pets" / "dvc.yaml").read_text()


def test_a_study_can_be_added_to_a_project_without_the_demo(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(here / "pets")
    assert main(["init", "home", "--images", "pets", "--name", "first"]) == 0
    monkeypatch.chdir(here / "home")
    assert main(["study", "second", str(here / "pets")]) == 0
    assert list(load(Path("params.yaml")).table) == ["first", "second"]


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "full").mkdir()
    (here / "full" / "mine").write_text("mine")
    (here / "file").write_text("")
    (here / "empty").mkdir()
    (here / "link").symlink_to(here / "empty")
    for name in ("full", "file", "link"):
        assert f"{name}: is not an empty folder; choose a new one" in refused(capsys, name)
    assert [path.name for path in (here / "full").iterdir()] == ["mine"]
    assert main(["init", "empty"]) == 0
    assert (here / "empty" / "Snakefile").exists()


def test_the_current_folder_is_refused(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is the current folder" in refused(capsys, ".")


@pytest.mark.parametrize("words", [("--name", "x"), ("--resolution", "64"), ("--skip-bad",), ("--classes", "none")])
def test_an_option_of_images_without_them_is_refused(here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str]) -> None:
    assert f"{words[0]} has no effect without --images" in refused(capsys, "flowers", *words)
    assert not list(here.iterdir())


def test_images_that_cannot_be_studied_leave_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "none").mkdir()
    assert "none" in refused(capsys, "flowers", "--images", "none")
    assert [path.name for path in here.iterdir()] == ["none"]


def test_an_interrupted_init_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(init, "sync", interrupted)
    assert main(["init", "flowers"]) != 0
    assert not list(here.iterdir())


def test_inside_a_repository_no_other_is_made(here: Path) -> None:
    says(here, "git", "init", "--quiet", ".")
    assert main(["init", "flowers"]) == 0
    assert not (here / "flowers" / ".git").exists()
    says(here / "flowers", "dvc", "stage", "list")


def test_without_git_dvc_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init.shutil, "which", lambda name: None)
    monkeypatch.setattr(init, "git", lambda *words: "")
    assert main(["init", "flowers"]) == 0
    assert not (here / "flowers" / ".git").exists()
    says(here / "flowers", "dvc", "stage", "list")


def test_an_installed_package_finds_the_files_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert template() == ROOT
    (tmp_path / "maskdit" / "project").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "maskdit" / "config" / "project.py"))
    assert template() == tmp_path / "maskdit" / "project"


def test_what_a_project_has_is_in_git() -> None:
    kept = says(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    assert {str(path) for path in parts(ROOT)} <= set(kept)


@pytest.mark.slow
def test_a_toy_study_runs_in_a_project_by_both_engines(here: Path) -> None:
    assert main(["init", "toy"]) == 0
    where = here / "toy"
    (where / "params.yaml").write_text(TOY.read_text())
    commit(where)
    says(where, *SNAKEMAKE)
    assert (where / "results" / "report_demo.html").exists()
    says(where, "maskdit", "handoff", "--to", "dvc", "demo")
    assert "are up to date" in run(where, "dvc", "repro", "report@demo")[1]
