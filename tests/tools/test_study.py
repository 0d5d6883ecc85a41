"""A study of one's own images, from a folder to a table."""

import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from ruamel.yaml import YAML

from maskdit.artifacts.atomic import write_json
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.images.fetch import fetch
from maskdit.latents.encode import encode
from maskdit.reporting.pictures import grid
from maskdit.sampling.sample import sample
from maskdit.tools.study import inserted, study
from maskdit.training import train
from project import ROOT, SNAKEMAKE, TOY, nodes, project, run, says
from small import make_vae

COLOURS = {"blue": (40, 60, 220), "green": (30, 190, 60), "red": (210, 40, 50)}


def picture(name: str, seed: int) -> Image.Image:
    """A noisy disc of a class's colour."""
    rng = np.random.default_rng(seed)
    high, wide = rng.integers(20, 40, 2)
    y, x = np.mgrid[:high, :wide]
    disc = (y - high / 2) ** 2 + (x - wide / 2) ** 2 < rng.integers(20, 90)
    pixels = np.where(disc[..., None], COLOURS[name], 235) + rng.normal(0, 8, (high, wide, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images of three classes: PNG and JPEG, one in CMYK, one that is a PNG by another name, one cut short."""
    root = tmp_path_factory.mktemp("photos")
    for place, name in enumerate(COLOURS):
        (root / name / "more").mkdir(parents=True)
        for number in range(80):
            kind = random.Random(number).choice(["png", "jpg"])
            folder = root / name / "more" if number % 10 == 0 else root / name
            picture(name, 100 * place + number).save(folder / f"{number:03d}.{kind}")
    picture("red", 900).convert("CMYK").save(root / "red" / "cmyk.jpg")
    picture("red", 901).save(root / "red" / "really-a-png.jpg", format="png")
    whole = root / "blue" / "cut.jpg"
    picture("blue", 902).resize((200, 200)).save(whole)
    whole.write_bytes(whole.read_bytes()[:1500])
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy's params.yaml."""
    (tmp_path / "params.yaml").write_text(TOY.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_is_added_and_every_line_that_was_there_stays(home: Path, photos: Path) -> None:
    before = TOY.read_text().splitlines()
    study("mine", photos, 16, steps=4, skip_bad=True)
    after = (home / "params.yaml").read_text().splitlines()
    left = iter(after)
    assert all(line in left for line in before), "in their order"
    params = load()
    assert params.fetch["mine"].model_dump()["images"] == 242
    ours, theirs = (params.pretrain[f"{name}-maskdit"].model_dump(exclude={"dataset"}) for name in ("mine", "demo"))
    assert ours == theirs
    assert params.upstream("sample", "mine-maskdit-guided") == {"finetune/mine-maskdit", "vae/mine"}


SHOWN = [(TOY, {"quality"}), (ROOT / "params.yaml", {"time-256", "unmasking"})]


@pytest.mark.parametrize(("file", "claims"), SHOWN, ids=["toy", "shipped"])
def test_one_study_after_another_is_added_with_the_claims_that_it_can_show(
    file: Path, claims: set[str], home: Path, photos: Path
) -> None:
    (home / "params.yaml").write_text(file.read_text())
    for name in ("flowers", "birds"):
        study(name, photos, 32, skip_bad=True)
    params = load()
    for name in ("flowers", "birds"):
        ledger = params.claims[params.report[name].ledger]
        assert ledger.study == name
        assert set(ledger.claims) == claims
        for claim in ledger.claims.values():
            named = str((claim.evidence, claim.scaled))
            assert name in named
            assert "demo" not in named


@pytest.mark.pipeline
def test_both_engines_plan_studies_that_were_added_to_the_file_that_is_shipped(photos: Path, tmp_path: Path) -> None:
    where = project(tmp_path, ROOT / "params.yaml")
    options = {"flowers": (), "birds": ("--from", "in256-theirs-open"), "heap": ("--classes", "none")}
    for name, more in options.items():
        says(where, "maskdit", "study", name, str(photos), "--skip-bad", *more)
        says(where, "maskdit", "check")
        by_snakemake = nodes(says(where, *SNAKEMAKE, "--dry-run", f"results/report_{name}.html"))
        by_dvc = nodes(says(where, "dvc", "repro", "--dry", "--force", f"report@{name}"))
        assert by_snakemake == by_dvc
        assert by_dvc > {f"fetch@{name}", f"table@{name}", f"claims@{name}-claims"}
        theirs = {"fetch@in256-autoencoder", "vae@in256", "released@in256-theirs-open"} if name == "birds" else set()
        assert {node for node in by_dvc if not node.split("@")[1].startswith(name)} == theirs
        assert ("finetune@birds" if name == "birds" else f"pretrain@{name}-maskdit") in by_dvc


def test_a_file_without_the_demo_is_refused_by_the_entry_that_is_missing(home: Path, photos: Path) -> None:
    tree = yaml_subset.read(TOY.read_text())
    (home / "params.yaml").write_text(yaml_subset.write({**tree, "report": {}}))
    with pytest.raises(UserError, match=r"report\.demo: missing; restore"):
        study("mine", photos, 16, skip_bad=True)


@pytest.mark.parametrize("name", ["demo", "demo-two", "My Study", "../x", "$(id)"])
def test_a_name_that_is_taken_or_no_key_is_refused(home: Path, photos: Path, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        study(name, photos, 16)
    assert (home / "params.yaml").read_text() == TOY.read_text()


def test_small_numbers_are_written_as_both_yaml_versions_read_them() -> None:
    text = inserted("pretrain:\n  a:\n    lr: 1.0\n\nbench: {}\n", "pretrain", {"b": {"lr": 1e-5}})
    assert yaml_subset.read(text)["pretrain"]["b"]["lr"] == 1e-5
    assert "1.0e-05" in text


@pytest.mark.parametrize(
    "head", ["pretrain:", "pretrain:  # of mine", "pretrain: {}", "pretrain: {}  # none yet", "pretrain: {\n}"]
)
def test_entries_are_added_below_whatever_the_step_s_line_says(head: str) -> None:
    old = "" if "{" in head else "  a:\n    lr: 1.0\n"
    text = inserted(f"{head}\n{old}\n# what follows\nbench: {{}}\n", "pretrain", {"b": {"lr": 2.0}})
    assert list(yaml_subset.read(text)["pretrain"]) == (["b"] if "{" in head else ["a", "b"])
    assert "\n# what follows\nbench: {}\n" in text


INSIDE = """pretrain:
  a:
    lr: 1.0
#    compile: false
    seed: 0
  b: {<<: &x {lr: 2.0},
      seed: 1}
  # the last words

table:
    wide: {title: four spaces}
"""


@pytest.mark.parametrize("verb", ["pretrain", "table"])
def test_entries_come_after_the_last_one_with_its_indent_whatever_comments_stand_between(verb: str) -> None:
    text = inserted(INSIDE, verb, {"new": {"lr": 3.0}})
    before = yaml_subset.read(INSIDE)
    assert yaml_subset.read(text) == {**before, verb: {**before[verb], "new": {"lr": 3.0}}}
    left = iter(text.splitlines())
    assert all(line in left for line in INSIDE.splitlines()), "every line that was there, in its order"


def test_a_link_and_the_permissions_of_what_it_leads_to_stay(home: Path, photos: Path) -> None:
    (home / "params.yaml").rename(home / "kept.yaml")
    (home / "kept.yaml").chmod(0o640)
    (home / "params.yaml").symlink_to("kept.yaml")
    study("mine", photos, 16, skip_bad=True)
    assert (home / "params.yaml").is_symlink()
    assert (home / "kept.yaml").stat().st_mode & 0o777 == 0o640
    assert "mine" in load().fetch


@pytest.mark.parametrize("ends", ["windows", "mixed", "no end", "a mark of bytes"])
def test_every_byte_that_was_there_stays_and_new_lines_end_as_those_before_them(ends: str, home: Path, photos: Path) -> None:
    lines = TOY.read_text().splitlines()
    before = "".join(
        f"{line}\r\n" if ends == "windows" or (ends == "mixed" and number > 100) else f"{line}\n"
        for number, line in enumerate(lines)
    )
    before = before[:-1] if ends == "no end" else "\ufeff" * (ends == "a mark of bytes") + before
    (home / "params.yaml").write_bytes(before.encode())
    study("mine", photos, 16, 0.2, skip_bad=True)
    after = (home / "params.yaml").read_bytes().decode()
    old, new = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (before, after))
    left = iter(new)
    assert all(line in left or line == old[-1] for line in old), "in their order"
    added = [place for place, line in enumerate(new) if "mine" in line]
    assert len(added) > 20
    assert all(new[place].endswith("\r\n") == new[place - 1].endswith("\r\n") for place in added)
    assert load().fetch["mine"]


AMBIGUOUS = ("no", "on", "y", "null", "12", "010", "1e5", "0o17", "0x1f", "2001-12-14", "1-2")


@pytest.mark.parametrize("word", AMBIGUOUS)
def test_names_and_folders_that_a_version_of_yaml_takes_for_something_else_are_quoted(word: str, home: Path, photos: Path) -> None:
    (home / word).symlink_to(photos)
    study(word, Path(word), 16, 0.2, skip_bad=True)
    text = (home / "params.yaml").read_text()
    by_snakemake, by_dvc = yaml.safe_load(text), YAML(typ="safe", pure=True).load(text)
    assert by_snakemake == by_dvc
    assert by_snakemake["fetch"][word]["root"] == word
    assert by_snakemake["sample"][f"{word}-dit-plain"]["study"] == word
    assert load().fetch[word].model_dump()["root"] == word


@pytest.mark.parametrize("name", ["a\tb", "Gr\udcf6\udcdfe", "a\u2028b"], ids=["tab", "latin", "separator"])
def test_a_folder_whose_name_yaml_cannot_hold_is_refused_by_that(name: str, home: Path, photos: Path) -> None:
    (home / name).symlink_to(photos)
    with pytest.raises(UserError, match=r"params\.yaml cannot hold this name"):
        study("mine", Path(name), 16, 0.2, skip_bad=True)


@pytest.mark.parametrize("root", [".", "", ".."])
def test_the_project_s_own_folder_is_no_folder_of_images(root: str, home: Path) -> None:
    with pytest.raises(UserError, match="contains this project"):
        study("mine", Path(root), 16)


def test_a_file_in_which_entries_cannot_be_added_is_refused_and_left_as_it_is(home: Path, photos: Path) -> None:
    says = "        says: MaskDiT's distance\n"
    head, tail = TOY.read_text().split(says)
    body, report = tail.split("\nreport:")
    text = f"{head}{body}        says: |-\n          of two lines\n          # no comment\n\nreport:{report}"
    assert "# no comment" in yaml_subset.read(text)["claims"]["claims"]["claims"]["quality"]["says"]
    (home / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="adding entries would change others"):
        study("mine", photos, 16, skip_bad=True)
    assert (home / "params.yaml").read_text() == text


def test_entries_in_braces_are_refused_and_not_spoilt() -> None:
    with pytest.raises(UserError, match=r"pretrain: write 'pretrain:' on a line of its own"):
        inserted("pretrain: {a: {lr: 1.0}}\n", "pretrain", {"b": {"lr": 2.0}})


@pytest.mark.pipeline
def test_a_folder_of_images_becomes_a_table(photos: Path, tmp_path: Path) -> None:
    where = project(tmp_path / "mine")
    (where / "data").mkdir()
    (where / "data" / "photos").symlink_to(photos)
    command = ("maskdit", "study", "mine", "data/photos", "--resolution", "16", "--heldout", "0.2")
    code, said = run(where, *command)
    assert code == 2
    assert "images that cannot be used: 1 of 243 (blue/cut.jpg: damaged" in said
    said = says(where, *command, "--skip-bad")
    assert "242 images of 3 classes" in said
    assert "snakemake results/table_mine.csv" in said
    says(where, "snakemake", "--cores", "2", "results/table_mine.csv", "results/grid_mine-maskdit.png")
    table = pd.read_csv(where / "results" / "table_mine.csv", index_col="eval")
    assert set(table.index) == {"mine-dit-plain", "mine-maskdit-guided", "real, held out"}
    assert table["fd_mobilenet"].iloc[:2].between(0, 1e4).all()
    assert table["probe_accuracy"]["real, held out"] > 0.6, "the colours tell the classes"
    said = says(where, "snakemake", "-n", "--printshellcmds", "results/table_mine.csv")
    assert nodes(said) == set()
    assert "has changed" not in said
    (photos / "green" / "new.png").write_bytes((photos / "green" / "001.png").read_bytes())
    said = says(where, "snakemake", "-n", "--printshellcmds", "results/table_mine.csv")
    assert "fetch/mine: data/photos has changed since it was fetched: added green/new.png; it has 244 images now" in said
    assert nodes(said) >= {"fetch@mine", "encode@mine", "table@mine"}
    (photos / "green" / "new.png").unlink()
    assert nodes(says(where, "snakemake", "-n", "--printshellcmds", "results/table_mine.csv")) == set()
    report = (where / "artifacts" / "raw" / "mine" / "report.json").read_text()
    assert "cut.jpg" in report
    assert "really-a-png.jpg" in report
    for path in ("artifacts/raw/mine", "artifacts/latents/mine", "artifacts/runs/mine-maskdit/pretrain"):
        assert "problem: 1 of" not in says(where, "maskdit", "doctor", path)


@pytest.fixture
def heap(tmp_path: Path) -> Path:
    """Forty images without classes, some of them in a folder."""
    root = tmp_path / "heap"
    (root / "more").mkdir(parents=True)
    for number in range(40):
        picture("blue", number).save(root / ("more" if number % 3 else "") / f"{number}.png")
    return root


def test_a_heap_of_images_is_trained_on_sampled_and_drawn(heap: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "gemm_rate", lambda *_: 1e12)
    study("mine", heap, 16, steps=4, classes="none")
    params = load()
    for name in ("images", "latents", "run", "samples"):
        (home / name).mkdir()
    fetch(params.fetch["mine"], out=home / "images")
    write_json(home / "images" / "manifest.json", {})
    make_vae(home / "vae")
    encode(params.encode["mine"], images=home / "images", vae=home / "vae", out=home / "latents")
    train.pretrain(params.pretrain["mine-dit"], latents=home / "latents", out=home / "run")
    entry = params.sample["mine-dit-plain"]
    sample(entry, run=home / "run", vae=home / "vae", out=home / "samples")
    assert np.load(home / "samples" / "labels.npy").tolist() == [0] * entry.images
    grid(
        params.grid["mine-dit"].model_copy(update={"columns": 3}),
        images=home / "images",
        samples=home / "samples",
        out=home / "grid.png",
    )
    with Image.open(home / "grid.png") as drawn:
        wide, high = drawn.size
    assert wide > 1.5 * high, "three rows of three on either side"
    assert high > wide / 4


@pytest.mark.slow
@pytest.mark.pipeline
def test_a_heap_of_images_without_classes_becomes_a_table_and_grids(heap: Path, tmp_path: Path) -> None:
    where = project(tmp_path / "mine")
    words = ("maskdit", "study", "mine", str(heap), "--resolution", "16", "--steps", "4", "--samples", "16")
    code, said = run(where, *words)
    assert code == 2
    assert "classes: none for none" in said
    assert "40 images of 1 class" in says(where, *words, "--classes", "none")
    says(where, "snakemake", "--cores", "2", "results/report_mine.html", "results/grid_mine-dit.png")
    table = pd.read_csv(where / "results" / "table_mine.csv", index_col="eval")
    assert set(table.index) == {"mine-dit-plain", "mine-maskdit-guided"}
    assert table["fd_mobilenet"].between(0, 1e4).all()
    assert (table["guidance"] == 1).all()
    for path in (
        "artifacts/raw/mine",
        "artifacts/latents/mine",
        "artifacts/runs/mine-maskdit/pretrain",
        "artifacts/samples/mine-dit-plain",
    ):
        assert "problem: " not in says(where, "maskdit", "doctor", path)
