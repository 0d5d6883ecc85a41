"""The example of a method beside DiT and MaskDiT, in both engines and in what they print: nothing else is edited for it."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from project import ROOT, SHOWN, SNAKEMAKE, commit, edit, nodes, says, twin

pytestmark = pytest.mark.pipeline
ENTRY = """  demo-mod:
    <<: *demo-pretrain
    method: methods/mixture_of_depths.py:Mixture
    options: {ratio: 0.75}
    encoder: {patch: 2, depth: 2, width: 16, heads: 2}

finetune:"""
SAMPLE = "  demo-mod-guided: {<<: *demo-sample, run: demo-mod, step: final, guidance: 2.0}\n  demo-maskdit-guided:\n"
SAMPLED = {f"{verb}@demo-mod-guided" for verb in ("sample", "features", "evaluate")}


def with_method(where: Path) -> Path:
    """A project whose study has an arm more."""
    shutil.copytree(ROOT / "examples" / "methods", where / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    edit(where / "params.yaml", "\nfinetune:", f"{ENTRY}")
    edit(where / "params.yaml", "  demo-maskdit-guided:\n", SAMPLE)
    return where


def test_snakemake_trains_a_method_of_one_s_own_and_shows_it_beside_the_others(by_snakemake: Path, tmp_path: Path) -> None:
    where = with_method(twin(by_snakemake, tmp_path))
    assert nodes(says(where, *SNAKEMAKE)) == {"pretrain@demo-mod"} | SAMPLED | SHOWN - {"strip@demo"}
    shown = {}
    for name in ("table_demo", "curves_demo", "efficiency_demo"):
        rows = csv.DictReader((where / "results" / f"{name}.csv").read_text().splitlines())
        shown[name] = {row["model"]: row for row in rows if row["model"]}
        assert "MoD" in shown[name]
    said = says(where, "maskdit", "status", "demo")
    assert "demo: everything is made" in said
    with (where / "methods" / "mixture_of_depths.py").open("a") as file:
        file.write("\n# another code\n")
    told = json.loads(says(where, "maskdit", "status", "demo", "--json"))["nodes"]["pretrain/demo-mod"]
    assert told["state"] == "stale"
    assert "another methods/mixture_of_depths.py:Mixture than the one that is here" in told["why"]


def test_dvc_makes_it_too(handed: Path, tmp_path: Path) -> None:
    where = with_method(twin(handed, tmp_path))
    commit(where)
    assert nodes(says(where, "dvc", "repro", "--no-commit", "evaluate@demo-mod-guided")) == {"pretrain@demo-mod"} | SAMPLED


def test_a_plan_and_a_check_of_it_wait_for_no_torch(tmp_path: Path, without_torch: tuple[str, ...]) -> None:
    shutil.copy(ROOT / "tests" / "toy" / "params.yaml", tmp_path)
    with_method(tmp_path)
    assert "pretrain" in says(tmp_path, *without_torch, "maskdit", "plan", "demo")
