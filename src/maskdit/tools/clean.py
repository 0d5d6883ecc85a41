"""What may be deleted, how large it is and what it costs to get it back; and its deletion."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maskdit.artifacts.atomic import digest, read_json
from maskdit.artifacts.freshness import TRAININGS, Freshness
from maskdit.config.base import UserError
from maskdit.config.params import VERBS, Params
from maskdit.config.paths import OUTPUTS, output
from maskdit.runtime.environment import NODE, scratch_root
from maskdit.tools.plan import show
from maskdit.tools.status import running

KINDS = {  # what may go, and what it costs to get it back
    "scratch": "nothing: work of entries that params.yaml no longer has, or that is published",
    "stale": "its making, if the number that has changed is restored",
    "samples": "the sampling, if they are looked at or measured again; their metrics stay",
    "states": "the whole training, if it is to get more milestones later",
}


@dataclass(frozen=True)
class Item:
    """Something that may be deleted."""

    kind: str
    path: Path
    why: str

    @property
    def size(self) -> int:
        """Bytes on the disk; a file with several names counts once here."""
        files = [path for path in self.path.rglob("*") if path.is_file()] if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files)


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
        print(f"\nNothing was deleted. To delete: maskdit clean {order[0].kind} --yes")
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
    """All that may be deleted."""
    fresh = Freshness(params)
    yield from scratch(fresh)
    known = {output(params, node): node for node in fresh.edges}
    for verb in VERBS:
        if "/" not in OUTPUTS[verb] or not OUTPUTS[verb].startswith("artifacts/"):
            continue
        for path in sorted(Path().glob(OUTPUTS[verb].format(key="*"))):
            node = known.get(path)
            if node is None:
                yield Item("stale", path, "no entry of params.yaml names it")
            elif running(node):
                continue
            elif (verdict := fresh.verdict(node)).state == "stale" and not verdict.longer:
                yield Item("stale", path, verdict.why)
            elif verb in ("sample", "features") and verdict.state == "current" and evaluated(fresh, node):
                yield Item("samples", path, "evaluated")


def evaluated(fresh: Freshness, node: str) -> bool:
    """Whether all that is made of samples or features is current, pictures too."""
    return node not in fresh.unmade and all(fresh.verdict(each).state == "current" for each in fresh.consumers[node])


def scratch(fresh: Freshness) -> Iterator[Item]:
    """Folders of work: of nodes that there are no more, of what is published, of trainings that have ended."""
    recipes = {digest(fresh.entry(node).recipe()): node for node in fresh.edges if node.startswith(TRAININGS)}  # type: ignore[attr-defined]
    for path in sorted(scratch_root().glob("*-*")):
        node = (path / NODE).read_text().strip() if (path / NODE).exists() else ""
        states = sorted(path.glob("state-*.json"))
        if path.name.startswith(TRAININGS):
            recipe = read_json(states[-1]).get("recipe") if states else None
            if recipe is None and node not in fresh.edges and node:
                yield Item("scratch", path, f"params.yaml has no {node}")
            elif recipe is not None and recipe not in recipes:
                yield Item("scratch", path, "no entry of params.yaml has its numbers")
            elif recipe is not None and not running(recipes[recipe]) and fresh.verdict(recipes[recipe]).state == "current":
                yield Item("states", path, f"{recipes[recipe]} is finished")
        elif node and node not in fresh.edges:
            yield Item("scratch", path, f"params.yaml has no {node}")
        elif node and not running(node) and fresh.verdict(node).state == "current":
            yield Item("scratch", path, f"{node} is published")
