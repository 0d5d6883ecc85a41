"""Links that lead nowhere, files in place of folders, permissions: one line says which path and what to do; nothing is replaced."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hashes import made, study  # noqa: F401, fixtures
from maskdit import cli
from maskdit.artifacts.atomic import write_json
from maskdit.artifacts.freshness import Freshness
from maskdit.artifacts.publish import publishing
from maskdit.artifacts.stamps import set_stamps
from maskdit.config.errors import fault
from maskdit.config.params import Params
from maskdit.runtime.environment import scratch
from project import SNAKEMAKE, TOY, project, run

NOBODY = 65534


@contextmanager
def nobody() -> Iterator[None]:
    """As a user who is not root; paths are relative, since a test's own folder is closed to others."""
    if os.getuid():
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def line_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said.removeprefix("maskdit: ").rstrip()


def does(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The words of a command that does this."""
    monkeypatch.setattr(cli, "dispatch", lambda arguments: act())
    return ("show",)


def lost(path: Path) -> None:
    """Move a file or folder to a disk that goes away, and leave a link."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("/nowhere/disk")


LOST = {
    "all artifacts": "artifacts",
    "an artifact": "artifacts/samples/demo-dit-plain",
    "a checkpoint": "artifacts/runs/demo-dit/pretrain/ema-0000002.safetensors",
    "a manifest": "artifacts/runs/demo-dit/pretrain/manifest.json",
    "a record": "results/metrics/demo/demo-dit-plain.json",
    "a table": "results/table_demo.csv",
    "the manifests of results": "results/manifests",
}


@pytest.mark.parametrize("what", LOST)
def test_what_a_link_no_longer_leads_to_is_not_made_again(what, made, capsys):
    Path("params.yaml").write_bytes(TOY.read_bytes())
    lost(Path(LOST[what]))
    for words in (("status", "demo"), ("plan", "demo"), *[("sample", "demo-dit-plain")] * (what == "an artifact")):
        line = line_of(capsys, *words)
        assert line.endswith(f"{LOST[what]} is a link to /nowhere/disk, which does not exist; restore that, or remove the link")
    assert Path(LOST[what]).is_symlink()


@pytest.mark.parametrize("name", ["out", "out.csv", "out.json"])
def test_a_link_that_leads_nowhere_is_not_replaced(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).symlink_to("nowhere")

    def publish() -> None:
        with publishing(Path(name), "encode/a", {}, {}):
            raise AssertionError("its work is in vain")

    assert line_of(capsys, *does(publish, monkeypatch)) == (
        f"{name}: {name} is a link to nowhere, which does not exist; restore that, or remove the link"
    )


@pytest.mark.parametrize("place", ["artifacts", "artifacts/samples", "results", "results/manifests"])
def test_a_file_in_place_of_a_folder_is_named(place, made, capsys):
    Path("params.yaml").write_bytes(TOY.read_bytes())
    shutil.rmtree(place)
    Path(place).write_text("mine")
    assert line_of(capsys, "status", "demo").endswith(f"{place} is a file where a folder is needed; move it away")
    assert Path(place).read_text() == "mine"


@pytest.mark.parametrize("act", ["stamps", "a step's scratch folder"])
def test_a_scratch_folder_that_is_a_file_is_named(act, made: Params, monkeypatch, capsys):
    shutil.rmtree(".scratch", ignore_errors=True)
    Path(".scratch").write_text("mine")
    done = (lambda: set_stamps(Freshness(made))) if act == "stamps" else (lambda: scratch("sample-0"))
    assert line_of(capsys, *does(done, monkeypatch)).endswith(".scratch is a file where a folder is needed; move it away")


def test_snakemake_names_it_too(tmp_path):
    project(tmp_path)
    (tmp_path / ".scratch").write_text("mine")
    code, said = run(tmp_path, *SNAKEMAKE, "--dry-run")
    assert code == 1
    assert ".scratch is a file where a folder is needed; move it away" in said


CLOSED = {
    "params.yaml": (0o000, "params.yaml"),
    "a manifest": (0o000, "artifacts/runs/demo-dit/pretrain/manifest.json"),
    "an artifact": (0o000, "artifacts/runs/demo-dit/pretrain"),
    "the artifacts": (0o600, "artifacts"),
    "a record": (0o000, "results/metrics/demo/demo-dit-plain.json"),
}


@pytest.mark.parametrize("what", CLOSED)
def test_what_may_not_be_read_is_not_made_again(what, made, capsys):
    Path("params.yaml").write_bytes(TOY.read_bytes())
    Path().chmod(0o777)
    mode, name = CLOSED[what]
    Path(name).chmod(mode)
    with nobody():
        line = line_of(capsys, "status", "demo")
    assert f"Permission denied: {name} " in line
    assert line.endswith(("ask for access, or use a folder of your own", f"run chmod u+rwX {name}"))


@pytest.mark.parametrize("name", ["made/out", "made/out.csv", "made/out.json"])
def test_a_folder_that_may_not_be_written_to_is_named_before_the_work(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    Path("made").mkdir(mode=0o555)

    def publish() -> None:
        with publishing(Path(name), "encode/a", {}, {}):
            raise AssertionError("its work is in vain")

    with nobody():
        line = line_of(capsys, *does(publish, monkeypatch))
    assert line.startswith(f"{name}: cannot be written: Permission denied: made ")


def test_a_folder_that_may_not_be_replaced_is_named_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)

    def publish() -> None:
        with publishing(Path("out"), "encode/a", {}, {}) as place:
            assert not Path("out").exists(), "its work is in vain"
            (place / "x").write_text("")

    publish()
    Path("out").chmod(0o555)
    with nobody():
        assert line_of(capsys, *does(publish, monkeypatch)).startswith("out: Permission denied: out ")
    assert Path("out/x").exists()


@pytest.mark.parametrize("mine", [True, False])
def test_who_may_change_the_mode_is_told_how(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    path = Path("x.json")
    write_json(path, {})
    path.chmod(0o200)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + (not mine))
    monkeypatch.setattr(os, "access", lambda each, mode: each != path)
    told = fault(PermissionError(errno.EACCES, "Permission denied", "x.json"))
    whose = "is yours" if mine else f"belongs to user {path.owner()}"
    advice = "run chmod u+rwX x.json" if mine else "ask for access, or use a folder of your own"
    assert told == f"Permission denied: x.json {whose} and has mode --w-------; {advice}"


def test_other_errors_keep_the_words_of_the_system(tmp_path):
    assert fault(OSError(errno.EIO, "Input/output error", str(tmp_path / "x"))) == (
        "Input/output error; correct that, then run the command again"
    )
    assert fault(OSError("no member")) == "no member"
    told = fault(IsADirectoryError(errno.EISDIR, "", str(tmp_path)))
    assert told == f"{tmp_path} is a folder where a file is needed; move it away"
