"""The files of a project, beside which the steps run: those of this repository, which a wheel holds, too."""

from pathlib import Path

PARTS: tuple[str, ...] = ("Snakefile", "dvc.yaml", "params.yaml", "workflow", "profiles", ".gitignore", ".dvcignore", ".dvc/config")
PARTS += (".dvc/.gitignore", ".dvc/plots")
PACKAGED = "project"  # their folder in the package that a wheel holds


def template() -> Path:
    """The folder with PARTS: in the installed package, else the repository of an editable installation."""
    package = Path(__file__).parents[1]
    inside = package / PACKAGED
    return inside if inside.is_dir() else package.parents[1]


def parts(root: Path) -> list[Path]:
    """The files of PARTS below a root, relative to it, without what Python keeps beside its sources."""
    found = [path for part in PARTS for path in ([root / part] if (root / part).is_file() else sorted((root / part).rglob("*")))]
    return [path.relative_to(root) for path in found if path.is_file() and "__pycache__" not in path.parts]
