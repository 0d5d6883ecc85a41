"""The training loop: what it draws, how it goes on, and what it costs."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.artifacts.manifest import read_manifest
from maskdit.artifacts.publish import publishing
from maskdit.config.base import UserError
from maskdit.config.training import Finetune, kept_tokens
from maskdit.latents.dataset import Latents
from maskdit.methods.plugins import of_entry
from maskdit.model import checkpoint, diffusion
from maskdit.model.diffusion import Draw
from maskdit.runtime.process_group import Ranks
from maskdit.sampling.sample import averaged
from maskdit.training import train
from maskdit.training.batches import Batch, ahead, batch_at
from maskdit.training.learner import Learner
from maskdit.training.recovery import Recovery
from small import COMMON, ENCODER, latents, masked, pretrained, weights  # noqa: F401, a fixture


def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(latents, monkeypatch):
    config = masked(4, 12)
    monkeypatch.setattr(train, "LOG_STEPS", 3)
    whole = pretrained(latents, "whole", config)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    monkeypatch.setattr(train.Recovery, "due", lambda self: True)
    calls, stopped, real = [], [], train.batch_at

    def dying(step: int, **rest: object) -> Batch:
        calls.append(step)
        if step == 8 and not stopped:
            raise KeyboardInterrupt
        return real(step, **rest)

    monkeypatch.setattr(train, "batch_at", dying)
    with pytest.raises(KeyboardInterrupt):
        train.pretrain(config, latents=latents, out=latents.parent)
    stopped += calls
    out = latents.parent / "resumed"
    out.mkdir()
    train.pretrain(config, latents=latents, out=out)
    resumed_at = min(calls[len(stopped) :])
    assert resumed_at == 6, "resumed from the newest state, not from the start"
    assert weights(out) == weights(whole)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (whole, out)]
    assert [row["step"] for row in logs[1]] == [3, 6, 9, 12], "each step is logged once"
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_a_longer_pretraining_goes_on_from_the_shorter_and_ends_as_the_long_one(latents, monkeypatch, capsys):
    short = pretrained(latents, "short", masked(4, 6))
    longer = pretrained(latents, "longer", masked(4, 6, 10))
    assert "resuming from step 6" in capsys.readouterr().err
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    whole = pretrained(latents, "whole", masked(4, 6, 10))
    assert weights(longer) == weights(whole)
    assert weights(short)["ema-0000006.safetensors"] == weights(whole)["ema-0000006.safetensors"]


@pytest.mark.parametrize("change", [{"lr": 2e-2}, {"mask_ratio": 0.25}, {"seed": 1}, {"revision": 2}, {"batch": 5}])
def test_a_changed_recipe_never_goes_on_from_the_old_state(latents, capsys, change):
    pretrained(latents, "old", masked(2))
    new = pretrained(latents, "new", masked(4, **change))
    assert "resuming from" not in capsys.readouterr().err
    assert read_json(new / "index.json")["milestones"][-1]["step"] == 4


def test_other_latents_never_go_on_from_the_old_state(latents, capsys):
    pretrained(latents, "old", masked(2))
    index = read_json(latents / "index.json")
    index["space"]["shift"] = [0.2, 0.1]
    write_json(latents / "index.json", index)
    pretrained(latents, "new", masked(4))
    assert "resuming from" not in capsys.readouterr().err


@pytest.fixture
def steps(monkeypatch):
    """The steps whose batches are made."""
    real, made = train.batch_at, []
    monkeypatch.setattr(train, "batch_at", lambda step, **rest: (made.append(step), real(step, **rest))[1])
    return made


def publish(latents, name, config, published=None):
    """A training, published with its manifest."""
    out, numbers = latents.parent / name, config.model_dump(mode="json")
    with publishing(out, "pretrain/toy", numbers, {}, milestones="ema-") as place:
        train.pretrain(config, latents=latents, out=place, published=published)
        numbers["precision"] = config.precision
    return out


@pytest.mark.parametrize("states", ["kept", "deleted"])
def test_an_inserted_milestone_trains_up_to_it_and_all_others_keep_their_files(latents, capsys, steps, states, monkeypatch):
    monkeypatch.setattr(train, "LOG_STEPS", 2)
    config = masked(4, 8, posthoc_ema=[0.05, 0.1])
    old = publish(latents, "old", config)
    if states == "deleted":
        shutil.rmtree(latents.parent / "scratch")
    digest, log = read_manifest(old).lineage["pretrain/toy"].digest, (old / "log.jsonl").read_bytes()
    before = {path.name: path.stat().st_ino for path in old.glob("*.safetensors")}
    steps.clear()
    capsys.readouterr()
    longer = config.model_copy(update={"milestones": (2, 4, 6, 8)})
    new = publish(latents, "old", longer, published=old)
    assert sorted(steps) == ([0, 1, 4, 5] if states == "kept" else [0, 1, 2, 3, 4, 5]), "with a state of step 4"
    goal = 2 if states == "kept" else 6
    assert f"milestone 2 was not kept; training once more up to step {goal}, the others stay" in capsys.readouterr().err
    assert {name: (new / name).stat().st_ino for name in before} == before
    assert (new / "log.jsonl").read_bytes() == log != b""
    assert read_manifest(new).lineage["pretrain/toy"].digest == digest
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(new) == weights(publish(latents, "whole", longer)), "as trained at once"


def test_inserted_and_appended_milestones_cost_no_step_twice_but_those_before_the_inserted_one(latents, steps, monkeypatch):
    old = publish(latents, "old", masked(4, 8))
    steps.clear()
    new = publish(latents, "new", masked(3, 4, 8, 10), published=old)
    assert sorted(steps) == [0, 1, 2, 8, 9]
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(new) == weights(publish(latents, "whole", masked(3, 4, 8, 10)))


def test_a_training_for_an_inserted_milestone_that_is_killed_goes_on_and_keeps_the_later_states(latents, monkeypatch, capsys):
    monkeypatch.setattr(train, "LOG_STEPS", 3)
    monkeypatch.setattr(train.Recovery, "due", lambda self: True)
    old = publish(latents, "old", masked(12))
    real = train.batch_at
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def dying(step, **rest):
            if step == 7:
                raise KeyboardInterrupt
            return real(step, **rest)

        patch.setattr(train, "batch_at", dying)
        publish(latents, "killed", masked(8, 12), published=old)
    capsys.readouterr()
    new = publish(latents, "new", masked(8, 12), published=old)
    assert "resuming from step 6" in capsys.readouterr().err
    [folder] = (latents.parent / "scratch").iterdir()
    assert {int(path.stem.split("-")[1]) for path in folder.glob("state-*.json")} == {6, 8, 9, 12}
    publish(latents, "longer", masked(8, 12, 14), published=new)
    assert "resuming from step 12" in capsys.readouterr().err


def test_milestones_that_are_there_are_published_without_a_step_and_without_states(latents, steps):
    old = publish(latents, "old", masked(4, 8))
    shutil.rmtree(latents.parent / "scratch")
    steps.clear()
    new = publish(latents, "new", masked(8), published=old)
    assert not steps
    assert [mark["step"] for mark in read_json(new / "index.json")["milestones"]] == [8]
    assert (new / "log.jsonl").read_bytes() == (old / "log.jsonl").read_bytes()


def test_a_published_milestone_that_is_damaged_is_made_again(latents, steps):
    old = publish(latents, "old", masked(4, 8))
    shutil.rmtree(latents.parent / "scratch")
    path = old / "ema-0000004.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    steps.clear()
    new = publish(latents, "new", masked(2, 4, 8), published=old)
    assert sorted(steps) == [0, 1, 2, 3]
    assert read_manifest(new).files["ema-0000004.safetensors"] != read_manifest(old).files["ema-0000004.safetensors"]


def test_finetuning_starts_from_the_pretrained_weights_and_adds_up_what_was_spent(latents):
    run = pretrained(latents, "run", masked(4))
    out = latents.parent / "finetuned"
    out.mkdir()
    config = Finetune.model_validate(
        {**COMMON, "run": "toy", "mask_ratio": 0.0, "milestones": (2,), "lr": 1e-12, "ema": 0.0, "ema_warmup": 1}
    )
    train.finetune(config, latents=latents, pretrained=run, out=out)
    before, after = load_file(run / "net-0000004.safetensors"), load_file(out / "net-0000002.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before), "with no rate to speak of nothing moves"
    old, new = (read_json(folder / "index.json")["milestones"][-1] for folder in (run, out))
    assert new["images"] == old["images"] + 2 * config.batch == 24
    assert new["seconds"] > old["seconds"]
    assert new["flops"] > old["flops"]


def test_a_branch_starts_from_the_average_of_its_milestone_and_counts_what_that_has_cost(latents):
    run = pretrained(latents, "run", masked(2, 4))
    out = latents.parent / "branch"
    out.mkdir()
    entry = {**COMMON, "run": "toy", "mask_ratio": 0.0, "milestones": (3,), "lr": 1e-12, "ema": 0.0, "ema_warmup": 1, "start": 2}
    config = Finetune.model_validate(entry)
    train.finetune(config, latents=latents, pretrained=run, out=out)
    before, after = load_file(run / "ema-0000002.safetensors"), load_file(out / "net-0000003.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    first, (last,) = read_json(run / "index.json")["milestones"][0], read_json(out / "index.json")["milestones"]
    assert last["images"] == first["images"] + 3 * config.batch


def test_finetuning_refuses_latents_of_another_autoencoder(latents):
    run = pretrained(latents, "run", masked(2))
    index = read_json(latents / "index.json")
    index["space"]["vae"] = "1" * 64
    write_json(latents / "index.json", index)
    config = Finetune.model_validate({**COMMON, "run": "toy", "mask_ratio": 0.0, "milestones": (2,)})
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
    from maskdit.config.load import load

    params = load(Path(__file__).parents[2] / "params.yaml")
    torch.set_num_threads(1)

    def step(key: str) -> Callable[[], float]:
        config = params.pretrain[key]
        decoder = config.decoder.model_dump(exclude={"revision"}) if config.decoder else None
        encoder = config.encoder.model_dump(exclude={"revision"})
        method = of_entry(config, {"side": 16, "channels": 4, "classes": 8, "encoder": encoder, "decoder": decoder})
        net = method.network(config)
        draw = Draw(torch.randn(32), torch.randn(32, 4, 16, 16), torch.rand(32, 64), torch.rand(32))
        batch = Batch(torch.randn(32, 4, 16, 16), torch.zeros(32, dtype=torch.long), draw)
        learner = Learner(net, net.state_dict(), config, method, torch.device("cpu"), Ranks(0, 1))

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
    with Recovery(home.name, config, Ranks(0, 1)), pytest.raises(UserError, match="another process is training this recipe"):
        train.pretrain(config, latents=latents, out=out)


def test_a_diverging_loss_stops_with_a_line_that_says_what_to_do(latents, monkeypatch):
    monkeypatch.setattr(train, "LOG_STEPS", 1)
    real = diffusion.loss
    monkeypatch.setattr(diffusion, "loss", lambda *given, **more: tuple(term * torch.inf for term in real(*given, **more)))
    with pytest.raises(UserError, match="no finite gradient in 5 steps up to step 5; lower lr"):
        pretrained(latents, "run", masked(20))


def test_ranks_share_the_batch_of_a_step_byte_for_byte(latents):
    data, config = Latents.load(latents), masked(4, batch=6)
    whole = batch_at(5, config, data, 16)
    for world in (2, 3):
        parts = [batch_at(5, config, data, 16, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([part.clean for part in parts]), whole.clean)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        for field in ("normal_B", "noise_BCHW", "scores_BL", "drop_B"):
            assert torch.equal(torch.cat([getattr(part.draw, field) for part in parts]), getattr(whole.draw, field))


def test_a_batch_that_the_ranks_cannot_share_is_refused(latents):
    data = Latents.load(latents)
    with pytest.raises(UserError, match=r"pretrain\.batch: 4 cannot be shared by 3 ranks"):
        train.loop("pretrain", masked(2), {}, data, train.Past({}, {}), Ranks(0, 3), None, [2], None)


def test_a_cosine_unmasking_runs_to_its_end_and_beyond_without_a_nan(latents, monkeypatch):
    monkeypatch.setattr(train, "LOG_STEPS", 1)
    config = masked(10, mask_schedule="cosine4", schedule_steps=8)
    assert [config.mask_at(step) for step in (0, 4, 8, 9)] == pytest.approx([0.5, 0.5 / 4, 0, 0])
    run = pretrained(latents, "run", config)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[0]["mae"] > 0
    assert rows[-1]["mae"] == 0
    assert [row["mask_ratio"] for row in rows] == sorted((row["mask_ratio"] for row in rows), reverse=True)
    constant = pretrained(latents, "constant", masked(10))
    flops = [read_json(each / "index.json")["milestones"][-1]["flops"] for each in (run, constant)]
    assert flops[0] > flops[1], "an open mask costs more"


@pytest.mark.parametrize("changes", [{"mask_schedule": "cosine4"}, {"schedule_steps": 8}])
def test_a_schedule_has_a_length_and_a_constant_mask_has_none(changes):
    with pytest.raises(ValueError, match="schedule_steps is required with mask_schedule cosine4"):
        masked(4, **changes)


def test_a_line_of_the_log_tells_what_a_step_does_and_costs(latents, monkeypatch):
    monkeypatch.setattr(train, "LOG_STEPS", 2)
    run = pretrained(latents, "run", masked(5))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["loss"] == pytest.approx(row["dsm"] + row["mae"])
        assert row["images"] == 4 * row["step"]
        assert 0 <= row["data_wait"] < 1
        assert 0 < row["mfu"] < 1
        assert row["grad_norm"] > 0
        assert row["peak_memory"] > 2**20
        assert row["device_seconds"] == row["seconds"] > 0
        assert row["skipped"] == 0
    speed = checkpoint.facts(run / read_json(run / "index.json")["milestones"][-1]["file"])["speed"]
    assert speed["images_per_second"] == pytest.approx(np.median([row["images_per_second"] for row in rows]))
    assert (speed["peak_memory"], speed["devices"]) == (max(row["peak_memory"] for row in rows), 1)


def test_averages_by_power_functions_are_published_beside_the_milestones(latents):
    run = pretrained(latents, "run", masked(2, 4, posthoc_ema=(0.05, 0.1)))
    index = read_json(run / "index.json")
    assert [mark["posthoc"] for mark in index["milestones"]] == [
        [f"posthoc-{number}-000000{step}.safetensors" for number in (0, 1)] for step in (2, 4)
    ]
    narrow, wide, raw = (load_file(run / name) for name in (*index["milestones"][-1]["posthoc"], index["final"]))
    distance = [sum((average[name] - raw[name]).square().sum() for name in raw) for average in (narrow, wide)]
    assert 0 < distance[0] < distance[1], "the wider average lies further behind"
    again = averaged(run, 4, 0.05)
    assert all(torch.allclose(again[name], narrow[name], atol=1e-6) for name in narrow), "a kept width is itself"


def test_a_step_is_made_while_the_one_before_is_used():
    begun, go = [threading.Event() for _ in range(5)], threading.Event()

    def make(step: int) -> int:
        begun[step].set()
        if step == 4:
            go.wait(10)
        return step

    batches = ahead(make, 0, 5)
    for step in range(4):
        assert next(batches)[0] == step
        assert begun[step + 1].wait(10), "the next one is made meanwhile"
    threading.Timer(0.5, go.set).start()
    found, waited = next(batches)
    assert found == 4
    assert waited > 0.04, "the seconds that a step waits for its batch are told"
    assert next(batches, None) is None


DETERMINISTIC = """
import json, sys
from pathlib import Path
import torch
from maskdit.training import train
from maskdit.config.training import Pretrain
from maskdit.artifacts.publish import publishing
train.LOG_STEPS, train.gemm_rate = 2, lambda *_: 1e12
config = Pretrain.model_validate_json(Path(sys.argv[2]).read_text())
with publishing(Path(sys.argv[3]), "pretrain/toy", {}, {}) as place:
    train.pretrain(config, latents=Path(sys.argv[1]), out=place)
