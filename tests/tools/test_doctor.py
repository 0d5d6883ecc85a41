"""The doctor names each illness and its cure, and finds none in the healthy."""

import json
import re

import numpy as np
import pytest

from maskdit.artifacts.atomic import sha256, write_json
from maskdit.config.base import UserError
from maskdit.tools.doctor import batch, doctor, examine, labels, latent_values, scaled, training

RNG = np.random.default_rng(0)
MEAN = RNG.normal(0, 4, (16, 4, 8, 8)).astype(np.float32)
MOMENTS = np.concatenate([MEAN, np.full_like(MEAN, -12.0)], axis=1)


def fixes(findings):
    return [finding.fix for finding in findings if finding.fix]


def test_healthy_latents_have_no_finding():
    assert fixes(latent_values(MOMENTS, RNG.permuted(MOMENTS, axis=3))) == []
    assert scaled(0.5 * RNG.standard_normal((8, 4, 8, 8))).fix == ""


@pytest.mark.parametrize(
    ("moments", "mirrored", "said"),
    [
        (MEAN, None, "4 channels: these are sampled latents"),
        (MOMENTS, MOMENTS[..., ::-1], "flipped latents, not latents of flipped images"),
        (MOMENTS, MOMENTS, "mirrors equal the images"),
        (np.where(MOMENTS > 9, np.nan, MOMENTS), None, "not finite"),
        (MOMENTS[:, ::-1].copy(), None, "looks like a log variance"),
    ],
    ids=["four channels", "flipped", "no mirror", "nan", "order"],
)
def test_an_illness_of_latents_is_named(moments, mirrored, said):
    ill = [finding for finding in latent_values(moments, mirrored) if finding.fix]
    assert said in ill[0].text


@pytest.mark.parametrize(("factor", "said"), [(1 / 0.18215, "the scale is missing"), (0.18215, "applied twice")])
def test_a_wrong_scale_is_told_from_a_missing_one(factor, said):
    assert said in scaled(0.5 * factor * RNG.standard_normal((8, 4, 8, 8))).fix


def test_labels_outside_and_empty_classes_are_found():
    assert "outside 0 to 2" in next(labels(np.array([0, 1, 3]), 3)).text
    assert "1 of 3 classes" in next(labels(np.array([0, 0, 2]), 3)).text
    assert fixes(labels(np.array([0, 1, 2]), 3)) == []


def test_a_reference_batch_is_told_from_statistics_of_another_network(tmp_path):
    whole = {"mu": np.zeros(2048), "sigma": np.zeros((2048, 1)), "mu_s": np.zeros(2023), "sigma_s": np.zeros((2023, 1))}
    path = tmp_path / "batch.npz"
    np.savez(path, arr_0=np.zeros((3, 8, 8, 3), np.uint8), **whole)
    found = list(batch(path))
    assert fixes(found) == []
    assert "3 images of 8 x 8 pixels" in found[-1].text
    np.savez(path, arr_0=np.zeros((3, 8, 8, 3), np.float32), **{**whole, "mu": np.zeros(768)})
    assert [line.split(":")[0] for line in (finding.text for finding in batch(path) if finding.fix)] == [
        "mu is 768 wide, not 2048",
        "arr_0 is float32 (3, 8, 8, 3), not uint8 (N, H, W, 3)",
    ]


def test_a_batch_with_a_pickle_is_not_opened(tmp_path):
    np.savez(tmp_path / "batch.npz", mu=np.array([print], object))
    with pytest.raises(UserError, match="allow_pickle"):
        next(batch(tmp_path / "batch.npz"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"data_wait": 0.4, "mfu": 0.3}, "bound by the loader"),
        ({"data_wait": 0.0, "mfu": 0.1}, "bound by launches"),
        ({"data_wait": 0.0, "mfu": 0.8}, "bound by the device"),
    ],
)
def test_what_bounds_a_training_is_told_from_its_log(tmp_path, row, said):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({**row, "skipped": 0}) + "\n" for _ in range(4)))
    assert said in next(training(path)).text


def test_what_is_not_known_is_refused_in_one_line(tmp_path):
    (tmp_path / "song.mp3").write_bytes(b"")
    for path in (tmp_path / "song.mp3", tmp_path / "absent", tmp_path):
        with pytest.raises(UserError) as refusal:
            list(examine(path))
        assert "\n" not in str(refusal.value)


def test_this_machine_is_looked_at_without_a_path(capsys):
    doctor(None)
    said = capsys.readouterr().out
    assert "torch" in said
    assert re.search(r"precision: auto computes in (fp32|fp16|bf16) here", said)


def test_any_artifact_is_examined_by_its_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.json").write_text("{}")
    whole = {"real.json": {"bytes": 2, "sha256": sha256(tmp_path / "real.json")}}
    write_json(tmp_path / "manifest.json", {"node": "reference/toy", "files": whole, "lineage": {}, "made": {}})
    assert fixes(examine(tmp_path)) == []
    (tmp_path / "real.json").write_text("{ ")
    assert "delete" in " ".join(fixes(examine(tmp_path)))
