"""The training loop: what it draws, how it goes on, and what it costs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskdit import learner, train
from maskdit.config import Finetune, Pretrain, UserError, kept_tokens
from maskdit.data import Batch, Latents, batch_at
from maskdit.diffusion import Draw
from maskdit.files import read_json, sha256, write_json
from maskdit.learner import Learner
from maskdit.model import MaskDiT
from maskdit.recovery import Recovery
from maskdit.runtime import Ranks

COMMON = {
    "dataset": "toy",
    "seed": 0,
    "mae_weight": 0.1,
    "batch": 4,
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "warmup": 3,
    "ema": 0.9,
    "ema_warmup": 10,
    "label_dropout": 0.1,
    "precision": "bf16",
}
ENCODER = {"patch": 2, "depth": 1, "width": 16, "heads": 2}


def masked(*milestones: int, **changes: object) -> Pretrain:
    entry = {"encoder": ENCODER, "decoder": {"depth": 1, "width": 8, "heads": 2}, "mask_ratio": 0.5, "milestones": milestones}
    return Pretrain.model_validate({**COMMON, **entry, **changes})


@pytest.fixture
def latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Moments of ten small images in two mirrors, and a scratch folder of the test's own."""
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    folder = tmp_path / "latents"
    folder.mkdir()
    source = np.random.default_rng(0)
    moments = source.normal(size=(10, 2, 4, 8, 8)).astype(np.float16)
    np.save(folder / "moments.npy", moments)
    np.save(folder / "labels.npy", np.arange(10) % 3)
    space = {"channels": 2, "side": 8, "shift": [0.0, 0.1], "scale": [0.5, 0.6], "vae": "0" * 64, "classes": ["a", "b", "c"]}
    write_json(folder / "index.json", {"shape": moments.shape, "space": space})
    return folder


def weights(run: Path) -> dict[str, str]:
    """sha256 of the tensors of each published checkpoint: the bits, not the clock in the header."""
    return {
        file.name: str([(name, tensor.numpy().tobytes().hex()) for name, tensor in sorted(load_file(file).items())])
        for file in sorted(run.glob("*.safetensors"))
    }


def pretrained(latents: Path, name: str, config: Pretrain) -> Path:
    out = latents.parent / name
    out.mkdir()
    train.pretrain(config, latents=latents, out=out)
    return out


def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(latents, monkeypatch):
    config = masked(4, 12)
    monkeypatch.setattr(train, "LOG_STEPS", 3)
    whole = pretrained(latents, "whole", config)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    monkeypatch.setattr(train.Recovery, "due", lambda self: True)
    calls, real = [], train.batch_at

    def dying(step: int, **rest: object) -> Batch:
        calls.append(step)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(step, **rest)

    monkeypatch.setattr(train, "batch_at", dying)
    with pytest.raises(KeyboardInterrupt):
        train.pretrain(config, latents=latents, out=latents.parent)
    out = latents.parent / "resumed"
    out.mkdir()
    train.pretrain(config, latents=latents, out=out)
    resumed_at = calls[9]
    assert resumed_at == 6, "resumed from the newest state, not from the start"
    assert weights(out) == weights(whole)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (whole, out)]
    assert [row["step"] for row in logs[1]] == [3, 6, 9, 12], "each step is logged once"
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_a_longer_pretraining_goes_on_from_the_shorter_and_ends_as_the_long_one(latents, monkeypatch, capsys):
    short = pretrained(latents, "short", masked(4, 6))
    longer = pretrained(latents, "longer", masked(4, 6, 10))
    assert "going on from step 6" in capsys.readouterr().err
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    whole = pretrained(latents, "whole", masked(4, 6, 10))
    assert weights(longer) == weights(whole)
    assert weights(short)["ema-0000006.safetensors"] == weights(whole)["ema-0000006.safetensors"]


@pytest.mark.parametrize("change", [{"lr": 2e-2}, {"mask_ratio": 0.25}, {"seed": 1}, {"revision": 2}, {"batch": 5}])
def test_a_changed_recipe_never_goes_on_from_the_old_state(latents, capsys, change):
    pretrained(latents, "old", masked(2))
    new = pretrained(latents, "new", masked(4, **change))
    assert "going on" not in capsys.readouterr().err
    assert read_json(new / "index.json")["milestones"][-1]["step"] == 4


def test_other_latents_never_go_on_from_the_old_state(latents, capsys):
    pretrained(latents, "old", masked(2))
    index = read_json(latents / "index.json")
    index["space"]["shift"] = [0.2, 0.1]
    write_json(latents / "index.json", index)
    pretrained(latents, "new", masked(4))
    assert "going on" not in capsys.readouterr().err


def test_a_milestone_that_was_passed_without_being_kept_starts_again_and_says_so(latents, capsys):
    pretrained(latents, "old", masked(6))
    again = pretrained(latents, "again", masked(3, 6))
    assert "milestone 3 was not kept" in capsys.readouterr().err
    assert [mark["step"] for mark in read_json(again / "index.json")["milestones"]] == [3, 6]


