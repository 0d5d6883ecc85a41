"""Folders and archives as users have them: each layout is read as what it means, or refused by name."""

import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from test_index import encoded, noise

from maskdit.config.base import UserError
from maskdit.images import archives, folders
from maskdit.images.scan import Scanned, scan

PNG = [encoded(noise(number)) for number in range(4)]
SORTED = [f"{name}/{number}.png" for name in ("blue", "red") for number in range(4)]
LABELS = json.dumps({"labels": [[f"0000{number // 4}/img0000000{number}.png", number % 3] for number in range(8)]}).encode()
EDM = [f"0000{number // 4}/img0000000{number}.png" for number in range(8)]


def lay(root: Path, names: Iterable[str], **others: bytes) -> Path:
    """Files of these names, images if they are not given."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG[number % 4])
    for name, data in others.items():
        (root / name).write_bytes(data)
    return root


def tar(path: Path, members: Iterable[tuple[str, bytes] | tuple[str, bytes, str]], **options: int) -> None:
    """A tar file; a third word is the type of a member, whose data is then the name of its target."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data, *kind in members:
            member = tarfile.TarInfo(name)
            if kind:
                member.type, member.linkname = getattr(tarfile, kind[0]), data.decode()
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(b"" if kind else data))


def zipped(path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


def counts(found: Scanned) -> dict[str, int]:
    """How many images each class has."""
    return dict(Counter(found.classes[label] for label in found.labels))


HEAPS = {
    "flat": [f"{number}.png" for number in range(4)],
    "nested": ["0.png", "a/1.png", "a/x/2.png", "b/y/3.png"],
    "as EDM's": EDM[:4],
}


@pytest.mark.parametrize("names", HEAPS.values(), ids=HEAPS)
def test_images_without_classes_are_one_heap_however_they_lie(names, tmp_path):
    root = lay(tmp_path, names, **{"dataset.json": b'{"labels": null}', "notes.txt": b"x"})
    found = scan(root, "none")
    assert counts(found) == {"all": 4}
    assert found.told == "its images have no classes"
    assert found.left.counts == {archives.OTHER: 2}, "the table is not asked"
    assert not found.apart.any()


def test_images_without_classes_in_an_archive_and_in_parts_for_training_and_testing(tmp_path):
    zipped(tmp_path / "heap.zip", [(f"{number}.png", data) for number, data in enumerate(PNG)])
    assert counts(scan(tmp_path / "heap.zip", "none")) == {"all": 4}
    found = scan(lay(tmp_path / "parts", ["train/0.png", "train/deep/1.png", "test/2.png"]), "none")
    assert [name for name, apart in zip(found.names, found.apart, strict=True) if apart] == ["test/2.png"]
    assert found.told == "its images have no classes; the parts for testing are held out"


def test_a_heap_is_refused_with_the_choice_that_reads_it(tmp_path):
    assert refusal(lay(tmp_path, ["0.png", "1.png"])).endswith("the folder of an image names its class (classes: none for none)")


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as refused:
        scan(root)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val"), ("train", "valid", "test")])
def test_folders_of_a_split_are_no_classes_and_the_others_than_train_are_held_out(names, tmp_path):
    found = scan(lay(tmp_path, [f"{part}/{name}" for part in names for name in SORTED]))
    assert counts(found) == {"blue": 4 * len(names), "red": 4 * len(names)}
    assert {name.split("/")[0] for name, apart in zip(found.names, found.apart, strict=True) if apart} == set(names[1:])
    assert "held out" in found.told


def test_a_split_may_lie_deeper_and_its_classes_too(tmp_path):
    found = scan(lay(tmp_path, [f"data/{part}/images/{name}" for part in ("train", "test") for name in SORTED]))
    assert counts(found) == {"blue": 8, "red": 8}
    assert found.apart.sum() == 8


@pytest.mark.parametrize("above", ["", "train/"], ids=["classes", "their own folder above"])
@pytest.mark.parametrize("form", [tar, zipped])
def test_archives_of_a_split_are_read_as_its_folders_are(form, above, tmp_path):
    for part in ("train", "test"):
        names = [f"{above.replace('train', part)}{name}" for name in SORTED]
        form(tmp_path / f"{part}.{'tar' if form is tar else 'zip'}", list(zip(names, PNG * 2, strict=True)))
    found = scan(tmp_path)
    assert counts(found) == {"blue": 8, "red": 8}
    assert found.apart.sum() == 8


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/a/1.png", "test/a/1.png", "extra/a/1.png"], r"train and test, beside extra, look like parts of a data set"),
        (["val/a/1.png", "test/a/1.png"], "test and val look like parts of a data set, not like classes; name the folder of one"),
        (["train/1.png", "test/2.png"], "test/2.png is not in a folder below test"),
        (["train/a/1.png", "test/a/1.png", "test/b/1.png"], "b has no training images"),
    ],
    ids=["a third folder", "no train", "no classes", "a class to test only"],
)
def test_a_split_that_is_none_is_refused_by_name(names, said, tmp_path):
    assert said in refusal(lay(tmp_path, names))


