"""What the doctor says of a folder of images, and what a study makes of it: sizes that fit, and words that tell them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.config.params import Params
from maskdit.images.dataset import Images
from maskdit.images.fetch import fetch
from maskdit.tools.doctor import doctor
from maskdit.tools.study import study
from maskdit.tools.study_sizes import held_out, rounded, scaled
from project import ROOT, TOY

SHIPPED = (ROOT / "params.yaml").read_text()


def lay(root: Path, **classes: int) -> Path:
    """A folder of classes with so many images each."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng([label, number]).integers(0, 255, (9, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:04d}.png")
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the params.yaml that is shipped."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "params.yaml").write_text(SHIPPED)
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path


def made(home: Path, root: Path, **options: Any) -> Params:
    study("mine", root, 32, **options)
    return load()


@pytest.mark.parametrize("name", ["config.json", "index.json"])
def test_a_file_of_the_user_s_beside_the_classes_does_not_make_them_weights_or_an_artifact(
    home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lay(home / "root", blue=3, red=3)
    (root / name).write_text('{"classes": ["blue", "red"]}')
    assert doctor(root)
    assert "ok: 6 images of 2 classes" in capsys.readouterr().out


def test_the_doctor_lists_the_classes_first_then_what_is_left_out_then_what_is_damaged(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lay(home / "root", blue=30, red=8)
    (root / "blue" / "notes.txt").write_text("of the blue ones")
    (root / "red" / "raw.heic").write_bytes(b"x")
    assert doctor(root)
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["30  blue", " 8  red", "ok: 38 images of 2 classes; the folder of an image is its class"]
    assert "ok: left out: files that are no images: 1 (blue/notes.txt)" in said
    assert "ok: left out: images in a format that is not read: 1 (red/raw.heic)" in said
    assert "ok: all images can be opened: 38 PNG RGB" in said
    assert said[-1] == f"ok: to make a study of them, run maskdit study NAME {root}"
    (root / "red" / "0003.png").write_bytes(b"")
    (root / "red" / "0004.png").write_bytes((root / "red" / "0005.png").read_bytes()[:50])
    (root / "red" / "more.avif").write_bytes(b"x")
    (root / "red" / "most.avif").write_bytes(b"x")
    assert not doctor(root)
    said = capsys.readouterr().out
    assert "problem: images that cannot be used: 2 of 38 (red/0003.png: damaged (not an image); red/0004.png: damaged" in said
    assert "problem: left out: 5 of 41 images, more than 0.05 of all\n" in said
    assert said.endswith(f"to make a study of the others, run maskdit study NAME {root} --skip-bad --left-out 0.13\n")


def test_the_doctor_shows_the_first_and_last_of_many_classes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(lay(home / "root", **{f"c{number:02d}": 1 + number % 3 for number in range(60)}))
    said = capsys.readouterr().out.splitlines()
    assert (said[0], said[19], said[21], said[40]) == ("1  c00", "2  c19", "2  c40", "3  c59")
    assert said[20] == "…  20 more classes of 1 to 3 images"


def test_the_doctor_tells_of_photographs_that_are_turned_and_of_moving_ones(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, exif = lay(home / "root", red=2), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 9)).save(root / "red" / "phone.jpg", exif=exif)
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(root / "red" / "moving.gif", save_all=True, append_images=frames[1:])
    assert doctor(root)
    said = capsys.readouterr().out
    assert "images stored turned or mirrored: 1 (red/phone.jpg); a study sets them upright" in said
    assert "images of several frames: 1 (red/moving.gif); the first frame is read" in said


def test_images_without_classes_become_a_study_without_labels_and_guidance(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(home / "root", a=30, b=30)
    for path in sorted((home / "root").rglob("*.png"))[:40]:
        path.rename(home / "root" / f"{path.parent.name}{path.name}")
    assert doctor(home / "root", "none")
    said = capsys.readouterr().out
    assert "ok: 60 images of 1 class; its images have no classes\n" in said
    assert said.endswith(f"run maskdit study NAME {home / 'root'} --classes none\n")
    params = made(home, home / "root", classes="none")
    assert params.fetch["mine"].model_dump()["classes"] == "none"
    ours = {key: entry for key, entry in params.sample.items() if key.startswith("mine-")}
    assert {entry.guidance for entry in ours.values()} == {1.0}
    assert not [key for key in ours if key.endswith("guided")], "they would be the same as those without"
    assert params.grid["mine-maskdit"].sample == "mine-maskdit-plain"
    runs = [params.pretrain["mine-dit"], params.pretrain["mine-maskdit"], params.finetune["mine-maskdit"]]
    assert {run.label_dropout for run in runs} == {0.0}
    assert params.pretrain["demo-dit"].label_dropout == 0.1
    assert {entry.guidance for key, entry in params.sample.items() if key.startswith("demo-")} == {1.0, 3.5}


@pytest.mark.parametrize(("side", "factor", "tokens"), [(32, 2, 64), (64, 2, 256), (128, 4, 256), (512, 16, 256)])
def test_a_larger_side_gets_an_autoencoder_of_more_levels(side: int, factor: int, tokens: int, home: Path) -> None:
    study("mine", lay(home / "root", a=10, b=10), side)
    params = load()
    assert params.fetch["mine"].resolution == side
    assert params.vae["mine"].factor == factor
    assert (side // factor // params.pretrain["mine-dit"].encoder.patch) ** 2 == tokens


def test_a_side_that_the_autoencoder_does_not_divide_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match=r"--resolution 500: vae\.mine\.channels: the downsampling factor 16 does not divide"):
        study("mine", lay(home / "root", a=10, b=10), 500)


def test_a_name_that_is_no_text_is_shown_with_its_bytes_escaped(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = lay(home / "root", **{os.fsdecode(b"gr\xfcn"): 8, "red\x1b[31m": 2, "红": 2})
    (root / "red\x1b[31m" / os.fsdecode(b"\xe9.heic")).write_bytes(b"x")
    doctor(root)
    study("mine", root, 32, left_out=0.5)
    said = capsys.readouterr().out
    assert said.count("gr\\udcfcn") == 1
    assert "red\\x1b[31m/\\udce9.heic" in said
    said.encode()
    assert "\x1b" not in said


def test_what_the_study_has_opened_is_not_opened_again_by_fetch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = made(home, lay(home / "root", red=10)).fetch["mine"]
    monkeypatch.setattr("maskdit.images.check.examined", lambda *words: pytest.fail("an image was opened again"))
    (home / "out").mkdir()
    fetch(entry, out=home / "out")
    assert Images.load(home / "out").pixels[:].shape == (10, 32, 32, 3)


def test_the_doctor_leaves_nothing_where_there_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay(tmp_path / "root", red=2)
    monkeypatch.chdir(tmp_path)
    assert doctor(root)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "notes.txt").write_text("nothing else")])
