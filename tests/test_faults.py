"""Disks that are full, read-only or bounded by a quota, and files that others may write: one line, and nothing is lost."""

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from maskdit import cli
from maskdit.artifacts.atomic import replacing, save_array, sha256, write_json
from maskdit.artifacts.publish import publishing
from maskdit.artifacts.shards import Shards, savez
from maskdit.config.base import UserError
from maskdit.config.images import VAE_WEIGHTS
from maskdit.evaluation.extractors import Network
from maskdit.images.download import download
from maskdit.latents import autoencoder
from maskdit.latents.encode import store
from maskdit.model import checkpoint
from maskdit.reporting.table_formats import write
from maskdit.runtime import progress
from maskdit.runtime.environment import demand_own, scratch
from maskdit.weights.reading import read_file

BIG = np.random.default_rng(0).integers(0, 255, 2**20, np.uint8)  # one MiB
ROOM = 2**18  # of the disk, or of a file, in bytes


def picture(path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(6, 6))
    plt.imshow(BIG.reshape(1024, 1024), interpolation="nearest")
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=250, format="png")
    finally:
        plt.close(figure)


def artifact(path: Path) -> None:
    with publishing(path, "encode/a", {}, {}) as place:
        savez(place / "x.npz", {"x": BIG})


def table(path: Path) -> None:
    with replacing(path) as temporary:
        pd.DataFrame(BIG.reshape(-1, 4)).to_csv(temporary, index=False)


def shards(path: Path) -> None:
    Shards(path.name, 0, ["a.npz"]).fill(lambda number, place: savez(place, {"x": BIG}))


def parts(path: Path) -> None:
    moments = BIG[: 2**19].reshape(-1, 1, 8, 4, 4).astype(np.float16)
    Shards(path.name, 1, ["part"]).fill(
        lambda number, place: store(place, np.arange(len(moments)), iter([(moments, np.arange(9))]))
    )


def fetched(path: Path) -> None:
    source = path.parent.parent / "source"
    source.write_bytes(BIG.tobytes())
    download(source.as_uri(), path, None)


def torch_file(path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save({"x": torch.from_numpy(BIG)}, stream)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "array": lambda path: save_array(path, BIG),
    "json": lambda path: write_json(path, BIG.tolist()),
    "state": lambda path: checkpoint.save(path, {"x": torch.from_numpy(BIG)}, {}),
    "folder": artifact,
    "file": lambda path: publish_table(path),
    "table": table,
    "markdown": lambda path: write(pd.DataFrame({"a": range(60_000)}), "Title", path),
    "picture": picture,
    "torch": torch_file,
    "shards": shards,
    "parts": parts,
    "download": fetched,
}
SIZED = {"array", "state", "download"}  # that know how much they write


def publish_table(path: Path) -> None:
    with publishing(path, "table/a", {}, {}, usual=True) as place:
        table(place)


def named(name: str) -> str:
    return {"folder": "out", "file": "out.csv"}.get(name, "out.x")


@contextmanager
def bounded() -> Iterator[None]:
    """No file of more than ROOM bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of ROOM bytes."""
    where = tmp_path / "disk"
    where.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(where)], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def tried(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[], AbstractContextManager[Any]]) -> str:
    """Write twice, the second time with a fault; the line of the refusal, when all is as it was before."""
    monkeypatch.setenv("MASKDIT_SCRATCH", str(folder))
    monkeypatch.setattr(progress, "LOG_SECONDS", 1e9)
    path = folder / named(name)
    before = b"before"
    if name == "folder":
        with publishing(path, "encode/a", {}, {}) as place:
            (place / "old").write_bytes(before)
    elif name not in ("shards", "parts", "download"):
        path.write_bytes(before)
    known = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with fault(), pytest.raises(UserError) as refused:
        WRITERS[name](path)
    assert {file for file in folder.rglob("*") if file.is_file() and ".part" not in file.name} == set(known)
    assert all(file.read_bytes() == content for file, content in known.items())
    line = str(refused.value)
    assert "\n" not in line
    assert path.stem in line or "GB free" in line
    assert ".out" not in line, "not the temporary one"
    return line


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_with_the_bytes_that_are_free_and_nothing_is_lost(name, disk, monkeypatch):
    line = tried(name, disk, monkeypatch, lambda: memoryview(b""))
    assert "No space left on device" in line or (name == "download" and "GB free" in line)
    assert "bytes are free" in line or name == "download"
    assert "make room" in line
    assert ("bytes are to be written" in line) == (name in SIZED - {"download"})