def test_a_class_may_be_called_train_or_test_among_others(tmp_path):
    assert set(counts(scan(lay(tmp_path / "one", ["train/1.png", "bus/1.png"])))) == {"bus", "train"}
    assert set(counts(scan(lay(tmp_path / "two", ["test/1.png", "bus/1.png"])))) == {"bus", "test"}


def test_folders_two_deep_are_refused_unless_one_says_which_names_the_class(tmp_path):
    lay(tmp_path, ["a/x/1.png", "a/y/2.png", "b/x/3.png"])
    assert "images lie two folders deep (a/x, a/y)" in (said := refusal(tmp_path))
    assert "--classes" in said
    assert counts(scan(tmp_path, "first")) == {"a": 2, "b": 1}
    assert counts(scan(tmp_path, "last")) == {"x": 2, "y": 1}
    assert counts(scan(tmp_path, "path")) == {"a/x": 1, "a/y": 1, "b/x": 1}


@pytest.mark.parametrize(
    "names",
    [
        ["a/1.png", "a/more/2.png", "a/most/3.png", "b/4.png"],
        ["a/images/1.png", "b/images/2.png"],
        ["a/one/1.png", "b/two/2.png"],
        ["all/a/1.png", "all/b/2.png"],
    ],
    ids=["folders beside images", "one folder in each", "another in each", "one above"],
)
def test_folders_that_leave_no_choice_are_read(names, tmp_path):
    assert set(counts(scan(lay(tmp_path, names)))) == {"a", "b"}


@pytest.mark.parametrize("form", ["folder", "zip", "deflated", "zip beside", "tar", "dictionary"])
def test_a_dataset_json_tells_the_classes_of_numbered_folders(form, tmp_path):
    root = tmp_path / "root"
    text = json.dumps({"labels": dict(json.loads(LABELS)["labels"])}).encode() if form == "dictionary" else LABELS
    members = [*zip(EDM, PNG * 2, strict=True), ("dataset.json", text)]
    match form:
        case "folder" | "dictionary":
            lay(root, EDM, **{"dataset.json": text})
        case "zip":
            zipped(root := tmp_path / "edm.zip", members)
        case "deflated":
            zipped(root / "edm.zip", members, zipfile.ZIP_DEFLATED)
        case "zip beside":
            zipped(root / "edm.zip", members)
            (root / "readme.txt").write_text("EDM's layout")
        case "tar":
            tar(root / "edm.tar", members)
    found = scan(root)
    assert found.classes == ("0", "1", "2")
    assert {name: found.classes[label] for name, label in zip(found.names, found.labels, strict=True)} == {
        name: str(number % 3) for number, name in enumerate(EDM)
    }


