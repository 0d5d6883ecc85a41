"""The project in a folder of its own, and what its engines say there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import warm
from maskdit.artifacts.atomic import digest, write_json
from maskdit.artifacts.manifest import CHECK

ROOT = Path(__file__).parents[1]
TOY = ROOT / "tests" / "toy" / "params.yaml"
SNAKEMAKE = ("snakemake", "--cores", "2", "--printshellcmds")
PARTS = ("Snakefile", "dvc.yaml", "workflow", "profiles", "src", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore")
PARTS += (".dvc/plots",)
NAMES = ("HF_TOKEN", "KAGGLE_KEY", "KAGGLE_USERNAME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
NAMES += ("WANDB_API_KEY", "GITHUB_TOKEN")
SECRETS = {name: f"canary-{name.lower()}-8c1f" for name in NAMES}  # nothing of these is ever to be written
PROXIES = {
    name: f"http://user:canary-{name}-8c1f@127.0.0.1:9" for name in ("http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")
}
SECRETS |= PROXIES | {"IMAGENET_URL": "https://image-net.org/canary-address-8c1f"}

# The toy's nodes: the last ones, the two samples, what shows them, and what a changed finetuning makes new
STAGES = ("table@demo", "curves@demo", "grid@demo-dit", "grid@demo-maskdit", "strip@demo", "efficiency@demo")
STAGES += ("claims@claims", "report@demo")
PLAIN, GUIDED = "demo-dit-plain", "demo-maskdit-guided"

SHOWN = {"table@demo", "curves@demo", "efficiency@demo", "strip@demo", "claims@claims", "report@demo"}
SCORED = {f"evaluate@{PLAIN}", f"evaluate@{GUIDED}"}
REFINED = {f"sample@{GUIDED}", f"features@{GUIDED}", f"evaluate@{GUIDED}", "grid@demo-maskdit"} | SHOWN - {"strip@demo"}


def project(where: Path, params: Path = TOY) -> Path:
    """A repository with the project's files as they are now, and `params` as its params.yaml."""
    for part in PARTS:
        source, target = ROOT / part, where / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    shutil.copy(params, where / "params.yaml")
    run(where, "git", "init", "--quiet", good=True)
    commit(where)
    return where


def twin(made: Path, where: Path) -> Path:
    """A copy with everything that the engines know and made there, times included, for a test that changes something."""
    return shutil.copytree(made, where, symlinks=True, dirs_exist_ok=True)


def restated(manifest: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, whose own checksum stays right."""
    tree = json.loads(manifest.read_text())
    del tree[CHECK]
    change(tree)
    write_json(manifest, {**tree, CHECK: digest(tree)})


def commit(where: Path) -> None:
    """Commit everything that git does not ignore."""
    run(where, "git", "add", "--all", good=True)
    run(where, "git", "commit", "--quiet", "--message", "toy", good=True)


def environment(where: Path) -> dict[str, str]:
    """This environment without the settings of a developer's engines, with secrets, and with the package's commands first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MASKDIT_", "SNAKEMAKE_", "DVC_", "GIT_"))}
    person = {f"GIT_{role}_{what}": "toy@toy" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    alone = {"MASKDIT_DEVICE": "cpu", "GIT_CONFIG_GLOBAL": os.devnull, "DVC_SITE_CACHE_DIR": str(where / ".dvc" / "tmp" / "site")}
    return {**kept, **person, **alone, **SECRETS, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(where: Path, *command: str, good: bool = False, forked: bool = True) -> tuple[int, str]:
    """Exit code of a command, and all that it says; `good` demands exit code 0.

    Engines and our command, also as a step, are forked, see `warm.py`. They are the installed ones after `env` and with
    `forked=False`.
    """
    variables = environment(where)
    if forked and command[0] in ("snakemake", "dvc", "maskdit"):
        variables["PATH"] = f"{warm.folder()}{os.pathsep}{variables['PATH']}"
    done = subprocess.run(command, cwd=where, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert not (good and done.returncode), f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.returncode, done.stdout


def says(where: Path, *command: str, forked: bool = True) -> str:
    """What a command says that must succeed."""
    return run(where, *command, good=True, forked=forked)[1]


def nodes(said: str) -> set[str]:
    """The nodes VERB@KEY whose commands an engine shows, Snakemake with --printshellcmds."""
    return {f"{verb}@{key}" for verb, key in re.findall(r"^(?:> |Shell command: )maskdit (\w+) (\S+)$", said, re.M)}


def edit(file: Path, old: str, new: str) -> None:
    """Replace each `old` in a file, of which there must be one."""
    text = file.read_text()
    assert old in text, f"{file}: no {old!r}"
    file.write_text(text.replace(old, new))


def with_sweep(params: Path) -> None:
    """Add a sweep of two points to the toy's params.yaml; it chooses the guidance of a new row, `demo-maskdit-best`."""
    edit(params, "  demo-maskdit-guided:\n", "  demo-maskdit-guided: &demo-guided\n")
    rows = """
  demo-maskdit-best: {<<: *demo-guided, guidance: 3.0, best_of: demo-sweep}
  demo-sweep-10: &demo-sweep {<<: *demo-guided, study: demo-sweep, guidance: 1.0, images: 12, seed: 1}
  demo-sweep-20: {<<: *demo-sweep, guidance: 2.0}

features:
"""
    edit(params, "\nfeatures:\n", rows)
    edit(params, "\nsweep: {}\n", "\nsweep:\n  demo-sweep: {title: Toy, axis: guidance}\n")
    edit(params, "    mixed: true", "    sweeps: [demo-sweep]\n    mixed: true")


def with_rescore(params: Path, url: str = "file:///weights.safetensors") -> None:
    """Add a reference of DINOv2 to the toy's params.yaml, and measure one sample against it, too; `url` has the weights."""
    edit(params, "\nvae:\n", f"  demo-dinov2: {{source: extractor, family: dinov2, url: '{url}', sha256: null}}\n\nvae:\n")
    edit(
        params,
        "\npretrain:\n",
        "  demo-dinov2: {dataset: demo, extractor: demo-dinov2, batch: 32, neighbours_from: 20}\n\npretrain:\n",
    )
    entry = "{bench: demo, reference: demo-dinov2, extractor: demo-dinov2, batch: 16, mind: true, floor: true}"
    edit(params, "\nrescore: {}\n", f"\nrescore:\n  {GUIDED}: {entry}\n")


def plan(where: Path, *targets: str) -> set[str]:
    """What a dry run of Snakemake would run."""
    return nodes(says(where, *SNAKEMAKE, "--dry-run", *targets))


def metrics(where: Path) -> dict[str, dict[str, float]]:
    """Quality of each evaluation: not the times, which differ."""
    return {path.stem: json.loads(path.read_text())["metrics"] for path in (where / "results" / "metrics" / "demo").glob("*.json")}
