"""What may be deleted, how large it is and what it costs to get it back; and its deletion."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from maskdit.artifacts.atomic import digest, read_json
from maskdit.artifacts.freshness import TRAININGS, Freshness
from maskdit.artifacts.manifest import read_manifest
from maskdit.artifacts.step import SHARDED
from maskdit.config.base import UserError
from maskdit.config.params import VERBS, Params
from maskdit.config.paths import OUTPUTS
from maskdit.runtime.environment import NODE, scratch_root
from maskdit.runtime.lock import is_held
from maskdit.tools.plan import show
from maskdit.tools.status import running

KINDS = {  # what can be deleted, and what it costs to get it back
    "scratch": "nothing: it is work on an artifact that is published, or that params.yaml no longer has",
    "samples": "the sampling, if they are looked at or measured again; their metrics stay",
    "stale": "its making, if the number that has changed is restored",
    "unnamed": "its making, if an entry of params.yaml names it again",
    "states": "the whole training, if it gets more milestones or the number that has changed is restored",
}


@dataclass(frozen=True)
class Item:
    """Something that may be deleted."""

    kind: str
    path: Path
    why: str

    @property
    def size(self) -> int:
        """Bytes that its deletion frees, if no file has another name; what a link leads to stays."""
        whole = self.path.is_dir() and not self.path.is_symlink()
        return sum(path.lstat().st_size for path in ([*self.path.rglob("*")] if whole else [self.path]) if not path.is_dir())


def clean(params: Params, kinds: list[str], yes: bool = False) -> None:
    """`maskdit clean [KIND…] [--yes]`: print what may be deleted, the largest first; delete the named kinds with --yes.

    Never what is running, nor an artifact that something unmade needs. Raises UserError for a kind that is not known, and for
    --yes without a kind.
    """
    if yes and not kinds:
        raise UserError(f"clean: --yes deletes the kinds that you name: {', '.join(KINDS)}")
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"clean: no kind '{strange[0]}'; known: {', '.join(KINDS)}")
    found = {item: item.size for item in items(params) if item.kind in (kinds or KINDS)}
    order = sorted(found, key=lambda item: -found[item])
    if not order:
        print("clean: nothing to delete")
        return
    show(["kind", "MB", "path", "why"], ([item.kind, f"{found[item] / 1e6:.1f}", str(item.path), item.why] for item in order))
    for kind in dict.fromkeys(item.kind for item in order):
        total = sum(size for item, size in found.items() if item.kind == kind)
        print(f"\n{kind}: {total / 1e6:.1f} MB; to get it back costs {KINDS[kind]}")
    if not yes:
        print("\nNothing was deleted. To delete a kind: maskdit clean KIND --yes")
        return
    for item in order:
        remove(item.path)
    print(f"\ndeleted {sum(found.values()) / 1e6:.1f} MB")


def remove(path: Path) -> None:
    """Delete a file or a folder, which loses its name first: half of it would pass for damaged work."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(f"{path.name}.gone")
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink()


def items(params: Params) -> Iterator[Item]:
    """All that can be deleted: nothing that is running, and no artifact whose manifest cannot be read or that was imported."""
    fresh = Freshness(params)
    yield from scratch(fresh)
    for verb in VERBS:
        if not OUTPUTS[verb].startswith("artifacts/"):
            continue
        for path in sorted(Path().glob(OUTPUTS[verb].format(key="*"))):
            key = path.parts[2]
            node = f"{verb}/{key}"
            if any(part.startswith(".") for part in path.parts) or running(node):
                continue
            try:
                made = read_manifest(path).node
            except UserError:
                continue
            if node not in fresh.edges:
                if made == node:
                    yield Item("unnamed", path, f"params.yaml has no {node}")
            elif (verdict := fresh.verdict(node)).state == "stale" and not verdict.longer:
                yield Item("stale", path, verdict.why)
            elif verb in ("sample", "features") and verdict.state == "current" and evaluated(fresh, node):
                yield Item("samples", path, "evaluated")


def evaluated(fresh: Freshness, node: str) -> bool:
    """Whether all that is made of samples or features is current, pictures too."""
    return node not in fresh.unmade and all(fresh.verdict(each).state == "current" for each in fresh.consumers[node])


def scratch(fresh: Freshness) -> Iterator[Item]:
    """Folders of work that nobody holds: of published or removed nodes, and the states of trainings that are not under way."""
    recipes = {digest(fresh.entry(node).recipe()): node for node in fresh.edges if node.startswith(TRAININGS)}  # type: ignore[attr-defined]
    beside = (path for verb in SHARDED for path in Path().glob(f"artifacts/*/.{verb}-*"))
    for path in sorted(path for path in (*scratch_root().glob("*-*"), *beside) if path.is_dir() and path.suffix != ".gone"):
        told = path / NODE
        node = told.read_text(errors="replace", encoding="utf-8").strip() if told.is_file() else ""
        node = node if node.count("/") == 1 else ""
        recipe = recipe_of(path)
        owner = recipes.get(recipe, node)
        unreadable = not recipe and any(path.glob("state-*"))
        if unreadable or is_held(path / "lock") or any(running(each) for each in {node, owner} - {""}):
            continue
        if recipe and recipe not in recipes:
            yield Item("states", path, "no entry of params.yaml has its numbers")
        elif recipe and fresh.verdict(owner).state == "current":
            yield Item("states", path, f"{owner} is finished")
        elif not recipe and node and node not in fresh.edges:
            yield Item("scratch", path, f"params.yaml has no {node}")
        elif not recipe and node and not path.name.startswith(TRAININGS) and fresh.verdict(node).state == "current":
            yield Item("scratch", path, f"{node} is published")


def recipe_of(path: Path) -> str:
    """The recipe of the newest readable state in a folder; '' if there is none."""
    for record in sorted(path.glob("state-*.json"), reverse=True):
        with suppress(UserError):
            if isinstance(recipe := read_json(record, "recipe")["recipe"], str):
                return recipe
    return ""
