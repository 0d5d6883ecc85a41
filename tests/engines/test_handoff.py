"""What one engine has made and the other takes over: clones, changed numbers, and handoffs that are refused."""

import shutil
from pathlib import Path

import pytest

from project import REFINED, SCORED, SHOWN, SNAKEMAKE, STAGES, edit, metrics, nodes, plan, run, says, twin

pytestmark = pytest.mark.pipeline

CHANGES = {  # what is there, what is there instead, the nodes that read it, the nodes that it feeds
    "finetune.lr": ("lr: 1.0e-3", "lr: 3.0e-3", {"finetune@demo-maskdit"}, REFINED),
    "reference.batch": (
        "extractor: demo-features\n    batch: 64",
        "extractor: demo-features\n    batch: 32",
        {"reference@demo"},
        SCORED | SHOWN,
    ),
    "evaluate.neighbours": ("neighbours: 3", "neighbours: 2", SCORED, SHOWN),
    "grid.columns": ("columns: 2", "columns: 3", {"grid@demo-maskdit"}, {"report@demo"}),
}


def change(where: Path, name: str) -> None:
    old, new, *_ = CHANGES[name]
    edit(where / "params.yaml", old, new)


def known(where: Path) -> dict[str, bytes]:
    """What the engines have on record."""
    files = [where / "dvc.lock", *(where / ".snakemake" / "metadata").rglob("*")]
    return {str(path.relative_to(where)): path.read_bytes() for path in files if path.is_file()}


def test_dvc_runs_nothing_of_what_snakemake_made_and_handed_over(handed: Path) -> None:
    assert "Running stage" not in says(handed, "dvc", "repro", *STAGES[:2])
    assert "up to date" in says(handed, "dvc", "status", "--with-deps", *STAGES)
    assert "Nothing to be done" in says(handed, *SNAKEMAKE, "--dry-run")
    assert says(handed, "git", "status", "--porcelain") == ""


def test_a_clone_pulls_the_artifacts_and_dvc_runs_nothing(clone: Path, handed: Path) -> None:
    said = says(clone, "dvc", "repro", *STAGES[:2])
    assert "Running stage" not in said
    assert "up to date" in said
    assert metrics(clone) == metrics(handed) != {}


@pytest.mark.parametrize("pulled", ["everything", "results"])
def test_snakemake_takes_over_what_dvc_pulled_and_sees_a_later_change(pulled: str, clone: Path, tmp_path: Path) -> None:
    where = twin(clone, tmp_path)
    if pulled == "results":
        shutil.rmtree(where / "artifacts")
    says(where, "maskdit", "handoff", "--to", "snakemake", "demo")
    assert "Nothing to be done" in says(where, *SNAKEMAKE, "--dry-run")
    change(where, "finetune.lr")
    changed = {"finetune@demo-maskdit"} | REFINED
    if pulled == "everything":
        assert plan(where) == changed
    else:  # and what makes their inputs; the strip shows the other model, whose samples nobody makes for a picture
        assert plan(where) > changed - {"strip@demo"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_number_reruns_what_it_feeds_and_no_more(name: str, handed: Path, tmp_path: Path) -> None:
    where, (*_, own, fed) = twin(handed, tmp_path), CHANGES[name]
    change(where, name)
    assert plan(where) == own | fed
    assert nodes(says(where, "dvc", "repro", "--dry", *STAGES)) == own  # what it feeds shows when they have run


def test_both_engines_run_what_a_changed_number_feeds_and_agree(handed: Path, tmp_path: Path) -> None:
    changed = {}
    for engine, command in {"snakemake": SNAKEMAKE, "dvc": ("dvc", "repro", *STAGES)}.items():
        where = twin(handed, tmp_path / engine)
        change(where, "evaluate.neighbours")
        assert nodes(says(where, *command)) == SCORED | SHOWN
        assert nodes(says(where, *command)) == set()
        changed[engine] = metrics(where)
    assert changed["snakemake"] == changed["dvc"]


REFUSALS = {  # which project, what is done to it, where the handoff goes, what it says
    "jobs are left": ("handed", "finetune.lr", "dvc", "Snakemake has jobs left: run snakemake results/table_demo.csv"),
    "Snakemake has no provenance": ("by_snakemake", "forget", "dvc", "Snakemake did not make these files"),
    "stages are left": ("handed", "finetune.lr", "snakemake", "DVC has stages left: run dvc repro table@demo"),
    "DVC knows nothing": ("by_snakemake", "nothing", "snakemake", "DVC has stages left"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_handoff_is_refused_and_changes_nothing_when(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    start, done, to, message = REFUSALS[case]
    where = twin(request.getfixturevalue(start), tmp_path)
    if done == "forget":
        (where / ".snakemake").rename(tmp_path.with_suffix(".forgotten"))
    elif done in CHANGES:
        change(where, done)
    before = known(where)
    code, said = run(where, "maskdit", "handoff", "--to", to, "demo")
    assert (code, said.count("\n")) == (2, 1)
    assert message in said
    assert known(where) == before


@pytest.mark.parametrize("to", ["dvc", "snakemake"])
def test_a_handoff_refuses_what_an_engine_was_talked_into(to: str, handed: Path, tmp_path: Path) -> None:
    where = twin(handed, tmp_path)
    change(where, "finetune.lr")
    lie = {"dvc": ("snakemake", "--touch", "--forceall"), "snakemake": ("dvc", "commit", "--force", "--with-deps", *STAGES)}
    says(where, *lie[to])  # it now believes that these files have today's numbers
    before = known(where)
    code, said = run(where, "maskdit", "handoff", "--to", to, "demo")
    assert (code, said.count("\n")) == (2, 1)
    assert "finetune/demo-maskdit was made with lr 0.001, params.yaml says 0.003" in said
    assert known(where) == before


def test_a_handoff_of_what_was_not_pulled_says_so(handed: Path, tmp_path: Path) -> None:
    says(tmp_path, "git", "clone", "--quiet", str(handed), "clone")
    code, said = run(tmp_path / "clone", "maskdit", "handoff", "--to", "snakemake", "demo")
    assert (code, said.count("\n")) == (2, 1)
    assert said.endswith("is not here: run dvc pull first\n")
