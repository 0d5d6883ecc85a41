"""The card of exported weights: their own results, under the names that the records give them, as the Hugging Face hub reads it."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from maskdit.cli import main
from project import restated, twin

pytestmark = pytest.mark.pipeline

GUIDED = Path("results/metrics/demo/demo-maskdit-guided.json")


def card(run: str, out: Path, *words: str) -> ModelCard:
    """The card of a run that is exported here."""
    paths = [str(Path("artifacts/runs") / run), "--vae", "artifacts/vae/demo", "--out", str(out)]
    assert main(["export", "--format", "diffusers", *paths, *words]) == 0
    return ModelCard.load(out / "README.md")


@pytest.fixture
def here(by_snakemake: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(by_snakemake)
    return by_snakemake


def test_a_card_has_the_results_of_its_weights_under_the_names_of_the_record(here: Path, tmp_path: Path) -> None:
    record = json.loads(GUIDED.read_text())
    found = card("demo-maskdit/finetune", tmp_path / "hub")
    results = found.data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == record["metrics"]
    assert {"fd_mobilenet", "probe_accuracy"} <= record["metrics"].keys()
    assert "fid" not in found.content.lower(), "a distance of other features is none"
    assert found.data.model_name == "MaskDiT, 6 training steps"
    assert "| training steps | 6 (4 of pretraining and 2 of finetuning) |" in found.content
    assert "| images seen in training | 48 |" in found.content, "of 8 a step"
    assert {(result.dataset_type, result.dataset_name) for result in results} == {("openmoji", "openmoji, 16 pixels")}
    told = {"evaluation": GUIDED.stem, "guidance": 2.0, "images": 16, "nfe": record["protocol"]["nfe"]}
    assert all(result.metric_args.items() >= told.items() for result in results)


def test_a_card_of_weights_that_were_not_measured_has_no_model_index(here: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    measured = {
        words: card("demo-dit/pretrain", tmp_path / f"hub{number}", *words).data.get("eval_results") is not None
        for number, words in enumerate([("--step", "2"), ("--step", "4"), ("--weights", "net"), ("--metrics", str(empty))])
    }
    assert measured == {words: words == ("--step", "2") for words in measured}
    assert "model-index" not in (tmp_path / "hub1" / "README.md").read_text()


def test_a_card_takes_no_record_of_another_making_of_the_run(here: Path, tmp_path: Path) -> None:
    other = twin(here / "artifacts" / "runs" / "demo-maskdit" / "finetune", tmp_path / "finetune")
    restated(other / "manifest.json", lambda tree: tree["lineage"]["finetune/demo-maskdit"].update(digest="0" * 64))
    assert card(str(other), tmp_path / "hub").data.get("eval_results") is None


@pytest.mark.parametrize("case", ["a record that was changed", "no such folder"])
def test_an_export_is_refused_for(case: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "metrics"
    if case == "a record that was changed":
        record = json.loads(GUIDED.read_text())
        record["metrics"]["fd_mobilenet"] = 1.0
        folder.mkdir()
        (folder / GUIDED.name).write_text(json.dumps(record))
    words = ["--format", "diffusers", "--vae", "artifacts/vae/demo", "--out", str(tmp_path / "hub"), "--metrics", str(folder)]
    assert main(["export", "artifacts/runs/demo-maskdit/finetune", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder}/{GUIDED.name} was changed since it was written" in line or f"{folder}: no such folder" in line
    assert not (tmp_path / "hub").exists()
