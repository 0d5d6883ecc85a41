"""Where the rows of a log go while a training runs: what is there after a kill, and what a logger can never do."""

import json
import re
import sys
import time
from pathlib import Path
from threading import Event

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskdit.config.base import UserError
from maskdit.runtime import progress
from maskdit.runtime.logs import rows_file
from maskdit.runtime.variables import LOGGERS, installed
from maskdit.training import loggers, train
from maskdit.training.loggers import KINDS, Logger, Loggers
from small import latents, masked, pretrained, weights  # noqa: F401, a fixture


@pytest.fixture
def toy(latents, monkeypatch):
    """Trainings of a key, with a row and a state for each second step."""
    monkeypatch.chdir(latents.parent)
    monkeypatch.setattr(progress, "KEY", "toy")
    monkeypatch.setattr(train, "LOG_STEPS", 2)
    monkeypatch.delenv("MASKDIT_TENSORBOARD", raising=False)
    monkeypatch.delenv("MASKDIT_LOG", raising=False)
    return latents


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def killed_and_resumed(toy, monkeypatch, config):
    """A training that ends before step 10, seven steps after its only state, and goes on; what its rows were in between."""
    real, due = train.batch_at, iter([True])

    def dying(step: int, **rest: object) -> object:
        if step == 9:
            raise KeyboardInterrupt
        return real(step, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_at", dying)
        patch.setattr(train.Recovery, "due", lambda self: next(due, False))
        with pytest.raises(KeyboardInterrupt):
            train.pretrain(config, latents=toy, out=toy.parent)
    between = rows_in(rows_file("pretrain", "toy"))
    return between, pretrained(toy, "out", config)


def test_the_rows_of_a_training_lie_beside_its_log_while_it_runs_and_each_step_is_there_once_after_a_kill(toy, monkeypatch, capsys):
    between, out = killed_and_resumed(toy, monkeypatch, masked(12))
    assert [row["step"] for row in between] == [2, 4, 6, 8]
    assert "resuming from step 2" in capsys.readouterr().err, "so that steps 4 to 8 were logged twice"
    found = rows_in(rows_file("pretrain", "toy"))
    assert [row["step"] for row in found] == [2, 4, 6, 8, 10, 12]
    assert found == rows_in(out / "log.jsonl")


def scalars(folder: Path) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in reader.Scalars("loss")]


def test_tensorboard_shows_each_step_of_a_resumed_training_once_in_one_folder(toy, monkeypatch):
    monkeypatch.setenv("MASKDIT_LOG", " tensorboard, ")
    _, out = killed_and_resumed(toy, monkeypatch, masked(12))
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("toy-pretrain-")
    assert scalars(folder) == [(row["step"], pytest.approx(row["loss"])) for row in rows_in(out / "log.jsonl")]
    pretrained(toy, "other", masked(4, lr=0.5))
    assert len([*Path("runs").iterdir()]) == 2, "another recipe is another run"


def test_a_logger_that_is_named_later_gets_the_rows_before(toy, monkeypatch):
    pretrained(toy, "short", masked(4))
    monkeypatch.setenv("MASKDIT_TENSORBOARD", "events")
    pretrained(toy, "longer", masked(4, 8))
    assert [step for step, _ in scalars(next(Path("events").iterdir()))] == [2, 4, 6, 8]
    assert not Path("runs").exists()


def test_dvclive_has_each_step_of_a_resumed_training_once_and_touches_neither_dvc_yaml_nor_git(toy, monkeypatch):
    pytest.importorskip("dvclive")
    monkeypatch.setenv("MASKDIT_LOG", "dvclive")
    _, out = killed_and_resumed(toy, monkeypatch, masked(12))
    (folder,) = Path("dvclive").iterdir()
    lines = [line.split("\t") for line in (folder / "plots" / "metrics" / "loss.tsv").read_text().splitlines()[1:]]
    assert [(int(step), float(loss)) for step, loss in lines] == [(row["step"], row["loss"]) for row in rows_in(out / "log.jsonl")]
    assert json.loads((folder / "metrics.json").read_text())["step"] == 12
    assert not Path("dvc.yaml").exists()


