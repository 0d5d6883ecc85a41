"""How many threads a step has on a CPU, and that each way of running it tells the step."""

import os
import shutil
from pathlib import Path

import pytest

from maskdit.config.base import UserError
from maskdit.model import checkpoint
from maskdit.runtime.variables import threads as granted
from project import project, says

RELEASE = Path(__file__).parents[1] / "release" / "0.1.0"
RUN = "artifacts/runs/mini-maskdit/pretrain"


@pytest.mark.parametrize(
    ("environment", "cores", "threads"),
    [
        ({}, 8, 4),
        ({}, 3, 1),
        ({}, 1, 1),
        ({"OMP_NUM_THREADS": "6"}, 8, 6),
        ({"OMP_NUM_THREADS": "6", "MASKDIT_THREADS": "2"}, 8, 2),
    ],
)
def test_a_step_has_the_threads_it_is_told_else_half_of_the_cores(
    environment: dict[str, str], cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MASKDIT_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert granted() == threads


def test_a_number_of_threads_that_is_none_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKDIT_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    with pytest.raises(UserError, match="OMP_NUM_THREADS: '4,2' is not a whole number from 1 to 1024"):
        granted()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study whose latents are made."""
    where = project(tmp_path_factory.mktemp("threads"), RELEASE / "params.yaml")
    shutil.copytree(RELEASE / "made", where / "artifacts")
    return where


def threads(where: Path) -> int:
    """With how many threads the run was trained."""
    return checkpoint.facts(where / RUN / "ema-0000020.safetensors")["arithmetic"]["threads"]


STAMP = ".scratch/made/pretrain/mini-maskdit"
WAYS = {
    "snakemake on 4 cores": (("snakemake", "--cores", "4", "--allowed-rules", "pretrain", "--force", "--", STAMP), 2),
    "snakemake on 1 core": (("snakemake", "--cores", "1", "--allowed-rules", "pretrain", "--force", "--", STAMP), 1),
    "dvc": (("dvc", "repro", "--single-item", "--force", "pretrain@mini-maskdit"), max(1, len(os.sched_getaffinity(0)) // 2)),
    "two processes": (("env", "MASKDIT_RANKS=2", "OMP_NUM_THREADS=4", "maskdit", "pretrain", "mini-maskdit"), 2),
}


@pytest.mark.pipeline
@pytest.mark.parametrize("way", WAYS)
def test_the_threads_reach_the_step_and_are_recorded(way: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP", "OPENBLAS", "MKL"):
        monkeypatch.delenv(f"{name}_NUM_THREADS", raising=False)
    shutil.rmtree(home / ".scratch", ignore_errors=True)
    command, wanted = WAYS[way]
    says(
        home, "env", "MASKDIT_FORCE=1", *command, forked=way == "snakemake on 4 cores"
    )  # the others by the command that is installed
    assert threads(home) == wanted
