"""One process at a time, also where the file system has no locks and where they hold on one node only."""

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from maskdit.runtime import lock
from maskdit.runtime.lock import Held, Lock, is_held, me, owner_of

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "LOST", 0.5)


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks hold on one node only, and this process is on another than the owner."""
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(lock.platform, "node", lambda: "another-node")


def hold(path: Path, ready) -> None:
    with Lock(path).held():
        ready.set()
        time.sleep(60)


@pytest.fixture
def owner(tmp_path: Path):
    """Another process that holds the lock."""
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path / "lock", ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def take(path: Path) -> str:
    """'' if the lock is free, else who holds it."""
    try:
        with Lock(path).held():
            return ""
    except Held as other:
        return str(other)


def test_the_owner_of_a_lock_is_named_and_its_end_frees_it(tmp_path, owner, monkeypatch):
    path = tmp_path / "lock"
    assert f"process {owner.pid} on {lock.platform.node()}" in take(path)
    assert is_held(path)
    owner.kill()
    owner.join()
    assert not is_held(path)
    assert take(path) == ""
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_no_owner(tmp_path, monkeypatch, number):
    without_flock(monkeypatch, number)
    assert take(tmp_path / "lock") == ""


@pytest.mark.parametrize("way", [lambda patch: without_flock(patch, errno.ENOLCK), elsewhere], ids=["no locks", "other node"])
def test_where_locks_have_no_effect_the_lease_decides(tmp_path, owner, monkeypatch, way):
    way(monkeypatch)
    assert f"process {owner.pid}" in take(tmp_path / "lock"), "its sign of life is waited for and comes"
    owner.kill()
    owner.join()
    began = time.monotonic()
    assert take(tmp_path / "lock") == ""
    assert time.monotonic() - began < 5


def test_a_lease_is_as_old_as_the_file_system_says_not_this_machine_s_clock(tmp_path, owner, monkeypatch):
    elsewhere(monkeypatch)
    for days in (-1000, 1000):
        monkeypatch.setattr(lock.time, "time", lambda days=days: 1.8e9 + 86400 * days)
        assert f"process {owner.pid}" in take(tmp_path / "lock")


def lease(path: Path, **other: object) -> None:
    """A lease of a process on another node that has just given a sign of life."""
    path.with_name("lock.lease").write_text(json.dumps({**me(), "host": "lost-node", "space": "", **other}))


@pytest.mark.parametrize(("restart", "waits"), [("1", False), ("2", True)])
def test_an_earlier_run_of_the_same_slurm_job_is_not_waited_for(tmp_path, monkeypatch, restart, waits):
    monkeypatch.setattr(lock, "LOST", 1.5)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    lease(tmp_path / "lock", restart=restart)
    began = time.monotonic()
    assert take(tmp_path / "lock") == ""
    assert (time.monotonic() - began > 1) == waits


def race(path: Path, begin, results) -> None:
    begin.wait()
    try:
        with Lock(path).held():
            results.put("taken")
            time.sleep(1)
    except Held:
        results.put("refused")


def test_of_several_that_find_a_dead_owner_s_lease_one_takes_it(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOLCK)
    path = tmp_path / "lock"
    for _ in range(3):
        lease(path)
        os.utime(path.with_name("lock.lease"), (1, 1))
        begin, results = FORK.Event(), FORK.Queue()
        group = [FORK.Process(target=race, args=(path, begin, results)) for _ in range(4)]
        for process in group:
            process.start()
        begin.set()
        found = sorted(results.get(timeout=30) for _ in group)
        for process in group:
            process.join()
        assert found == ["refused"] * 3 + ["taken"]


def test_who_was_silent_for_long_learns_that_another_has_taken_the_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 100.0)
    with Lock(tmp_path / "lock").held() as ours:
        assert ours.ours()
        lease(tmp_path / "lock")
        assert not ours.ours()
    assert owner_of(tmp_path / "lock.lease")["host"] == "lost-node", "whose lease stays"


def test_a_step_that_is_refused_leaves_the_sign_of_the_one_that_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = lock.sign("vae", "demo")
    with lock.running("vae", "demo", None) as tell:
        tell("holds GPU-aa11")
        assert lock.runs(path).endswith(", holds GPU-aa11")
        first = owner_of(path)
        with lock.running("vae", "demo", None) as tell:
            tell("waiting")
            assert owner_of(path) == first
        assert owner_of(path) == first
    assert not path.exists()


def test_a_step_shows_itself_when_the_sign_of_a_killed_one_has_become_old(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = lock.sign("vae", "demo")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**me(), "host": "lost-node", "space": "", "token": "x"}))
    with lock.running("vae", "demo", None):
        assert owner_of(path)["host"] == "lost-node"
        for _ in range(100):
            if (owner := owner_of(path)).get("host") != "lost-node":
                break
            time.sleep(0.05)
        assert owner["process"] == os.getpid()
    assert not path.exists()


def test_a_lease_that_cannot_be_read_is_ours_and_one_that_was_deleted_is_made_again(tmp_path, monkeypatch):
    with Lock(tmp_path / "lock").held() as ours:
        with monkeypatch.context() as patch:

            def stale(path, encoding):
                raise OSError(errno.ESTALE, "Stale file handle")

            patch.setattr(Path, "read_text", stale)
            assert ours.ours()
        (tmp_path / "lock.lease").unlink()
        assert ours.ours()
        assert owner_of(tmp_path / "lock.lease")["process"] == os.getpid()
        assert ours.ours()
    assert not (tmp_path / "lock.lease").exists()


def test_who_asks_whether_a_lock_is_held_takes_nothing(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOLCK)
    lease(tmp_path / "lock")
    os.utime(tmp_path / "lock.lease", (1, 1))
    (tmp_path / "lock").touch()
    before = (tmp_path / "lock.lease").read_text()
    assert not is_held(tmp_path / "lock"), "its owner has been silent for years"
    assert (tmp_path / "lock.lease").read_text() == before


def test_another_machine_of_the_same_name_is_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOST", 1.5)
    lease(tmp_path / "lock", host=lock.platform.node(), process=2**22 + 1, space="another boot pid:[1]")
    assert not lock.ended(owner_of(tmp_path / "lock.lease"))
    began = time.monotonic()
    assert take(tmp_path / "lock") == ""
    assert time.monotonic() - began > 1


def test_a_half_written_lease_is_waited_for(tmp_path):
    (tmp_path / "lock.lease").write_text("")
    assert not is_held(tmp_path / "none")
    assert take(tmp_path / "lock") == ""