def test_an_image_without_a_label_is_left_out_and_numbers_are_in_their_order(tmp_path):
    labels = [[f"{number}.png", number] for number in range(12)]
    lay(tmp_path, [f"{number}.png" for number in range(13)], **{"dataset.json": json.dumps({"labels": labels}).encode()})
    found = scan(tmp_path)
    assert found.classes == tuple(map(str, range(12)))
    assert found.left.told(folders.UNLABELLED) == "images without a label: 1 (12.png)"
    for number in range(2):
        (tmp_path / f"{number}.png").unlink()
    assert (left := scan(tmp_path).left).told(folders.IMAGELESS) == "labels without an image: 2 (0.png, 1.png)"
    assert left.images == 3


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "dataset.json: has no labels"),
        ([["a/1.png", [0.5, 0.5]]], "must be pairs of an image and the number"),
        (7, "must be pairs"),
    ],
    ids=["null", "vectors", "a number"],
)
def test_a_dataset_json_without_classes_is_refused(labels, said, tmp_path):
    assert said in refusal(lay(tmp_path, ["a/1.png", "b/2.png"], **{"dataset.json": json.dumps({"labels": labels}).encode()}))


def test_folders_as_edm_numbers_them_are_no_classes_without_their_labels(tmp_path):
    assert "named as EDM's dataset_tool names them, but no dataset.json" in refusal(lay(tmp_path, EDM))
    assert scan(tmp_path, "first").classes == ("00000", "00001")


def test_json_of_another_use_changes_nothing(tmp_path):
    others = {
        "dataset.json": b'{"title": "flowers"}',
        "blue/0.json": b'{"shapes": []}',
        "red/notes.json": b"{",
        "red/1.json": b"[[[[",
    }
    found = scan(lay(tmp_path, SORTED, **others))
    assert counts(found) == {"blue": 4, "red": 4}
    assert found.left.counts == {archives.OTHER: 4}


@pytest.mark.parametrize("inside", [False, True], ids=["flat", "in a folder"])
@pytest.mark.parametrize("note", [("cls", b" 1\n"), ("json", b'{"label": 1}'), ("json", b'{"cls": 1, "caption": "x"}')], ids=str)
def test_the_shards_of_a_webdataset_are_no_classes_but_their_notes_tell_them(note, inside, tmp_path):
    suffix, one = note
    for shard in range(2):
        home = "train/" * inside
        pairs = [(f"{home}{shard}{number}.png", PNG[number]) for number in range(4)]
        notes = [(f"{home}{shard}{number}.{suffix}", one if number % 2 else one.replace(b"1", b"10")) for number in range(4)]
        tar(tmp_path / f"train-{shard:06d}.tar", sorted(pairs + notes))
    found = scan(tmp_path)
    assert found.classes == ("1", "10"), "in the order of the numbers"
    assert counts(found) == {"1": 4, "10": 4}
    assert not found.left.counts


def test_shards_that_are_named_for_testing_are_held_out(tmp_path):
    for part in ("train-000000", "train-000001", "val-000000"):
        members = [
            (f"{part[-1]}{number}.{end}", data) for number in "123" for end, data in (("png", PNG[0]), ("cls", number.encode()))
        ]
        tar(tmp_path / f"data-{part}.tar", members)
    found = scan(tmp_path)
    assert counts(found) == {"1": 3, "2": 3, "3": 3}
    assert {name.split("/")[0] for name, apart in zip(found.names, found.apart, strict=True) if apart} == {"data-val-000000"}
    assert "the parts for testing are held out" in found.told
    (tmp_path / "data-val-000000.tar").rename(tmp_path / "data-more-000000.tar")
    assert not scan(tmp_path).apart.any()


def test_a_webdataset_that_was_unpacked_is_read_as_its_shards_are(tmp_path):
    found = scan(lay(tmp_path, ["1.jpeg.png", "2.png"], **{"1.cls": b"cat", "2.cls": b"dog"}))
    assert counts(found) == {"cat": 1, "dog": 1}


