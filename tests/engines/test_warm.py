"""A command that is forked says and returns what the installed command does."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import warm
from project import TOY, environment


def forked(where: Path) -> dict[str, str]:
    """The environment in which `maskdit` is forked."""
    known = environment(where)
    return {**known, "PATH": f"{warm.folder()}{os.pathsep}{known['PATH']}"}


@pytest.mark.parametrize("words", ["--help", "check", "sample nothing --run a --vae b --out c"])
def test_words_and_exit_code_are_those_of_the_installed_command(words: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TOY.read_text().replace("seed: 0", "sead: 0", 1))
    told = [
        subprocess.run(["maskdit", *words.split()], cwd=tmp_path, env=variables, capture_output=True, text=True)
        for variables in (environment(tmp_path), forked(tmp_path))
    ]
    assert {(each.returncode, each.stdout, each.stderr) for each in told} == {(told[0].returncode, told[0].stdout, told[0].stderr)}
    assert (told[0].returncode == 0) == (words == "--help")


def test_a_command_that_is_killed_takes_its_work_with_it(tmp_path: Path) -> None:
    command = subprocess.Popen(warm.program("import time; time.sleep(60)"), cwd=tmp_path, env=forked(tmp_path))

    def at_work() -> list[int]:
        return [each.pid for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(tmp_path) and each.pid != command.pid]

    deadline = time.monotonic() + 60
    while not at_work():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.kill()
    command.wait()
    while at_work():
        assert time.monotonic() < deadline
        time.sleep(0.05)
