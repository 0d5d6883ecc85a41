"""What is delivered: a source distribution with all that the wheel needs, and a wheel with a project but without the tests."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from maskdit.config.project import parts
from project import ROOT, commit, says

BUILD = "import sys; from setuptools import build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def build(where: Path, what: str, out: Path) -> Path:
    """Build by the backend that pyproject.toml names, without network."""
    done = subprocess.run([sys.executable, "-c", BUILD, what, str(out)], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of what is in Git, as it is now."""
    home = tmp_path_factory.mktemp("checkout")
    for name in says(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, home / name)
    return build(home, "build_sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the source distribution, as an installer builds it."""
    home = tmp_path_factory.mktemp("unpacked")
    says(home, "tar", "-xf", str(sdist))  # tarfile has no safe filter before Python 3.11.4
    [inside] = home.iterdir()
    return build(inside, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents in a folder of their own."""
    home = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    return home


def maskdit(installed: Path, where: Path, *words: str) -> str:
    """What a command of the wheel says; torch and the others are those of this environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MASKDIT_")}
    command = [sys.executable, "-m", "maskdit.cli", *words]
    done = subprocess.run(command, cwd=where, env={**kept, "PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_each_module_and_its_data_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "src" / "maskdit"
    wanted = {path.relative_to(package.parent) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    wanted |= {Path("maskdit", "project", name) for name in parts(ROOT)}
    found = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {path for path in found if not path.parts[0].endswith(".dist-info")} == wanted
    assert {
        Path("maskdit/py.typed"),
        Path("maskdit/project/.dvc/config"),
        Path("maskdit/project/workflow/rules/train.smk"),
    } <= found


def test_the_wheel_has_the_command_the_licence_and_no_path_of_this_machine(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {name.partition("/")[2]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
        assert "maskdit = maskdit.cli:main" in texts["entry_points.txt"]
        assert "Apache License" in texts["licenses/LICENSE"]
        assert not [name for name in archive.namelist() if str(ROOT).encode() in archive.read(name)]


def test_the_source_distribution_holds_what_is_in_git(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    kept = says(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    apart = (".ci/", ".dvc/tmp", "results/", "slurm")  # of a clone alone
    assert {name for name in kept if not name.startswith(apart) and (ROOT / name).exists()} <= found


def test_commands_of_the_wheel_say_their_version_and_make_a_project(installed: Path, tmp_path: Path) -> None:
    [metadata] = installed.glob("maskdit-*.dist-info")
    assert maskdit(installed, tmp_path, "--version") == f"maskdit {metadata.stem.removeprefix('maskdit-')}\n"
    assert "init" in maskdit(installed, tmp_path, "--help")
    maskdit(installed, tmp_path, "init", "mine")
    assert {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*.smk")} == {
        path for path in parts(ROOT) if path.suffix == ".smk"
    }
    assert (tmp_path / "mine" / ".dvc" / "plots" / "curves.json").exists()


def test_the_version_is_that_of_the_tag_and_without_git_that_of_pyproject(tmp_path: Path) -> None:
    pytest.importorskip("setuptools_scm")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-m", "setuptools_scm"]
    bare = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert bare == f"{tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools_scm']['fallback_version']}\n"
    says(tmp_path, "git", "init", "--quiet")
    commit(tmp_path)
    says(tmp_path, "git", "tag", "v3.2.1")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "3.2.1\n"
