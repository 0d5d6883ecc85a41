"""Samples that are measured by a second network, by real engines: nothing of the first is made again."""

import csv
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm

import warm
from maskdit.artifacts.atomic import read_json
from maskdit.evaluation import extractors
from maskdit.images.dataset import Images
from project import GUIDED, PLAIN, SNAKEMAKE, environment, nodes, plan, says, twin, with_rescore

pytestmark = pytest.mark.pipeline

TINY = "vit_tiny_patch16_224"  # in place of the 1.2 GB of ViT-L/14
PROGRAM = f"""import sys
from maskdit.cli import main
from maskdit.evaluation import extractors
extractors.DINO = "{TINY}"
sys.argv[0] = "maskdit"
sys.exit(main())"""
MADE = {"fetch@demo-dinov2", "reference@demo-dinov2", f"rescore@{GUIDED}", "table@demo", "claims@claims", "report@demo"}


def with_tiny(where: Path, folder: Path, *command: str) -> str:
    """What a command says whose steps have the tiny network."""
    folder.mkdir()
    ours = folder / "maskdit"
    ours.write_text(f"#!/bin/sh\nexec {warm.folder()}/maskdit -c '{PROGRAM}' \"$@\"\n")
    ours.chmod(stat.S_IRWXU)
    variables = environment(where)
    variables["PATH"] = f"{folder}:{warm.folder()}:{variables['PATH']}"
    done = subprocess.run(command, cwd=where, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert not done.returncode, done.stdout
    return done.stdout


def rows_of(where: Path) -> dict[str, dict[str, str]]:
    return {row["eval"]: row for row in csv.DictReader((where / "results" / "table_demo.csv").read_text().splitlines())}


def test_a_second_network_adds_columns_to_a_row_and_draws_nothing_again(
    by_snakemake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, weights = twin(by_snakemake, tmp_path / "twin"), tmp_path / "tiny.safetensors"
    before = rows_of(where)
    torch.manual_seed(0)
    save_file(timm.create_model(TINY, pretrained=False, num_classes=0).state_dict(), weights)
    with_rescore(where / "params.yaml", weights.as_uri())
    assert plan(where) == MADE
    assert nodes(with_tiny(where, tmp_path / "bin", *SNAKEMAKE)) == MADE
    assert "Nothing to be done" in says(where, *SNAKEMAKE)
    assert "demo: everything is made" in says(where, "maskdit", "status", "demo")

    monkeypatch.setattr(extractors, "DINO", TINY)
    net, samples = extractors.Extractor("dinov2", weights), where / "artifacts" / "samples" / GUIDED
    made = np.concatenate([np.load(samples / name) for name in read_json(samples / "index.json")["shards"]])
    data = Images.load(where / "artifacts" / "raw" / "demo")
    seen = [
        net(np.ascontiguousarray(pixels), 16)["features"].astype(float) for pixels in (made, data.pixels[data.rows(heldout=False)])
    ]
    (mu1, mu2), (sigma1, sigma2) = ([f(features) for features in seen] for f in (lambda x: x.mean(0), lambda x: np.cov(x.T)))
    wanted = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * sqrtm(sigma1 @ sigma2).real)
    record = read_json(where / "results" / "metrics" / "demo" / f"{GUIDED}_rescore.json")
    assert list(record["metrics"]) == ["fd_dinov2", "kid_dinov2", "mind_dinov2"]
    assert record["metrics"]["fd_dinov2"] == pytest.approx(wanted, rel=0.01)

    rows = rows_of(where)
    assert float(rows[GUIDED]["fd_dinov2"]) == pytest.approx(record["metrics"]["fd_dinov2"], rel=1e-4)
    assert rows[PLAIN]["fd_dinov2"] == ""
    assert {name: {field: row[field] for field in before[name]} for name, row in rows.items()} == before
    told = (where / "results" / "table_demo.md").read_text()
    assert "Floor: between two halves of the real images, 10 each, fd_dinov2" in told