@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_of_size_is_one_line_and_nothing_is_lost(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    if name == "download":
        (tmp_path / "source").write_bytes(BIG.tobytes())
        monkeypatch.setitem(WRITERS, name, lambda path: download((tmp_path / "source").as_uri(), path, None))
    line = tried(name, tmp_path / "here", monkeypatch, bounded)
    assert "make room" in line
    assert ("bytes are to be written" in line) == (name in SIZED)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("parts", "picture")])
def test_a_quota_that_ends_when_bytes_reach_the_disk_is_one_line_and_nothing_is_lost(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()

    def over(handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    @contextmanager
    def quota() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", over)
            yield

    assert "Disk quota exceeded" in tried(name, tmp_path / "here", monkeypatch, quota)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("shards", "parts", "download")])
def test_a_read_only_disk_is_one_line_and_nothing_is_lost(name, disk, monkeypatch, capsys):
    path = disk / named(name)
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name == "folder" else path.write_bytes(b"before")
    before = sorted(disk.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    monkeypatch.setattr(cli, "dispatch", lambda arguments: WRITERS[name](path))
    assert cli.main(["show"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(disk) in said
    assert "Read-only file system" in said
    assert sorted(disk.rglob("*")) == before


def own(path: Path) -> Path:
    path.chmod(path.stat().st_mode | 0o002)
    return path


def weights_of(home: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Files and folders that are trusted, and who reads them."""
    torch.save({"ema": {}}, home / "x.pt")
    (home / "vae").mkdir()
    write_json(home / "vae" / "config.json", {"block_out_channels": [8], "latent_channels": 2})
    checkpoint.save(home / "vae" / VAE_WEIGHTS, {"x": torch.zeros(1)}, {})
    (home / "net").mkdir()
    torch.save({}, home / "net" / "x.pth")
    index = {"kind": "extractor", "family": "mobilenet-v2", "file": "x.pth", "sha256": sha256(home / "net" / "x.pth")}
    write_json(home / "net" / "index.json", index)
    return {
        "checkpoint": (home / "x.pt", lambda: read_file(home / "x.pt")),
        "autoencoder": (home / "vae" / VAE_WEIGHTS, lambda: autoencoder.load(home / "vae", torch.device("cpu"))),
        "network": (home / "net" / "x.pth", lambda: Network(home / "net")),
        "scratch": (scratch("sample-0"), lambda: scratch("sample-0")),
    }


def line_of(act: Callable[[], Any]) -> str:
    """What an act is refused with; '' if it is not."""
    try:
        act()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["checkpoint", "autoencoder", "network", "scratch"])
@pytest.mark.parametrize("way", ["everyone", "another group", "a link"])
def test_what_others_may_write_is_not_trusted_unless_one_says_so(kind, way, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("MASKDIT_SHARED", raising=False)
    path, read = weights_of(tmp_path)[kind]
    said = "other users can write to it; run chmod go-w on it, or set MASKDIT_SHARED=1 if you trust them"
    assert said not in line_of(read)
    if way == "another group":
        path.chmod(path.stat().st_mode | 0o020)
        assert said not in line_of(read), "one's own group is oneself"
        monkeypatch.setattr(os, "getgid", lambda: path.stat().st_gid + 1)
    elif way == "everyone":
        own(path)
    else:
        target = own(path.rename(tmp_path / "elsewhere"))
        path.symlink_to(target)
    if (kind, way) == ("scratch", "a link"):
        assert line_of(read) == f"{path}: is a link; remove it (MASKDIT_SCRATCH itself may be one)"
        assert list(target.iterdir()) == []
        return
    assert line_of(read) == f"{path}: {said}"
    monkeypatch.setenv("MASKDIT_SHARED", "1")
    assert said not in line_of(read)


def test_a_folder_of_another_user_is_no_scratch_but_root_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert "other users can write to it" in line_of(lambda: demand_own(tmp_path))
    (tmp_path / "x").write_text("")
    demand_own(tmp_path / "x")  # a file that another one owns and nobody else may write is read as any published one
    monkeypatch.setattr(os, "getuid", lambda: 0)
    demand_own(tmp_path)


def test_no_command_writes_what_everyone_may_write(tmp_path, monkeypatch):
    before = os.umask(0)
    try:
        monkeypatch.setattr(cli, "dispatch", lambda arguments: (tmp_path / "x").write_text(""))
        cli.main(["show"])
        assert not (tmp_path / "x").stat().st_mode & 0o002
    finally:
        os.umask(before)
