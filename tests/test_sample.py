"""Sampling: an image is a function of the checkpoint, the seed and its own number."""

import numpy as np
import pytest
import torch

from maskdit import autoencoder, checkpoint, sample
from maskdit.config import Sample, UserError, Vae
from maskdit.data import Space
from maskdit.files import read_json, write_json
from maskdit.model import MaskDiT

ENTRY = {
    "run": "toy",
    "vae": "toy",
    "phase": "pretrain",
    "step": "final",
    "guidance": 2.0,
    "images": 14,
    "labels": "random",
    "solver_steps": 3,
    "batch": 4,
    "shards": 1,
    "precision": "fp32",
    "seed": 5,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with one milestone and an autoencoder, both with random weights."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    small = {"channels": (8, 8), "layers_per_block": 1, "latent_channels": 2, "steps": 1, "batch": 1, "lr": 1.0, "kl_weight": 0.0}
    vae = Vae.model_validate({**small, "source": "train", "dataset": "toy", "precision": "fp32", "seed": 0})
    autoencoder.build(vae).save_pretrained(folder / "vae")
    encoder = {"patch": 2, "depth": 1, "width": 16, "heads": 2}
    architecture = {"side": 8, "channels": 2, "classes": 3, "encoder": encoder, "decoder": None}
    net = MaskDiT(**architecture)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    space = Space(2, 8, (0.0, 0.1), (0.5, 0.6), autoencoder.identity(folder / "vae"), ("a", "b", "c"))
    spent = {"model": "DiT", "phase": "pretrain", "step": 3, "images": 12, "seconds": 1.0, "flops": 1.0, "parameters": 1}
    facts = {**spent, "precision": "fp32", "architecture": architecture, "space": space.__dict__}
    (folder / "run").mkdir()
    checkpoint.save(folder / "run" / "ema-0000003.safetensors", net.state_dict(), facts)
    write_json(folder / "run" / "index.json", {"milestones": [{"step": 3, "file": "ema-0000003.safetensors"}]})
    return folder


def draw(made, out, **changes):
    out.mkdir()
    sample.sample(Sample.model_validate({**ENTRY, **changes}), run=made / "run", vae=made / "vae", out=out)
    images = np.concatenate([np.load(out / shard) for shard in read_json(out / "index.json")["shards"]])
    return images, np.load(out / "labels.npy")


@pytest.fixture
def whole(made, tmp_path, monkeypatch):
    """The fourteen images in one shard, and a scratch folder of the test's own."""
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    images, labels = draw(made, tmp_path / "whole")
    assert len(np.unique(images, axis=0)) == 14, "no two images are equal"
    return images, labels


@pytest.mark.parametrize("shards", [2, 3, 14])
def test_an_image_does_not_depend_on_the_number_of_shards(made, whole, tmp_path, shards):
    images, labels = draw(made, tmp_path / "out", shards=shards)
    np.testing.assert_array_equal(labels, whole[1])
    np.testing.assert_array_equal(images, whole[0])


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_an_image_does_not_depend_on_the_size_of_the_batch(made, whole, tmp_path, batch):
    images, labels = draw(made, tmp_path / "out", batch=batch)
    np.testing.assert_array_equal(labels, whole[1])
    difference = np.abs(images.astype(int) - whole[0].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_an_image_does_not_depend_on_how_many_are_drawn(made, whole, tmp_path):
    images, labels = draw(made, tmp_path / "out", images=6, shards=2)
    np.testing.assert_array_equal(labels, whole[1][:6])
    np.testing.assert_array_equal(images, whole[0][:6])


def test_balanced_labels_are_the_number_modulo_the_classes(made, whole, tmp_path):
    _, labels = draw(made, tmp_path / "out", labels="balanced")
    np.testing.assert_array_equal(labels, np.arange(14) % 3)


def test_finished_shards_survive_an_interruption(made, whole, tmp_path, monkeypatch):
    real, drawn = sample.save_array, []

    def dying(path, array):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(path.name)
        real(path, array)

    monkeypatch.setattr(sample, "save_array", dying)
    with pytest.raises(KeyboardInterrupt):
        draw(made, tmp_path / "cut", shards=4)
    again = []
    monkeypatch.setattr(sample, "save_array", lambda path, array: (again.append(path.name), real(path, array)))
    images, _ = draw(made, tmp_path / "out", shards=4)
    assert not set(again) & set(drawn), "what was finished is not drawn again"
    np.testing.assert_array_equal(images, whole[0])


def test_another_autoencoder_is_refused(made, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "identity", lambda folder: "0" * 64)
    with pytest.raises(UserError, match="not the autoencoder that made the latents"):
        draw(made, tmp_path / "out")


def test_a_milestone_that_the_run_does_not_have_is_refused(made, whole, tmp_path):
    with pytest.raises(UserError, match=r"has no milestone 2, only \[3\]"):
        draw(made, tmp_path / "out", step=2)