CAPTION, MASK = ("1.json", b'{"caption": "a cat"}'), ("1.seg.png", PNG[1])
MIXED = [(f"{name}.{suffix}", data) for name in ("a/1", "b/2") for suffix, data in (("png", PNG[0]), ("json", b'{"label": 3}'))]
MIXED += [("a/3.png", PNG[0]), ("a/3.json", b'{"label": 4}')]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("1.png", PNG[0]), ("2.png", PNG[1])], "00000 is like a shard of a WebDataset, but its images have no classes"),
        ([("1.png", PNG[0]), CAPTION], "is like a shard of a WebDataset, but its images have no classes"),
        ([("1.png", PNG[0]), MASK, ("1.cls", b"3")], "have one label; keep one image of each sample"),
        (MIXED, "the folder a, but its .json says 3"),
    ],
    ids=["no notes", "captions only", "a mask beside", "folders and notes differ"],
)
def test_a_shard_without_one_class_for_each_image_is_refused(members, said, tmp_path):
    for shard in range(2):
        tar(tmp_path / f"{shard:05d}.tar", [(name.replace("/", f"/{shard}"), data) for name, data in members])
    assert said in refusal(tmp_path)


def test_archives_that_are_named_by_class_still_are_classes(tmp_path):
    for name in ("blue", "red"):
        tar(tmp_path / f"{name}.tar", [(f"{number}.png", PNG[number]) for number in range(4)])
    assert counts(scan(tmp_path)) == {"blue": 4, "red": 4}


def test_archives_in_the_folder_of_a_class_belong_to_it(tmp_path):
    for name in ("blue", "red"):
        tar(tmp_path / name / "all.tar", [(f"{number}.png", PNG[number]) for number in range(4)])
    assert counts(scan(tmp_path)) == {"blue": 4, "red": 4}


@pytest.mark.parametrize("form", [tar, zipped])
def test_names_with_backslashes_double_slashes_or_a_first_slash_are_those_of_folders(form, tmp_path):
    names = ["blue\\0.png", "blue//1.png", "/red/0.png", ".\\red/.//1.png", "red\\deep\\2.png"]
    form(tmp_path / f"x.{'tar' if form is tar else 'zip'}", list(zip(names, PNG * 2, strict=False)))
    found = scan(tmp_path)
    assert found.names == ("blue/0.png", "blue/1.png", "red/0.png", "red/1.png", "red/deep/2.png")
    assert counts(found) == {"blue": 2, "red": 3}
    assert not found.left.counts


def test_links_in_a_tar_file_are_the_images_that_they_lead_to(tmp_path):
    members = [("blue/0.png", PNG[0]), ("red/hard.png", b"blue/0.png", "LNKTYPE"), ("red/soft.png", b"../blue/0.png", "SYMTYPE")]
    members += [("red/far.png", b"soft.png", "SYMTYPE"), ("red/gone.png", b"nothing.png", "SYMTYPE")]
    tar(tmp_path / "x.tar", members)
    found = scan(tmp_path)
    assert found.names == ("blue/0.png", "red/far.png", "red/hard.png", "red/soft.png")
    assert {found.read(row) for row in range(4)} == {PNG[0]}
    assert found.left.told(archives.NOWHERE) == "links that lead to no image: 1 (red/gone.png)"


