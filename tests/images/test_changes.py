"""The user's folder after it was fetched: what has changed in it is told, whatever the times of its files."""

import os
import shutil
from pathlib import Path

import pytest
from test_fetch import fetched, folder, lay_folders, lay_tar
from test_index import encoded, noise

import hashes
from hashes import TREE, params_of, study  # noqa: F401, a fixture
from maskdit.artifacts.freshness import Freshness
from maskdit.artifacts.publish import publishing
from maskdit.cli import main
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.images import Folder
from maskdit.config.params import Params
from maskdit.config.paths import output
from maskdit.images import check
from maskdit.images.changes import changes
from maskdit.images.fetch import fetch

WNIDS = ("n01440764", "n02123045", "n07753592")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Folder, Path]:
    """The entry of a folder of twelve images, and the artifact that was fetched from it."""
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    lay_folders(tmp_path / "root")
    entry = folder(tmp_path / "root")
    fetched(entry, tmp_path / "made")
    return entry, tmp_path / "made"


def home(entry: Folder, name: str = WNIDS[0]) -> Path:
    return Path(entry.root) / name


def test_what_was_added_removed_and_changed_is_told_by_name(photos: tuple[Folder, Path]) -> None:
    entry, made = photos
    assert changes(entry, made) == ""
    for number in range(2):
        (home(entry) / f"{WNIDS[0]}_{number}.JPEG").unlink()
    (home(entry, WNIDS[1]) / f"{WNIDS[1]}_3.JPEG").write_bytes(encoded(noise(5), "JPEG"))
    (home(entry, "new")).mkdir()
    (home(entry, "new") / "1.png").write_bytes(encoded(noise(6)))
    told = changes(entry, made)
    assert "added new/1.png;" in told
    assert f"removed {WNIDS[0]}/{WNIDS[0]}_0.JPEG, {WNIDS[0]}/{WNIDS[0]}_1.JPEG;" in told
    assert f"changed {WNIDS[1]}/{WNIDS[1]}_3.JPEG;" in told
    assert "added the class new" in told
    assert "it has 11 images now" in told
    assert changes(entry, made) == told


def test_bytes_that_change_without_a_change_of_size_or_of_the_modification_time_are_seen(photos: tuple[Folder, Path]) -> None:
    entry, made = photos
    path = home(entry) / f"{WNIDS[0]}_0.JPEG"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "changed n01440764/n01440764_0.JPEG; it" in changes(entry, made)


