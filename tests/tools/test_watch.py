"""What `maskdit watch` shows of a training in another process, how it ends, and that it only reads."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import warm
from hashes import changed, made, study  # noqa: F401, fixtures
from maskdit.config.base import UserError
from maskdit.config.params import Params
from maskdit.runtime.lock import LOST, running, sign
from maskdit.runtime.logs import log_file, rows_file
from maskdit.tools import watch as module
from maskdit.tools.watch import Screen, facts, progress_of, rows_of, sparkline, watch
from project import edit, environment, twin

NODE = ("pretrain", "demo-dit")


@pytest.fixture(scope="module")
def long(by_snakemake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project, whose trainings are of more steps now than they will do."""
    where = twin(by_snakemake, tmp_path_factory.mktemp("long"))
    edit(where / "params.yaml", "milestones: [2, 4]", "milestones: [2, 90000]")
    return where


def started(where: Path, *words: str) -> subprocess.Popen[str]:
    """A command in another process."""
    variables = {**environment(where), "MASKDIT_STATE_SECONDS": "0"}
    variables["PATH"] = f"{warm.folder()}{os.pathsep}{variables['PATH']}"
    return subprocess.Popen(words, cwd=where, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def training(where: Path, step: int) -> subprocess.Popen[str]:
    """A training that has written a row of a step or a later one."""
    process = started(where, "maskdit", *NODE)
    while not any(row["step"] >= step for row in rows_of(where / rows_file(*NODE))) or not (where / sign(*NODE)).exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    return process


def test_a_training_is_shown_until_it_stops_is_killed_or_ends_and_each_row_is_there_once(
    long: Path, without_torch: tuple[str, str]
) -> None:
    first = training(long, 50)
    seen = started(long, *without_torch, "maskdit", "watch", "demo-dit")
    assert seen.stdout
    line = seen.stdout.readline()
    assert re.match(r"pretrain/demo-dit, process \d+ on \S+, step [\d,]+ of 90,000 \(\d+%\), rate ", line), line
    assert all(f", {name} " in line for name in ("left", "loss", "grad norm", "MFU", "data_wait", "memory", "log")), line
    listed = started(long, *without_torch, "maskdit", "watch").communicate()[0]
    assert re.fullmatch(r"pretrain/demo-dit, process \d+ on \S+, \d+/90000.*\n", listed), listed
    first.terminate()
    said, _ = seen.communicate()
    first.communicate()
    assert (first.returncode, seen.returncode) == (85, 85)
    assert "pretrain/demo-dit: stopped and keeps its state, exit code 85" in said
    stopped = int(re.findall(r"stopped before step (\d+) ", (long / log_file(*NODE)).read_text())[-1]) - 1
    assert f"step {stopped:,} of 90,000 " in said
    assert f"state step {stopped:,}, " in said
    assert "milestone step 4, " in said
    assert "grid results/grid_demo-dit.png" in said

    second = training(long, stopped + 10)
    left = started(long, *without_torch, "maskdit", "watch", "demo-dit")
    assert left.stdout
    left.stdout.readline()
    left.send_signal(signal.SIGINT)
    assert "watch: the training goes on" in left.communicate()[0]
    assert left.returncode == 130
    assert second.poll() is None
    seen = started(long, *without_torch, "maskdit", "watch", "demo-dit")
    assert seen.stdout
    seen.stdout.readline()
    os.kill(json.loads((long / sign(*NODE)).read_text())["process"], signal.SIGKILL)
    said, _ = seen.communicate()
    assert seen.returncode == 1
    assert "pretrain/demo-dit: was killed; the same command goes on from its last state" in said
    second.communicate()

    last = rows_of(long / rows_file(*NODE))[-1]["step"] + 50
    edit(long / "params.yaml", "milestones: [2, 90000]", f"milestones: [2, {last}]")
    third = started(long, "maskdit", *NODE)
    while not module.runs(long / sign(*NODE)):
        time.sleep(0.01)
    seen = started(long, *without_torch, "maskdit", "watch", "demo-dit")
    said, _ = seen.communicate()
    third.communicate()
    assert (third.returncode, seen.returncode) == (0, 0), said
    assert said.splitlines()[-1] == "pretrain/demo-dit: has ended, exit code 0"
    assert f"step {last:,} of {last:,} (100%)" in said.splitlines()[-2]
    rows = (long / rows_file(*NODE)).read_text()
    assert [json.loads(line)["step"] for line in rows.splitlines()] == [*range(10, last + 1, 10)]
    assert rows == (long / "artifacts/runs/demo-dit/pretrain/log.jsonl").read_text()


ROW = {"loss": 0.5, "grad_norm": 1.25, "images_per_second": 80.0, "mfu": 0.41, "data_wait": 0.002, "peak_memory": 3e9}


@pytest.fixture
def elsewhere(made: Params) -> Iterator[Params]:
    """A training of another node, of which this one sees the files: its sign, its log, rows and states."""
    with running("sample", "demo-dit-plain", (1, 2)):
        sign(*NODE).parent.mkdir(parents=True)
        sign(*NODE).write_text(json.dumps({"host": "node7", "process": 5, "slurm_job": "81", "space": "x", "token": "t"}))
        rows_file(*NODE).parent.mkdir(parents=True)
        rows = [{**ROW, "step": step, "seconds": step / 4, "loss": 1 / step} for step in range(10, 1000, 10)]
        rows_file(*NODE).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10')
        log_file(*NODE).write_text("demo-dit pretrain: 1200/1500, 9/s\npretrain: 0/1500; maskdit watch x\npretrain: 996/1500, 4/s")
        recipe = Path(".scratch/pretrain-0123456789abcdef")
        recipe.mkdir(parents=True)
        (recipe / "node").write_text("pretrain/demo-dit\n")
        for age, name in enumerate(("state-000000900.json", "ema-0000800.safetensors", "state-000001400.json", "lock.lease")):
            (recipe / name).touch()
            os.utime(recipe / name, (time.time() - 60 * (age + 1),) * 2)
        yield made


def test_a_training_of_another_node_is_shown_from_its_files(elsewhere: Params) -> None:
    found = facts(elsewhere, *NODE)
    assert found["training"] == "pretrain/demo-dit, process 5 on node7, Slurm job 81"
    assert found["step"] == "990 of 1,500 (66%)", "neither the attempt before nor a line that is cut counts"
    assert found["rate"] == "4 steps/s, 80 images/s"
    assert found["left"] == "2.1 min"
    assert found["loss"].startswith("0.0010 ")
    assert (found["grad norm"], found["MFU"], found["data_wait"], found["memory"]) == ("1.25", "0.41", "0.2%", "3 GB")
    assert found["state"].startswith("step 900, "), "an older state of a later step belongs to a milestone that is made once more"
    assert found["milestone"].endswith(".scratch/pretrain-0123456789abcdef/ema-0000800.safetensors")
    assert found["grid"] == "results/grid_demo-dit.png"


def test_without_a_key_each_step_that_runs_is_a_line(elsewhere: Params, capsys: pytest.CaptureFixture[str]) -> None:
    watch(elsewhere)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pretrain/demo-dit, process 5 on node7, Slurm job 81, 0/1500"
    assert re.fullmatch(r"sample/demo-dit-plain part 1-of-2, process \d+ on \S+", lines[1])
    lost = time.time() - 4 * LOST
    os.utime(sign(*NODE), (lost, lost))
    sign("sample", "demo-dit-plain", (1, 2)).unlink()
    watch(elsewhere)
    assert capsys.readouterr().out == "nothing runs\n"


def test_a_terminal_shows_one_table_that_is_drawn_again(elsewhere: Params, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen = Screen()
    found = facts(elsewhere, *NODE)
    screen.show(found)
    screen.show(found)
    parts = capsys.readouterr().out.split(f"\x1b[{len(found)}A\x1b[J")
    assert len(parts) == 2
    assert parts[0] == parts[1]
    assert len(parts[0].splitlines()) == len(found)


def test_a_training_that_has_not_run_and_a_key_of_none_are_refused(made: Params) -> None:
    with pytest.raises(UserError, match=r"^watch: no log of pretrain/demo-dit here; start it with maskdit pretrain demo-dit$"):
        watch(made, "demo-dit")
    with pytest.raises(UserError, match=r"^watch: no entry of pretrain or finetune is named 'demo-dti'; did you mean 'demo-dit'"):
        watch(made, "demo-dti")


def test_losses_are_drawn_between_the_least_and_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sparkline([4.0, float("nan"), 0.5, 2.25, 4.0]) == "█▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([1.0]) == ""


def test_a_line_that_is_no_row_is_left_out(tmp_path: Path) -> None:
    row = json.dumps({**ROW, "step": 10, "seconds": 2.5})
    lines = ["[1, 2]", '{"step": "x", "loss": null}', "garbage{", "7", row, '{"step": 20}']
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert [row["step"] for row in rows_of(tmp_path / "rows.jsonl")] == [10]


def test_the_last_progress_in_a_long_log_is_found(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("vae: 10/99, 2.0/s, 00:40 left\n" + "other words\n" * 1000 + "demo vae: 20/99, 2.0/s, 00:30 left\nvae: kept\n")
    assert progress_of(log) == "20/99, 2.0/s, 00:30 left"
    assert progress_of(tmp_path / "none.log") == ""
