"""Before NumPy is imported: one thread, as in the commands; several are slower beside other work. And what several files test.

All tests compute on the CPU, whatever GPUs this machine has: some start more processes than it may have GPUs.
"""

import fcntl
import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from project import SNAKEMAKE, commit, project, says, twin

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ["MASKDIT_DEVICE"] = "cpu"


LONG = ("engines/test_handoff", "engines/test_pipeline", "tools/test_study", "benchmark/test_bench", "training/test_recovery")
LONG += ("training/test_learner", "engines/test_rebuild", "engines/test_threads", "engines/test_start", "test_hostile")
HANDED = ("tests/engines/test_handoff.py", "tests/engines/test_dvc.py")  # which share what both engines know


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: no worker ends alone with one of them."""
    places = {f"tests/{file}.py": place for place, file in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(LONG)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """With several workers a file's tests stay together, and so do those of what both engines know."""

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "handed" if file in HANDED else file

    config.option.loadscopereorder = False
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
    """The project after `snakemake`, made once for all workers: read it, change only a twin."""
    home = tmp_path_factory.getbasetemp()
    where = (home.parent if "PYTEST_XDIST_WORKER" in os.environ else home) / "snakemake"
    with where.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done := where.with_suffix(".done")).exists():
            says(project(where), *SNAKEMAKE)
            done.touch()
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
