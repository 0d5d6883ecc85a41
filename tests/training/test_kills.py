"""Kills, signals and damages at random: what a training promises, counted. docs/reliability.md quotes what this prints."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_recovery import interrupted, often  # noqa: F401, a fixture

from maskdit import cli
from maskdit.artifacts.atomic import write_json
from maskdit.config.load import load
from maskdit.config.training import Finetune
from maskdit.images.fetch import fetch
from maskdit.runtime.process_group import AHEAD, GRACE
from maskdit.training import train
from project import ROOT
from small import COMMON, SAMPLE, images, latents, make_run, make_vae, masked, pretrained, vae, weights  # noqa: F401, fixtures

TUNED = {**COMMON, "run": "toy", "mask_ratio": 0.0, "milestones": (6, 30)}


def seen(what, folder, **spec):
    """What a program of kills.py reports, which it also prints for those who look."""
    (folder / "work").mkdir()
    (folder / "spec.json").write_text(json.dumps({**spec, "folder": str(folder / "work")}, default=str))
    program = [sys.executable, str(ROOT / "tests" / "kills.py"), what, str(folder / "spec.json")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(found := json.loads(done.stdout))
    shutil.rmtree(folder / "work")
    return found


def phase(latents, name, **changes):
    """What describes a pretraining, or a finetuning of one that is made for it."""
    if name == "pretrain":
        return {"latents": latents, "pretrain": masked(10, 30, **changes).model_dump(mode="json")}
    run = pretrained(latents, "run", masked(4, **changes))
    tuned = Finetune.model_validate({**TUNED, **changes}).model_dump(mode="json")
    return {"latents": latents, "run": run, "finetune": tuned}


def killed(latents, what, count, resumed):
    found = seen("kill_training", latents.parent, kills=count, resumed=resumed, **what)
    assert found["kills"] >= count
    assert len(found["hashes"]) == 1
    for never in ("unloadable states", "steps lost", "logs with a step twice or never", "left", "half written"):
        assert found[never] == 0, never
    return found


def test_ten_kills_at_random_moments_leave_the_weights_of_an_undisturbed_training(latents):
    found = killed(latents, phase(latents, "pretrain"), 10, resumed=4)
    assert found["attempts that went on"] > 3, "kills that come before the first state show little"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_fifty_kills_lose_no_step_no_state_and_no_bit(latents, name, precision):
    found = killed(latents, phase(latents, name, precision=precision), 50, resumed=20)
    assert found["kills before the first state"] > 0
    assert found["kills in a write"] >= 5
    assert found["attempts that went on"] >= 20


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name", "precision"), [(2, "finetune", "bf16"), (4, "pretrain", "fp32")])
def test_fifty_kills_of_several_ranks_or_of_one_of_them_lose_nothing_either(latents, world, name, precision):
    found = killed(latents, phase(latents, name, precision=precision) | {"world": world}, 50, resumed=20)
    assert found["kills before the first state"] > 0
    assert found["kills of one rank"] >= 5
    assert found["attempts that went on"] >= 20


SIGNALS = [(36, {}), (7, {"world": 2}), (7, {"world": 2, "group": True}), (3, {"world": 2, "launcher": True})]
SIGNALS += [(7, {"world": 4}), (7, {"world": 4, "group": True})]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "how"), SIGNALS)
def test_signals_to_a_process_a_rank_or_a_group_keep_the_state_at_once(latents, count, how):
    what = phase(latents, "pretrain", precision="fp32") | how
    found = seen("signal_training", latents.parent, signals=count, **what)
    assert found["signals"] == count
    assert found["orphans"] == found["logs with a step twice or never"] == 0
    assert len(found["hashes"]) == 1
    if "launcher" not in how:  # whose end its ranks see a moment later
        assert found["steps until the state"] <= (1 + AHEAD if how else 1), "ranks agree on a step that none of them has begun"
    assert found["seconds"] < GRACE


@pytest.mark.slow
def test_a_training_may_change_its_number_of_processes_on_the_way(latents):
    what = {"latents": latents, "pretrain": masked(10, 40, precision="fp32", lr=1e-4).model_dump(mode="json")}
    found = seen("change_world", latents.parent, turns=[(2, 8), (1, 18), (2, None)], **what)
    assert found["resumed"][0] is None
    assert all(reached is not None for reached in found["resumed"][1:])
    assert found["once"]
    assert found["files"] == 3
    assert 0 < found["difference"] <= 1e-5


def test_a_step_that_hangs_shows_its_stacks_and_ends_the_job_which_then_goes_on(latents):
    for found in seen("hang", latents.parent, worlds=[1, 2], **phase(latents, "pretrain", precision="fp32")):
        assert "Timeout (0:00:01.5" in found["stacks"]
        assert "in hanging" in found["stacks"], "where it hangs"
        assert found["resumed"] == 8
        assert found["same"], "as if it had not hung"


def cut(path, source):
    path.write_bytes(path.read_bytes()[: source.randrange(1, path.stat().st_size)])


def flip(path, source):
    data = bytearray(path.read_bytes())
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    path.write_bytes(data)


GARBAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"step": 9}',
    b'{"step": 9, "world": 1, "sha256": [7]}',
    b'{"step": 9, "world": 1, "sha256": []}',
]


def garble(path, source):
    record = path.with_name(f"{path.name[:15]}.json")
    record.write_bytes(source.choice([*GARBAGE, source.randbytes(50)]))


DAMAGES = {
    "truncated": cut,
    "one bit flipped": flip,
    "emptied": lambda path, source: path.write_bytes(b""),
    "missing": lambda path, source: path.unlink(),
    "garbage record": garble,
    "random bytes": lambda path, source: path.write_bytes(source.randbytes(path.stat().st_size)),
}


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_120_damages_to_the_newest_state_of_any_number_of_ranks_are_set_aside_and_no_bit_is_lost(
    latents, monkeypatch, capsys, world
):
    config, kept, found = masked(12, precision="fp32"), latents.parent / "scratch", set()
    seen("leave_states", latents.parent, latents=latents, pretrain=config.model_dump(mode="json"), world=world)
    [folder] = kept.iterdir()
    assert len(list(folder.glob("state-*.safetensors"))) == 2 * world
    for damage, hurt in DAMAGES.items():
        source = random.Random(f"{damage} {world}")
        for number in range(20):
            scratch = latents.parent / f"scratch-{damage}-{number}"
            monkeypatch.setenv("MASKDIT_SCRATCH", str(scratch))
            shutil.copytree(kept, scratch)
            hurt(source.choice(sorted((scratch / folder.name).glob("state-000000008-*"))), source)
            capsys.readouterr()
            again = pretrained(latents, f"again-{damage}-{number}", config)
            said = capsys.readouterr().err
            assert "damaged; set aside as state-000000008.damaged" in said
            assert "resuming from step 6" in said
            found.add(str(weights(again)))
    assert len(found) == 1


def test_a_command_that_finds_damaged_states_only_ends_with_2_and_one_line_each_time(latents, monkeypatch, often, capsys):
    config = masked(12)
    folder = interrupted(latents, monkeypatch, config, 10)
    for path in folder.glob("state-*.safetensors"):
        cut(path, random.Random(0))
    monkeypatch.setattr(cli, "dispatch", lambda _: train.pretrain(config, latents=latents, out=latents.parent))
    for _ in range(3):
        capsys.readouterr()
        assert cli.main(["show"]) == 2
        said = capsys.readouterr().err
        assert said.splitlines()[-1] == f"maskdit: {folder}: all its states are damaged; remove the folder to restart from step 0"
        assert "Traceback" not in said
    assert not (folder / "net-0000012.safetensors").exists()


def shards(verb, tmp_path, images, vae):
    """Entry and inputs of a step that works in shards."""
    if verb == "encode":
        return {"dataset": "toy", "vae": "toy", "batch": 1, "mirror": True, "shards": 20}, {"images": images, "vae": vae}
    if verb == "sample":
        made = make_run(tmp_path)
        return {**SAMPLE, "images": 40, "shards": 20, "batch": 2}, {"run": made / "run", "vae": made / "vae"}
    fetch(load(ROOT / "params.yaml").fetch["demo-features"], out=tmp_path)
    given = tmp_path / "samples"
    given.mkdir()
    names = [f"images-{number:04d}.npy" for number in range(20)]
    for number, name in enumerate(names):
        np.save(given / name, np.random.default_rng(number).integers(0, 256, (2, 32, 32, 3), np.uint8))
    np.save(given / "labels.npy", np.arange(40) % 3)
    write_json(given / "manifest.json", {})
    write_json(given / "index.json", {"shards": names, "checkpoint": {}, "protocol": {"images": 40}})
    return {"extractor": "x", "batch": 2}, {"samples": given, "extractor": tmp_path}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sample", "encode", "features"])
def test_twenty_kills_of_work_in_shards_leave_the_artifact_of_an_undisturbed_one(verb, tmp_path, images, vae):
    entry, inputs = shards(verb, tmp_path, images, vae)
    found = seen("kill_shards", tmp_path, verb=verb, entry=entry, inputs=inputs, kills=20)
    assert found["kills"] >= 20
    assert len(found["hashes"]) == 1
    assert found["left"] == 0
    assert found["attempts that found shards"] >= 5
