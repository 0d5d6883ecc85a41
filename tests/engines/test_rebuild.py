"""What people read, made again from the records alone: without artifacts, without torch, without a training."""

import csv
import re
import shutil
import time
from pathlib import Path

import pytest

from project import ROOT, SNAKEMAKE, nodes, project, says, twin

pytestmark = pytest.mark.pipeline

READ = {"table@demo", "curves@demo", "efficiency@demo", "claims@claims", "report@demo"}
VERBS = ["maskdit table demo", "maskdit curves demo", "maskdit efficiency demo", "maskdit claims claims", "maskdit report demo"]
PICTURES = ("grid_demo-dit.png", "grid_demo-maskdit.png", "strip_demo.png")


def kept(where: Path, *names: str) -> Path:
    """The project without artifacts, and of its results only the records and these files."""
    for folder in ("artifacts", ".scratch", "results/scores"):
        shutil.rmtree(where / folder)
    for path in (where / "results").iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()
    return where


def read(where: Path) -> dict[str, bytes]:
    """Every file of the results but the report, whose costs grow, and the pictures of samples."""
    files = [path for path in (where / "results").rglob("*") if path.is_file() and not path.name.startswith(".snakemake")]
    others = ("report_demo.html", "report_demo.json", *PICTURES)
    return {str(path.relative_to(where)): path.read_bytes() for path in files if path.name not in others}


def sections(where: Path) -> dict[str, str]:
    """The report in parts."""
    text = (where / "results" / "report_demo.html").read_text()
    return dict(re.findall(r'<section id="(\w+)">(.*?)</section>', text, re.S))


@pytest.mark.parametrize("how", ["snakemake", "snakemake without its history", "verbs"])
def test_all_that_people_read_is_made_again_from_the_records_alone(
    how: str, by_snakemake: Path, without_torch: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = kept(twin(by_snakemake, tmp_path))
    if how == "snakemake without its history":
        shutil.rmtree(where / ".snakemake")
    if how != "verbs":
        assert nodes(says(where, *without_torch, *SNAKEMAKE, "--dry-run")) == READ
    began = time.monotonic()
    for command in VERBS if how == "verbs" else [" ".join(SNAKEMAKE)]:
        says(where, *without_torch, *command.split())
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{how}: {seconds:.1f} s without torch")
    assert seconds < 60
    assert read(where) == read(by_snakemake)
    before, after = sections(by_snakemake), sections(where)
    assert [name for name in before if before[name] != after[name]] == ["summary", "samples", "graph", "provenance", "costs"]
    assert [name for name in PICTURES if f"not run: {name} does not exist" in after["summary"] + after["samples"]] == list(PICTURES)
    assert not (where / "artifacts").exists()
    if how != "verbs":
        assert "Nothing to be done" in says(where, *SNAKEMAKE, "--dry-run")


def test_pictures_that_are_kept_are_shown_and_newer_code_starts_no_training(by_snakemake: Path, tmp_path: Path) -> None:
    where = kept(twin(by_snakemake, tmp_path), *PICTURES)
    shutil.rmtree(where / ".snakemake")
    for name in ("grid.py", "records.py"):
        (where / "src" / "maskdit" / name).touch()
    assert nodes(says(where, *SNAKEMAKE)) == READ
    assert sections(where)["samples"] == sections(by_snakemake)["samples"]


def test_a_picture_that_is_lost_is_drawn_again_while_its_samples_are_here(by_snakemake: Path, tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    for name in ("report_demo.html", *PICTURES):
        (where / "results" / name).unlink()
    assert nodes(says(where, *SNAKEMAKE)) == {"grid@demo-dit", "grid@demo-maskdit", "strip@demo", "report@demo"}
    assert all((where / "results" / name).read_bytes() == (by_snakemake / "results" / name).read_bytes() for name in PICTURES)


def test_the_paper_s_table_is_made_of_whatever_records_there_are(without_torch: tuple[str, str], tmp_path: Path) -> None:
    where = project(tmp_path, ROOT / "params.yaml")
    says(where, *without_torch, "maskdit", "table", "in256")
    rows = list(csv.DictReader((where / "results" / "table_in256.csv").read_text().splitlines()))
    assert {row["model"] for row in rows if row["eval"].startswith("in256-")} == {"not run"}
    assert len([row for row in rows if row["phase"] == "reported"]) > 1
