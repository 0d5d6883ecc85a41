"""What the README shows is copied from results/."""

import shutil
import sys
from pathlib import Path

import pytest

from maskdit.config.load import load
from project import ROOT, edit, run

PARAMS = load(ROOT / "params.yaml")
PARTS = ("curves_{}.png", "curves_{}.csv", "strip_{}.png", "table_{}.csv", "efficiency_{}.md")
FILES = {part.format(study): f"{part} of {study}" for part in PARTS for study in ("demo", "fashion")}
BENCHES = ("demo", "fashion", "fashion-ablation", *PARAMS.report["fashion"].sweeps)
FILES |= {f"metrics/{bench}/{name}.json": name for bench in BENCHES for name in PARAMS.of(bench)}
FILES |= {f"sweep_{sweep}.{suffix}": sweep for sweep in PARAMS.report["fashion"].sweeps for suffix in ("png", "csv", "md")}
READS = "axis,model,reads\nsteps,A,not this\ndevice_hours,A,too early\ndevice_hours,A,{} is here\ndevice_hours,A,not reached\n"
FILES |= {f"curves_{study}_crossing.csv": READS.format(study) for study in ("demo", "fashion")}
PAGES = ("docs/claims.md", "docs/performance.md")
TITLED = "Title\n\n| eval |\n"
FILES |= {"table_demo.md": TITLED, "table_fashion.md": TITLED, "table_fashion-ablation.md": "| switch |\n"}
FILES |= {"bench_cpu.png": "a picture", "bench_cpu.md": "| pair |\n"}
HEAD = "claim,says,verdict,direction,paper,ours,seeds,tolerance,source,from\n"
FILES["claims.csv"] = f"{HEAD}fid,FID of this | that,NOT RUN,,5.69,,,,README,\n"
FILES["fashion-claims.csv"] = f"{HEAD}time,a third of the time,SCALED-DOWN ONLY,as claimed,0.3,0.812,3,1.3%,abstract,x.csv\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The repository's README, docs and params.yaml, and results."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "params.yaml", *PAGES):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in FILES.items():
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def refresh(home: Path, study: str) -> tuple[int, str]:
    return run(home, sys.executable, str(ROOT / "docs" / "readme.py"), study)


@pytest.mark.parametrize(
    ("study", "row"),
    [
        ("demo", r"| fid | FID of this \| that | 5.69 |  |  | NOT RUN |"),
        ("fashion", "| time | a third of the time | 0.3 | 0.812 | 1.3% | SCALED-DOWN ONLY |"),
    ],
)
def test_readme_and_docs_show_a_study_s_curves_and_every_claim_with_its_verdict(home: Path, study: str, row: str) -> None:
    assert refresh(home, study) == (0, "")
    readme, claims, speed = texts = [(home / name).read_text() for name in ("README.md", *PAGES)]
    told, shown = readme.split("<!-- /opening -->")[0].split("<!-- opening -->\n")
    assert len(told) < 800, "it opens with them"
    picture, _, crossing, *_ = shown.split("\n")
    assert crossing == f"- {study} is here"
    assert picture.endswith(f"](docs/{study}/curves_{study}.png)")
    columns, _, claim, *_ = claims.split("<!-- claims -->\n")[1].split("\n")
    assert (columns, claim) == ("| id | claim | paper | ours | noise | verdict |", row)
    assert "<!-- table -->\nTitle\n\n| eval |\n<!-- /table -->" in claims
    assert "<!-- bench -->\n| pair |\n<!-- /bench -->" in speed
    assert ("<!-- ablation -->\n| switch |\n<!-- /ablation -->" in claims) == (study == "fashion")
    kept = {str(path.relative_to(home / "docs" / study)) for path in (home / "docs" / study).rglob("*.*")}
    assert kept == {name for name in FILES if study in name or name == f"{PARAMS.report[study].ledger}.csv"}
    assert all((home / "docs" / study / name).read_text() == FILES[name] for name in kept)
    assert refresh(home, study) == (0, "")
    assert [(home / name).read_text() for name in ("README.md", *PAGES)] == texts


def test_what_cannot_be_made_from_records_stays_as_docs_have_it(home: Path) -> None:
    assert refresh(home, "demo") == (0, "")
    lasting = {"strip_demo.png": "docs/demo", "bench_cpu.png": "docs", "bench_cpu.md": "docs"}
    for name in lasting:
        (home / "results" / name).unlink()
    (home / "results" / "table_demo.md").write_text("New\n")
    assert refresh(home, "demo") == (0, "")
    assert all((home / folder / name).read_text() == FILES[name] for name, folder in lasting.items())
    assert "<!-- table -->\nNew\n<!-- /table -->" in (home / "docs" / "claims.md").read_text()
    (home / "results" / "curves_demo.png").unlink()
    assert refresh(home, "demo")[0] == 2, "a figure that can be made has to be"


def test_a_sweep_that_was_not_run_is_left_out_and_one_that_was_has_all_its_records(home: Path) -> None:
    sweep = PARAMS.report["fashion"].sweeps[0]
    record = home / "results" / "metrics" / sweep / f"{PARAMS.of(sweep)[0]}.json"
    record.unlink()
    assert refresh(home, "fashion")[0] == 2, "its sheet is there"
    (home / "results" / f"sweep_{sweep}.md").unlink()
    assert refresh(home, "fashion") == (0, "")
    assert not (home / "docs" / "fashion" / "metrics" / sweep).exists()


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("claims.csv", "readme: results/claims.csv: no such file; make it first, with snakemake results/claims.csv\n"),
        ("README.md", "readme: README.md: has no block <!-- opening --> … <!-- /opening -->; insert it where it is to be\n"),
    ],
)
def test_without_a_result_or_a_block_one_line_says_so_and_nothing_is_written(home: Path, missing: str, line: str) -> None:
    if missing == "README.md":
        edit(home / missing, "<!-- opening -->", "")
    else:
        (home / "results" / missing).unlink()
    before = (home / "README.md").read_text()
    assert refresh(home, "demo") == (2, line)
    assert (home / "README.md").read_text() == before
    assert not (home / "docs" / "demo").exists()
