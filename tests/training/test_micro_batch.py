"""How many images a rank takes at once, chosen from the memory that there is: it decides no more than speed and memory."""

import pytest

from maskdit.artifacts.atomic import read_json
from maskdit.config.base import UserError
from maskdit.runtime import device
from maskdit.training import micro_batch
from small import latents, masked, pretrained, weights  # noqa: F401, a fixture


@pytest.fixture
def memory(monkeypatch):
    """The machine's memory, free and in all, in bytes: [free, all]."""
    there = [10**12, 10**12]
    monkeypatch.setattr(micro_batch, "free_memory", lambda _: tuple(there))
    return there


def test_auto_takes_what_fits_says_so_and_keeps_its_choice(latents, memory, capsys, monkeypatch):
    whole = pretrained(latents, "whole", masked(4))
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "other"))
    halves = pretrained(latents, "halves", masked(4, micro_batch=2))
    assert weights(halves) != weights(whole), "another order of sums"
    monkeypatch.setenv("MASKDIT_SCRATCH", str(latents.parent / "scratch-auto"))
    capsys.readouterr()
    step = micro_batch.step_memory(masked(4), True, True, 8000, [(16, 2, 8), (8, 2, 16)])
    monkeypatch.setattr(micro_batch, "step_memory", lambda *_: step)
    memory[0] = int(step.of(2) / 0.9) + 1
    auto = pretrained(latents, "auto", masked(2, micro_batch="auto"))
    assert (
        "pretrain: 2 of 4 images at once need about 0.0 GB; 0.0 of 1000.0 GB are free (micro_batch: auto)"
        in capsys.readouterr().err
    )
    memory[0] = 10**12
    auto = pretrained(latents, "longer", masked(4, micro_batch="auto"))
    assert "2 of 4 images at once" in capsys.readouterr().err, "it goes on with the number with which it began"
    assert weights(auto) == weights(halves)
    memory[0] = int(step.of(2)) - 1
    pretrained(latents, "smaller", masked(6, micro_batch="auto"))
    assert "1 of 4 images at once" in capsys.readouterr().err, "what does not fit any more is chosen anew"


def test_a_number_that_may_not_fit_is_warned_of_and_one_that_cannot_is_refused(latents, memory, capsys):
    memory[:] = 1, 10**12
    pretrained(latents, "run", masked(2))
    line = "pretrain: 4 of 4 images at once need about 0.0 GB; 0.0 of 1000.0 GB are free: if it runs out of memory, "
    assert f"{line}set micro_batch: auto, or set checkpointing: true\n" in capsys.readouterr().err
    memory[:] = 1, 1
    line = r"^pretrain: 4 of 4 images at once need about .* GB; .* GB are free; set micro_batch: auto, or set checkpointing: true"
    with pytest.raises(UserError, match=line):
        pretrained(latents, "refused", masked(3))
    with pytest.raises(
        UserError, match=r"^pretrain: 1 of 4 images at once need .* are free; set checkpointing: true, or use more or larger"
    ):
        pretrained(latents, "auto", masked(3, micro_batch="auto"))


def test_memory_that_is_enough_is_not_spoken_of(latents, memory, capsys):
    pretrained(latents, "run", masked(2))
    assert "at once" not in capsys.readouterr().err


def test_it_is_part_of_no_lineage(latents, memory):
    auto, plain = masked(4, micro_batch="auto"), masked(4)
    assert auto.recipe() == plain.recipe()
    assert auto.accepts(plain)
    assert plain.accepts(masked(4, micro_batch=3))
    assert not plain.accepts(masked(4, lr=1.0))
    first = pretrained(latents, "first", masked(2))
    assert read_json(first / "index.json")["milestones"][-1]["step"] == 2
    assert len(list((latents.parent / "scratch").iterdir())) == 1
    pretrained(latents, "second", masked(4, micro_batch="auto"))
    assert len(list((latents.parent / "scratch").iterdir())) == 1, "it went on from the first"


def test_a_control_group_s_limit_is_that_of_its_narrowest_parent(tmp_path):
    group, root = tmp_path / "cgroup", tmp_path / "fs"
    inner = root / "system.slice" / "job_7" / "step_0"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("64000\n")
    (inner.parent.parent / "memory.max").write_text("90000\n")
    group.write_text("0::/system.slice/job_7/step_0\n")
    assert sorted(device.group_limits(group, root)) == [64000, 90000]
    old = root / "memory" / "slurm" / "job_8"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("5000\n")
    group.write_text("3:cpuset:/other\n2:memory:/slurm/job_8\n")
    assert list(device.group_limits(group, root)) == [5000]
    assert list(device.group_limits(tmp_path / "none", root)) == []


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = device.system_memory(1)
    assert 0 < alone[0] <= alone[1]
    assert device.system_memory(4)[1] == alone[1] // 4
