"""Slurm, as far as it can be asked without one: which process is a task, what a training demands, a controller that is away."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from maskdit.config.base import UserError
from maskdit.runtime import lock, slurm
from maskdit.runtime.process_group import STOPPED
from maskdit.runtime.slurm import Granted

BATCH, INTERACTIVE, EXTERN = 0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFFC


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_") or name == "MASKDIT_DEVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(slurm, "PAUSE", 0.01)


@pytest.mark.parametrize(
    ("step", "number"),
    [(None, "7"), (BATCH, "7"), (INTERACTIVE, "7"), (EXTERN, "7"), (0, None), (3, None)],
    ids=["a job script", "a batch step", "an interactive shell", "an adopted shell", "a task", "a task of a later srun"],
)
def test_a_script_and_a_shell_are_no_task_though_slurm_gives_them_a_rank(
    step: int | None, number: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "0")
    if step is not None:
        monkeypatch.setenv("SLURM_STEP_ID", str(step))
    assert slurm.job() == number


def test_outside_slurm_there_is_no_job() -> None:
    assert slurm.job() is None
    slurm.demand_all(1)


TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("variables", "processes", "line"),
    [
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NUM_NODES": "2"}, 8, "job 7 has 16 GPUs, and this training would use 8 of them"),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NUM_NODES": "1"}, 1, "job 7 has 4 GPUs, and this training would use 1 of them"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 8, "srun starts 8 tasks on 1 nodes, and each would train with all GPUs"),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NUM_NODES": "1"}, 8, ""),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NUM_NODES": "2", "MASKDIT_RANKS": "2"}, 2, ""),
        ({}, 1, ""),
    ],
)
def test_a_training_uses_all_gpus_of_its_job_once_or_says_so(
    variables: dict[str, str], processes: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (TASK | variables).items():
        monkeypatch.setenv(name, value)
    if not line:
        slurm.demand_all(processes)
        return
    with pytest.raises(UserError, match=line):
        slurm.demand_all(processes)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A squeue that fails twice, with what the file `says`, and then answers."""
    command = tmp_path / "bin" / "squeue"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\necho x >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) -gt 2 ] && echo " answer " && exit\n'
        f"cat {tmp_path}/says >&2; exit 1\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


AWAY = (
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "slurm_load_jobs error: Socket timed out on send/recv operation",
    "scontrol: Unexpected message received for job 26",  # seen with Slurm 22.05
    "slurm_load_jobs error: Zero Bytes were transmitted or received",
)


@pytest.mark.parametrize("line", AWAY)
def test_a_controller_that_is_away_for_seconds_is_asked_again(line: str, tool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tool / "says").write_text(line)
    assert slurm.asked("squeue") == "answer"
    assert capsys.readouterr().err.count("asking again for 10 minutes") == 1


