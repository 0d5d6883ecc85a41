"""Before NumPy is imported: one thread, as in the commands; several are slower beside other work. And what several files test."""

import os
from pathlib import Path

import pytest

from project import SNAKEMAKE, project, says

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def by_snakemake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `snakemake`: read it, change only a twin."""
    where = project(tmp_path_factory.mktemp("snakemake"))
    says(where, *SNAKEMAKE)
    return where
