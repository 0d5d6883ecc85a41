"""The recipes of a container: both are the environment of the lock, and Snakemake runs its commands in the image."""

import re
from pathlib import Path

import pytest

from project import ROOT, SNAKEMAKE, project, run, says

HOME = ROOT / "containers"
DOCKER, APPTAINER, STEPS = (HOME / name for name in ("Dockerfile", "maskdit.def", "install.sh"))
COPIED = {"Makefile", "requirements.lock", "pyproject.toml", "README.md", "LICENSE", "src", "containers/install.sh"}
STAND_IN = """#!/bin/sh
[ "$1" = --version ] && echo apptainer version 1.3.4 && exit
echo "$@" >> calls
while [ "$1" != containers/maskdit.sif ]; do shift; done
shift
exec "$@"
"""


def test_both_recipes_take_the_same_steps_on_the_same_system() -> None:
    docker, apptainer = DOCKER.read_text(), APPTAINER.read_text()
    assert re.findall(r"^From: (.*)$", apptainer, re.M) == re.findall(r"^FROM (.*)$", docker, re.M)
    assert re.findall(r"^    (sh .*)$", apptainer, re.M) == re.findall(r"^RUN (.*)$", docker, re.M)
    assert re.findall(r"^    export (.*)$", apptainer, re.M) == re.findall(r"^ENV (.*)$", docker, re.M)
    copied = [word for line in re.findall(r"^COPY (.*)$", docker, re.M) for word in line.split()[:-1]]
    files = apptainer.split("%files")[1].split("%post")[0]
    assert set(re.findall(r"^    (\S+) /opt/maskdit/\S+$", files, re.M)) == set(copied) == COPIED
    ignored = (HOME / "Dockerfile.dockerignore").read_text().splitlines()
    assert (ignored[0], {line.removeprefix("!") for line in ignored[1:]}) == ("*", COPIED)
    assert all("Not built here" in text for text in (docker, apptainer))


def test_the_steps_are_make_setup_which_installs_the_lock_and_nothing_else(tmp_path: Path) -> None:
    lines = [line for line in STEPS.read_text().splitlines() if "make setup" in line and not line.startswith("#")]
    assert lines == ["PIP_NO_CACHE_DIR=1 make setup"]
    assert not re.search(r"\b(pip|uv|conda) ", STEPS.read_text())
    missing = set(re.findall(r"\$\(shell cat (.*?) \|", (ROOT / "Makefile").read_text())[0].split()) - COPIED
    assert not missing, "make setup reads what the recipes do not copy"
    assert {"gcc", "g++", "python3-dev", "python3-venv", "make", "git"} <= set(STEPS.read_text().split()), (
        "torch.compile needs them"
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A project on a machine with a program in place of Apptainer, which notes its words and runs the command."""
    tool = tmp_path / "bin" / "apptainer"
    tool.parent.mkdir()
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    return project(tmp_path / "project")


COMMAND = (*SNAKEMAKE, "--sdm", "apptainer", "--apptainer-args=--nv", "--", ".scratch/made/fetch/demo")


@pytest.mark.pipeline
def test_snakemake_runs_a_command_in_the_image(site: Path) -> None:
    code, said = run(site, *COMMAND)
    assert code
    assert "containers/maskdit.sif: no such image; run apptainer build containers/maskdit.sif containers/maskdit.def" in said
    (site / "containers").mkdir()
    (site / "containers" / "maskdit.sif").touch()
    says(site, "sh", "-c", 'PATH="$0:$PATH" exec "$@"', str(site.parent / "bin"), *COMMAND)
    called = rf"exec --home {site} --nv .*containers/maskdit\.sif \w+ -c .*maskdit fetch demo\n"
    assert re.fullmatch(called, (site / "calls").read_text())
    says(site, *SNAKEMAKE, ".scratch/made/fetch/demo")  # without the option nobody asks for an image
