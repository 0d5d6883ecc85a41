"""What a release has made stays current, and what it has begun goes on: frozen as that release left it."""

import shutil
from pathlib import Path

import pytest

from maskdit.artifacts.manifest import MANIFEST, inputs_of, lineage
from maskdit.cli import main
from maskdit.config.base import new
from maskdit.config.load import load
from maskdit.config.training import Finetune
from project import edit

RELEASES = sorted((Path(__file__).parents[1] / "release").iterdir())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the artifacts of a release, and a finetuning that it has begun."""
    for name, place in (("made", "artifacts"), ("scratch", ".scratch"), ("data", "data")):
        shutil.copytree(request.param / name, tmp_path / place)
    shutil.copy(request.param / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_artifact_of_a_release_is_current(release: Path) -> None:
    made = sorted(path.parent for path in (release / "artifacts").rglob(MANIFEST))
    assert len(made) >= 5
    for folder in made:
        [(_, manifest)] = found = inputs_of(folder)
        assert manifest.node in lineage(found, load())


def test_a_training_that_a_release_has_begun_goes_on_from_its_step(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [state] = (release / ".scratch").glob("finetune-*/state-*.json")
    step = int(state.stem.removeprefix("state-"))
    edit(release / "params.yaml", "milestones: [100000]", f"milestones: [{step + 10}]")
    run = "artifacts/runs/mini-maskdit"
    assert not main(
        [
            "finetune",
            "mini-maskdit",
            "--latents",
            "artifacts/latents/mini",
            "--pretrained",
            f"{run}/pretrain",
            "--out",
            f"{run}/finetune",
        ]
    )
    assert f"resuming from step {step}" in capsys.readouterr().err


def test_a_field_that_comes_later_changes_no_recipe() -> None:
    class Later(Finetune):
        """The entry of a release to come."""

        switch: bool = new(False)

    entry = load(RELEASES[0] / "params.yaml").finetune["mini-maskdit"]
    later = Later.model_validate(entry.model_dump())
    assert later.recipe() == entry.recipe()
    assert later.model_copy(update={"switch": True}).recipe() != entry.recipe()
