"""The scratch folder: in the project, also for a copy of it that DVC removes."""

from pathlib import Path

import pytest

from maskdit.runtime.environment import scratch, scratch_root


@pytest.mark.parametrize("copy", [".dvc/tmp/exps/standalone/tmpa", ".dvc/tmp/exps/tmpb"], ids=["--temp", "--queue"])
@pytest.mark.parametrize("told", ["", "states", "/elsewhere"])
def test_a_copy_of_the_project_that_dvc_makes_for_an_experiment_keeps_its_states_in_the_project(
    copy: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKDIT_SCRATCH", told)
    usual = told or ".scratch"
    monkeypatch.chdir(tmp_path)
    assert scratch_root() == Path(usual)
    (tmp_path / copy).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / copy)
    assert scratch_root() == tmp_path / usual
    if not told:
        assert scratch("pretrain-0") == tmp_path / ".scratch" / "pretrain-0"
        assert not (tmp_path / copy / ".scratch").exists()
