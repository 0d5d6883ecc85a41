"""A training that is stopped, killed, damaged or short of disk goes on from what it has, or says why it does not."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore

import warm
from maskdit.artifacts.atomic import write_json
from maskdit.config.base import UserError
from maskdit.model import checkpoint
from maskdit.runtime import process_group
from maskdit.runtime.device import device
from maskdit.runtime.lock import owner_of
from maskdit.runtime.process_group import STOPPED, Stopped, launch
from maskdit.training import recovery, train
from small import latents, masked, pretrained, weights  # noqa: F401, a fixture


@pytest.fixture
def often(monkeypatch):
    """A line of the log each three steps, and a state with each."""
    monkeypatch.setattr(train, "LOG_STEPS", 3)
    monkeypatch.setattr(train.Recovery, "due", lambda self: True)


def interrupted(latents, monkeypatch, config, step, by=KeyboardInterrupt):
    """A training that ends at a step; the folder of its states."""
    real = train.batch_at

    def dying(number, **rest):
        if number == step:
            raise by
        return real(number, **rest)

    with monkeypatch.context() as patch, pytest.raises(by):
        patch.setattr(train, "batch_at", dying)
        train.pretrain(config, latents=latents, out=latents.parent)
    return next((latents.parent / "scratch").iterdir())


def states(folder):
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("state-*.json"))


def newest(folder, rank=0, world=1):
    """A file of the newest state."""
    return folder / f"state-{states(folder)[-1]:09d}-{rank}-of-{world}.safetensors"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut": cut,
    "one bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "random": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "record": lambda path: path.with_name(f"{path.name[:15]}.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_is_set_aside_and_the_one_before_serves(latents, monkeypatch, often, capsys, damage):
    config = masked(12)
    folder = interrupted(latents, monkeypatch, config, 10)
    assert states(folder) == [6, 9], "the two newest are kept"
    DAMAGES[damage](newest(folder))
    again = pretrained(latents, "again", config)
    said = capsys.readouterr().err
    assert "damaged; set aside as state-000000009.damaged" in said
    assert "resuming from step 6" in said
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(pretrained(latents, "whole", config))


def test_a_training_whose_states_are_all_damaged_stops_and_never_starts_anew(latents, monkeypatch, often):
    config = masked(12)
    folder = interrupted(latents, monkeypatch, config, 10)
    for path in folder.glob("state-*.safetensors"):
        flip(path)
    for _ in range(2):
        with pytest.raises(UserError, match="all its states are damaged; remove the folder to restart from step 0"):
            pretrained(latents, f"again-{_}", config)


def test_a_state_without_its_record_does_not_count(latents, monkeypatch, often, capsys):
    config = masked(12)
    folder = interrupted(latents, monkeypatch, config, 10)
    (folder / "state-000000009.json").unlink()
    pretrained(latents, "again", config)
    assert "resuming from step 6" in capsys.readouterr().err


def test_a_damaged_milestone_is_not_published(latents, monkeypatch, often):
    config = masked(3, 12)
    folder = interrupted(latents, monkeypatch, config, 10)
    flip(folder / recovery.milestone_file("ema", 3))
    with pytest.raises(UserError, match=r"ema-0000003\.safetensors: damaged; remove the folder and train this recipe again"):
        pretrained(latents, "again", config)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_first_costs_the_older_state_then_one_clear_line(latents, monkeypatch, often, number):
    config, real, full = masked(12), checkpoint.save, [9, 12]

    def refuse(path, tensors, facts):
        if path.name.startswith("state") and facts["step"] in full:
            if facts["step"] == 9:
                full.remove(9)
            raise OSError(number, "full")
        return real(path, tensors, facts)

    monkeypatch.setattr(checkpoint, "save", refuse)
    line = r"the disk is full .*; free some space and run the command again to resume from the last state"
    with pytest.raises(UserError, match=line):
        pretrained(latents, "run", config)
    folder = next((latents.parent / "scratch").iterdir())
    assert states(folder) == [9], "step 9 was written after step 3 was dropped"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    full.clear()
    again = pretrained(latents, "again", config)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(pretrained(latents, "whole", config))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_keeps_the_state_at_the_next_step_and_nothing_is_lost(latents, monkeypatch, number):
    config, real = masked(5, 30), train.batch_at

    def warned(step, **rest):
        if step == 17:
            os.kill(os.getpid(), number)
        return real(step, **rest)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="saved its state; run the command again to resume"):
        patch.setattr(train, "batch_at", warned)
        train.pretrain(config, latents=latents, out=latents.parent)
    assert signal.getsignal(number) == before
    folder = next((latents.parent / "scratch").iterdir())
    assert states(folder)[-1] in (15, 16, 17, 18), "a batch is made up to two steps ahead"
    again = pretrained(latents, "again", config)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(pretrained(latents, "whole", config))


PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from maskdit.training import train
from maskdit.config.training import Pretrain
from maskdit.runtime.process_group import STOPPED, Stopped
real = train.batch_at
def warned(step, **rest):
    if step == 9 and os.environ["RANK"] == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGUSR1)
    return real(step, **rest)
train.batch_at = warned
try:
    train.pretrain(Pretrain.model_validate_json(Path(sys.argv[3]).read_text()), latents=Path(sys.argv[2]), out=Path(sys.argv[5]))
except Stopped:
    sys.exit(STOPPED)
"""


