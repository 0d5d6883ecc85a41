"""The contact sheet of the doctor: what a training would see, in a picture that is not written among the images."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdit.artifacts.arrays import Array
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.images import RESOLUTION
from maskdit.config.load import load
from maskdit.images.check import Opened
from maskdit.images.dataset import Images
from maskdit.images.decode import centre_crop, decode
from maskdit.images.fetch import fetch
from maskdit.images.scan import Scanned, scan
from maskdit.tools import contact_sheet
from maskdit.tools.contact_sheet import ContactSheet
from maskdit.tools.doctor import doctor
from maskdit.tools.study import study
from project import ROOT


def colours(root: Path, **classes: int) -> Path:
    """A folder of classes with so many images of one colour each; all colours differ."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (9, 8), (10 + 40 * label, 10 * number, 100)).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, in which this test stands."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path


def seen(file: Path) -> set[tuple[int, ...]]:
    """The colours of at least 500 pixels in a picture: images, not letters."""
    with Image.open(file) as image:
        pixels, counts = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(colour) for colour in pixels[counts > 500].tolist()} - {(255, 255, 255), (221, 221, 221)}


def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Array]]:
    """What is drawn, which is not written: the images of each row by its name."""
    rows: dict[str, list[Array]] = {}

    def kept(grid: list[list[Array | None]], names: list[str], *_: object) -> None:
        assert len({len(row) for row in grid}) == 1
        for name, row in zip(names, grid, strict=True):
            rows.setdefault(name or [*rows][-1], []).extend(image for image in row if image is not None)

    monkeypatch.setattr("maskdit.reporting.pictures.sheet", kept)
    return rows


def test_the_sheet_of_a_project_s_folder_is_in_results_and_its_path_is_printed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = colours(home / "flowers", red=3, blue=2)
    assert doctor(root)
    told = "ok: results/sheet_flowers.png: up to 3 images of each class at 32 pixels, as a study reads them"
    assert told in capsys.readouterr().out.splitlines()
    assert seen(Path("results/sheet_flowers.png")) == {(10, 0, 100), (10, 10, 100), (10, 20, 100), (50, 0, 100), (50, 10, 100)}
    text = Path("results/sheet_flowers.png").read_bytes().decode("latin-1")
    assert re.search(
        r"Comment\0maskdit doctor/flowers: commit \S+, config [0-9a-f]{64}, lock \S+; flowers: 5 images, 2 classes", text
    )
    assert doctor(root), "its own picture is replaced"


def test_without_a_project_a_sheet_is_drawn_only_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = colours(tmp_path / "root", red=2)
    assert doctor(root)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert main(["doctor", str(root), "--sheet", "sheet.png", "--resolution", "16"]) == 0
    assert seen(tmp_path / "sheet.png") == {(10, 0, 100), (10, 10, 100)}
    assert {path.name for path in tmp_path.iterdir()} == {"root", "sheet.png"}
    assert [path.name for path in root.rglob("*.png")] == [f"{number:03d}.png" for number in range(2)]


def test_an_image_is_turned_cropped_and_resized_as_the_study_s_training_sees_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, exif = home / "root", Image.Exif()
    (root / "a").mkdir(parents=True)
    for number in range(8):
        exif[0x0112] = 1 + number
        noise = np.random.default_rng(number).integers(0, 256, (40 + number, 90, 3), np.uint8)
        Image.fromarray(noise).save(root / "a" / f"{number}.jpg", exif=exif)
    study("mine", root, 16, heldout=0.0)
    rows = drawn(monkeypatch)
    assert doctor(root)
    [(name, images)] = rows.items()
    files = [root / "a" / f"{number}.jpg" for number in range(8)]
    np.testing.assert_array_equal(images, [centre_crop(decode(file.read_bytes(), upright=True), 16) for file in files])
    assert name == "a (8)"
    (home / "out").mkdir()
    fetch(load().fetch["mine"], out=home / "out")
    np.testing.assert_array_equal(images, Images.load(home / "out").pixels[:])


