"""make setup: into the environment and nowhere else, and done only when what it has installed can be imported."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from project import ROOT

LOGGED = '#!/bin/sh\necho "$0 $*" >> "$LOG"\n'
WITHOUT_PIP = LOGGED + 'case "$*" in "-m pip"*) exit 1;; esac\n'
LOCKED = "--no-deps --require-hashes --requirement requirements.lock"
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


def make(home: Path, *words: str, **more: str) -> tuple[int, str, list[str]]:
    """Exit code of make setup, what it says, and the marks of its end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "CONDA"))}
    done = subprocess.run(["make", "setup", *words], cwd=home, env={**kept, **more}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, [path.name for path in (home / ".venv").glob("installed-*")]


def setup(home: Path, python: str = LOGGED, uv: str = "") -> tuple[int, list[str], list[str]]:
    """Exit code of make setup with this as the system's Python, the commands that were run, and the marks of its end."""
    command(home / "system" / "python3", python)
    log = home / "log"
    log.write_text("")
    code, _, marks = make(home, f"UV={uv}", PATH=f"{home / 'system'}:{os.environ['PATH']}", LOG=str(log))
    return code, [line for line in log.read_text().replace(f"{home}/", "").splitlines() if "version_info" not in line], marks


def test_an_environment_that_is_whole_is_filled_by_its_own_pip_and_marked(home: Path) -> None:
    command(home / ".venv" / "bin" / "python", LOGGED)
    code, said, marks = setup(home)
    assert code == 0
    assert all(line.startswith(".venv/bin/python -") for line in said)
    assert next(line for line in said if "pip install" in line).endswith(LOCKED)
    assert len(marks) == 1
    assert setup(home)[1] == [], "nothing is done twice"


def test_an_environment_without_pip_is_made_anew_and_the_system_s_pip_is_never_asked(home: Path) -> None:
    command(home / ".venv" / "bin" / "python", WITHOUT_PIP)
    code, said, marks = setup(home, python=LOGGED + 'case "$*" in -m*) exit 1;; esac\n')  # a Python without ensurepip
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


def test_uv_installs_where_it_is_there_and_makes_the_environment(home: Path) -> None:
    command(home / "system" / "uv", LOGGED + f'case "$*" in venv*) mkdir -p .venv/bin; cp {home}/good .venv/bin/python;; esac\n')
    command(home / "good", LOGGED)
    code, said, marks = setup(home, uv="uv")
    assert code == 0
    assert said[0] == "system/uv venv --quiet --clear --python python3 .venv"
    assert said[1] == f"system/uv pip install --quiet --compile-bytecode --python .venv/bin/python {LOCKED}"
    assert len(marks) == 1


def test_a_python_that_is_too_old_or_makes_no_environment_is_refused_in_one_line(home: Path) -> None:
    command(home / "old", "#!/bin/sh\nexit 1\n")
    code, said, marks = make(home, "UV=", f"PYTHON={home / 'old'}")
    assert (code, marks) == (2, [])
    assert f"make setup: {home / 'old'} is not Python 3.11 or newer; name one: make setup PYTHON=python3.12" in said
    command(home / "bare", '#!/bin/sh\ncase "$*" in *venv*) exit 1;; esac\n')
    code, said, marks = make(home, "UV=", f"PYTHON={home / 'bare'}")
    assert (code, marks) == (2, [])
    assert "install its venv module (Debian: apt install python3-venv) or uv" in said


def test_a_conda_environment_that_is_active_is_refused_unless_its_python_is_named(home: Path) -> None:
    command(home / "python3", LOGGED)
    conda = {"CONDA_PREFIX": "/opt/conda", "LOG": str(home / "log"), "PATH": f"{home}:{os.environ['PATH']}"}
    code, said, marks = make(home, "UV=", **conda)
    assert (code, marks) == (2, [])
    assert "run conda deactivate, or name its Python: make setup PYTHON=/opt/conda/bin/python3\n" in said
    assert "Installing" in make(home, "UV=", f"PYTHON={home / 'python3'}", **conda)[1]


def test_torch_without_cuda_comes_from_the_index_that_is_named_and_all_else_from_the_lock(home: Path) -> None:
    command(home / ".venv" / "bin" / "python", LOGGED)
    code, _, marks = make(home, "UV=", "TORCH_INDEX=file:///cpu", LOG=str(home / "log"))
    assert (code, len(marks)) == (0, 1)
    torch = [line for line in (home / "log").read_text().splitlines() if "--index-url file:///cpu" in line]
    assert [word.split("==")[0] for word in torch[0].split() if "==" in word] == ["torch", "torchvision"]
    whole, kept = (path.read_text() for path in (home / "requirements.lock", home / ".venv" / "requirements.lock"))
    names = [{line.split("==")[0] for line in text.splitlines() if "==" in line} for text in (whole, kept)]
    assert names[1] < names[0]
    assert {name for name in names[0] - names[1] if not name.startswith(("nvidia-", "cuda-"))} == {"torch", "torchvision", "triton"}
    assert not [name for name in names[1] if name.startswith(("nvidia-", "cuda-"))]
    assert kept.count("--hash=") > 1000


def entries(machine: str, system: str = "linux") -> dict[str, str]:
    """Name and version of what the lock installs on a machine."""
    found = {"sys_platform": system, "platform_machine": machine, "platform_system": system.capitalize()}
    lines = re.findall(r"^(\S+==[^\\]*) \\$", (ROOT / "requirements.lock").read_text(), re.M)
    locked = [Requirement(line) for line in lines]
    return {one.name: str(one.specifier)[2:] for one in locked if not one.marker or one.marker.evaluate({**found, "extra": ""})}


def demanded(name: str, extras: set[str], machine: str) -> list[Requirement]:
    """What an installed package requires on Linux on a machine."""
    place = {"sys_platform": "linux", "platform_machine": machine, "platform_system": "Linux"}
    found = map(Requirement, metadata.requires(name) or [])
    return [
        one for one in found if not one.marker or any(one.marker.evaluate({**place, "extra": extra}) for extra in ("", *extras))
    ]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_on_linux_the_lock_has_all_libraries_that_torch_demands_whatever_the_processor(machine: str) -> None:
    # torch's wheels for both processors demand the same on Linux.
    locked, waiting, seen = entries(machine), demanded("torch", set(), machine), set[str]()
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        assert one.specifier.contains(locked[name], prereleases=True), one
        if name not in seen:
            seen.add(name)
            waiting += demanded(one.name, one.extras, machine)
    if torch.version.cuda:  # else torch is from an index of CPU builds
        assert {"nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-cublas", "nvidia-cufft", "triton"} <= seen
    assert not any(name.startswith("nvidia") for name in entries("arm64", "darwin"))


def wheel(path: Path, text: str) -> str:
    """Write a package of one module as a wheel; its sha256."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy.py", text)
        archive.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        archive.writestr(
            "toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toy-1.0.dist-info/RECORD", "toy.py,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_that_was_changed_since_it_was_locked_is_not_installed(home: Path) -> None:
    index = home / "index"
    index.mkdir()
    known = wheel(index / "toy-1.0-py3-none-any.whl", "GOOD = True\n")
    (home / "requirements.lock").write_text(f"toy==1.0 \\\n    --hash=sha256:{known}\n")
    wheel(index / "toy-1.0-py3-none-any.whl", "GOOD = False\n")
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    code, said, marks = make(home, "UV=", f"PYTHON={sys.executable}", **alone)
    assert code != 0
    assert "DO NOT MATCH THE HASHES" in said
    assert marks == []
    assert not list((home / ".venv").rglob("toy.py"))
