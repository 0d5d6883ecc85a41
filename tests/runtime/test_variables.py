"""Environment variables: an empty one counts as unset, and what cannot be read is refused by name."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskdit.artifacts import provenance
from maskdit.artifacts.compute_log import held
from maskdit.config.base import UserError
from maskdit.images import imagenet_download
from maskdit.runtime import device, environment, lock, process_group, progress, slurm, variables
from maskdit.runtime.variables import group
from project import ROOT

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASKDIT_")) or name in NAMES]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASKDIT_DEVICE", "cpu")


def given(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    for word in words.split():
        monkeypatch.setenv(*word.split("="))


@pytest.mark.parametrize("words", ["", "RANK=0 WORLD_SIZE=1", "WORLD_SIZE=1", "WORLD_SIZE="])
def test_one_process_is_no_group(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, words)
    assert group() is None
    assert progress.first_rank()
    assert held() == 1


def test_a_process_of_several_knows_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "RANK=2 WORLD_SIZE=4")
    assert group() == (2, 4)
    assert not progress.first_rank()
    assert held() == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("RANK=0", "RANK is 0 and WORLD_SIZE is not set; set both, RANK below WORLD_SIZE, or unset both"),
        ("RANK=", "RANK is empty and WORLD_SIZE is not set"),
        ("RANK= WORLD_SIZE=1", "RANK is empty and WORLD_SIZE is 1"),
        ("RANK=0 WORLD_SIZE=", "RANK is 0 and WORLD_SIZE is empty"),
        ("WORLD_SIZE=2", "RANK is not set and WORLD_SIZE is 2"),
        ("RANK=2 WORLD_SIZE=2", "RANK is 2 and WORLD_SIZE is 2"),
        ("RANK=1 WORLD_SIZE=1", "RANK is 1 and WORLD_SIZE is 1"),
        ("RANK=first WORLD_SIZE=2", "RANK: 'first' is not a whole number from 0"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE: '0' is not a whole number from 1"),
        ("RANK=-1 WORLD_SIZE=2", "RANK: '-1' is not a whole number"),
    ],
)
def test_half_a_group_or_one_that_does_not_fit_is_refused(words: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, words)
    with pytest.raises(UserError, match=f"^{line}"):
        group()


READ: dict[str, tuple[Callable[[], Any], str]] = {  # each variable that is read: how, and a value that is none ('': any is one)
    "MASKDIT_SCRATCH": (environment.scratch_root, ""),
    "MASKDIT_DEVICE": (device.gpus, "gpu"),
    "MASKDIT_RANKS": (process_group.local_ranks, "two"),
    "MASKDIT_THREADS": (variables.threads, "0"),
    "OMP_NUM_THREADS": (variables.threads, "4.0"),
    "MASKDIT_DETERMINISTIC": (lambda: (device.device(), provenance.made_by()["deterministic"]), "yes"),
    "MASKDIT_FORCE": (lambda: variables.flag("MASKDIT_FORCE"), "true"),
    "MASKDIT_SHARED": (lambda: line_of_shared(), "2"),
    "MASKDIT_STATE_SECONDS": (lambda: variables.seconds("MASKDIT_STATE_SECONDS", 60.0), "soon"),
    "MASKDIT_WATCHDOG_SECONDS": (lambda: list(process_group.watched([1], 1)), "-1"),
    "MASKDIT_LOG": (variables.loggers, "tensorbord"),
    "MASKDIT_TENSORBOARD": (variables.loggers, ""),
    "MASKDIT_MMAP": (environment.maps_files, "no"),
    "MASKDIT_CONTAINER": (environment.image, ""),
    "LOCAL_WORLD_SIZE": (lambda: device.free_memory(torch.device("cpu"))[1], "0"),
    "LOCAL_RANK": (lambda: variables.whole("LOCAL_RANK", 0), "x"),
    "SLURM_JOB_ID": (lambda: (slurm.job(), slurm.supersede("vae", "demo", None), lock.me()["slurm_job"]), "../x"),
    "SLURM_RESTART_COUNT": (lambda: lock.me()["restart"], ""),
    "SLURM_STEP_ID": (slurm.is_task, "x"),
    "SLURM_STEP_NUM_NODES": (slurm.place, "two"),
    "SLURM_JOB_NUM_NODES": (lambda: slurm.demand_all(1), "two"),
    "SLURM_GPUS_ON_NODE": (lambda: (held(), device.gpus()), "gpu:2"),
    "SLURM_NNODES": (held, "x"),
    "MASKDIT_STOPPED": (slurm.stopped, ""),
    "HF_ENDPOINT": (lambda: address_of_hub(), ""),
}


def line_of_shared() -> str:
    path = Path("others")
    path.touch()
    path.chmod(0o666)
    try:
        environment.demand_own(path)
    except UserError as error:
        if "MASKDIT_SHARED: " in str(error):
            raise
        return str(error)
    return ""


def address_of_hub() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "x")
        patch.setattr(imagenet_download, "SHARDS", {"train": 1})
        patch.setattr(imagenet_download, "headers_of", lambda address: (_ for _ in ()).throw(UserError(address.url)))
        with pytest.raises(UserError) as asked:
            imagenet_download.from_hub(Path("images"))
    return str(asked.value)


@pytest.mark.parametrize("name", READ)
def test_an_empty_variable_counts_as_unset_and_one_that_is_none_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    read, wrong = READ[name]
    monkeypatch.delenv(name, raising=False)
    unset = read()
    monkeypatch.setenv(name, "")
    assert read() == unset
    if wrong:
        monkeypatch.setenv(name, wrong)
        with pytest.raises(UserError, match=f"^{name}: '{wrong}'"):
            read()


def test_no_file_of_the_package_reads_a_variable_in_another_way() -> None:
    """CUDA's own, where an empty one hides all GPUs, and those that this program sets for itself."""
    own = ("INSIDE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "MASKDIT_BARS", "DVC_STAGE", "MASKDIT_AGAINST")
    ways = re.compile(r"environ\.get\(|in os\.environ|getenv|environ\[[^]]+\](?! = )")
    paths = [path for path in (ROOT / "src" / "maskdit").rglob("*.py") if path.name != "variables.py"]
    lines = [line.strip() for path in paths for line in path.read_text(encoding="utf-8").splitlines() if ways.search(line)]
    assert len(lines) > 4
    assert [line for line in lines if not any(name in line for name in own)] == []