def test_what_is_held_out_or_damaged_is_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours(home / "root" / "train", red=3, blue=2)
    root = colours(home / "root" / "test", red=1, blue=1).parent
    (root / "train" / "red" / "001.png").write_bytes(b"")
    rows = drawn(monkeypatch)
    doctor(root)
    assert {name: len(images) for name, images in rows.items()} == {"blue (2)": 2, "red (2)": 2}
    assert {tuple(image[0, 0].tolist()) for image in rows["red (2)"]} == {(10, 0, 100), (10, 20, 100)}


def opened(root: Path) -> tuple[Scanned, Opened]:
    found = scan(root)
    return found, Opened(found, None)


def test_of_many_classes_and_images_a_few_are_read_and_always_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, read, rows = colours(home / "root", **{f"c{number:02d}": 7 for number in range(30)}), list[int](), drawn(monkeypatch)
    real = contact_sheet.Encoded.one
    monkeypatch.setattr(contact_sheet.Encoded, "one", lambda images, row: (read.append(row), real(images, row))[1])
    lines = list(ContactSheet(root, None, 8).of_folder(*opened(root)))
    assert lines == ["results/sheet_root.png: up to 6 images of each of 24 of 30 classes at 8 pixels, as a study reads them"]
    assert len(rows) == 24
    assert list(rows)[:1] + list(rows)[-1:] == ["c00 (7)", "c29 (7)"]
    assert len(read) == 24 * 6
    before = {name: np.array(images).tolist() for name, images in rows.items()}
    rows.clear()
    list(ContactSheet(root, None, 8).of_folder(*opened(root)))
    assert {name: np.array(images).tolist() for name, images in rows.items()} == before


def test_of_few_classes_more_images_are_shown_in_lines_below_each_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr("maskdit.reporting.pictures.sheet", lambda grid, names, *_: lines.append((names, [*map(len, grid)])))
    for classes in (1, 2, 5):
        assert doctor(colours(home / f"root{classes}", **{f"c{number}": 25 for number in range(classes)}))
    names = [["c0 (25)", "", "", ""], ["c0 (25)", "", "c1 (25)", ""], [f"c{number} (25)" for number in range(5)]]
    assert lines == [(each, [6] * len(each)) for each in names]


def test_images_that_were_fetched_have_a_sheet_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = home / "raw"
    raw.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    Images(pixels, np.arange(9) % 2, np.arange(9) > 6, ("a", "b")).save(raw)
    rows = drawn(monkeypatch)
    assert doctor(raw)
    assert list(rows) == ["a (4)", "b (3)"]
    np.testing.assert_array_equal(rows["a (4)"], pixels[[0, 2, 4, 6]])
    np.testing.assert_array_equal(rows["b (3)"], pixels[[1, 3, 5]])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"sheet": "sheet.jpg"}, "--sheet sheet.jpg: not the name of a .png file"),
        ({"sheet": "root/sheet.png"}, "lies in the folder of images, where it would count as one"),
        ({"sheet": "photo.png"}, "photo.png: exists and is not a picture of maskdit doctor"),
        ({"resolution": 64}, "--resolution: has no effect here without --sheet FILE"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_refused_before_any_image_is_opened(
    words: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    colours(tmp_path / "root", red=2)
    Image.new("RGB", (9, 9)).save("photo.png")
    monkeypatch.setattr("maskdit.tools.folder.Opened", lambda *_: pytest.fail("opened"))
    with pytest.raises(UserError, match=re.escape(said)):
        doctor(Path("root"), **{name: Path(value) if name == "sheet" else value for name, value in words.items()})


def test_a_sheet_of_something_else_than_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(UserError, match="there are no images to draw"):
        doctor(tmp_path / "log.jsonl", sheet=Path("x.png"))


def test_a_project_in_its_folder_of_images_gets_no_picture_among_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours(Path(), red=2, blue=2)
    doctor(Path())
    assert not Path("results").exists()


def test_the_side_is_that_of_a_study_unless_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    assert re.search(rf"default\s+{RESOLUTION}\b", capsys.readouterr().out)