def group(latents, name, rank="none", text=PROGRAM):
    """Train by two ranks, one of which may get a signal. Returns the exit code and the folder."""
    config, out = latents.parent / "config.json", latents.parent / name
    config.write_text(masked(20, precision="fp32", lr=1e-4).model_dump_json())
    out.mkdir(exist_ok=True)
    return launch(warm.program(text, str(Path(__file__).parents[1]), str(latents), str(config), rank, str(out)), 2), out


def test_a_signal_to_one_rank_stops_all_at_one_step_and_its_state_serves_any_number_of_ranks(latents, monkeypatch, capsys):
    assert group(latents, "stopped", "1")[0] == STOPPED
    [folder] = (latents.parent / "scratch").iterdir()
    [reached] = states(folder)
    assert 9 <= reached <= 14
    parts = [newest(folder, rank, 2) for rank in (0, 1)]
    assert sorted(folder.glob("state-*.safetensors")) == parts
    assert all(0.3 < part.stat().st_size / sum(each.stat().st_size for each in parts) < 0.7 for part in parts)
    shutil.copytree(folder.parent, latents.parent / "kept")
    code, again = group(latents, "again")
    assert code == 0
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    whole = group(latents, "whole")[1]
    assert weights(again) == weights(whole)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "kept"))
    alone = pretrained(latents, "alone", masked(20, precision="fp32", lr=1e-4))
    assert f"resuming from step {reached}" in capsys.readouterr().err
    for name, tensor in load_file(whole / "net-0000020.safetensors").items():
        torch.testing.assert_close(load_file(alone / "net-0000020.safetensors")[name], tensor, rtol=0, atol=1e-5)


FULL = """
import errno
from maskdit.model import checkpoint
saved, left = checkpoint.save, [os.environ["RANK"] == "1"]
def refuse(path, *words):
    if left.pop() if left else False:
        raise OSError(errno.ENOSPC, "full")
    return saved(path, *words)
checkpoint.save = refuse
"""


def test_a_disk_that_is_full_for_one_rank_makes_all_write_again(latents):
    program = PROGRAM.replace("try:", f"{FULL}try:")
    code, out = group(latents, "run", text=program)
    assert code == 0
    assert (out / "index.json").exists()
    [folder] = (latents.parent / "scratch").iterdir()
    assert len(list(folder.glob("state-*.safetensors"))) == 2


def test_ranks_exchange_words_without_a_collective_operation_and_one_that_leaves_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(process_group, "LEAVE", 0.1)
    store, leaving = HashStore(), threading.Event()
    ranks = [process_group.Ranks(rank, 3, store) for rank in range(3)]
    with ThreadPoolExecutor() as pool:
        told = [*pool.map(lambda rank: rank.exchange("one", f"of {rank.rank}" * (rank.rank > 0), leaving), ranks)]
    assert told == [["", "of 1", "of 2"]] * 3
    with ThreadPoolExecutor() as pool:
        first, second = (pool.submit(rank.exchange, "three", "", threading.Event()) for rank in ranks[:2])
        time.sleep(0.1)
        store.set("maskdit/three/given/2", "")
        second.result()
        time.sleep(0.1)
        assert not first.done(), "its store is still asked"
        store.set("maskdit/three/seen/2", "")
        first.result()
    leaving.set()
    with pytest.raises(TimeoutError, match="two: another rank did not answer"):
        ranks[0].exchange("two", "", leaving)