def test_a_symbolic_link_in_a_zip_file_is_the_image_that_it_leads_to(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("blue/0.png", PNG[0])
        link = zipfile.ZipInfo("red/soft.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../blue/0.png")
    found = scan(tmp_path)
    assert counts(found) == {"blue": 1, "red": 1}
    assert found.read(1) == PNG[0]


def test_a_link_to_a_folder_in_an_archive_is_no_class_without_images(tmp_path):
    tar(tmp_path / "x.tar", [("blue/0.png", PNG[0]), ("green/0.png", PNG[0]), ("red", b"blue", "SYMTYPE")])
    assert "red has no image that can be read" in refusal(tmp_path)


def test_folders_and_files_of_the_system_are_neither_classes_nor_images(tmp_path):
    homes = ["#recycle", "$RECYCLE.BIN", "lost+found", "@eaDir", "System Volume Information", "__MACOSX", ".Trash-1000"]
    lay(tmp_path, [*SORTED, *(f"{home}/old.png" for home in homes), "red/._0.png", "red/Thumbs.db", "blue/desktop.ini"])
    found = scan(tmp_path)
    assert counts(found) == {"blue": 4, "red": 4}
    assert found.left.counts == {archives.PRIVATE: len(homes) + 3}
    assert found.left.images == 0
    zipped(tmp_path / "x.zip", [(path, PNG[0]) for path in ("__MACOSX/red/._5.png", "#recycle/6.png", "red/7.png")])
    assert counts(scan(tmp_path / "x.zip")) == {"red": 1}


def test_a_class_may_be_a_link_at_any_depth_and_a_circle_is_counted(tmp_path):
    lay(tmp_path / "elsewhere", ["1.png"])
    root = lay(tmp_path / "root", [f"train/{name}" for name in SORTED])
    (root / "train" / "green").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "red" / "up").symlink_to(root)
    (root / "train" / "red" / "loop.png").symlink_to("loop.png")
    (root / "train" / "red" / "9.png").symlink_to(tmp_path / "unmounted" / "9.png")
    found = scan(root)
    assert counts(found) == {"blue": 4, "green": 1, "red": 4}
    assert found.left.counts == {folders.CIRCLE: 1, archives.NOWHERE: 2}
    assert found.left.images == 2


def test_folders_that_link_to_one_another_are_not_walked_for_ever(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}").mkdir()
        for name in "ab":
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    assert "more than 100 links lead to this folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (["green/"], "green is empty; a folder is a class"),
        (["green/a/"], "green is empty"),
        (["green/a.heic", "green/b.heic"], "green has no image that can be read ("),
    ],
    ids=["empty", "folders only", "a format that is not read"],
)
def test_a_class_without_images_is_refused(made, said, tmp_path):
    lay(tmp_path, [f"train/{name}" for name in SORTED])
    for name in made:
        path = tmp_path / "train" / name
        path.mkdir(parents=True) if name.endswith("/") else lay(path.parent, [path.name])
    assert said in refusal(tmp_path)
    zipped(tmp_path / "x.zip", [*((name, PNG[0]) for name in SORTED), *((name, b"x" * 40) for name in made)])
    assert said in refusal(tmp_path / "x.zip")


def test_a_folder_of_other_files_is_no_class(tmp_path):
    lay(tmp_path, SORTED)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "0.xml").write_text("<annotation>" * 4)
    found = scan(tmp_path)
    assert counts(found) == {"blue": 4, "red": 4}
    assert found.left.told(archives.OTHER) == "files that are no images: 1 (annotations/0.xml)"


@pytest.mark.parametrize("names", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("big  cat", "Big cat")])
def test_classes_that_are_hardly_told_apart_are_refused(names, tmp_path):
    assert "hardly told apart; join them, or rename one" in refusal(lay(tmp_path, [f"{name}/1.png" for name in names]))


def test_images_are_known_by_their_first_bytes_whatever_they_are_called(tmp_path):
    kinds = {"jfif": "JPEG", "JPE": "JPEG", "pgm": "PPM", "PNG": "PNG", "img": "BMP", "dat": "GIF", "": "WEBP", "0001": "TIFF"}
    files = {f"x.{suffix}".rstrip("."): encoded(noise(1, (40, 40)), kind) for suffix, kind in kinds.items()}
    files["notes"] = b"P5 is what a portable grey map begins with, and this is none of them"
    lay(tmp_path / "one" / "red", ["first.png"], **files)
    members = [(f"red/{name}", data) for name, data in files.items()]
    tar(tmp_path / "two" / "x.tar", members)
    zipped(tmp_path / "three" / "x.zip", members, zipfile.ZIP_DEFLATED)
    assert [len(scan(tmp_path / root)) for root in ("one", "two", "three")] == [len(kinds) + 1, len(kinds), len(kinds)]


