"""Work in shards: made once, by whoever comes first, and only ever whole."""

import pytest

from maskdit.artifacts.shards import Shards, place, share
from maskdit.runtime import environment


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(environment, "PART", None)


@pytest.fixture(params=["files", "folders"])
def make(request):
    """What makes a shard, and notes its number."""

    def write(number, path):
        write.made.append(number)
        if request.param == "folders":
            path.mkdir()
            path /= "content"
        path.write_text(str(number))

    write.made = []
    return write


def shards():
    return sorted(path.name for path in work().home.iterdir() if not path.name.startswith(".") and path.name != environment.NODE)


def work(count=5, identity="one"):
    return Shards("toy", identity, [f"shard-{number}" for number in range(count)])


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_the_shares_of_all_processes_are_each_shard_once(monkeypatch, count, parts):
    mine = []
    for part in range(1, parts + 1):
        monkeypatch.setattr(environment, "PART", (part, parts))
        mine += share(count)
    assert sorted(mine) == list(range(count))


def test_only_the_process_that_is_no_part_takes(make, monkeypatch):
    monkeypatch.setattr(environment, "PART", (2, 2))
    assert not work().fill(make)
    monkeypatch.setattr(environment, "PART", None)
    assert work().fill(make)
    assert make.made == [1, 3, 0, 2, 4], "what is there is not made again"


def test_a_shard_that_failed_is_not_there(make):
    def failing(number, path):
        make(number, path)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work().fill(failing)
    assert shards() == ["shard-0", "shard-1"]


def test_the_slower_of_two_processes_with_one_shard_keeps_what_is_there(make):
    def overtaken(number, path):
        make(number, path)
        make(number, path.with_name(f"shard-{number}"))  # another process, meanwhile

    assert work().fill(overtaken)
    assert shards() == [f"shard-{number}" for number in range(5)]


def test_what_a_killed_process_of_the_same_number_left_is_in_nobody_s_way(make, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    make(0, work().home / ".7.shard-0")
    assert work().fill(make)
    assert len(shards()) == 5
    assert not list(work().home.glob(".7.*"))


DAMAGES = {
    "cut": lambda file: file.write_text(""),
    "one bit": lambda file: file.write_text("3"),
    "gone": lambda file: file.unlink(),
    "no checksum": lambda file: next(work().home.glob(".shard-2.sha256")).unlink(),
    "another checksum": lambda file: next(work().home.glob(".shard-2.sha256")).write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_was_damaged_after_it_was_made_is_made_again(make, capsys, damage):
    assert work().fill(make)
    shard = work().home / "shard-2"
    DAMAGES[damage](shard / "content" if shard.is_dir() else shard)
    assert work().fill(make)
    assert make.made == [0, 1, 2, 3, 4, 2]
    assert (shard / "content" if shard.is_dir() else shard).read_text() == "2"
    assert ("damaged since it was made" in capsys.readouterr().err) == (damage != "gone" or shard.is_dir())


def test_a_shard_that_cannot_be_read_now_is_not_taken_for_damaged(make, monkeypatch):
    assert work().fill(make)

    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("maskdit.artifacts.shards.sha256", stale)
    with pytest.raises(OSError, match="Stale"):
        work().fill(make)
    assert len(shards()) == 5


def test_taken_files_survive_their_scratch(make, tmp_path):
    shards = Shards("toy", "other", ["a"])
    shards.fill(lambda number, path: path.write_text("whole"))
    shards.take(tmp_path)
    assert (tmp_path / "a").read_text() == "whole"
    assert shards.home.exists(), "until that is published"
    environment.tidy()
    assert not shards.home.exists()


def test_a_kill_while_scratch_is_removed_leaves_no_half_of_it_to_be_found(make, tmp_path, monkeypatch):
    def cut(path, **_):
        (path / "shard-0").rename(tmp_path / "removed")
        raise KeyboardInterrupt

    shards = work()
    shards.fill(make)
    shards.forget()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(environment.shutil, "rmtree", cut)
        environment.tidy()
    assert not shards.home.exists()
    again = work()
    assert again.fill(make)
    assert make.made == [*range(5), *range(5)]
    again.forget()
    environment.tidy()
    assert not list((tmp_path / "scratch").iterdir()), "neither its own nor what was left"


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    (tmp_path / "a").write_text("whole")
    monkeypatch.setattr("os.link", refuse)
    place(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "whole"
