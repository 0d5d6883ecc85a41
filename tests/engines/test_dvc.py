"""What a user asks of DVC: metrics, plots, parameters, an ablation from the command line, tables from a remote alone."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from project import edit, nodes, says, twin

pytestmark = pytest.mark.pipeline

EVALS = ("demo-dit-plain", "demo-maskdit-guided")
SCORES = {f"results/scores/demo/{name}.yaml": name for name in EVALS}
NEIGHBOURS = ["evaluate.demo.neighbours"]
TABLES = ("table@demo", "curves@demo")


def records(where: Path) -> dict[str, dict[str, float]]:
    """The metrics of the record of each evaluation, by where its scores lie."""
    files = {path: where / "results" / "metrics" / "demo" / f"{name}.json" for path, name in SCORES.items()}
    return {path: json.loads(file.read_text())["metrics"] for path, file in files.items()}


def shown(where: Path) -> dict[str, dict[str, float]]:
    """What `dvc metrics show` says of each file."""
    [told] = json.loads(says(where, "dvc", "metrics", "show", "--json")).values()  # of the workspace
    return {path: found["data"] for path, found in told["data"].items()}


@pytest.fixture(scope="module")
def ablated(handed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The project after an ablation from the command line, and what DVC said."""
    where = twin(handed, tmp_path_factory.mktemp("ablated"))
    numbers = [word for name in NEIGHBOURS for word in ("-S", f"{name}=5")]
    return where, says(where, "dvc", "exp", "run", "-n", "five", *numbers, *TABLES)


def test_metrics_show_prints_the_numbers_of_each_record_and_nothing_else(handed: Path) -> None:
    assert shown(handed) == records(handed)
    head, *rows = says(handed, "dvc", "metrics", "show").splitlines()
    assert set(head.split()) == {"Path", *records(handed)[next(iter(SCORES))]}
    assert {row.split()[0] for row in rows} == set(SCORES)


def test_an_ablation_from_the_command_line_runs_what_reads_the_number_and_what_that_feeds(ablated: tuple[Path, str]) -> None:
    where, said = ablated
    assert nodes(said) == {*(f"evaluate@{name}" for name in EVALS), *TABLES}
    assert yaml.safe_load((where / "params.yaml").read_text())["evaluate"] == {"demo": {"neighbours": 5}}
    assert all("precision_k5_mobilenet" in found for found in records(where).values())
    head, *rows = says(where, "dvc", "exp", "show", "--csv").splitlines()
    assert "precision_k5_mobilenet" in head
    assert any("five" in row.split(",") for row in rows)


def test_metrics_diff_and_params_diff_name_what_an_ablation_has_changed(ablated: tuple[Path, str], handed: Path) -> None:
    where, _ = ablated
    old, new = records(handed), records(where)
    changed = json.loads(says(where, "dvc", "metrics", "diff", "--json"))
    for path in SCORES:
        told = {name: (value.get("old"), value.get("new")) for name, value in changed.pop(path).items()}
        assert told == {name: (old[path].get(name), new[path].get(name)) for name in old[path].keys() ^ new[path].keys()}
    assert changed == {}
    numbers = json.loads(says(where, "dvc", "params", "diff", "--json"))
    assert numbers == {"params.yaml": {name: {"old": 3, "new": 5, "diff": 2} for name in NEIGHBOURS}}


def test_plots_show_draws_a_curve_of_each_model_against_what_it_has_cost(handed: Path, tmp_path: Path) -> None:
    where = twin(handed, tmp_path)
    said = says(where, "dvc", "plots", "show")
    page = (where / "dvc_plots" / "index.html").read_text()
    assert said.strip().endswith("dvc_plots/index.html")
    assert "failed" not in said
    assert "curves_demo.png" in page
    drawn = json.loads(says(where, "dvc", "plots", "show", "results/curves_demo.csv", "--show-vega"))
    [point] = drawn["data"]["values"]
    known = records(where)["results/scores/demo/demo-maskdit-guided.yaml"]
    assert (point["series"], float(point["fd_mobilenet"])) == ("MaskDiT", known["fd_mobilenet"])
    assert "datum['device_hours']" in json.dumps(drawn["transform"])
    assert float(point["device_hours"]) > 0
    assert "<DVC_METRIC" not in json.dumps(drawn)
    other = ("results/curves_demo.csv", "--template", "curves", "-x", "steps", "-y", "kid_mobilenet", "--show-vega")
    assert "datum['steps']" in says(where, "dvc", "plots", "show", *other), "as for a study that dvc.yaml does not name"
    assert says(where, "git", "status", "--porcelain") == ""


def test_a_clone_makes_a_changed_table_from_the_remote_without_training(handed: Path, tmp_path: Path) -> None:
    where = tmp_path / "clone"
    says(tmp_path, "git", "clone", "--quiet", str(handed), str(where))
    says(where, "dvc", "pull", "evaluate", "curves@demo")
    edit(where / "params.yaml", "table:\n  demo:\n    title: Toy", "table:\n  demo:\n    title: Another")
    said = says(where, "dvc", "repro", "--allow-missing", *TABLES)
    assert nodes(said) == {"table@demo"}
    assert "Another" in (where / "results" / "table_demo.tex").read_text()
    assert (where / "results" / "curves_demo.csv").read_bytes() == (handed / "results" / "curves_demo.csv").read_bytes()
    assert not (where / "artifacts").exists()
    assert shown(where) == records(handed)


def test_a_lost_result_comes_back_from_the_cache(clone: Path, tmp_path: Path) -> None:
    where = twin(clone, tmp_path)
    shutil.rmtree(where / "results")
    says(where, "dvc", "checkout")
    assert nodes(says(where, "dvc", "repro", *TABLES)) == set()
    assert records(where) == records(clone)


def test_an_experiment_in_a_folder_of_its_own_goes_on_from_the_project_s_states_and_leaves_its_own_there(
    handed: Path, tmp_path: Path
) -> None:
    where = twin(handed, tmp_path)
    longer = ("-S", "pretrain.demo-maskdit.milestones=[2, 4, 6]")
    said = says(where, "dvc", "exp", "run", "--temp", *longer, "pretrain@demo-maskdit")
    assert nodes(said) == {"pretrain@demo-maskdit"}
    assert f"{where}/.scratch/pretrain-" in said
    assert "resuming from step 4" in said
    assert len([*(where / ".scratch").glob("pretrain-*/state-000000006.json")]) == 1
    assert not [*(where / ".dvc" / "tmp" / "exps").glob("**/params.yaml")], "DVC has removed the folder"
