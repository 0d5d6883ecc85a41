"""What `status`, `clean` and `verify` say of a study: its state, what may go, what has changed."""

import fcntl
import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hashes import TREE, changed, made, params_of, run, study  # noqa: F401, fixtures
from maskdit.artifacts.atomic import digest
from maskdit.artifacts.compute_log import append
from maskdit.artifacts.freshness import CURRENT, Freshness
from maskdit.config.base import UserError
from maskdit.config.params import Params
from maskdit.config.paths import output
from maskdit.runtime.lock import running, runs, sign
from maskdit.tools.clean import clean
from maskdit.tools.status import status
from maskdit.tools.verify import verify
from project import restated

SAMPLE = "demo-maskdit-guided"


def told(params: Params, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    """Each node as `status --json` tells it."""
    capsys.readouterr()
    status(params, "demo", as_json=True)
    return json.loads(capsys.readouterr().out)["nodes"]


def test_a_study_that_is_made_says_so_in_one_line(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    status(made, "demo")
    assert capsys.readouterr().out.splitlines()[-1] == "demo: everything is made"
    status(made, None)
    assert capsys.readouterr().out.splitlines()[1].split() == ["demo", "22", "22", "0"]


def test_all_nodes_are_listed_also_without_a_study(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    status(made, None, whole=True)
    said = capsys.readouterr().out.splitlines()
    assert {line for line in said if line.endswith(": current")} == {f"  {node}: current" for node in Freshness(made).edges}
    assert said[-1] == "all studies: everything is made"


def test_a_stale_node_tells_which_number_and_what_its_making_costs(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(changed("pretrain", "demo-maskdit", "lr", 0.5), capsys)
    node = found["pretrain/demo-maskdit"]
    assert (node["state"], node["make"]) == ("stale", True)
    assert node["why"] == "lr 0.002, params.yaml says 0.5"
    assert node["device_hours"] > 0
    assert found["pretrain/demo-dit"] == {"state": "current", "why": "", "make": False, "device_hours": 0.0}


def test_a_longer_training_costs_only_what_is_left(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    cost = {}
    for steps in ([2, 4, 8], [2, 3, 4, 8]):
        tree = {**TREE, "pretrain": {**TREE["pretrain"], "demo-maskdit": {**TREE["pretrain"]["demo-maskdit"], "milestones": steps}}}
        cost[len(steps)] = told(params_of(tree), capsys)["pretrain/demo-maskdit"]["device_hours"]
    assert cost[4] == pytest.approx(cost[3] * 7 / 4), "steps 4 to 8, and 0 to 3 once more for the inserted milestone"


def test_what_runs_has_failed_was_stopped_or_deleted_is_told_apart(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(output(made, "sample/demo-dit-plain"))
    now = changed("vae", "demo", "steps", 5)
    row = {"verb": "encode", "key": "demo", "seconds": 1.0, "exit": 2}
    append(row)
    append({**row, "verb": "pretrain", "key": "demo-dit", "exit": 85})
    with running("vae", "demo", None):
        found = told(now, capsys)
    assert {found[node]["state"] for node in ("encode/demo", "pretrain/demo-dit", "vae/demo")} == {"failed", "stopped", "running"}
    assert found["encode/demo"]["why"] == "see logs/encode/demo.log"
    assert f"process {os.getpid()}" in str(found["vae/demo"]["why"])
    assert told(now, capsys)["vae/demo"]["state"] == "stale", "its sign is gone with it"
    assert told(made, capsys)["sample/demo-dit-plain"]["state"] == "deleted"


def test_what_is_made_again_because_of_another_node_is_listed_with_it(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    output(made, "table/demo").write_text("1150")
    status(made, "demo")
    said = capsys.readouterr().out
    assert "> table/demo: stale: results/table_demo.csv is not the file that was written" in said
    assert "> report/demo: current: after table/demo" in said
    assert "demo: 2 of 22 nodes to make" in said


def test_an_unknown_study_is_refused_with_the_nearest_name(made: Params) -> None:
    with pytest.raises(UserError, match="did you mean 'demo'"):
        status(made, "dmo")


def test_clean_lists_what_may_go_and_deletes_only_what_is_named(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    def renamed(tree: dict[str, Any]) -> None:
        tree |= json.loads(json.dumps(tree).replace("pretrain/demo-dit", "pretrain/demo-old"))

    orphan = Path("artifacts/runs/demo-old/pretrain")
    shutil.copytree(output(made, "pretrain/demo-dit"), orphan)
    restated(orphan / "manifest.json", renamed)
    for spared in ("artifacts/samples/.demo.abcd", "artifacts/runs/imported/released"):
        shutil.copytree(output(made, f"sample/{SAMPLE}"), spared)
    clean(made, [])
    said = capsys.readouterr().out
    assert str(orphan) in said
    assert "params.yaml has no pretrain/demo-old" in said
    assert ".demo.abcd" not in said
    assert "imported" not in said
    assert "Nothing was deleted" in said
    assert orphan.exists()
    clean(made, ["unnamed"], yes=True)
    assert not orphan.exists()
    assert Freshness(made).unmade == set()
    clean(made, ["samples"], yes=True)
    assert not output(made, f"sample/{SAMPLE}").exists()
    assert Freshness(made).unmade == set(), "what was evaluated is not needed again"


def test_clean_spares_what_is_needed_and_what_runs(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    now = changed("evaluate", "demo", "neighbours", 2)
    clean(now, [])
    assert "artifacts/features" not in capsys.readouterr().out, "their evaluations are to be made again"
    with running("features", SAMPLE, (1, 2)):
        clean(made, ["samples"], yes=True)
    assert output(made, f"features/{SAMPLE}").exists()
    assert not output(made, "features/demo-dit-plain").exists()


def test_clean_spares_a_training_that_runs_whatever_params_yaml_says_meanwhile(
    made: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(".scratch") / "pretrain-one"
    folder.mkdir(parents=True)
    (folder / "state-000000004.json").write_text(json.dumps({"recipe": "of other numbers"}))
    (folder / "node").write_text("pretrain/demo-dit\n")
    with running("pretrain", "demo-dit", None):
        clean(made, ["states", "scratch"])
    assert capsys.readouterr().out == "clean: nothing to delete\n"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clean(made, ["states", "scratch"])
    assert capsys.readouterr().out == "clean: nothing to delete\n"
    clean(made, ["scratch"], yes=True)
    assert folder.exists(), "its states may be wanted again"


def test_an_artifact_whose_manifest_is_damaged_is_never_offered(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    (output(made, "pretrain/demo-dit") / "manifest.json").write_text("{")
    Path("artifacts/samples/dangling").symlink_to("nowhere")
    clean(made, [])
    said = capsys.readouterr().out
    assert "runs/demo-dit" not in said
    assert "dangling" not in said


@pytest.mark.parametrize("record", ["", "[]", '{"recipe": [1]}', "{"])
def test_a_damaged_record_of_a_state_stops_nothing(record: str, made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(".scratch") / "pretrain-one"
    folder.mkdir(parents=True)
    (folder / "state-000000004.json").write_text(record)
    (folder / "node").write_bytes(b"\xff\xfe")
    clean(made, ["states", "scratch"])
    assert str(folder) not in capsys.readouterr().out


def test_clean_knows_finished_trainings_and_work_of_entries_that_are_gone(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    for name, run_of in (("pretrain-one", "demo-dit"), ("pretrain-two", None)):
        folder = Path(".scratch") / name
        folder.mkdir(parents=True)
        entry = made.pretrain["demo-dit"] if run_of else made.pretrain["demo-dit"].model_copy(update={"lr": 9.0})
        (folder / "state-000000004.json").write_text(json.dumps({"recipe": digest(entry.recipe())}))
    folder = Path(".scratch") / "sample-three"
    folder.mkdir()
    (folder / "node").write_text("sample/demo-gone\n")
    for name, node in ((".encode-four", "encode/demo"), (".encode-five", "encode/demo-gone"), (".encode-six.gone", "encode/demo")):
        folder = output(made, "encode/demo").parent / name
        folder.mkdir()
        (folder / "node").write_text(f"{node}\n")
    clean(made, ["states", "scratch"])
    said = capsys.readouterr().out
    assert "pretrain/demo-dit is finished" in said
    assert "no entry of params.yaml has its numbers" in said
    assert "params.yaml has no sample/demo-gone" in said
    assert re.search(r"latents/\.encode-four +encode/demo is published", said)
    assert re.search(r"latents/\.encode-five +params\.yaml has no encode/demo-gone", said)
    assert "encode-six" not in said


@pytest.mark.parametrize(("kinds", "message"), [([], "clean: --yes deletes the kinds that you name"), (["all"], "no kind 'all'")])
def test_clean_refuses(kinds: list[str], message: str, made: Params) -> None:
    with pytest.raises(UserError, match=message):
        clean(made, kinds, yes=True)


def test_verify_finds_nothing_in_what_was_made(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(made, "demo")
    assert capsys.readouterr().out.splitlines()[-1] == "demo: 22 ok"


CHANGED = {
    "table": "table/demo",
    "curves": "curves/demo",
    "record": f"evaluate/{SAMPLE}",
    "weights": "finetune/demo-maskdit",
    "images": f"sample/{SAMPLE}",
    "picture": "grid/demo-dit",
    "claims": "claims/claims",
    "report": "report/demo",
}


@pytest.mark.parametrize("kind", CHANGED)
def test_verify_names_a_changed_digit_in_each_kind_of_file(kind: str, made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    out = output(made, CHANGED[kind])
    file = out if out.is_file() else next(path for path in sorted(out.iterdir()) if path.name != "manifest.json")
    content = bytearray(file.read_bytes())
    at = next(place for place, byte in enumerate(content) if chr(byte).isdigit())
    content[at] ^= 1  # another digit
    file.write_bytes(content)
    assert not verify(made, "demo")
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CHANGED")]
    assert len(wrong) == 1
    assert str(file) in wrong[0]


def test_verify_follows_a_cell_to_its_weights(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(made, SAMPLE)
    said = capsys.readouterr().out
    assert "read ema-0000002.safetensors" in said
    for node in (f"evaluate/{SAMPLE}", f"sample/{SAMPLE}", "finetune/demo-maskdit", "pretrain/demo-maskdit", "encode/demo"):
        assert f"ok        {node}: " in said


def test_verify_says_what_a_clone_with_records_only_cannot_check(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("artifacts")
    assert verify(made, "demo")
    said = capsys.readouterr().out
    assert "not here  pretrain/demo-dit: artifacts/runs/demo-dit/pretrain does not exist; what was made of it names " in said
    assert said.splitlines()[-1] == "demo: 10 ok, 12 not here"


def test_verify_names_a_manifest_without_its_own_node(made: Params, capsys: pytest.CaptureFixture[str]) -> None:
    file = output(made, "pretrain/demo-dit") / "manifest.json"
    restated(file, lambda tree: tree["lineage"].clear())
    assert not verify(made, "demo")
    assert "has a manifest that is not of pretrain/demo-dit" in capsys.readouterr().out


@pytest.mark.parametrize("field", [{"later": None}, {"seed": 0.0}, {"revision": True}])
def test_a_recorded_number_of_another_type_is_no_difference(field: dict[str, object], made: Params) -> None:
    file = output(made, "pretrain/demo-dit") / "manifest.json"
    restated(file, lambda tree: tree["lineage"]["pretrain/demo-dit"]["config"].update(field))
    assert Freshness(made).verdict("pretrain/demo-dit") == CURRENT


@pytest.mark.parametrize("process", ["1e400", 10**30, -1, 0, "x"])
def test_a_sign_with_an_impossible_process_is_of_nothing_that_runs(process: object, made: Params) -> None:
    path = sign("vae", "demo")
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"host": "{platform.node()}", "process": {process if process != "x" else "null"}, "slurm_job": null}}')
    assert runs(path) == ""