backend = torch.backends.cudnn
print(torch.are_deterministic_algorithms_enabled(), backend.deterministic, backend.benchmark, backend.allow_tf32)
"""
TIMED = {"seconds", "device_seconds", "state_seconds", "images_per_second", "data_wait", "mfu", "peak_memory"}
TIMED |= {"files", "lineage", "sha256"}


def timeless(tree):
    """JSON without what a clock, or a hash of what a clock said, has to do with."""
    if isinstance(tree, dict):
        return {name: timeless(value) for name, value in tree.items() if name not in TIMED}
    return [timeless(each) for each in tree] if isinstance(tree, list) else tree


def test_two_deterministic_trainings_make_the_same_bytes_but_for_the_clock_and_record_how(latents, monkeypatch):
    config = latents.parent / "config.json"
    config.write_text(masked(4, 10, posthoc_ema=(0.05, 0.1)).model_dump_json())
    monkeypatch.setenv("MASKDIT_DETERMINISTIC", "1")
    names, running, found = ("first", "second"), [], []
    for name in names:
        monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / f"scratch-{name}"))
        words = [sys.executable, "-c", DETERMINISTIC, str(latents), str(config), str(latents.parent / name)]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    for name, process in zip(names, running, strict=True):
        assert process.communicate()[0].split() == ["True", "True", "False", "False"]
        files = sorted((latents.parent / name).iterdir())
        texts = {path.name: path.read_text().splitlines() for path in files if path.suffix == ".jsonl"}
        texts |= {path.name: [path.read_text()] for path in files if path.suffix == ".json"}
        texts |= {path.name: [json.dumps(checkpoint.facts(path))] for path in files if path.suffix == ".safetensors"}
        found.append({name: [timeless(json.loads(line)) for line in lines] for name, lines in texts.items()})
    assert found[0] == found[1]
    assert set(found[0]) == {path.name for path in files}, "the whole folder"
    assert weights(latents.parent / "first") == weights(latents.parent / "second")
    facts = checkpoint.facts(latents.parent / "first" / "ema-0000004.safetensors")["arithmetic"]
    wanted = {"device": "cpu", "threads": 1, "deterministic": True, "tf32": False, "tf32_convolutions": False}
    assert facts == {**wanted, "torch": torch.__version__}
    assert read_json(latents.parent / "first" / "manifest.json")["made"]["deterministic"] == "1"


def test_a_training_is_deterministic_by_0_or_1_only(latents, monkeypatch):
    monkeypatch.setenv("MASKDIT_DETERMINISTIC", "yes")
    with pytest.raises(UserError, match=r"^MASKDIT_DETERMINISTIC: 'yes' is neither 0 nor 1; set one of them, or unset it$"):
        pretrained(latents, "run", masked(2))
