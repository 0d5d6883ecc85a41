"""ImageNet's own ways: where it comes from, who may know, what a kill leaves, where the labels of its validation set stand."""

import io
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from test_download import DATA, SHA, Server, server  # noqa: F401, a fixture
from test_fetch import (
    FILES,
    VALIDATION,
    WNIDS,
    encoded,
    fetched,
    folder,
    lay_folders,
    net,
    net_folders,
    net_tables,
    net_tars,
    tar_of,
)
from test_index import table_of

from maskdit.artifacts.atomic import sha256
from maskdit.config.base import UserError
from maskdit.images import check, imagenet, imagenet_download
from maskdit.images.download import Address, download
from maskdit.runtime import environment

ANSWERS = (2, 1, 0)  # labels of VALIDATION, in order


def refusal(entry, out) -> str:
    with pytest.raises(UserError) as refused:
        fetched(entry, out)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "IMAGENET_URL"):
        monkeypatch.delenv(name, raising=False)


def unpacked_kaggle(root):
    lay_folders(root, "ILSVRC/Data/CLS-LOC/train")
    (root / "ILSVRC/Data/CLS-LOC/val").mkdir()
    for name, (_, data) in VALIDATION.items():
        (root / "ILSVRC/Data/CLS-LOC/val" / f"{name}.JPEG").write_bytes(data)
    rows = "".join(f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n" for name, (wnid, _) in VALIDATION.items())
    (root / imagenet.SOLUTION).write_text(f"ImageId,PredictionString\n{rows}")


def tars_with_the_kit(root):
    net_tars(root)
    (root / "ILSVRC2012_img_val.tar").write_bytes(
        tar_of({f"ILSVRC2012_val_{place:08d}.JPEG": data for place, (_, data) in enumerate(VALIDATION.values(), 1)})
    )
    synsets = np.array(
        [(number, wnid) for number, wnid in zip((7, 3, 5), WNIDS, strict=True)], [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    numbers = "".join(f"{(7, 3, 5)[label]}\n" for label in ANSWERS)
    kit = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": numbers.encode()}
    with tarfile.open(root / imagenet.DEVKIT, "w:gz") as packed:
        for name, data in kit.items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))


def tars_in_a_folder(root):
    net_folders(root)
    for wnid in WNIDS:
        mine = {name.split("/")[1]: data for name, data in FILES.items() if name.startswith(wnid)}
        (root / "train" / f"{wnid}.tar").write_bytes(tar_of(mine))
        shutil.rmtree(root / "train" / wnid)


@pytest.mark.parametrize("lay", [unpacked_kaggle, tars_with_the_kit, tars_in_a_folder])
def test_forms_that_others_keep_have_the_same_classes_and_the_labels_that_are_told_beside_them(tmp_path, lay):
    lay(tmp_path / "root")
    images = fetched(net(tmp_path / "root"), tmp_path / "out")
    assert images.classes == WNIDS
    assert Counter(images.labels[images.rows(heldout=False)].tolist()) == {0: 4, 1: 4, 2: 4}
    for row in images.rows(heldout=True):
        wnid, _ = next(pair for pair in VALIDATION.values() if images.pixels.found.read(row) == pair[1])
        assert images.classes[images.labels[row]] == wnid


def test_labels_that_cannot_be_read_are_one_line(tmp_path):
    tars_with_the_kit(tmp_path / "root")
    whole = (tmp_path / "root" / imagenet.DEVKIT).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no gzip", b""):
        (tmp_path / "root" / imagenet.DEVKIT).write_bytes(damaged)
        assert "labels of the validation images cannot be read" in refusal(net(tmp_path / "root"), tmp_path / "out")


def test_a_missing_table_is_named_before_anything_is_read(tmp_path):
    net_tables(tmp_path / "root")
    (tmp_path / "root" / "data" / "train-00000-of-00002.parquet").unlink()
    assert "1 of 2 files train-*.parquet" in refusal(net(tmp_path / "root"), tmp_path / "out")


@pytest.mark.parametrize("labels", [(0, 1, 1), (1, 0, 2), (0, 0, 1)], ids=["two wnids", "another order", "one wnid twice"])
def test_labels_that_do_not_follow_the_wnids_are_refused(tmp_path, labels):
    rows = [(f"{wnid}_1_{wnid}.JPEG", encoded(0, 0), label) for wnid, label in zip(WNIDS, labels, strict=True)]
    if labels == (0, 0, 1):
        rows = [(f"{WNIDS[0]}_{number}.JPEG", encoded(0, 0), number) for number in range(2)]
    table_of(tmp_path / "root" / "train-00000-of-00001.parquet", rows, group=2)
    assert "labels of train do not follow the order of the wnids" in refusal(net(tmp_path / "root"), tmp_path / "out")


def test_without_need_of_a_validation_set_none_is_read(tmp_path):
    net_folders(tmp_path / "root")
    images = fetched(net(tmp_path / "root", validation=0), tmp_path / "out")
    assert len(images.labels) == 12
    with pytest.raises(ValueError, match="heldout"):  # which is of sources without a validation set
        net(tmp_path / "root", heldout=0.1)


@pytest.mark.parametrize(("field", "wrong"), [("images", 13), ("validation", 4), ("classes", 4)])
def test_a_wrong_number_is_refused_before_a_single_image_is_decoded(tmp_path, monkeypatch, field, wrong):
    net_folders(tmp_path / "root")
    monkeypatch.setattr(check, "examined", lambda *words: pytest.fail("an image was read"))
    said = refusal(net(tmp_path / "root", **{field: wrong}), tmp_path / "out")
    assert f"params.yaml declares {field}: {wrong}" in said


def test_a_check_goes_on_after_a_kill_and_reads_again_only_what_was_written_since(tmp_path, monkeypatch):
    lay_folders(tmp_path / "root")
    monkeypatch.setattr(check, "CHUNK", 3)
    monkeypatch.setattr(check, "THREADS", 1)
    plain, read = check.examined, []

    def examined(found, row):
        if len(read) == 7:
            raise KeyboardInterrupt
        read.append(found.names[row])
        return plain(found, row)

    monkeypatch.setattr(check, "examined", examined)
    with pytest.raises(KeyboardInterrupt):
        fetched(folder(tmp_path / "root"), tmp_path / "out")
    changed = tmp_path / "root" / read[4]
    changed.write_bytes(encoded(0, 99))
    again = []
    monkeypatch.setattr(check, "examined", lambda found, row: again.append(found.names[row]) or plain(found, row))
    images = fetched(folder(tmp_path / "root"), tmp_path / "out")
    assert sorted(set(again)) == sorted(set(FILES) - set(read[:4])), "of what was written, and what was not reached"
    assert images.pixels[:].shape[0] == 12, "each with the checksum of what is there now"
    environment.tidy()  # as the command does when it has published
    assert [path.name[:6] for path in (tmp_path / "scratch").iterdir()] == ["fetch-"], "the hashes, for the next comparison"


def test_all_damaged_images_are_listed_in_a_file_if_they_are_many(tmp_path):
    lay_folders(tmp_path / "root")
    for number in range(25):
        (tmp_path / "root" / WNIDS[0] / f"bad{number}.JPEG").write_bytes(b"no")
    said = refusal(folder(tmp_path / "root", images=37, bad="list"), tmp_path / "out")
    report = Path(re.findall("listed in (.*?) \\(", said)[0]).read_text()
    assert all(f"bad{number}.JPEG" in report for number in range(25))


def written(tmp_path: Path) -> str:
    return "".join(path.read_text(errors="ignore") for path in tmp_path.rglob("*") if path.is_file())


@pytest.fixture
def official(server, monkeypatch):
    """A server of the tar files, at an address that is a secret."""
    monkeypatch.setattr(imagenet_download, "TARS", {"ILSVRC2012_img_train.tar": (len(DATA), SHA)})
    monkeypatch.setattr(imagenet_download, "DEVKIT_SHA256", SHA)
    monkeypatch.setenv("IMAGENET_URL", f"http://127.0.0.1:{server.server_port}/s3cret/")
    return server


@pytest.mark.parametrize("trouble", ["404", "503", "away", "file", "wrong", "page", "cut", "plain"])
def test_a_personal_address_is_neither_said_nor_kept(official, tmp_path, monkeypatch, capsys, trouble):
    match trouble:
        case "404" | "503":
            official.status = int(trouble)
        case "away":
            official.location = "http://example.org/s3cret"
        case "file":
            official.location = "file:///s3cret"
        case "wrong":
            official.data = DATA[1:]
        case "page":
            official.kind = "text/html"
        case "cut":
            official.cuts = [100] + [0] * 9
        case _:
            monkeypatch.setenv("IMAGENET_URL", "http://example.org/s3cret")
    said = refusal(net(tmp_path / "root", origin="official"), tmp_path / "out")
    assert said.startswith("IMAGENET_URL/ILSVRC2012_img_train.tar: ")
    assert "s3cret" not in said + capsys.readouterr().err + written(tmp_path)


def test_the_official_files_come_whole_with_the_kit_and_not_twice(official, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    imagenet_download.from_official(root)
    assert {path.name: sha256(path) for path in root.iterdir()} == {"ILSVRC2012_img_train.tar": SHA, imagenet.DEVKIT: SHA}
    asked = len(official.asked)
    imagenet_download.from_official(root)
    assert len(official.asked) == asked


def test_a_form_that_is_there_needs_no_origin(tmp_path):
    net_folders(tmp_path / "root")
    for origin in ("huggingface", "official", "kaggle"):
        assert len(fetched(net(tmp_path / "root", origin=origin), tmp_path / origin).labels) == 15


def test_a_token_that_has_no_right_is_told_what_to_do_and_stays_unsaid(server, tmp_path, monkeypatch, capsys):
    server.status = 403
    monkeypatch.setattr(imagenet_download, "room", lambda root, needed: None)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    said = refusal(net(tmp_path / "root", origin="huggingface"), tmp_path / "out")
    assert f"answers 403 Forbidden; accept the terms on {imagenet_download.PAGE}, and set HF_TOKEN" in said
    assert "s3cret" not in said + capsys.readouterr().err + written(tmp_path)
    assert set(server.tokens) == {"Bearer hf_s3cret"}


@pytest.mark.parametrize("token", ["a\r\nX-Other: b", "two words", "ünicode"])
def test_a_token_that_cannot_be_sent_is_refused_without_saying_it(tmp_path, token):
    with pytest.raises(UserError, match="contains blanks or non-ASCII characters") as refused:
        download(Address("https://example.org/x", token), tmp_path / "x", None)
    assert token not in str(refused.value) + repr(Address("https://example.org/x", token))


def test_a_token_is_not_sent_to_an_address_without_https(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_download, "room", lambda root, needed: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    assert "only https:// and file:// addresses" in refusal(net(tmp_path / "root", origin="huggingface"), tmp_path / "out")


def test_what_kaggle_s_client_leaves_when_it_is_cut_is_not_taken_for_the_archive(tmp_path, monkeypatch):
    root, client = tmp_path / "root", tmp_path / "bin" / "kaggle"
    root.mkdir()
    client.parent.mkdir()
    monkeypatch.setattr(imagenet_download, "room", lambda root, needed: None)
    monkeypatch.setenv("PATH", f"{client.parent}:/usr/bin:/bin")
    script = '#!/bin/sh\nmkdir -p "$6"\nprintf half > "$6/$4.zip"\n'
    client.write_text(f"{script}exit 1\n")
    client.chmod(0o755)
    assert "Kaggle's client did not download" in refusal(net(root, origin="kaggle"), tmp_path / "out")
    assert imagenet.form(root) is None
    client.write_text(f"{script}exit 0\n")
    imagenet_download.from_kaggle(root)
    assert [path.name for path in root.iterdir()] == [f"{imagenet.COMPETITION}.zip"]


def test_a_disk_that_is_too_small_is_said_before_a_byte_comes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(UserError, match=r"has 0\.0 GB, .* free; make room") as refused:
        download(server.url, tmp_path / "x", SHA)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x.part").exists()
    assert isinstance(server, Server)
