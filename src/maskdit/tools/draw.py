"""`maskdit draw`: images of a run or of an exported folder as PNG, without params.yaml."""

import errno
import os
from pathlib import Path
from typing import Any

from maskdit.artifacts.atomic import read_json
from maskdit.artifacts.provenance import demand_own_picture
from maskdit.config.base import UserError
from maskdit.config.errors import nearest
from maskdit.config.paths import OUTPUTS
from maskdit.runtime.environment import without_matplotlibrc
from maskdit.runtime.gpu_leases import leased

PHASES = ("finetune", "pretrain", "released")  # of a run's folder, the latest first


def draw(
    run: Path, *, out: Path | None, step: int | None, count: int | None, noise: list[int], solver: str, **options: Any
) -> None:
    """Draw images into a grid, or into a folder of single images, and print its path. The options are those of the command.

    Raises UserError if they do not fit each other or the run. Mistakes that no network is needed to see are told without torch.
    """
    strip = any(options[name] is not None for name in ("to_seed", "to_class"))
    if strip and count == 1:
        raise UserError("draw: a strip has at least two images; raise --count")
    if noise and count and not strip:
        raise UserError("draw: --count has no effect with --noise, which names each image; leave one of them out")
    if options["to_seed"] is not None and solver == "ddpm":
        raise UserError("draw: ddpm draws new noise at each step, so that no strip leads to a seed; use heun or dpmpp-2m")
    folder = located(run, step)
    if is_exported(folder) and step is not None:
        raise UserError(f"{folder}: an exported folder holds one milestone; leave --step out")
    name = (folder.parent if folder.name in PHASES else folder).resolve().name
    out = out or Path("results") / f"draw_{name}.png"
    single = is_folder(out)
    demand_place(out if single else out.parent)
    without_matplotlibrc()
    with leased(1):
        from maskdit.tools.drawing import picture

        picture(folder, name, out, single=single, step=step, count=count, noise=noise, solver=solver, **options)
    print(out)


def located(run: Path, step: int | None) -> Path:
    """The folder of a run with its index.json, or an exported folder. Of a run's phases it is the latest that has the milestone.

    `run` may be such a folder, that of all phases, or the key of a run. Raises UserError if it is nothing of these.
    """
    folder = run
    if not run.exists():
        folder = Path(OUTPUTS["pretrain"].format(key=run.name)).parent
        if len(run.parts) != 1 or not folder.exists():
            keys = [path.name for path in folder.parent.glob("*")] if len(run.parts) == 1 and folder.parent.exists() else []
            raise UserError(f"{run}: no such folder, and no run in artifacts/runs{nearest(run.name, keys) if keys else ''}")
    if is_exported(folder) or milestones(folder):
        return folder
    phases = {folder / phase: steps for phase in PHASES if (steps := milestones(folder / phase))}
    if not phases:
        told = "neither a run nor an exported folder; name artifacts/runs/KEY, or a folder of maskdit import or export"
        raise UserError(f"{folder}: {told}")
    return next((phase for phase, steps in phases.items() if step in (None, *steps)), next(iter(phases)))


def is_exported(folder: Path) -> bool:
    """Whether a folder is that of a diffusers pipeline."""
    return (folder / "model_index.json").is_file()


def milestones(run: Path) -> list[int]:
    """The steps of a run's milestones; none of another folder."""
    known = read_json(run / "index.json") if (run / "index.json").is_file() else {}
    return [mark["step"] for mark in known.get("milestones", ())] if isinstance(known, dict) else []


def demand_place(folder: Path) -> None:
    """Raise OSError, before anything is drawn, if no file can be written into a folder, which may be missing as yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def is_folder(out: Path) -> bool:
    """Whether the output is a folder of single images. Raises UserError for another file, or one that is not a picture of draw."""
    if out.suffix.lower() == ".png":
        demand_own_picture(out, "draw")
        return False
    if out.is_file() or (out.suffix and not out.is_dir()):
        raise UserError(f"{out}: neither a .png file, for a grid, nor a folder without a dot in its name, for single images")
    return True