def test_a_folder_without_images_is_refused_with_what_it_has(make: Any, home: Path) -> None:
    (home / "root").mkdir()
    make(home / "root")
    with pytest.raises(UserError, match=r"contains no images.*; name a folder CLASS/image"):
        doctor(home / "root")


def test_a_folder_of_the_demo_s_size_gets_the_demo_s_numbers(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = made(home, lay(home / "root", a=350, b=350, c=343))
    assert params.fetch["mine"].heldout == 0.1
    for verb in ("vae", "pretrain", "finetune", "sample"):
        entries = getattr(params, verb)
        for key, entry in entries.items():
            if key.startswith("demo"):
                other = entries["mine" + key.removeprefix("demo")]
                same = ("batch", "steps", "milestones", "step", "images", "warmup")
                assert [getattr(entry, name, None) for name in same] == [getattr(other, name, None) for name in same]
    said = capsys.readouterr().out
    assert "1,043 images of 3 classes" in said
    assert "held out: 104 images, 0.1 of each class" in said
    refined = params.finetune["demo-dit"].milestones[-1]
    assert f"batch 16, 1,000 steps and {refined:,} of finetuning, 256 samples of each evaluation" in said


def test_numbers_follow_the_size_of_the_folder_and_so_do_the_keys_that_name_them(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = made(home, lay(home / "root", **dict.fromkeys("abcdefghijkl", 3)))
    fetch, dit = params.fetch["mine"].model_dump(), params.pretrain["mine-dit"]
    assert (fetch["images"], fetch["heldout"], fetch["orientation"]) == (36, 0.2, "apply"), "one of each class"
    assert (dit.batch, dit.milestones, dit.warmup) == (16, (12, 75, 250), 12)
    assert (params.vae["mine"].batch, params.vae["mine"].steps) == (8, 150)
    refined = rounded(params.finetune["demo-maskdit"].milestones[-1] / 4)
    assert params.finetune["mine-maskdit"].milestones == (refined,)
    assert {key: entry.step for key, entry in params.sample.items() if key.startswith("mine-dit")} == {
        "mine-dit-0012": 2,
        "mine-dit-0075": 9,
        "mine-dit-plain": "final",
        "mine-dit-guided": "final",
        "mine-dit-before-0250": 250,
    }
    branches = {key: (entry.start, entry.milestones) for key, entry in params.finetune.items() if key.startswith("mine-dit-")}
    assert branches == {"mine-dit-0012": (12, (2,)), "mine-dit-0075": (75, (9,))}
    assert params.sample["mine-maskdit-0075"].run == "mine-maskdit-0075"
    assert {entry.images for key, entry in params.sample.items() if key.startswith("mine")} == {64}
    assert "mine-maskdit-before-0250" in params.table["mine"].evals
    assert params.claims["mine-claims"].claims["unmasking"].scaled.over == ("mine-maskdit-before-0250",)
    said = capsys.readouterr().out
    assert "held out: 12 images, 0.2 of each class\n" in said
    assert f"batch 16, 250 steps and {refined} of finetuning, 64 samples of each evaluation" in said


def test_the_command_line_sets_the_numbers(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = lay(home / "root", red=20, blue=20)
    words = ["--steps", "40", "--batch", "4", "--samples", "20", "--heldout", "0.02"]
    assert main(["study", "mine", str(root), "--resolution", "16", *words]) == 0
    params = load()
    assert params.pretrain["mine-maskdit"].milestones == (2, 12, 40)
    assert {params.pretrain["mine-dit"].batch, params.finetune["mine-dit"].batch, params.vae["mine"].batch} == {4}
    assert params.sample["mine-dit-plain"].images == 20
    said = capsys.readouterr().out
    assert "held out: 0 images, 0.02 of each class; classes without one: 2 (blue, red)" in said
    refined = params.finetune["mine-dit"].milestones[-1]
    assert f"batch 4, 40 steps and {refined} of finetuning, 20 samples of each evaluation" in said


@pytest.mark.parametrize(
    ("classes", "options", "said"),
    [
        (
            {"a": 3, "b": 3},
            {},
            "6 images are too few: 4 to train on and 2 held out, where at least 6 are needed to train on; add 2",
        ),
        ({"a": 1}, {}, "1 images are too few: 1 to train on and 0 held out, where at least 6 are needed to train on; add 5"),
        ({"a": 9}, {"batch": 9}, "--batch 9: must be from 1 to the 8 training images"),
        ({"a": 9}, {"samples": 3}, "--samples 3: at least 6 are needed"),
        ({"a": 9}, {"steps": 2}, "--steps 2: too few for 3 milestones; 6 are enough"),
        ({"a": 9}, {"steps": 0}, "--steps 0: too few for 3 milestones"),
        ({"a": 9}, {"heldout": 1.0}, "--heldout 1: must be a fraction from 0 and below 1"),
        ({"a": 9, "b": 1}, {"heldout": 0.9}, "b has no training images left"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_is_needed_and_nothing_is_written(
    classes: dict[str, int], options: dict[str, Any], said: str, home: Path
) -> None:
    root = lay(home / "root", **classes)
    with pytest.raises(UserError) as refused:
        study("mine", root, 32, **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert Path("params.yaml").read_text() == SHIPPED


def test_eight_images_are_enough(home: Path) -> None:
    params = made(home, lay(home / "root", a=4, b=4))
    assert (params.fetch["mine"].images, params.fetch["mine"].heldout) == (8, 0.15)
    assert (params.pretrain["mine-dit"].batch, params.vae["mine"].batch) == (4, 4)


def test_damaged_images_are_left_out_by_one_option_and_the_numbers_fit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = lay(home / "root", red=40)
    (root / "red" / "0003.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"images that cannot be used: 1 of 40 \(red/0003\.png: .*; repair them, or .* --skip-bad"):
        study("mine", root, 32)
    fetch = made(home, root, skip_bad=True).fetch["mine"].model_dump()
    assert (fetch["bad"], fetch["images"]) == ("skip", 39)
    assert "left out: images that cannot be used: 1 (red/0003.png)" in capsys.readouterr().out


def test_more_than_five_percent_left_out_needs_a_number_in_params_yaml(home: Path) -> None:
    root = lay(home / "root", red=18)
    for number in range(2):
        (root / "red" / f"{number:04d}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"left out: 2 of 18 images, more than 0\.05 .*allow it with --left-out 0\.12"):
        study("mine", root, 32, skip_bad=True)
    assert made(home, root, skip_bad=True, left_out=0.12).fetch["mine"].model_dump()["left_out"] == 0.12


def test_a_split_of_the_folder_s_own_is_written_as_it_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(home / "root" / "train", red=20, blue=20)
    root = lay(home / "root" / "test", red=3, blue=2).parent
    fetch = made(home, root).fetch["mine"].model_dump()
    assert (fetch["images"], fetch["validation"], fetch["heldout"]) == (40, 5, 0.0)
    assert "the folder of an image is its class; test held out" in capsys.readouterr().out
    Path("params.yaml").write_text(SHIPPED)
    with pytest.raises(UserError, match=r"--heldout 0\.2: .* says itself which images are held out"):
        study("mine", root, 32, heldout=0.2)


def test_ambiguous_folders_are_named_by_an_option(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(home / "root" / "a", x=8, y=8)
    root = lay(home / "root" / "b", x=8).parent
    assert main(["study", "mine", str(root)]) == main(["doctor", str(root)]) == 2
    assert main(["doctor", str(root), "--classes", "path"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:3]] == [["8", "a/x"], ["8", "a/y"], ["8", "b/x"]]
    assert main(["study", "mine", str(root), "--classes", "last"]) == 0
    assert load().fetch["mine"].model_dump()["classes"] == "last"


def test_a_grid_of_many_classes_shows_some_of_them(home: Path) -> None:
    params = made(home, lay(home / "root", **{f"c{number:02d}": 3 for number in range(40)}))
    assert params.grid["mine-dit"].classes == tuple(np.linspace(0, 39, 16).astype(int))
    assert params.sample["mine-dit-plain"].images == 128
    assert params.grid["demo-dit"].classes == ()


def test_the_toy_s_numbers_scale_too(home: Path) -> None:
    Path("params.yaml").write_text(TOY.read_text())
    params = made(home, lay(home / "root", red=100, blue=100))
    assert params.pretrain["mine-dit"].milestones == (1, 2)
    assert params.sample["mine-dit-plain"].step == 1
    assert params.strip["mine"].evals == ("mine-dit-plain",)


SHARED = [([3, 3], 0.2), ([4, 9], 0.15), ([5, 50], 0.15), ([6, 8], 0.1), ([2, 60], 0.1), ([3, 2000], 0.1)]


@pytest.mark.parametrize(("counts", "share"), SHARED)
def test_the_share_that_is_held_out_takes_one_of_each_class_where_that_costs_little(counts: list[int], share: float) -> None:
    assert held_out(np.repeat(np.arange(len(counts)), counts), None) == share


def test_steps_are_rounded_to_two_digits_and_milestones_ascend() -> None:
    assert [rounded(value) for value in (0.2, 4.4, 12.4, 456, 1040)] == [1, 4, 12, 460, 1000]
    assert scaled([25, 300, 600, 1000], 4000) == {25: 100, 300: 1200, 600: 2400, 1000: 4000}
    assert scaled([25, 300, 600, 1000], 5) == {25: 1, 300: 2, 600: 3, 1000: 5}