def test_finetuning_starts_from_the_pretrained_weights_and_adds_up_what_was_spent(latents):
    run = pretrained(latents, "run", masked(4))
    out = latents.parent / "finetuned"
    out.mkdir()
    config = Finetune.model_validate({**COMMON, "mask_ratio": 0.0, "milestones": (2,), "lr": 1e-12, "ema": 0.0, "ema_warmup": 1})
    train.finetune(config, latents=latents, pretrained=run, out=out)
    before, after = load_file(run / "net-0000004.safetensors"), load_file(out / "net-0000002.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before), "with no rate to speak of nothing moves"
    old, new = (read_json(folder / "index.json")["milestones"][-1] for folder in (run, out))
    assert new["images"] == old["images"] + 2 * config.batch == 24
    assert new["seconds"] > old["seconds"]
    assert new["flops"] > old["flops"]


def test_finetuning_refuses_latents_of_another_autoencoder(latents):
    run = pretrained(latents, "run", masked(2))
    index = read_json(latents / "index.json")
    index["space"]["vae"] = "1" * 64
    write_json(latents / "index.json", index)
    config = Finetune.model_validate({**COMMON, "mask_ratio": 0.0, "milestones": (2,)})
    with pytest.raises(UserError, match="not the latents"):
        train.finetune(config, latents=latents, pretrained=run, out=latents.parent)


def test_a_batch_larger_than_the_data_is_refused(latents):
    with pytest.raises(UserError, match=r"pretrain.batch: 11 is larger than the data \(10 latents\)"):
        pretrained(latents, "run", masked(2, batch=11))


def test_the_batch_of_a_step_depends_on_the_step_alone(latents):
    data, config = Latents.load(latents), masked(4)
    first = batch_at(7, config, data, 16)
    batch_at(3, config, data, 16)
    again = batch_at(7, config, data, 16)
    other = batch_at(8, config, data, 16)
    assert torch.equal(first.clean, again.clean)
    assert torch.equal(first.draw.noise_BCHW, again.draw.noise_BCHW)
    assert not torch.equal(first.draw.noise_BCHW, other.draw.noise_BCHW)
    assert not torch.equal(first.draw.noise_BCHW[0], first.draw.noise_BCHW[1])


def test_training_draws_are_distributed_as_the_paper_says(latents):
    data = Latents.load(latents)
    batches = [batch_at(step, masked(4, batch=10), data, 16) for step in range(200)]
    normal = torch.cat([batch.draw.normal_B for batch in batches])
    noise = torch.stack([batch.draw.noise_BCHW for batch in batches])
    scores = torch.stack([batch.draw.scores_BL for batch in batches])
    assert abs(normal.mean()) < 0.1
    assert abs(normal.std() - 1) < 0.06
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs(scores.mean() - 0.5) < 0.01
    dropped = torch.stack([batch.draw.drop_B for batch in batches]) < 0.1
    assert abs(dropped.float().mean() - 0.1) < 0.03


def test_a_masked_step_is_faster_per_image_than_a_dense_one_at_the_demo_s_size():
    from maskdit.params import load

    params = load(Path(__file__).parents[1] / "params.yaml")
    torch.set_num_threads(1)

    def step(key: str) -> Callable[[], float]:
        config = params.pretrain[key]
        decoder = config.decoder.model_dump(exclude={"revision"}) if config.decoder else None
        net = MaskDiT(side=16, channels=4, classes=8, encoder=config.encoder.model_dump(exclude={"revision"}), decoder=decoder)
        draw = Draw(torch.randn(32), torch.randn(32, 4, 16, 16), torch.rand(32, 64), torch.rand(32))
        batch = Batch(torch.randn(32, 4, 16, 16), torch.zeros(32, dtype=torch.long), draw)
        learner = Learner(net, net.state_dict(), config, torch.device("cpu"), Ranks(0, 1))

        def once() -> float:
            began = time.process_time()
            learner.gradients(batch, kept_tokens(64, config.mask_ratio))
            return time.process_time() - began

        return once

    dense, masked_step = step("demo-dit"), step("demo-maskdit")
    pairs = [(dense(), masked_step()) for _ in range(6)][1:]
    assert np.median([slow / fast for slow, fast in pairs]) >= 1.3


def test_two_trainings_of_one_recipe_at_once_are_refused(latents):
    config = masked(2)
    out = pretrained(latents, "run", config)
    home = next((latents.parent / "scratch").iterdir())
    with Recovery(home.name, config, Ranks(0, 1)), pytest.raises(UserError, match="another process trains this recipe"):
        train.pretrain(config, latents=latents, out=out)


def test_a_diverging_loss_stops_with_a_line_that_says_what_to_do(latents, monkeypatch):
    monkeypatch.setattr(train, "LOG_STEPS", 1)
    real = learner.loss
    monkeypatch.setattr(learner, "loss", lambda *given, **more: tuple(term * torch.inf for term in real(*given, **more)))
    with pytest.raises(UserError, match="no finite gradient in 5 steps up to 5; lower lr"):
        pretrained(latents, "run", masked(20))


def test_a_killed_training_loses_nothing_that_was_kept(latents):
    config = masked(40)
    whole = pretrained(latents, "whole", config)
    program = (
        "import sys, pathlib, json; from maskdit import train; from maskdit.config import Pretrain;"
        "train.Recovery.due = lambda self: True; train.LOG_STEPS = 2; out = pathlib.Path(sys.argv[2]); out.mkdir(exist_ok=True);"
        "train.pretrain(Pretrain.model_validate_json(sys.argv[3]), latents=pathlib.Path(sys.argv[1]), out=out)"
    )
    out = latents.parent / "killed"
    environment = {**os.environ, "MASKDIT_SCRATCH": str(latents.parent / "other")}
    words = [sys.executable, "-c", program, str(latents), str(out), config.model_dump_json()]
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list((latents.parent / "other").glob("*/state.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert "going on from step" in done.stderr
    assert weights(out) == weights(whole)
    assert sha256(out / "index.json")
