"""`maskdit init`: a project in a new folder, as a clone of the repository is one, for who has installed the package alone."""

import re
import shutil
import subprocess
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

from maskdit.artifacts.atomic import replacing, sync
from maskdit.artifacts.provenance import git
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.load import validate
from maskdit.config.project import parts, template
from maskdit.tools.study import LIKE, PARAMS, demand_name, entries, ledger, made, scaled_down

PROFILE = "slurm"  # a link to the profile, or its bare name would not be found
USUAL = {"left_out": 0.05, "classes": "auto"}  # of options that are not given; others are None or False


def init(folder: Path, images: Path | None, name: str | None, **numbers: Any) -> None:
    """Write a project into a folder: params.yaml with one study, the files of both engines, and a Git repository around them.

    The study is the demo's or, given `images`, one of them, with `numbers` as in `study`. The folder appears whole or not at all.
    Raises UserError if it is not empty, and as `study` does.
    """
    source, home = template(), folder.resolve()
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()) or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; choose a new one")
    if home == Path.cwd():
        raise UserError(f"{folder}: is the current folder, which cannot be replaced; name a new one")
    given = [word for word, value in {"name": name, **numbers}.items() if value not in (None, False, USUAL.get(word))]
    if images is None and given:
        raise UserError(f"init: --{given[0].replace('_', '-')} has no effect without --images")
    tree = yaml_subset.read_file(source / PARAMS)
    if images is None:
        study, told = LIKE, "DiT and MaskDiT on emoji"
        ours = entries(tree, LIKE)
        ours["claims"] = {tree["report"][LIKE]["ledger"]: ledger(tree, LIKE)}
        scaled_down(ours)
        validate(whole := {verb: ours.get(verb, {}) for verb in tree})
    else:
        study = re.sub(r"[^a-z0-9]+", "-", images.resolve().name.lower()).strip("-") if name is None else name
        demand_name(study)
        found = made(tree, study, images.resolve(), folder, **numbers)
        scaled_down(found.new)
        found.validated(whole := {verb: found.new.get(verb, {}) for verb in tree})
        told = found.told
    top = "".join(
        takewhile(lambda line: line.startswith("#"), (source / PARAMS).read_text(encoding="utf-8").splitlines(keepends=True))
    )
    text = top + "".join(f"\n{block(verb, known, study)}" for verb, known in whole.items())
    if yaml_subset.read(text) != whole:
        raise UserError("init: cannot write these entries to params.yaml; report this, with the names of your folders")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}.") as beside:
        place = Path(beside) / home.name
        place.mkdir()
        filled(place, source, text, study)
        sync(place)
        place.rename(home)
        sync(home.parent)
    print(f"{folder} has a project with the study {study}: {told}")
    print(f"cd {folder}; run snakemake, or dvc repro report@{study}; maskdit plan {study} tells what it costs")


def block(verb: str, entries: dict[str, Any], study: str) -> str:
    """A section of params.yaml."""
    lines = yaml_subset.compact(entries, f"{study}-{verb}") if entries else []
    return f"{verb}:\n" + "".join(f"  {line}\n" for line in lines) if lines else f"{verb}: {{}}\n"


def filled(place: Path, source: Path, params: str, study: str) -> None:
    """Write the files of a project into a folder."""
    for name in parts(source):
        data = (source / name).read_bytes()
        if name == PARAMS:
            data = params.encode()
        if name == Path("dvc.yaml"):  # the plots that `dvc plots` shows
            data = data.replace(f"results/curves_{LIKE}.".encode(), f"results/curves_{study}.".encode())
        with replacing(place / name) as temporary:
            temporary.write_bytes(data)
    (place / PROFILE).symlink_to(Path("profiles") / PROFILE)
    if git("-C", str(place), "rev-parse", "--is-inside-work-tree") != "true" and shutil.which("git"):
        done = subprocess.run(["git", "init", "--quiet", str(place)], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise UserError(f"git init: {' '.join(done.stderr.split())}")
    elif not shutil.which("git"):
        config = place / ".dvc" / "config"
        with replacing(config) as temporary:  # without Git, DVC has to be told
            temporary.write_bytes(config.read_bytes().replace(b"[core]\n", b"[core]\n    no_scm = true\n"))
