"""make setup: into the environment and nowhere else, and done only when what it has installed can be imported."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from project import ROOT

LOGGED = '#!/bin/sh\necho "$0 $*" >> "$LOG"\n'
WITHOUT_PIP = LOGGED + 'case "$*" in "-m pip"*) exit 1;; esac\n'
BROKEN = LOGGED + 'case "$*" in -c*) exit 1;; esac\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The Makefile and what it reads, with a system's pip and Python that say what they are asked."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    command(tmp_path / "system" / "pip", LOGGED)
    return tmp_path


def command(path: Path, text: str) -> None:
    """A script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def setup(home: Path, python: str = LOGGED) -> tuple[int, list[str], list[str]]:
    """Exit code of make setup with this as the system's Python, the commands that were run, and the marks of its end."""
    command(home / "system" / "python3", python)
    log = home / "log"
    log.write_text("")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    env = {**kept, "PATH": f"{home / 'system'}:{os.environ['PATH']}", "LOG": str(log)}
    done = subprocess.run(["make", "setup"], cwd=home, env=env, capture_output=True, text=True)
    marks = [path.name for path in (home / ".venv").glob("installed-*")]
    return done.returncode, log.read_text().replace(f"{home}/", "").splitlines(), marks


def test_an_environment_that_is_whole_is_filled_by_its_own_pip_and_marked(home: Path) -> None:
    command(home / ".venv" / "bin" / "python", LOGGED)
    code, said, marks = setup(home)
    assert code == 0
    assert all(line.startswith(".venv/bin/python -") for line in said)
    assert next(line for line in said if "pip install" in line).endswith("--requirement requirements.lock")
    assert len(marks) == 1
    assert setup(home)[1] == [], "nothing is done twice"


def test_an_environment_without_pip_is_made_anew_and_the_system_s_pip_is_never_asked(home: Path) -> None:
    command(home / ".venv" / "bin" / "python", WITHOUT_PIP)
    code, said, marks = setup(home, python=LOGGED + "exit 1\n")  # a Python without ensurepip
    assert code != 0
    assert said[1:] == ["system/python3 -m venv --clear .venv"]
    assert not any(line.startswith("system/pip") for line in said)
    assert marks == []


def test_an_environment_whose_packages_cannot_be_imported_is_not_marked(home: Path) -> None:
    command(home / ".venv" / "bin" / "python", BROKEN)
    code, said, marks = setup(home)
    assert code != 0
    assert "-c import" in said[-1]
    assert marks == []
