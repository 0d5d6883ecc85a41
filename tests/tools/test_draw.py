"""`maskdit draw`: the pixels of the sample step, by class, number and seed, from a run or from an exported folder."""

import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdit.artifacts.arrays import Array
from maskdit.artifacts.atomic import read_json, write_json
from maskdit.artifacts.publish import publishing
from maskdit.cli import main
from maskdit.config.sampling import Sample
from maskdit.model import checkpoint
from maskdit.sampling import chosen, sample
from maskdit.sampling.between import TABLE, slerp
from maskdit.tools import drawing
from project import run
from small import SAMPLE, make_run

QUICK = ("--guidance", "2", "--steps", "3", "--seed", "5", "--batch", "4", "--precision", "fp32")


def home_of(folder: Path, **facts: object) -> Path:
    """A project without params.yaml: the published run `toy` of three classes, and its autoencoder."""
    made = make_run(folder, **facts)
    with publishing(folder / "artifacts" / "runs" / "toy" / "pretrain", "pretrain/toy", {}, {}) as place:
        shutil.copytree(made / "run", place, dirs_exist_ok=True)
        write_json(place / "index.json", {**read_json(place / "index.json"), "final": None})
    shutil.rmtree(made / "run")
    (folder / "artifacts" / "vae").mkdir()
    (made / "vae").rename(folder / "artifacts" / "vae" / "toy")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home_of(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like the released DiT: it predicts noise and its variance."""
    return home_of(tmp_path_factory.mktemp("released"), architecture={"out_channels": 4}, preconditioning="vp")


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, in which this test stands."""
    where = shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(where)
    return where


def singles(*words: object, quick: tuple[str, ...] = QUICK) -> dict[str, Array]:
    """The images that a command draws into a folder, by their names without the suffix."""
    shutil.rmtree("out", ignore_errors=True)
    assert main(["draw", *map(str, words), "--out", "out", *quick]) == 0
    return {file.stem: pixels(file) for file in Path("out").iterdir()}


def pixels(file: Path) -> Array:
    with Image.open(file) as image:
        return np.asarray(image)


def sampled(where: Path, **changes: object) -> tuple[Array, Array]:
    """The images of a sample entry, and their labels."""
    entry = Sample.model_validate({**SAMPLE, **changes})
    runs, out = where / "artifacts" / "runs" / "toy" / "pretrain", where / f"sample{len(list(where.iterdir()))}"
    out.mkdir()
    sample.sample(entry, run=runs, vae=where / "artifacts" / "vae" / "toy", out=out)
    return np.concatenate([np.load(out / name) for name in read_json(out / "index.json")["shards"]]), np.load(out / "labels.npy")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main(["draw", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("kind", "solver", "guidance"),
    [("trained", "heun", 2.0), ("trained", "dpmpp-2m", 1.0), ("released", "ddpm", 2.0), ("released", "heun", 2.0)],
)
def test_the_pixels_are_those_of_a_sample_entry_bit_by_bit(
    kind: str, solver: str, guidance: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = shutil.copytree(request.getfixturevalue(kind), tmp_path / "home")
    monkeypatch.chdir(where)
    images, labels = sampled(where, labels="balanced", solver=solver, guidance=guidance, images=9)
    drawn = singles("toy", "--count", 3, "--solver", solver, "--guidance", guidance, quick=QUICK[2:])
    assert {f"{label}-{'abc'[label]}-seed5-{number}" for number, label in enumerate(labels)} == drawn.keys()
    for number, image in enumerate(images):
        np.testing.assert_array_equal(drawn[f"{number % 3}-{'abc'[number % 3]}-seed5-{number}"], image)
    assert len(np.unique(images, axis=0)) == 9


def test_an_image_of_an_entry_with_random_labels_is_named_by_its_noise_and_class(home: Path) -> None:
    images, labels = sampled(home)
    number = next(number for number, label in enumerate(labels) if label != number % 3)
    [(_, image)] = singles("toy", "--class", labels[number], "--noise", number).items()
    np.testing.assert_array_equal(image, images[number])


def test_an_image_does_not_depend_on_the_others_that_are_drawn(home: Path) -> None:
    several, alone = (singles("toy", "--class", *words, "--steps", 2, quick=()) for words in (["a", "b", "c"], ["b"]))
    assert len(several) == 12
    assert all(np.array_equal(image, several[name]) for name, image in alone.items())


def test_a_large_network_on_a_cpu_draws_its_images_one_by_one() -> None:
    sizes = {"side": 8, "channels": 4, "classes": 3, "decoder": None}
    encoders = [{"patch": 2, "depth": depth, "width": width, "heads": 2} for depth, width in ((1, 16), (12, 1536))]
    assert [chosen.usual_batch({"architecture": {**sizes, "encoder": encoder}}) for encoder in encoders] == [16, 1]


def test_the_grid_has_a_row_per_class_and_says_in_itself_how_it_was_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = singles("toy", "--count", 2)
    capsys.readouterr()
    assert main(["draw", "toy", "--count", "2", *QUICK]) == 0
    assert capsys.readouterr().out == "results/draw_toy.png\n"
    grid = pixels(Path("results/draw_toy.png"))[..., :3]
    frame = (grid == 221).all(-1)
    down, right = (np.flatnonzero(frame.sum(axis) > 60)[0] for axis in (1, 0))
    for label in range(3):
        for column in range(2):  # cells of 16 pixels, 6 times as large, one pixel apart
            top, left = (start + 6 * (1 + 17 * place) + 3 for start, place in ((down, label), (right, column)))
            cell = grid[top : top + 96 : 6, left : left + 96 : 6]
            np.testing.assert_array_equal(cell, drawn[f"{label}-{'abc'[label]}-seed5-{label + 3 * column}"])
    said = (home / "results" / "draw_toy.png").read_bytes().decode("latin-1")
    told = re.search(r"Comment\0maskdit draw/toy: commit (\S+), config [0-9a-f]{64}, lock \S+; ([ -~]*)", said)
    assert told
    assert told[2].startswith("pretrain/toy, DiT, pretrain step 3, solver heun, guidance 2.0, solver_steps 3, seed 5, batch 4")
    assert "images of a: 0 3; b: 1 4; c: 2 5" in told[2]


def test_the_latest_phase_that_has_the_milestone_is_drawn(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = home / "artifacts" / "runs" / "toy"
    shutil.copytree(runs / "pretrain", runs / "finetune")
    tensors, facts = checkpoint.load(runs / "finetune" / "ema-0000003.safetensors")
    checkpoint.save(runs / "finetune" / "ema-0000007.safetensors", {name: 0.9 * each for name, each in tensors.items()}, facts)
    write_json(runs / "finetune" / "index.json", {"milestones": [{"step": 7, "file": "ema-0000007.safetensors"}]})
    last, first, named = (singles(*words) for words in (["toy"], ["toy", "--step", 3], [runs / "pretrain"]))
    assert all(np.array_equal(image, named[name]) and not np.array_equal(image, last[name]) for name, image in first.items())
    assert "has no milestone 4, only [7]" in refused(capsys, "toy", "--step", 4)


def test_an_exported_folder_gives_the_pixels_of_its_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export", "artifacts/runs/toy/pretrain", "--format", "diffusers", "--vae", "artifacts/vae/toy", "--out", "model"]
    assert main(export) == 0
    mine = singles("toy", "--class", "c")
    shutil.rmtree("artifacts")
    theirs = singles("model", "--class", "c")
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(image, theirs[name]) for name, image in mine.items())
    assert "holds one milestone; leave --step out" in refused(capsys, "model", "--step", 3)
    file = Path("model/transformer/config.json")
    for change, said in (
        ({"_class_name": "DiTTransformer2DModel"}, "holds a DiTTransformer2DModel, not a folder of maskdit export"),
        ({"class_names": ["a"]}, "config.json: not as maskdit export writes it"),
        ({"encoder": {"patch": 2}}, "config.json: not as maskdit export writes it"),
        ({"classes": 4, "class_names": ["a", "b", "c", "d"]}, "y_embedder.embedding_table.weight is (16, 3)"),
    ):
        file.write_text(json.dumps({**(whole := json.loads(file.read_text())), **change}))
        assert said in refused(capsys, "model")
        file.write_text(json.dumps(whole))


def test_a_strip_leads_from_one_seed_to_another_through_noise_of_the_same_length(home: Path) -> None:
    strip = singles("toy", "--class", "b", "--to-seed", 9, "--count", 3)
    first, _, last = (strip[f"1-b-seed5-1-00{place}"] for place in range(3))
    for seed, image in ((5, first), (9, last)):
        alone = singles("toy", "--class", "b", "--count", 1, "--seed", seed, quick=(*QUICK[:4], *QUICK[6:]))
        np.testing.assert_array_equal(alone[f"1-b-seed{seed}-1"], image)
    assert len(np.unique(list(strip.values()), axis=0)) == 3


def test_the_great_circle_is_walked_at_nearly_constant_speed() -> None:
    one, two = np.random.default_rng(0).standard_normal((2, 4, 32, 32)).astype(np.float32)
    parts = [slerp(one, two, part) for part in np.linspace(0, 1, 5)]
    assert np.array_equal(parts[0], one)
    assert np.array_equal(parts[4], two)
    units = [part / np.linalg.norm(part) for part in map(np.float64, parts)]
    angles = [np.arccos((here * there).sum()) for here, there in pairwise(units)]
    np.testing.assert_allclose(angles, np.arccos((units[0] * units[4]).sum()) / 4, rtol=0.02)
    assert all(abs(part.std() - 1) < 0.05 for part in parts)
    assert np.array_equal(slerp(one, one, 0.5), one)


def test_a_strip_leads_from_one_class_to_another_along_the_line_between_their_vectors(home: Path) -> None:
    strip = singles("toy", "--class", "a", "--to-class", "C", "--count", 5)
    ends = singles("toy", "--class", "a", "c", "--noise", 0)
    np.testing.assert_array_equal(strip["0-a-seed5-0-000"], ends["0-a-seed5-0"])
    np.testing.assert_array_equal(strip["0-a-seed5-0-004"], ends["2-c-seed5-0"])
    file = home / "artifacts" / "runs" / "toy" / "pretrain" / "ema-0000003.safetensors"
    tensors, facts = checkpoint.load(file)
    tensors[TABLE][:, 1] = 0.75 * tensors[TABLE][:, 0] + 0.25 * tensors[TABLE][:, 2]
    checkpoint.save(file, tensors, facts)
    quarter = singles("toy", "--class", "b", "--noise", 0)["1-b-seed5-0"].astype(int)
    assert np.abs(quarter - strip["0-a-seed5-0-001"]).max() <= 1, "but for the rounding of the sum"
    assert len(np.unique(list(strip.values()), axis=0)) == 5


def renamed(home: Path, *classes: str) -> None:
    """Give the run's classes other names."""
    file = home / "artifacts" / "runs" / "toy" / "pretrain" / "ema-0000003.safetensors"
    tensors, facts = checkpoint.load(file)
    checkpoint.save(file, tensors, {**facts, "space": {**facts["space"], "classes": classes}})


def test_a_class_is_named_exactly_or_in_other_letters_or_by_number(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed(home, "Tulip", "rose/red", "0")
    said = {word: [*singles("toy", "--class", word, "--count", 1)] for word in ("Tulip", "tULIP", "ROSE/RED", "0", "1")}
    tulip, rose, nought = (["0-Tulip-seed5-0"], ["1-rose-red-seed5-1"], ["2-0-seed5-2"])
    assert said == {"Tulip": tulip, "tULIP": tulip, "ROSE/RED": rose, "0": nought, "1": rose}
    assert "no class 'tulpi'; did you mean 'Tulip'?" in refused(capsys, "toy", "--class", "tulpi")
    assert "no class '3'" in refused(capsys, "toy", "--class", "3")
    renamed(home, "cat", "Cat", "dog")
    assert "class 'CAT' may be cat or Cat" in refused(capsys, "toy", "--class", "CAT")
    assert [*singles("toy", "--class", "Cat", "--count", 1)] == ["1-Cat-seed5-1"]


def test_some_of_many_classes_are_drawn_from_the_first_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = []
    monkeypatch.setattr("maskdit.tools.drawing.CLASSES", 2)
    monkeypatch.setattr("maskdit.tools.drawing.drawn", lambda config, images, *_: (wishes.extend(images), iter(()))[1])
    monkeypatch.setattr("maskdit.tools.drawing.write_singles", lambda *_: None)
    assert main(["draw", "toy", "--out", "out"]) == 0
    assert [(wish.label, wish.number) for wish in wishes] == [(0, 0), (0, 3), (0, 6), (0, 9), (1, 1), (1, 4), (1, 7), (1, 10)]


def test_an_autoencoder_that_is_elsewhere_is_named_and_another_one_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = singles("toy")
    Path("artifacts/vae/toy").rename("elsewhere")
    line = refused(capsys, "toy", *QUICK)
    assert re.search(
        r"its autoencoder, sha256 [0-9a-f]{12}…, is neither beside it nor in artifacts/vae; name .* --vae FOLDER", line
    )
    assert all(np.array_equal(image, beside[name]) for name, image in singles("toy", "--vae", "elsewhere").items())
    weights = Path("elsewhere/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "not the autoencoder that made the latents" in refused(capsys, "toy", "--vae", "elsewhere")


def test_only_its_own_picture_is_replaced(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (9, 9)).save("photo.png")
    before = Path("photo.png").read_bytes()
    assert "photo.png: exists and is not a picture of maskdit draw" in refused(capsys, "toy", "--out", "photo.png", *QUICK)
    assert Path("photo.png").read_bytes() == before
    for _ in range(2):
        assert main(["draw", "toy", "--class", "a", "--out", "mine.png", *QUICK]) == 0
    assert "neither a .png file" in refused(capsys, "toy", "--out", "mine.jpg")
    Path("file").touch()
    assert "neither a .png file" in refused(capsys, "toy", "--out", "file")
    (home / "out").mkdir()
    Image.new("RGB", (9, 9)).save("out/0-a-seed5-0.png")
    assert "exists and is not a picture" in refused(capsys, "toy", "--class", "a", "--out", "out", *QUICK)


MISTAKES = [
    (["toy", "--to-seed", "1", "--count", "1"], "a strip has at least two images"),
    (["toy", "--noise", "1", "--count", "2"], "--count has no effect with --noise"),
    (["toy", "--to-seed", "1", "--solver", "ddpm"], "no strip leads to a seed"),
    (["toyy"], "toyy: no such folder, and no run in artifacts/runs; did you mean 'toy'?"),
    (["no/toy"], "no/toy: no such folder"),
    (["artifacts/vae/toy"], "neither a run nor an exported folder"),
]


PROGRAM = """
import json, sys
from maskdit.cli import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(["draw", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == (0 if "--help" in words else 2)
"""


def test_help_and_mistakes_do_not_wait_for_torch_and_a_mistake_is_one_line(home: Path, without_torch: tuple[str, str]) -> None:
    words = json.dumps([*(words for words, _ in MISTAKES), ["toy", "--guidance", "0"], ["--help"]])
    code, said = run(home, *without_torch, sys.executable, "-c", PROGRAM, words)
    lines = [line for line in said.splitlines() if line.startswith("maskdit: ")]
    assert code == 0, said
    assert len(lines) == len(MISTAKES) + 1
    assert all(wanted in line for (_, wanted), line in zip(MISTAKES, lines, strict=False))
    for word in ("--class", "--guidance", "--to-seed", "--to-class", "--vae", "MASKDIT_DEVICE", "results/draw_RUN.png"):
        assert word in said
    assert not (home / "results").exists()


USAGE = [
    ([], "RUN"),
    (["toy", "--guidance", "0.5"], "'0.5' is not a number of 1 (no guidance) or more"),
    (["toy", "--guidance", "nan"], "'nan' is not a number"),
    (["toy", "--count", "0"], "'0' is not a whole number from 1 to"),
    (["toy", "--steps", "x"], "'x' is not a whole number from 1 to 1000"),
    (["toy", "--noise", "-1"], "-1"),
    (["toy", "--solver", "euler"], "euler"),
]


@pytest.mark.parametrize(("words", "said"), USAGE)
def test_a_number_out_of_bounds_is_a_usage_error(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["draw", *words])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_params_yaml_is_not_read(home: Path) -> None:
    Path("params.yaml").write_text(": not YAML: [")
    assert len(singles("toy", "--class", "a")) == 4


def test_ddpm_of_a_network_that_predicts_no_variance_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ddpm needs a network that predicts noise and its variance" in refused(capsys, "toy", "--solver", "ddpm")


def test_a_picture_that_would_be_too_large_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "use --out FOLDER" in refused(capsys, "toy", "--count", 1000)


def test_many_images_of_a_class_are_several_lines_of_the_grid(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []
    monkeypatch.setattr("maskdit.tools.drawing.sheet", lambda grid, names, *_: grids.append((grid, names)))
    drawn = singles("toy", "--class", "a", "b", "--count", 11)
    assert main(["draw", "toy", "--class", "a", "b", "--count", "11", *QUICK]) == 0
    [(grid, names)] = grids
    assert names == ["a", "", "b", ""]
    assert [[image is not None for image in row] for row in grid] == [[True] * 6, [True] * 5 + [False]] * 2
    for number in range(22):
        label, place = divmod(number, 11)
        image = drawn[f"{label}-{'ab'[label]}-seed5-{label + 3 * place}"]
        np.testing.assert_array_equal(grid[2 * label + place // 6][place % 6], image)


@pytest.mark.parametrize(("classes", "dropout", "guidance"), [(3, 0.1, 1.5), (3, 0.0, 1.0), (1, 0.1, 1.0)])
def test_a_network_that_has_not_learnt_to_do_without_a_class_is_not_guided_unless_told(
    classes: int, dropout: float, guidance: float, home: Path
) -> None:
    file = home / "artifacts" / "runs" / "toy" / "pretrain" / "ema-0000003.safetensors"
    tensors, facts = checkpoint.load(file)
    tensors[TABLE] = tensors[TABLE][:, :classes]
    space = {**facts["space"], "classes": ["a", "b", "c"][:classes]}
    architecture = {**facts["architecture"], "classes": classes}
    checkpoint.save(file, tensors, {**facts, "architecture": architecture, "space": space, "config": {"label_dropout": dropout}})
    told = [((), guidance)] + [(("--guidance", "2"), 2.0)] * (classes > 1)  # of one class it is refused
    for words, expected in told:
        (image,) = singles("toy", "--class", "a", "--count", 1, *words, quick=QUICK[2:]).items()
        assert f"guidance {expected}," in (home / "out" / f"{image[0]}.png").read_bytes().decode("latin-1")


def test_a_network_of_one_class_cannot_be_guided(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing.Source, "classes", property(lambda self: ("all",)))
        assert "has a single class, so that nothing can guide it" in refused(capsys, "toy", "--guidance", "2")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "drawn", None)
        assert refused(capsys, "toy", "--out", "file/x.png").startswith("maskdit: file")
    with pytest.raises(SystemExit):
        main(["draw", "toy", "--out", ""])
    assert "a path is empty" in capsys.readouterr().err


def test_a_run_is_exported_by_its_key_too(home: Path) -> None:
    assert main(["export", "toy", "--format", "upstream", "--out", "toy.pth"]) == 0
    assert Path("toy.pth").stat().st_size
