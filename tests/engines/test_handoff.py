"""What one engine has made and the other takes over: clones, changed numbers, and handoffs that are refused."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from project import GUIDED, PLAIN, REFINED, SCORED, SHOWN, SNAKEMAKE, STAGES, edit, metrics, nodes, plan, project, run, says, twin

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
    assert "Nothing to be done" in says(where, *SNAKEMAKE, "--dry-run")
    change(where, "finetune.lr")
    changed = {"finetune@demo-maskdit"} | REFINED
    if pulled == "everything":
        assert plan(where) == changed
    else:  # and what makes their inputs
        assert plan(where) > changed


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


def test_a_handoff_to_dvc_is_refused_and_changes_nothing_while_something_is_stale(handed: Path, tmp_path: Path) -> None:
    where = twin(handed, tmp_path)
    change(where, "finetune.lr")
    before = known(where)
    code, said = run(where, "maskdit", "handoff", "--to", "dvc", "demo")
    assert (code, said.count("\n")) == (2, 1)
    assert "handoff: finetune/demo-maskdit is stale: lr 0.001, params.yaml says 0.003; run snakemake" in said
    assert known(where) == before


def test_a_handoff_to_snakemake_pulls_what_is_missing_and_then_nothing_is_to_be_done(handed: Path, tmp_path: Path) -> None:
    says(tmp_path, "git", "clone", "--quiet", str(handed), "clone")
    where = tmp_path / "clone"
    assert "snakemake has nothing of demo to make" in says(where, "maskdit", "handoff", "--to", "snakemake", "demo")
    assert "Nothing to be done" in says(where, *SNAKEMAKE, "--dry-run")
    assert metrics(where) == metrics(handed)


@pytest.mark.parametrize("folder", ["artifacts", "results"])
def test_dvc_is_not_used_where_a_link_leads_out_of_the_project_and_the_line_says_what_to_do(folder: str, tmp_path: Path) -> None:
    where = project(tmp_path / "project")
    shutil.rmtree(where / folder, ignore_errors=True)
    (tmp_path / "disk").mkdir()
    (where / folder).symlink_to(tmp_path / "disk")
    line = (
        f"maskdit: {folder}: leads to {tmp_path / 'disk'}, and DVC tracks nothing outside the project; mount the other disk there "
    )
    for command in (("maskdit", "handoff", "--to", "dvc", "demo"), ("dvc", "repro", "fetch@demo")):
        code, said = run(where, *command)
        assert code
        assert line in said
        assert "Traceback" not in said
    assert not list((tmp_path / "disk").iterdir()), "before any work is done"


def test_files_dated_in_the_future_change_no_plan(handed: Path, tmp_path: Path) -> None:
    where = twin(handed, tmp_path)
    later = time.time() + 10 * 365 * 86400
    places = [path for part in ("artifacts", "results", ".scratch") for path in (where / part).rglob("*")]
    for at, path in enumerate([where / "params.yaml", *places]):
        os.utime(path, (later + at * 7919 % 10**6,) * 2)
    assert "Nothing to be done" in says(where, *SNAKEMAKE, "--dry-run")
    assert "up to date" in says(where, "dvc", "status", "--with-deps", *STAGES)
    change(where, "finetune.lr")
    assert plan(where) == {"finetune@demo-maskdit"} | REFINED == to_make(where)


def test_a_number_that_was_edited_while_steps_ran_and_restored_is_planned_again_by_both_engines(
    handed: Path, tmp_path: Path
) -> None:
    where = twin(handed, tmp_path)
    before = (where / "params.yaml").read_bytes()
    change(where, "evaluate.neighbours")
    for name in (PLAIN, GUIDED):
        says(where, "maskdit", "evaluate", name)
    says(where, "maskdit", "table", "demo")
    (where / "params.yaml").write_bytes(before)
    assert plan(where) == SCORED | SHOWN == to_make(where)
    assert nodes(says(where, "dvc", "repro", "--dry", *STAGES)) >= SCORED | {"table@demo"}
    says(where, *SNAKEMAKE)
    assert metrics(where) == metrics(handed)


COPIES = {
    "cp": ("cp", "-r"),
    "rsync": ("rsync", "--recursive", "--links"),
    "a bucket": ("cp", "-r", "--preserve=mode"),
}


@pytest.mark.parametrize("how", ["cp", "a bucket", pytest.param("rsync", marks=pytest.mark.slow)])
def test_a_copy_without_times_and_history_makes_nothing(how: str, by_snakemake: Path, tmp_path: Path) -> None:
    where = tmp_path / "copy"
    if not shutil.which(COPIES[how][0]):
        pytest.skip(f"{COPIES[how][0]} is not installed")
    says(tmp_path, *COPIES[how], f"{by_snakemake}/", str(where))
    for folder in (".snakemake", ".scratch"):
        shutil.rmtree(where / folder)
    if how == "a bucket":
        for at, path in enumerate(sorted((where / "results").rglob("*"))):
            os.utime(path, (at * 7919 % 10**9 + 1,) * 2)
    assert "Nothing to be done" in says(where, *SNAKEMAKE, "--dry-run")
    if how == "cp":
        before = ledger(where)
        says(where, "dvc", "repro", *STAGES)
        assert ledger(where) == before, "DVC runs every step, and none computes"
    change(where, "finetune.lr")
    assert plan(where) == {"finetune@demo-maskdit"} | REFINED == to_make(where)


def test_milestones_added_at_the_end_make_only_their_own_by_both_engines(by_snakemake: Path, tmp_path: Path) -> None:
    own = (
        {f"{verb}@demo-dit-more" for verb in ("sample", "features", "evaluate")}
        | {"pretrain@demo-dit"}
        | SHOWN - {"strip@demo", "curves@demo"}
    )
    for engine, command in {"snakemake": SNAKEMAKE, "dvc": ("dvc", "repro", *STAGES)}.items():
        where = twin(by_snakemake, tmp_path / engine)
        edit(where / "params.yaml", "milestones: [2, 4]", "milestones: [2, 4, 6]")
        edit(where / "params.yaml", "    <<: *demo-pretrain\n", "    <<: *demo-pretrain\n    milestones: [2, 4]\n")
        edit(where / "params.yaml", "\nfeatures:\n", "  demo-dit-more: {<<: *demo-sample, step: 6}\n\nfeatures:\n")
        assert to_make(where) == own
        before = len(ledger(where))
        says(where, *command)
        assert {f"{row['verb']}@{row['key']}" for row in ledger(where)[before:]} == own, engine
        assert to_make(where) == set()


def ledger(where: Path) -> list[dict[str, object]]:
    """The steps that computed."""
    return [json.loads(line) for line in (where / "logs" / "ledger.jsonl").read_text().splitlines()]


def to_make(where: Path) -> set[str]:
    """What `maskdit status` says is to be made."""
    told = json.loads(says(where, "maskdit", "status", "demo", "--json"))["nodes"]
    return {node.replace("/", "@") for node, each in told.items() if each["make"]}