def test_images_in_formats_that_are_not_read_are_counted_as_images(tmp_path):
    lay(tmp_path, [*SORTED, "red/phone.HEIC", "blue/drawing.svg", "blue/raw.CR2"])
    found = scan(tmp_path)
    assert found.left.images == 3
    assert found.left.told(folders.FORMAT).startswith("images in a format that is not read: 3 (blue/drawing.svg")


@pytest.mark.parametrize("name", ["green.tar.gz", "green.TGZ", "old/green.7z", "green.rar"])
def test_an_archive_that_cannot_be_read_at_random_is_refused(name, tmp_path):
    assert f"{name}: images in it cannot be read at random; unpack it" in refusal(lay(tmp_path, [*SORTED, name]))


def test_an_archive_in_an_archive_is_refused_where_its_images_would_be_missed(tmp_path):
    zipped(tmp_path / "x.zip", [("red/1.png", PNG[0]), ("blue.zip", b"PK")])
    assert "x.zip: blue.zip: images in it cannot be read at random" in refusal(tmp_path)


def test_an_archive_beside_what_was_unpacked_of_it_is_refused(tmp_path):
    lay(tmp_path, SORTED)
    zipped(tmp_path / "x.zip", [(name, PNG[0]) for name in SORTED])
    assert "blue/0.png is in" in (said := refusal(tmp_path))
    assert "keep one of the two" in said


def test_of_members_of_one_name_the_last_one_counts(tmp_path):
    tar(tmp_path / "x.tar", [("red/1.png", PNG[0]), ("blue/1.png", PNG[1]), ("red/1.png", PNG[2])])
    found = scan(tmp_path)
    assert found.names == ("blue/1.png", "red/1.png")
    assert found.read(1) == PNG[2]
    assert found.left.told(folders.REPLACED) == "members that a later one of the same name replaces: 1 (red/1.png)"
    assert found.left.images == 0


def test_sparse_members_are_left_out_and_counted(tmp_path):
    tar(tmp_path / "x.tar", [("red/1.png", PNG[0])])
    sparse = tarfile.TarInfo("red/2.png")
    sparse.size, sparse.pax_headers = 1536, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "red/2.png"}
    sparse.pax_headers["GNU.sparse.realsize"] = "4096"
    with tarfile.open(tmp_path / "x.tar", "a", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse, io.BytesIO(b"1\n0\n1024\n".ljust(512, b"\0") + bytes(1024)))
    found = scan(tmp_path)
    assert found.names == ("red/1.png",)
    assert found.left.counts == {archives.SPARSE: 1}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_unicode_names_of_a_tar_file_are_read(form, tmp_path):
    name = f"gr\u00fcn \U0001f333/{'l' * 180}/{'x' * 90}.PNG"
    tar(tmp_path / "x.tar", [(name, PNG[0]), ("red/\u8d64.Jpg", PNG[1])], format=form)
    assert scan(tmp_path).names == (name, "red/\u8d64.Jpg")


def test_a_zip64_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number, name in enumerate(("gr\u00fcn/1.png", "red/2.PNG")):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(PNG[number])
    found = scan(tmp_path)
    assert [found.read(row) for row in range(2)] == PNG[:2]


def test_a_name_that_is_no_text_is_kept_as_it_is(tmp_path):
    found = scan(lay(tmp_path, [os.fsdecode(b"gr\xfcn/1.png")]))
    assert found.read(0) == PNG[0]
    found.save(tmp_path)
