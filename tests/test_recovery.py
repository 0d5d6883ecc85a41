"""A training that is stopped, killed, damaged or short of disk goes on from what it has, or says why it does not."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maskdit import checkpoint, recovery, train
from maskdit.config import UserError
from maskdit.runtime import STOPPED, Stopped, launch
from test_train import latents, masked, pretrained, weights  # noqa: F401, a fixture


@pytest.fixture
def often(monkeypatch):
    """A line of the log each three steps, and a state with each."""
    monkeypatch.setattr(train, "LOG_STEPS", 3)
    monkeypatch.setattr(train.Recovery, "due", lambda self: True)


def interrupted(latents, monkeypatch, config, step, by=KeyboardInterrupt):  # noqa: F811
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
    "record": lambda path: path.with_suffix(".json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_is_set_aside_and_the_one_before_serves(latents, monkeypatch, often, capsys, damage):  # noqa: F811
    config = masked(12)
    folder = interrupted(latents, monkeypatch, config, 10)
    assert states(folder) == [6, 9], "the two newest are kept"
    DAMAGES[damage](folder / "state-000000009.safetensors")
    again = pretrained(latents, "again", config)
    said = capsys.readouterr().err
    assert "damaged; set aside as state-000000009.damaged" in said
    assert "going on from step 6" in said
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(pretrained(latents, "whole", config))


def test_a_training_whose_states_are_all_damaged_stops_and_never_starts_anew(latents, monkeypatch, often):  # noqa: F811
    config = masked(12)
    folder = interrupted(latents, monkeypatch, config, 10)
    for path in folder.glob("state-*.safetensors"):
        flip(path)
    for _ in range(2):
        with pytest.raises(UserError, match="none of its states is whole; remove the folder to start again from step 0"):
            pretrained(latents, f"again-{_}", config)


def test_a_state_without_its_record_does_not_count(latents, monkeypatch, often, capsys):  # noqa: F811
    config = masked(12)
    folder = interrupted(latents, monkeypatch, config, 10)
    (folder / "state-000000009.json").unlink()
    pretrained(latents, "again", config)
    assert "going on from step 6" in capsys.readouterr().err


def test_a_damaged_milestone_is_not_published(latents, monkeypatch, often):  # noqa: F811
    config = masked(3, 12)
    folder = interrupted(latents, monkeypatch, config, 10)
    flip(folder / recovery.ema_file(3))
    with pytest.raises(UserError, match=r"ema-0000003\.safetensors: damaged; remove the folder to train this recipe again"):
        pretrained(latents, "again", config)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_first_costs_the_older_state_then_one_clear_line(latents, monkeypatch, often, number):  # noqa: F811
    config, real, full = masked(12), checkpoint.save, [9, 12]

    def refuse(path, tensors, facts):
        if path.name.startswith("state") and facts["step"] in full:
            if facts["step"] == 9:
                full.remove(9)
            raise OSError(number, "full")
        real(path, tensors, facts)

    monkeypatch.setattr(checkpoint, "save", refuse)
    with pytest.raises(UserError, match=r"the disk is full .*; make room, then run it again: it goes on from its last state"):
        pretrained(latents, "run", config)
    folder = next((latents.parent / "scratch").iterdir())
    assert states(folder) == [9], "step 9 was written after step 3 was dropped"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    full.clear()
    again = pretrained(latents, "again", config)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(pretrained(latents, "whole", config))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_keeps_the_state_at_the_next_step_and_nothing_is_lost(latents, monkeypatch, number):  # noqa: F811
    config, real = masked(5, 30), train.batch_at

    def warned(step, **rest):
        if step == 17:
            os.kill(os.getpid(), number)
        return real(step, **rest)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="its state is kept; run it again to go on"):
        patch.setattr(train, "batch_at", warned)
        train.pretrain(config, latents=latents, out=latents.parent)
    assert signal.getsignal(number) == before
    folder = next((latents.parent / "scratch").iterdir())
    assert states(folder)[-1] in (16, 17, 18), "a batch is made one step ahead"
    again = pretrained(latents, "again", config)
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(pretrained(latents, "whole", config))


PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from maskdit import train
from maskdit.config import Pretrain
from maskdit.runtime import STOPPED, Stopped
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


def test_a_signal_to_one_rank_stops_all_at_one_step(latents, monkeypatch):  # noqa: F811
    config = latents.parent / "config.json"
    config.write_text(masked(20, precision="fp32").model_dump_json())

    def run(name, rank):
        out = latents.parent / name
        out.mkdir(exist_ok=True)
        words = [str(Path(__file__).parent), str(latents), str(config), rank, str(out)]
        return launch([sys.executable, "-c", PROGRAM, *words], 2), out

    assert run("stopped", "1")[0] == STOPPED
    [reached] = states(next((latents.parent / "scratch").iterdir()))
    assert 9 <= reached <= 14
    code, again = run("again", "none")
    assert code == 0
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    assert weights(again) == weights(run("whole", "none")[1])


def test_a_command_that_is_stopped_has_an_exit_code_of_its_own(tmp_path):
    program = "import sys; from maskdit import cli; from maskdit.runtime import Stopped\n"
    program += "def stop(arguments): raise Stopped('pretrain: stopped')\ncli.dispatch = stop; sys.exit(cli.main(['show']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == STOPPED
    assert done.stderr == "pretrain: stopped\n"
