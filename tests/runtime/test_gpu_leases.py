"""Without Slurm, too, a GPU serves one step at a time; nvidia-smi is a script that lists GPUs that do not exist."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskdit.artifacts.step import gpus_of
from maskdit.config.base import UserError
from maskdit.runtime import gpu_leases
from maskdit.runtime.gpu_leases import leased, listed

UUIDS = ["GPU-aa11", "GPU-bb22", "GPU-cc33"]
STEP = """
import os, sys, time
from maskdit.runtime import gpu_leases
gpu_leases.PAUSE = .05
with gpu_leases.leased(int(sys.argv[1]) if sys.argv[1] != "all" else None):
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with three GPUs."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "MASKDIT_DEVICE", "MASKDIT_RANKS", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{number}, {uuid}, H100'\n" for number, uuid in enumerate(UUIDS)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gpu_leases.tempfile, "tempdir", None)
    monkeypatch.setattr(gpu_leases, "PAUSE", 0.05)
    return tmp_path


def start(wanted: str) -> subprocess.Popen[str]:
    """Another process that takes GPUs, until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", STEP, wanted], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def holds(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout
    return process.stdout.readline().strip().split(",")


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, UUIDS),
        ("2,0", ["GPU-cc33", "GPU-aa11"]),
        ("GPU-bb", ["GPU-bb22"]),
        ("", []),
        ("-1", []),
        ("7", []),
        ("NoDevFiles", []),
    ],
)
def test_the_gpus_are_those_that_are_visible(visible: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert listed() == found


def test_two_steps_have_each_its_gpus_and_a_training_waits_for_all() -> None:
    one, two = start("1"), start("2")
    training = None
    try:
        assert sorted(holds(one) + holds(two)) == UUIDS
        training = start("all")
        assert training.stderr
        assert "waiting for 3 of 3 GPUs, held by process" in training.stderr.readline()
        one.communicate()
        assert training.poll() is None
        two.kill()
        two.communicate()
        assert holds(training) == UUIDS, "a killed step holds nothing"
        shown: list[str] = []
        with pytest.raises(TimeoutError):
            limited(shown)
        assert shown[0].startswith("waiting for 1 of 3 GPUs, held by process")
        training.communicate()
        shown = []
        with leased(1, shown.append):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == UUIDS[0]
        assert shown == [f"holds {UUIDS[0]}"]
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    finally:
        for process in filter(None, (one, two, training)):
            process.kill()


def test_of_unlike_gpus_none_is_chosen_unless_cuda_numbers_them_as_nvidia_smi_does(
    box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = box / "bin" / "nvidia-smi"
    tool.write_text(tool.read_text().replace("GPU-aa11, H100", "GPU-aa11, T400"))
    assert listed() == []
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert listed() == UUIDS


def limited(shown: list[str]) -> None:
    """To take a GPU fails within two pauses."""
    began = time.monotonic()

    def pause(_: float) -> None:
        if time.monotonic() - began > 0.1:
            raise TimeoutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_leases.time, "sleep", pause)
        with leased(1, shown.append):
            pass


@pytest.mark.parametrize(
    "variables", [{"SLURM_JOB_ID": "7"}, {"MASKDIT_DEVICE": "cpu"}, {"RANK": "0", "WORLD_SIZE": "2"}, {"CUDA_VISIBLE_DEVICES": ""}]
)
def test_a_slurm_job_a_rank_and_the_cpu_hold_nothing(variables: dict[str, str], box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with leased(None):
        assert not list(box.glob("maskdit-*"))


def test_a_folder_of_another_user_is_not_used(box: Path) -> None:
    (box / "elsewhere").mkdir()
    (box / f"maskdit-{os.getuid()}").symlink_to(box / "elsewhere")
    with pytest.raises(UserError, match="is not your own folder"), leased(1):
        pass


@pytest.mark.parametrize(
    ("verb", "share", "ranks", "count"),
    [
        ("pretrain", None, None, None),
        ("sample", None, None, None),
        ("sample", (1, 8), None, 1),
        ("finetune", None, "2", 2),
        ("vae", None, "2", 1),
        ("bench", None, "8", 2),
        ("table", None, None, 0),
        ("evaluate", None, "2", 0),
    ],
)
def test_a_step_takes_the_gpus_of_its_processes(
    verb: str, share: tuple[int, int] | None, ranks: str | None, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ranks:
        monkeypatch.setenv("MASKDIT_RANKS", ranks)
    assert gpus_of(verb, share) == count