def test_a_training_goes_on_while_its_state_is_written_and_the_state_is_of_the_step_in_which_it_was_copied(
    latents, monkeypatch, capsys
):
    config, real, made = masked(20), train.batch_at, []
    monkeypatch.setenv("MASKDIT_STATE_SECONDS", "0")
    monkeypatch.setattr(train, "LOG_STEPS", 3)

    def slow(path, *words, saved=checkpoint.save):
        if path.name.startswith("state"):
            deadline = time.monotonic() + 20
            while 12 not in made and time.monotonic() < deadline:
                time.sleep(0.01)
        return saved(path, *words)

    def noted(step, **rest):
        made.append(step)
        return real(step, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_at", noted)
        patch.setattr(checkpoint, "save", slow)
        folder = interrupted(latents, monkeypatch, config, 13)
    assert states(folder) == [3]
    again = pretrained(latents, "again", config)
    assert "resuming from step 3" in capsys.readouterr().err
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(pretrained(latents, "whole", config))


def test_a_state_that_could_not_be_written_while_the_training_goes_on_ends_it(latents, monkeypatch):
    monkeypatch.setenv("MASKDIT_STATE_SECONDS", "0")
    monkeypatch.setattr(train, "LOG_STEPS", 3)

    def refuse(path, *_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "save", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        pretrained(latents, "run", masked(10**9))


def test_the_seconds_that_a_training_waits_for_states_are_in_its_log_and_in_its_device_hours(latents, monkeypatch, often):
    copied, saved = recovery.Recovery.copy, checkpoint.save

    def slow(self, *words):
        time.sleep(0.3)
        copied(self, *words)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(recovery.Recovery, "copy", slow)
        patch.setattr(checkpoint, "save", lambda *words: (time.sleep(0.4), saved(*words))[1])
        patch.setattr(process_group.Ranks, "stop", lambda _, step: step == 8)
        pretrained(latents, "stopped", masked(12))
    record = sorted((latents.parent / "scratch").glob("*/state-*.json"))[-1]
    assert json.loads(record.read_text())["waited"] >= 0.4, "it ended with its state"
    rows = [json.loads(line) for line in (pretrained(latents, "run", masked(12)) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert rows[0]["state_seconds"] == 0, "the state of step 3 is copied after its row"
    assert 0.3 <= rows[1]["state_seconds"] < rows[1]["seconds"]
    assert rows[2]["state_seconds"] - rows[1]["state_seconds"] >= 0.3 + 0.3 + 0.4, "of the states of steps 6 and 8"
    assert all(row["device_seconds"] == row["seconds"] > row["state_seconds"] for row in rows)


def test_a_command_that_is_stopped_has_an_exit_code_of_its_own(tmp_path):
    program = "import sys; from maskdit import cli; from maskdit.runtime.process_group import Stopped\n"
    program += "def stop(arguments): raise Stopped('pretrain: stopped')\ncli.dispatch = stop; sys.exit(cli.main(['show']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == STOPPED
    assert done.stderr == "pretrain: stopped\n"


@pytest.mark.parametrize("job", [None, "4711"])
def test_a_second_training_of_a_recipe_is_told_whose_the_first_is(latents, monkeypatch, job):
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    config = latents.parent / "config.json"
    config.write_text(masked(9, precision="fp32").model_dump_json())
    words = [str(Path(__file__).parents[1]), str(latents), str(config), "none", str(latents.parent)]
    alone = "import time, os; os.environ |= {'RANK': '0', 'WORLD_SIZE': '1'}\n"
    first = subprocess.Popen([sys.executable, "-c", alone + SLOW + PROGRAM, *words])
    try:
        while not any(owner_of(lease) for lease in latents.parent.glob("scratch/*/lock.lease")):
            time.sleep(0.05)
        whose = f"process {first.pid} on {os.uname().nodename}" + f", Slurm job {job}" * bool(job)
        for _ in range(2):
            with pytest.raises(UserError, match=rf"another process is training this recipe \({whose}\); wait for it or stop it$"):
                pretrained(latents, f"second-{_}", masked(9, precision="fp32"))
    finally:
        first.kill()
        first.wait()
    pretrained(latents, "third", masked(9, precision="fp32"))


def test_a_training_that_was_silent_for_so_long_that_another_took_over_saves_nothing(latents, monkeypatch):
    copied = recovery.Recovery.copy

    def overtaken(self, *words):
        (self.folder / "lock.lease").write_text(json.dumps({"host": "other-node", "process": 7, "slurm_job": "42", "token": "x"}))
        copied(self, *words)

    monkeypatch.setattr(recovery.Recovery, "copy", overtaken)
    with pytest.raises(UserError, match="process 7 on other-node, Slurm job 42 has taken over this training, because"):
        pretrained(latents, "run", masked(2))
    [folder] = latents.parent.glob("scratch/pretrain-*")
    assert not list(folder.glob("state-*"))
    assert (folder / "lock.lease").exists(), "the other's"


SLOW = """
from maskdit.training import recovery
recovery.Recovery.resume = lambda *_: time.sleep(60)
"""


def test_the_environment_sets_the_least_pause_between_states(latents, monkeypatch):
    assert recovery.Recovery("toy", masked(2), process_group.Ranks(0, 1)).pause == 60
    monkeypatch.setenv("MASKDIT_STATE_SECONDS", "600")
    assert recovery.Recovery("toy", masked(2), process_group.Ranks(0, 1)).pause == 600
    for wrong in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("MASKDIT_STATE_SECONDS", wrong)
        line = f"MASKDIT_STATE_SECONDS: '{wrong}' is not a number of seconds; correct it or unset it"
        with pytest.raises(UserError, match=f"^{line}$"):
            pretrained(latents, f"run{wrong}", masked(2))


@pytest.mark.parametrize("wrong", ["two", "0", "-1", "2.0", "9999999", "²"])
def test_a_number_of_threads_or_processes_that_is_none_is_refused_by_name(wrong, monkeypatch):
    for name, asked in (("MASKDIT_THREADS", device), ("MASKDIT_RANKS", process_group.local_ranks)):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(UserError, match=f"^{name}: '{wrong}' is not a whole number from 1 to 1024; correct it or unset it$"):
            asked()


def test_a_disk_without_room_for_the_states_is_told_before_the_first_step(latents, monkeypatch, often):
    config, real, steps = masked(12), recovery.shutil.disk_usage, []
    folder = interrupted(latents, monkeypatch, config, 8)
    size = max(path.stat().st_size for path in folder.glob("state-*.safetensors"))
    with monkeypatch.context() as patch, pytest.raises(UserError) as refusal:
        patch.setattr(recovery.shutil, "disk_usage", lambda path: real(path)._replace(free=7))
        patch.setattr(train, "batch_at", lambda step, **_: steps.append(step))
        pretrained(latents, "again", config)
    found = re.fullmatch(
        rf"{folder}: .* need (\d+) bytes, but 7 bytes are free; free some space, or set MASKDIT_SCRATCH .*", str(refusal.value)
    )
    assert found, refusal.value
    assert int(found[1]) == pytest.approx(size, rel=0.3), "one state more than the two that are there"
    assert states(folder) == [3, 6]
    assert not steps
    monkeypatch.setattr(recovery.shutil, "disk_usage", lambda path: real(path)._replace(free=int(found[1])))
    pretrained(latents, "anyway", config)


def test_what_a_kill_left_half_written_is_removed(latents, monkeypatch, often):
    folder = interrupted(latents, monkeypatch, masked(12), 8)
    half = "state-000000009-1-of-2.safetensors"  # the other rank was killed before it had written its own
    for name in (".state-000000009-0-of-2.safetensors.x1", ".net-0000012.safetensors.y2", ".nfs0001", half):
        (folder / name).write_text("half")
    with recovery.Recovery(folder.name, masked(12), process_group.Ranks(0, 1)) as home:
        assert home.newest(12) == folder / "state-000000006.json"
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".nfs0001"]
    assert not (folder / half).exists()


def test_one_process_alone_is_watched_only_if_asked_and_ranks_always(monkeypatch):
    armed = []
    monkeypatch.setattr(process_group.faulthandler, "dump_traceback_later", lambda limit, **_: armed.append(limit))
    for world, setting, wanted in ((1, None, []), (2, None, [1800.0]), (1, "7", [7.0]), (2, "7", [7.0]), (2, "0", [])):
        armed.clear()
        if setting is not None:
            monkeypatch.setenv("MASKDIT_WATCHDOG_SECONDS", setting)
        assert list(process_group.watched(range(1), world)) == [0]
        assert armed == wanted
        monkeypatch.delenv("MASKDIT_WATCHDOG_SECONDS", raising=False)


def test_a_process_that_does_not_end_after_another_s_failure_is_killed(monkeypatch):
    monkeypatch.setattr(process_group, "GRACE", 0.2)
    program = "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN)\n"
    program += "time.sleep(60) if os.environ['RANK'] == '1' else (time.sleep(0.5), sys.exit(3))"
    began = time.monotonic()
    assert launch([sys.executable, "-c", program], 2) == 3
    assert time.monotonic() - began < 20


def test_a_warning_reaches_a_process_that_has_just_begun():
    program = "import signal, sys, time; time.sleep(0.4); came = []; signal.signal(signal.SIGUSR1, lambda *_: came.append(1))\n"
    program += "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1}); sys.exit(85 if came else 3)"
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    assert launch([sys.executable, "-c", program], 2) == STOPPED
    timer.join()


@pytest.mark.parametrize("known", [[], {}, 7, None, [7], ["a", None]])
def test_a_record_that_names_no_files_is_a_damaged_one(tmp_path, known):
    record = tmp_path / "state-000000004.json"
    write_json(record, {"sha256": known, "step": 4, "world": 1})
    with pytest.raises(UserError, match=r"state-000000004\.json: not the record of a state"):
        recovery.files_of(record)
