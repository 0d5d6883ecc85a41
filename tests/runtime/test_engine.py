"""A step does not outlive the engine that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from maskdit.runtime import engine

STEP = """
import signal, sys, time
from maskdit.runtime import engine
engine.PAUSE = .05
signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
with engine.ending_with_engine():
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["snakemake", "dvc"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_whose_engine_has_gone_ends_as_by_sigterm_though_its_shell_lives(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "step.py").write_text(STEP)
    script = f"cd {tmp_path}; {sys.executable} step.py; echo $? > code; echo ended"
    (tmp_path / name).write_text(f"import subprocess\nsubprocess.run(['bash', '-c', {script!r}])\n")
    process = subprocess.Popen([sys.executable, tmp_path / name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    process.wait()
    rest, said = process.communicate()
    assert rest == "ended\n"
    assert "the engine that started this step has gone" in said
    assert (tmp_path / "code").read_text() == "85\n"


def test_a_rank_ends_with_its_launcher(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(STEP)
    launcher = (
        "import os, subprocess, sys, time\nos.environ |= {'RANK': '0', 'WORLD_SIZE': '2'}\n"
        "subprocess.Popen([sys.executable, 'step.py'])\ntime.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    rank = psutil.Process(process.pid).children()[0]
    process.kill()
    _, said = process.communicate()
    psutil.wait_procs([rank], timeout=10)
    assert not rank.is_running()
    assert "has gone, so the step stops" in said


def test_a_process_that_no_engine_started_watches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.engine() is None
    with engine.ending_with_engine():
        time.sleep(0.01)


def test_an_ended_process_has_gone_whether_or_not_it_was_waited_for() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    known = psutil.Process(child.pid)
    while known.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert engine.gone(known)
    child.wait()
    assert engine.gone(known)
    assert not engine.gone(psutil.Process(os.getpid()))
