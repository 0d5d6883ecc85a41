"""Before NumPy is imported: one thread, as in the commands; several are slower beside other work. And what several files test."""

import os
from pathlib import Path

import pytest

from project import SNAKEMAKE, project, says

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers a file's tests stay together, and so do all that run a whole engine: they share what it made."""
    for item in items:
        group = "pipeline" if item.get_closest_marker("pipeline") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def by_snakemake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `snakemake`: read it, change only a twin."""
    where = project(tmp_path_factory.mktemp("snakemake"))
    says(where, *SNAKEMAKE)
    return where