def test_one_that_stays_away_is_an_error_and_superseding_goes_on_without_it(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE", -1.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tool / "says").write_text(AWAY[0])
    slurm.supersede("sample", "demo", None)
    assert "whether an older job of this step still runs is not known" in capsys.readouterr().err
    with pytest.raises(UserError, match="squeue: slurm_load_jobs error: Unable to contact"):
        slurm.asked("squeue")


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_without_slurms_commands_a_job_of_one_node_trains_there_and_one_of_several_says_so(
    nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.job() is None
    slurm.supersede("pretrain", "demo", None)
    if nodes == "1":
        slurm.demand_all(1)
        return
    with pytest.raises(UserError, match="job 7 has 2 nodes, but squeue and srun are not here to start the training on them"):
        slurm.demand_all(1)


@pytest.mark.parametrize(
    ("says", "line"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "squeue: slurm_load_jobs error: Invalid job id"),
        ("echo 'fatal: Could not establish a configuration source' >&2; exit 1", "squeue: fatal: Could not establish"),
        ("exit 0", "squeue: knows no job 7 that runs"),
    ],
    ids=["of another cluster", "without a configuration", "ended"],
)
def test_a_job_that_slurm_does_not_know_is_told_with_the_way_out(says: str, line: str, tool: Path) -> None:
    (tool / "bin" / "squeue").write_text(f"#!/bin/sh\n{says}\n")
    with pytest.raises(UserError, match=f"^{line}.*; unset SLURM_JOB_ID to train on this machine alone$"):
        slurm.granted("7")


def test_a_question_that_slurm_refuses_is_asked_once(tool: Path) -> None:
    (tool / "says").write_text("slurm_load_jobs error: Invalid job id specified")
    with pytest.raises(UserError, match="Invalid job id"):
        slurm.asked("squeue")
    assert (tool / "calls").read_text() == "x\n"


OWN = "/home/me/maskdit|rule_sample_wildcards_demo"
QUEUE = f"5|{OWN}\n6|/elsewhere|by the site\n7|{OWN}\n8|{OWN}\n"


@pytest.mark.parametrize(
    ("own", "signed", "found"),
    [(OWN, None, {"5"}), ("", "6", {"6"}), (OWN, "6", {"5", "6"}), ("", None, set()), ("", "8", set()), ("", "4", set())],
)
def test_older_jobs_of_a_step_are_known_by_their_comment_or_by_the_sign(
    own: str, signed: str | None, found: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "asked", lambda *words: QUEUE)
    assert slurm.older("7", own, signed) == found


@pytest.mark.parametrize(("age", "sole", "cancelled"), [(0, "5", ["5"]), (10**6, "5", []), (0, None, [])])
def test_only_a_job_of_this_step_alone_that_still_gives_signs_of_life_is_cancelled(
    age: int, sole: str | None, cancelled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = lock.sign("sample", "demo", None)
    mark.parent.mkdir(parents=True)
    owner = {**lock.me(), "host": "n2", "slurm_job": "5", "sole_job": sole}
    mark.write_text(json.dumps(owner))
    os.utime(mark, (time.time() - age,) * 2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    queue, done = ["5|/elsewhere|by the site", "7|/here|by the site"], []
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "asked", lambda *words: "\n".join(queue) if "--me" in words else queue[-1])
    monkeypatch.setattr(slurm.subprocess, "run", lambda words: (done.append(words[1]), queue.pop(0)))
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    slurm.supersede("sample", "demo", None)
    assert done == cancelled


def test_the_sign_of_a_step_names_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with lock.running("sample", "demo", (1, 2)):
        assert lock.owner_of(lock.sign("sample", "demo", (1, 2)))["slurm_job"] == "7"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands and Apptainer as scripts that write down how they were called, and a folder for a project."""
    for name, line in {
        "srun": "echo stopped > $MASKDIT_STOPPED; [ ! -e ends ] || kill -TERM $PPID; env > environment",
        "scontrol": """case "$*" in "show job"*) cat record;; *hostnames*) echo n3 n4;; *node*) echo NodeAddr=10.0.0.3;; esac""",
        "apptainer": "",
    }.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{line}\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))  # Slurm ends this run of the job
    return tmp_path


PREEMPTED = "   PreemptEligibleTime=2026-11-29T10:28:15 PreemptTime=2026-11-29T10:28:19"
CANCELLED = "   PreemptEligibleTime=2026-11-29T10:28:15 PreemptTime=None"


@pytest.mark.parametrize(
    ("ends", "record", "requeued"),
    [(False, "", True), (True, PREEMPTED, True), (True, CANCELLED, False), (True, "   Requeue=1 Restarts=1", False)],
    ids=["a warning", "preemption for good", "a cancelled job", "a job that Slurm has requeued"],
)
def test_a_job_whose_training_has_saved_its_state_requeues_itself_unless_it_was_cancelled(
    ends: bool, record: str, requeued: bool, site: Path
) -> None:
    (site / "record").write_text(record)
    if ends:
        (site / "ends").touch()
    assert slurm.over_nodes(Granted("7", "n3", 1, 8, ""), ["python", "-m", "maskdit.cli"]) == STOPPED
    assert ("scontrol requeue 7" in (site / "calls").read_text()) == requeued


def test_the_tasks_of_a_training_start_in_the_container_that_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["/clone/.venv/bin/python", "-m", "maskdit.cli", "pretrain", "demo"]
    slurm.over_nodes(Granted("7", "n[3-4]", 2, 16, "gpu:8"), command)
    assert "--kill-on-bad-exit=1 /clone/.venv/bin/python -m maskdit.cli pretrain demo" in (site / "calls").read_text()
    monkeypatch.setenv("MASKDIT_CONTAINER", "maskdit.sif")
    slurm.over_nodes(Granted("7", "n[3-4]", 2, 16, "gpu:8"), command)
    called = f"--gres=gpu:8 --kill-on-bad-exit=1 apptainer exec --nv --home {site} maskdit.sif python3 -m maskdit.cli pretrain demo"
    assert called in (site / "calls").read_text()
    assert "MASKDIT_FIRST=10.0.0.3\n" in (site / "environment").read_text()


def test_a_task_in_a_container_does_not_ask_slurm_for_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[3-4]", "SLURM_NODEID": "1", "SLURM_JOB_ID": "7"}
    for name, value in {**variables, "MASKDIT_FIRST": "10.0.0.3", "PATH": ""}.items():
        monkeypatch.setenv(name, value)
    assert slurm.place() == slurm.Place(1, 2, "10.0.0.3", slurm.PORTS[0] + 7)


def test_without_slurm_s_commands_or_apptainer_a_line_says_what_to_do(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKDIT_CONTAINER", "maskdit.sif")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UserError, match="squeue is not here; if this is a container, run the command outside of it, with MASKDIT_CON"
    ):
        slurm.granted("7")
    with pytest.raises(
        UserError, match=r"MASKDIT_CONTAINER: maskdit\.sif needs apptainer or singularity, which are not on this node"
    ):
        slurm.over_nodes(Granted("7", "n3", 1, 8, ""), ["python"])
