"""What the README and the design promise of the tree."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "maskdit").glob("*.py"))


def test_every_place_in_the_readme_s_map_exists():
    places = re.findall(r"`(\w+\.py)::(\w+)`", (ROOT / "README.md").read_text())
    assert len(places) > 10
    for file, name in places:
        tree = ast.parse((ROOT / "src" / "maskdit" / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in names, f"README.md names {file}::{name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_stays_short_enough_to_answer_one_question(path):
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_executes_what_it_reads(path):
    forbidden = (
        "weights_only=False",
        "allow_pickle=True",
        r"\bimport pickle\b",
        r"\bfrom pickle import (?!UnpicklingError\s)",
        r"extractall\(",
        "shell=True",
        r"yaml\.load\(",
        r"torch\.hub",
        r"torch\.save\(",
    )
    allowed = {
        ("export.py", r"torch\.save\("),  # MaskDiT's own code reads nothing else; our checkpoints are safetensors
        ("inception.py", r"torch\.save\("),  # into memory, for a library that takes nothing else
    }
    assert not [each for each in forbidden if re.search(each, path.read_text(), re.M) and (path.name, each) not in allowed]


def test_the_lock_is_exact_and_holds_every_direct_dependency():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    names = {re.split("==", line)[0].lower().replace("_", "-") for line in lines}
    assert all("==" in line for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split("[>=]", name)[0].lower() for name in direct} <= names


def test_snakemake_s_lint_complains_of_the_missing_container_only():
    # The environment is the pip lock; there is no image to name.
    done = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True)
    assert set(re.findall(r"^ +\* (.*):$", done.stderr, re.M)) == {"Specify a conda environment or container for each rule."}


def test_every_test_that_a_page_names_exists():
    for page in (ROOT / "docs").glob("*.md"):
        for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", page.read_text()):
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{page.name} names {file}::{name}"
    assert (ROOT / "docs" / "reliability.md").read_text().count("test_kills.py::") >= 6
