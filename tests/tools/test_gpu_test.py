"""The checks of a GPU, run on a CPU with a small network: that they run, see what is there, and fail where something is wrong."""

import csv
from pathlib import Path

import pytest
import torch

from maskdit.tools import gpu_checks, gpu_test
from maskdit.tools.gpu_checks import TINY, Bench, Seen

HERE = Bench(torch.device("cpu"), TINY, 4, 1)
QUICK = tuple(name for name in gpu_test.CHECKS if not name.endswith("compiled") and name != "cosine unmasking")


def test_the_checks_run_on_a_cpu_with_a_small_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_test.run(HERE, tmp_path / "results" / "gpu.csv", QUICK)
    rows = {row["check"]: row for row in csv.DictReader((tmp_path / "results" / "gpu.csv").read_text().splitlines())}
    assert tuple(rows) == QUICK
    good = {name for name, row in rows.items() if row["verdict"] == "good"}
    assert good == {
        "machine",
        "gradient, GPU against CPU",
        "waits of the host in a step",
        "process group of one rank",
        "SIGTERM, resume, determinism",
    }
    assert "the same bits" in rows["SIGTERM, resume, determinism"]["seen"]
    assert not torch.are_deterministic_algorithms_enabled()
    assert capsys.readouterr().out.count("expected on an H100") == len(QUICK)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler of torch, about its own look at gradients
@pytest.mark.slow
def test_the_checks_of_the_compiler_run_on_a_cpu(tmp_path: Path) -> None:
    others = tuple(name for name in gpu_test.CHECKS if name not in QUICK)
    assert gpu_test.run(HERE, tmp_path / "gpu.csv", others)


def test_a_check_that_fails_or_breaks_is_told_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> Seen:
        raise RuntimeError("CUDA error:\n an illegal memory access")

    checks = {"one": ("", broken), "two": ("", lambda bench: Seen("other bits", False)), "three": ("", lambda bench: Seen("fine"))}
    monkeypatch.setattr(gpu_test, "CHECKS", checks)
    assert not gpu_test.run(HERE, tmp_path / "gpu.csv", tuple(checks))
    said = capsys.readouterr().out
    assert "one: RuntimeError: CUDA error: an illegal memory access [FAILED]" in said
    assert "two: other bits [FAILED]" in said
    assert "three: fine\n" in said


def test_a_gradient_that_differs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = gpu_checks.ours, []

    def drifted(*words, **more):
        made.append(learner := real(*words, **more))
        if len(made) == 2:
            learner.masters.data.mul_(1.01)
            learner.copy.mul_(1.01)
        return learner

    monkeypatch.setattr(gpu_checks, "ours", drifted)
    assert gpu_checks.agreement(HERE).good is False


def test_without_a_gpu_there_is_nothing_to_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_test, "gpus", lambda: 0)
    assert gpu_test.main() == 0
    assert capsys.readouterr().out == "no GPU here: nothing to check\n"
