"""Before NumPy is imported: one thread, as in the commands; several are slower beside other work. And what several files test."""

import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from project import SNAKEMAKE, commit, project, says, twin

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


ENGINES = {
    f"tests/test_{name}.py" for name in ("card", "dvc", "pipeline", "rebuild", "secrets", "start")
}  # which share what whole engines have made


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """With several workers a file's tests stay together, and so do those of whole engines."""

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "engines" if file in ENGINES else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What a command begins with so that it ends where torch is imported."""
    package = tmp_path_factory.mktemp("first") / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("import os\nos.write(2, b'torch was imported')\nos._exit(9)\n")
    paths = [str(package.parent), os.environ.get("PYTHONPATH", "")]
    return "env", f"PYTHONPATH={os.pathsep.join(filter(None, paths))}"


@pytest.fixture(scope="session")
def by_snakemake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `snakemake`: read it, change only a twin."""
    where = project(tmp_path_factory.mktemp("snakemake"))
    says(where, *SNAKEMAKE)
    return where


@pytest.fixture(scope="session")
def handed(by_snakemake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a handoff: both engines know everything. Its cache is pushed to a folder that clones know of."""
    where = twin(by_snakemake, tmp_path_factory.mktemp("handed"))
    says(where, "maskdit", "handoff", "--to", "dvc", "demo")
    says(where, "dvc", "remote", "add", "--default", "shared", str(tmp_path_factory.mktemp("remote")))
    commit(where)
    says(where, "dvc", "push")
    return where


@pytest.fixture(scope="session")
def clone(handed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that has pulled the artifacts: DVC knows everything, Snakemake nothing."""
    where = tmp_path_factory.mktemp("clone") / "clone"
    says(handed, "git", "clone", "--quiet", str(handed), str(where))
    says(where, "dvc", "pull")
    return where
