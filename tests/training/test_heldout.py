"""The denoising loss of held-out latents: its value, when it is measured, and that it changes nothing else."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskdit.artifacts.atomic import read_json
from maskdit.config.base import UserError
from maskdit.config.training import HELDOUT_LOSS
from maskdit.latents.dataset import HELDOUT, Latents
from maskdit.methods.plugins import of_facts
from maskdit.model import checkpoint
from maskdit.model.transformer import MaskDiT
from maskdit.runtime.process_group import Ranks
from maskdit.runtime.random import generator
from maskdit.training import heldout, train
from maskdit.training.heldout import LEVELS, SIGMAS, Heldout, due, field
from small import ENCODER, encoded, images, latents, masked, pretrained, vae, weights  # noqa: F401, fixtures

CPU = torch.device("cpu")
NET = {"side": 8, "channels": 2, "classes": 3, "encoder": ENCODER, "decoder": None}
METHOD = of_facts({"architecture": NET})


@pytest.fixture
def unseen(latents):
    """Five held-out latents beside the ten of the training."""
    np.save(latents / HELDOUT[0], np.random.default_rng(1).normal(size=(5, 1, 4, 8, 8)).astype(np.float16))
    np.save(latents / HELDOUT[1], np.arange(5) % 3)
    return latents


def test_an_untrained_network_has_the_loss_of_its_preconditioning_alone(unseen):
    """Its last layer is zero, so D = c_skip * y."""
    data = Latents.load(unseen).heldout
    found = Heldout(METHOD, data, "fp32", CPU, Ranks(0, 1)).loss(MaskDiT(**NET).state_dict())
    normal = np.stack([generator(0, "heldout", row).standard_normal((LEVELS + 1, 2, 8, 8), dtype=np.float32) for row in range(5)])
    clean = data.draw(np.arange(5), np.zeros(5, int), normal[:, -1])
    for level, sigma in enumerate(SIGMAS):
        noisy = clean + sigma * normal[:, level]
        wanted = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * np.square(0.25 / (sigma**2 + 0.25) * noisy - clean).mean()
        assert found[field(sigma)] == pytest.approx(wanted, rel=1e-5)
    assert found[HELDOUT_LOSS] == pytest.approx(np.mean([found[field(sigma)] for sigma in SIGMAS]))


class Turned(MaskDiT):
    """A network with a tensor that is in no state dict, as of rotary positions."""

    def __init__(self, **architecture: object) -> None:
        super().__init__(**architecture)
        self.register_buffer("factor", torch.tensor(1.0), persistent=False)

    def forward(self, *given: torch.Tensor | None) -> torch.Tensor:
        return self.factor * super().forward(*given)


def test_a_method_s_network_may_have_tensors_that_are_not_saved(unseen):
    data, state, usual = Latents.load(unseen).heldout, MaskDiT(**NET).state_dict(), (CPU, Ranks(0, 1))
    method = SimpleNamespace(network=lambda: Turned(**NET), denoise=METHOD.denoise)
    assert Heldout(method, data, "fp32", *usual).loss(state) == Heldout(METHOD, data, "fp32", *usual).loss(state)


def test_the_levels_divide_the_noise_of_training_into_eight_equal_shares():
    drawn = np.exp(np.random.default_rng(0).standard_normal(100_000) * 1.2 - 1.2)
    shares = [(drawn < sigma).mean() for sigma in SIGMAS]
    np.testing.assert_allclose(shares, (np.arange(8) + 0.5) / 8, atol=0.01)


def test_the_ranks_share_the_images(unseen, monkeypatch):
    data, state = Latents.load(unseen).heldout, MaskDiT(**NET).state_dict()
    whole = Heldout(METHOD, data, "fp32", CPU, Ranks(0, 1)).loss(state)
    monkeypatch.setattr(heldout, "distributed", SimpleNamespace(all_reduce=lambda sums: None))
    parts = [Heldout(METHOD, data, "fp32", CPU, SimpleNamespace(rank=rank, world=2)).loss(state) for rank in range(2)]
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value)


def test_a_training_logs_it_ever_less_often_and_at_its_milestones_and_has_the_weights_of_one_without(unseen, monkeypatch):
    monkeypatch.setattr(train, "LOG_STEPS", 1)
    run = pretrained(unseen, "run", masked(7, 16))
    rows = {row["step"]: row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())}
    assert [step for step, row in rows.items() if HELDOUT_LOSS in row] == [1, 2, 3, 4, 6, 7, 8, 12, 16]
    facts = [checkpoint.facts(run / each["file"]) for each in read_json(run / "index.json")["milestones"]]
    assert facts[0]["heldout"] == {name: value for name, value in rows[7].items() if name.startswith(HELDOUT_LOSS)}
    assert facts[1]["heldout"][HELDOUT_LOSS] == rows[16][HELDOUT_LOSS]
    for file in HELDOUT:
        (unseen / file).unlink()
    monkeypatch.setenv("MASKDIT_SCRATCH", str(unseen.parent / "other"))
    assert weights(pretrained(unseen, "plain", masked(7, 16))) == weights(run)


def test_it_is_measured_some_forty_times_in_a_long_training():
    assert sum(due(step, 10) for step in range(1, 2_000_001)) < 60


def test_its_time_is_not_training_time(unseen, monkeypatch):
    real = Heldout.loss
    monkeypatch.setattr(Heldout, "loss", lambda self, state: time.sleep(1.0) or real(self, state))
    run = pretrained(unseen, "run", masked(2))
    assert checkpoint.facts(run / read_json(run / "index.json")["milestones"][0]["file"])["seconds"] < 0.9


def test_encode_stores_as_many_as_are_asked_for_or_held_out(images, vae, tmp_path):
    encoded(images, vae, tmp_path / "two", heldout=2)
    encoded(images, vae, tmp_path / "all", heldout=100)
    few, every = (Latents.load(tmp_path / name).heldout for name in ("two", "all"))
    assert (len(few.labels), every.labels.tolist()) == (2, [0, 2, 1])  # images 0, 5 and 22 are held out
    assert every.read(np.array([2]), np.array([0])).tobytes() == few.read(np.array([1]), np.array([0])).tobytes()
    encoded(images, vae, tmp_path / "none")
    assert Latents.load(tmp_path / "none").heldout is None
    assert Latents.load(tmp_path / "none").sha256 == Latents.load(tmp_path / "all").sha256, "no training begins anew"


def test_latents_of_other_held_out_images_are_refused(unseen):
    np.save(unseen / HELDOUT[0], np.zeros((5, 1, 4, 4, 4), np.float16))
    with pytest.raises(UserError, match=r"heldout-moments.npy: holds float16 .* does not fit; run encode again"):
        Latents.load(unseen)