def test_wandb_without_a_network_keeps_each_attempt_whole_and_no_secret(toy, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("MASKDIT_LOG", "wandb")
    monkeypatch.setattr(loggers, "HURRY", 60)  # both attempts are in this process, which W&B has one run of
    for name, value in {"MODE": "offline", "API_KEY": "canary" * 6 + "0123", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    killed_and_resumed(toy, monkeypatch, masked(12))
    runs = sorted(Path("wandb").glob("offline-run-*-toy-pretrain-*"))
    assert len(runs) == 2
    assert len({run.name.split("-", 3)[3] for run in runs}) == 1, "one name, so that W&B takes them for one run"
    last, deadline = list(range(2, 13, 2)), time.monotonic() + 20
    while steps_of(runs[1]) != last and time.monotonic() < deadline:  # W&B's own process writes them
        time.sleep(0.05)
    assert [steps_of(run) for run in runs] == [[2, 4, 6, 8], last]
    assert not [path for path in Path().rglob("*") if path.is_file() and b"canarycanary" in path.read_bytes()]


def steps_of(run: Path) -> list[int]:
    """The steps in the records of a run of W&B, in order."""
    (file,) = run.glob("*.wandb")
    found = re.findall(rb"\x12\x05_step\x82\x01.(\d+)", file.read_bytes(), re.DOTALL)
    return list(dict.fromkeys(map(int, found)))


def refused(monkeypatch, toy, name, value):
    """The line of a training that ends before its first batch."""
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(train, "batch_at", lambda step, **rest: pytest.fail("a step was made"))
    with pytest.raises(UserError) as error:
        pretrained(toy, "run", masked(2))
    return str(error.value)


def test_a_library_that_is_named_and_not_installed_is_told_before_the_first_step(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = "MASKDIT_LOG: wandb is not installed; run pip install wandb, or unset the variable"
    assert refused(monkeypatch, toy, "MASKDIT_LOG", "wandb") == line


def test_tensorboard_s_folder_asks_for_tensorboard_by_its_own_name(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = "MASKDIT_TENSORBOARD: tensorboard is not installed; run pip install tensorboard, or unset the variable"
    assert refused(monkeypatch, toy, "MASKDIT_TENSORBOARD", "events") == line


def test_an_unknown_logger_is_refused_with_those_that_are_known(toy, monkeypatch):
    line = "MASKDIT_LOG: 'comet' is none of tensorboard, wandb, dvclive; correct it or unset it"
    assert refused(monkeypatch, toy, "MASKDIT_LOG", "tensorboard,comet") == line


def test_a_folder_of_a_library_s_name_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "dvc_live_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("dvc_live_folder")
    assert installed("tensorboard")


def test_an_error_of_a_logger_is_one_line_and_changes_no_bit(toy, monkeypatch, capsys):
    whole = pretrained(toy, "whole", masked(6))
    monkeypatch.setenv("MASKDIT_SCRATCH", str(toy.parent / "other"))
    Path("events").write_text("a file where a folder should be")
    Path("logs").rename("logs-before")
    Path("logs").write_text("and another")
    monkeypatch.setenv("MASKDIT_TENSORBOARD", "events")
    capsys.readouterr()
    run = pretrained(toy, "run", masked(6))
    said = [line for line in capsys.readouterr().err.splitlines() if "goes on without it" in line]
    assert len(said) == 2
    assert any(line.startswith("toy tensorboard: ") for line in said)
    assert any(line.startswith("toy rows: ") for line in said)
    assert weights(run) == weights(whole)
    recipes = [sorted(path.name for path in (toy.parent / name).iterdir()) for name in ("scratch", "other")]
    assert recipes[0] == recipes[1], "no logger is part of a recipe"


class Stuck:
    """A sink whose service does not answer."""

    last = 0

    def __init__(self, rows: list[dict]) -> None:
        self.answer = Event()

    def write(self, row: dict) -> None:
        self.answer.wait(60)

    def close(self) -> None:
        self.answer.wait(60)


def test_a_service_that_does_not_answer_slows_no_step_and_only_the_end_for_a_moment(monkeypatch, capsys):
    monkeypatch.setattr(loggers, "LEAVE", 0.1)
    with Loggers("pretrain", "0" * 16, {}) as log:
        log.loggers = [Logger("wandb", Stuck)]
        log.begin([], 0, 10)
        began = time.monotonic()
        for step in range(1, 10_001):
            log.add({"step": step})
        assert time.monotonic() - began < 1
    assert time.monotonic() - began < 2
    assert "wandb: has not ended in time; its last rows may be missing there" in capsys.readouterr().err


def test_only_the_first_rank_logs(monkeypatch):
    monkeypatch.setattr(progress, "KEY", "toy")
    monkeypatch.setenv("MASKDIT_LOG", "tensorboard")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert Loggers("pretrain", "0" * 16, {}).loggers == []


def test_each_library_that_can_be_named_has_a_logger():
    assert tuple(KINDS) == LOGGERS