def test_a_copy_of_the_folder_is_the_same_and_is_hashed_once(photos: tuple[Folder, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    entry, made = photos
    shutil.copytree(entry.root, f"{entry.root}-copy")
    shutil.rmtree(entry.root)
    Path(f"{entry.root}-copy").rename(entry.root)
    (Path(entry.root) / "notes.txt").write_text("of no matter")
    assert changes(entry, made) == ""
    monkeypatch.setattr(check, "hashed", lambda *words: pytest.fail("an image was hashed again"))
    (Path(entry.root) / "more.txt").write_text("of no matter either")
    assert changes(entry, made) == ""
    monkeypatch.setattr("maskdit.images.changes.scan", lambda *words: pytest.fail("the folder was read again"))
    assert changes(entry, made) == ""


def test_nothing_is_hashed_that_fetch_has_opened(photos: tuple[Folder, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "hashed", lambda *words: pytest.fail("an image was hashed"))
    assert changes(*photos) == ""


def test_another_image_reads_no_more_than_its_class_again(photos: tuple[Folder, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    entry, made = photos
    (home(entry) / "0.png").write_bytes(encoded(noise(6)))
    read, plain = [], check.hashed
    monkeypatch.setattr(check, "hashed", lambda found, row: read.append(found.names[row]) or plain(found, row))
    assert "added n01440764/0.png; it has 13 images" in changes(entry, made)
    assert {name.split("/")[0] for name in read} == {WNIDS[0]}


def test_an_archive_that_is_written_again_with_the_same_images_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "root").mkdir()
    lay_tar(tmp_path / "root")
    entry = folder(tmp_path / "root")
    fetched(entry, tmp_path / "made")
    lay_tar(tmp_path / "root")
    assert changes(entry, tmp_path / "made") == ""


def test_a_folder_that_is_not_there_or_an_artifact_of_an_older_release_says_nothing(photos: tuple[Folder, Path]) -> None:
    entry, made = photos
    (home(entry) / f"{WNIDS[0]}_0.JPEG").unlink()
    (made / "source.json").rename(made / "kept.json")
    assert changes(entry, made) == ""
    (made / "kept.json").rename(made / "source.json")
    shutil.rmtree(entry.root)
    assert changes(entry, made) == ""


def test_a_folder_that_is_refused_by_now_is_told_with_the_reason(photos: tuple[Folder, Path]) -> None:
    entry, made = photos
    home(entry, "empty").mkdir()
    assert "it cannot be read as before" in (told := changes(entry, made))
    assert "empty is empty" in told


def test_the_project_may_be_read_only(photos: tuple[Folder, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKDIT_SCRATCH", "/proc/nowhere")
    entry, made = photos
    assert changes(entry, made) == ""
    (home(entry) / f"{WNIDS[0]}_0.JPEG").unlink()
    assert "removed n01440764/n01440764_0.JPEG" in changes(entry, made)


OWN = {"source": "folder", "root": "photos", "bad": "fail", "resolution": 16, "images": 12, "heldout": 0.25, "seed": 0}


@pytest.fixture
def own(study: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The study of hashes, of a folder that is really fetched."""
    lay_folders(study / "photos")
    plain = hashes.make

    def make(params: Params, node: str) -> None:
        if node != "fetch/demo":
            plain(params, node)
            return
        entry = params.entry(*node.split("/"))
        with publishing(output(params, node), node, entry.model_dump(mode="json"), {}, {}, "", True) as place:
            fetch(entry, out=place)

    monkeypatch.setattr(hashes, "make", make)
    tree = {**TREE, "fetch": {**TREE["fetch"], "demo": OWN}}
    (study / "params.yaml").write_text(yaml_subset.write(tree))
    params = params_of(tree)
    hashes.run(params)
    assert Freshness(params).unmade == set()
    return params


def test_the_next_command_tells_what_has_changed_and_makes_again_all_that_was_made_of_it(
    own: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().out == ""
    path = Path("photos") / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    path.rename("kept.JPEG")
    fresh = Freshness(own)
    others = {node for node in fresh.edges if "features" in node and node.startswith("fetch/")}
    assert fresh.unmade == fresh.edges.keys() - others
    assert (
        "photos has changed since it was fetched: removed n01440764/n01440764_0.JPEG; it has 11 images"
        in fresh.verdict("fetch/demo").why
    )
    assert "fetch/demo: photos has changed" in fresh.verdict("table/demo").why
    assert main(["check"]) == 0
    assert f"{len(fresh.unmade)} nodes are made again; maskdit status lists them" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"11 images found, params\.yaml declares images: 12"):
        hashes.run(own)
    Path("kept.JPEG").rename(path)
    assert Freshness(own).unmade == set()


def test_a_step_that_reads_what_was_fetched_before_says_so(own: Params, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("photos") / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").unlink()
    main(["grid", "demo-dit"])  # which ends at its samples, for these are hashes
    said = capsys.readouterr().err
    assert "fetch/demo: photos has changed since it was fetched: removed n01440764/n01440764_0.JPEG" in said
    assert "run maskdit fetch demo, this step goes by what was fetched before" in said


def test_an_image_that_replaces_another_makes_the_study_again_and_then_it_is_current(own: Params) -> None:
    (Path("photos") / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").write_bytes(encoded(noise(5), "JPEG"))
    assert {"fetch/demo", "encode/demo", "table/demo"} <= set(hashes.run(own))
    assert Freshness(own).unmade == set()


def test_a_copy_of_the_folder_makes_nothing_again(own: Params) -> None:
    shutil.copytree("photos", "copy")
    shutil.rmtree("photos")
    Path("copy").rename("photos")
    assert Freshness(own).unmade == set()
    assert Freshness(own).moved_sources() == []


def test_no_other_source_is_ever_asked(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdit.images.changes.changes", lambda *words: pytest.fail("a source was asked"))
    params = params_of(TREE)
    hashes.run(params)
    assert Freshness(params).moved_sources() == []
