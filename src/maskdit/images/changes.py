"""Whether the user's folder still holds the images that were fetched from it, whatever the times of its files."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError, printable
from maskdit.config.images import Folder
from maskdit.images.check import facts, kept_at
from maskdit.images.own import COMPARED, SOURCE, files, state
from maskdit.images.scan import scan

Source = dict[str, list[Any]]  # name -> class, size, sha256


def changes(config: Folder, made: Path) -> str:
    """How the images below the root differ from those that the artifact `made` was fetched from, in words.

    '' if they do not, if the root is gone, or if the artifact does not know. Files are read only if one was written, added or
    removed since they were compared last.
    """
    root = Path(config.root)
    if not root.exists() or not (made / SOURCE).exists():
        return ""
    try:
        return compared(config, made, root)
    except (OSError, UserError) as error:  # of the folder, which may be refused by now
        return printable(f"it cannot be read as before ({error})")


def compared(config: Folder, made: Path, root: Path) -> str:
    """What `changes` says of a folder that is there; raises UserError or OSError if it cannot be read."""
    now = state(config, made, files(root))
    home = None
    with suppress(OSError, UserError):  # a project that is read only is compared anew each time
        home = kept_at(root)
        if (known := home / COMPARED).exists() and (seen := read_json(known, "state", "told"))["state"] == now:
            return str(seen["told"])
    told = differences(read_json(made / SOURCE, "images")["images"], present(config, home))
    if home:
        with suppress(OSError, UserError):
            write_json(home / COMPARED, {"state": now, "told": told})
    return told


def present(config: Folder, home: Path | None) -> Source:
    """The class, size and sha256 of each image that is there now."""
    found = scan(Path(config.root), config.classes)
    labels = [found.classes[label] for label in found.labels.tolist()]
    known = facts(found, home, decoded=False)
    return {fact["name"]: [label, fact.get("bytes"), fact.get("sha256")] for fact, label in zip(known, labels, strict=True)}


def differences(before: Source, now: Source) -> str:
    """What was added, removed and changed, in words; '' if nothing was."""
    lists = {
        "added": sorted(now.keys() - before.keys()),
        "removed": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
    }
    told = [f"{what} {', '.join(names[:3])}{more(names[3:])}" for what, names in lists.items() if names]
    classes, old = ({label for label, *_ in source.values()} for source in (now, before))
    told += [f"added the class {name}" for name in sorted(classes - old)]
    told += [f"removed the class {name}" for name in sorted(old - classes)]
    return printable(f"{'; '.join(told)}; it has {len(now):,} images now") if told else ""


def more(names: list[str]) -> str:
    """How many names are not shown."""
    return f" and {len(names):,} more" if names else ""
