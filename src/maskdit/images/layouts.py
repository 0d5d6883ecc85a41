"""Tells the classes of images by folders, a dataset.json, or a note beside each image; refuses what is ambiguous."""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from maskdit.config.base import UserError
from maskdit.images.archives import OTHER
from maskdit.images.folders import APART, IMAGELESS, TRAIN, UNLABELLED, Contents, Held

FIELDS = ("cls", "label", "class", "class_id", "class_index")  # of a note in JSON; the first one that is there counts
TABLE = "dataset.json"  # of data sets in EDM's and StyleGAN's layout
SHARD = re.compile(r"(?:.*[-_])?\d{4,}")  # how the archives of a WebDataset are named
NUMBERED = re.compile(r"(?:.*/)?\d{5}/img\d{8}\.\w+")  # how EDM's dataset_tool names images
ALL = "all"  # the class of images without classes
WORDS = {"auto": "folder", "first": "first folder", "last": "last folder", "path": "path"}
Read = Callable[[Held], bytes]


@dataclass(frozen=True)
class Classes:
    """The class of each image by name, all classes in order, the images that the folder itself holds out, and how this was told.

    An image without a class is left out.
    """

    of: Mapping[str, str]
    names: tuple[str, ...]
    apart: frozenset[str]
    told: str


def classes_of(found: Contents, read: Read, choice: str) -> Classes:
    """The classes of the images of a folder, and its own split if it has one.

    choice: which folders name classes: the first one, the last one, or the whole path; auto: the first one, unless a table or
    notes tell the classes; none: all images are of one class, ALL. Raises UserError where images have no classes, or may have
    others than these.
    """
    if choice == "auto":
        for told, of in (f"{TABLE} tells the classes", by_table), ("a note beside each image tells its class", by_notes):
            if labels := of(found, read):
                for name in sorted(found.images.keys() - labels.keys()):
                    found.omit(UNLABELLED, name)
                numbers = all(re.fullmatch(r"\d{1,9}", label) for label in labels.values())
                names = tuple(sorted(set(labels.values()), key=int if numbers else None))
                apart = parts_of(found)
                return Classes(labels, names, apart, f"{told}; the parts for testing are held out" if apart else told)
    for _, name in found.notes:
        found.left.add(OTHER, name)
    if choice == "none":
        apart = parts_of(found)
        told = "its images have no classes" + "; the parts for testing are held out" * bool(apart)
        return Classes(dict.fromkeys(found.images, ALL), (ALL,), apart, told)
    return by_folders(found, choice)


def parts_of(found: Contents) -> frozenset[str]:
    """The images of folders or archives that are named as parts for testing, if the others are named as parts for training."""
    words = {}
    for name, archive, _ in own(found):
        stem = archive.rpartition("/")[2].rpartition(".")[0]
        words[name] = {word.lower() for word in (*name.split("/")[:-1], *re.split(r"[-_. ]", stem))}
    apart = frozenset(name for name, known in words.items() if known & APART)
    return apart if all(words[name] & TRAIN for name in words.keys() - apart) and len(apart) < len(words) else frozenset()


def by_table(found: Contents, read: Read) -> dict[str, str]:
    """Classes from {"labels": [[image, number], …]} in dataset.json, in a folder or an archive. Empty if there is none."""
    labels: dict[tuple[str, str], str] = {}
    for (archive, name), held in found.notes.items():
        home, _, last = name.rpartition("/")
        tree = parsed(read(held)) if last == TABLE else None
        if not isinstance(tree, dict) or "labels" not in tree:
            continue
        where, rows = found.root / archive / name, tree["labels"]
        if not rows:
            raise UserError(f"{where}: has no labels; add them, or sort the images into folders that are named by class")
        try:
            for image, label in rows.items() if isinstance(rows, dict) else rows:
                labels[archive, f"{home}/{image}".replace("\\", "/").lstrip("/")] = worded(label)
        except (TypeError, ValueError):
            raise UserError(f"{where}: labels must be pairs of an image and the number of its class; correct it") from None
    there = {(archive, inside): name for name, archive, inside in own(found)}
    for key in sorted(labels.keys() - there.keys()):
        found.left.add(IMAGELESS, key[1])
    return {there[key]: labels[key] for key in sorted(there.keys() & labels.keys())}


def by_notes(found: Contents, read: Read) -> dict[str, str]:
    """Classes from KEY.cls, or a field of KEY.json, beside KEY.png, as in a WebDataset. Empty if the folders tell the classes.

    Raises UserError if two images have one note, notes and folders differ, or archives look like shards but have no classes.
    """
    loose, beside = set(), {}
    for name, archive, inside in own(found):
        if note := next((key for key in notes_of(archive, inside) if key in found.notes), None):
            beside[name] = note
        if "/" not in inside:
            loose.add(name)
    told = {name: note for name, note in beside.items() if note[1].lower().endswith(".cls")}
    if told:
        if twice := [name for name, note in told.items() if Counter(told.values())[note] > 1][:2]:
            raise UserError(f"{found.root}: {' and '.join(twice)} have one label; keep one image of each sample")
        return {name: worded(read(found.notes[note]).decode(errors="replace")) for name, note in told.items()}
    trees = {name: parsed(read(found.notes[note])) for name, note in beside.items()}
    fields = {
        name: next((tree[key] for key in FIELDS if key in tree), None) for name, tree in trees.items() if isinstance(tree, dict)
    }
    labels = {name: worded(value) for name, value in fields.items() if isinstance(value, int | str)}
    if len(loose) < len(found.images):
        return labels if labels and not foldered(found, labels) else {}
    archives = sorted({name.split("/")[0] for name in loose if "/" in name})
    if archives and not labels and (beside or (len(archives) > 1 and all(map(SHARD.fullmatch, archives)))):
        hint = f"add KEY.cls to each image, or KEY.json with {FIELDS[0]} or {FIELDS[1]}, or sort the images into folders"
        raise UserError(f"{found.root}: {archives[0]} is like a shard of a WebDataset, but its images have no classes; {hint}")
    return labels


def field_of(tree: Any) -> Any:
    """The class in a note in JSON; None if it has none."""
    return next((tree[key] for key in FIELDS if key in tree), None) if isinstance(tree, dict) else None


def own(found: Contents) -> Iterator[tuple[str, str, str]]:
    """The name of each image, its archive ('' for a file of its own), and its name there."""
    for name, held in found.images.items():
        archive = found.containers[held.container]
        yield name, *(("", name) if archive == held.member.name else (archive, held.member.name))


def notes_of(archive: str, image: str) -> Iterator[tuple[str, str]]:
    """Where the note beside an image may be: under its name up to the first or the last dot."""
    home, slash, file = image.rpartition("/")
    for suffix in (".cls", ".json"):
        for stem in dict.fromkeys((file.partition(".")[0], file.rpartition(".")[0])):
            yield archive, f"{home}{slash}{stem}{suffix}"


def foldered(found: Contents, labels: Mapping[str, str]) -> bool:
    """Whether folders tell classes that labels refine or join. Raises UserError if the two sort the images differently."""
    folders = {name: name.rpartition("/")[0] for name in labels}
    pairs = {(folders[name], label) for name, label in labels.items()}
    if len(set(folders.values())) > 1 and len(pairs) > max(len(set(folders.values())), len(set(labels.values()))):
        name = next(iter(labels))
        told = f"{name} is in the folder {folders[name]}, but its .json says {labels[name]}"
        raise UserError(f"{found.root}: {told}; remove the .json files, or set classes: first to go by folders")
    return len(set(folders.values())) > 1


def parsed(data: bytes) -> Any:
    """What JSON says; None if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def worded(label: Any) -> str:
    """A label as the name of a class. Raises ValueError if it is neither a whole number nor a word."""
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise ValueError(label)
    return " ".join(str(label).split())[:200]


def by_folders(found: Contents, choice: str) -> Classes:
    """Classes by folders, below train/ and test/ if these stand above them."""
    parts = {name: tuple(name.split("/")[:-1]) for name in found.images}
    top = shared(parts.values())
    split = split_of(found, {path[top] for path in parts.values() if len(path) > top})
    first = top + 1 + shared(path[top + 1 :] for path in parts.values()) if split else top
    below = {name: path[first:] for name, path in parts.items()}
    if flat := next((name for name, path in below.items() if not path), None):
        where = f" below {flat.split('/')[top]}" if split else ""
        raise UserError(
            f"{found.root}: {flat} is not in a folder{where}; the folder of an image names its class (classes: none for none)"
        )
    if choice == "auto":
        demand_one_level(found, below)
    of = {name: path[-1] if choice == "last" else "/".join(path) if choice == "path" else path[0] for name, path in below.items()}
    apart = frozenset(name for name, path in parts.items() if split and path[top].lower() in APART)
    if strange := sorted({of[name] for name in apart} - {of[name] for name in of.keys() - apart}):
        raise UserError(f"{found.root}: {strange[0]} has no training images; add some, or remove it from {' and '.join(split[1:])}")
    level = first if choice in ("auto", "first") else None
    demand_images(found, set(parts.values()), level, {"/".join(parts[name][: top + 1]) for name in apart})
    demand_distinct(found, names := tuple(sorted(set(of.values()))))
    if choice == "auto" and of and all(map(NUMBERED.fullmatch, of)):
        told = f"its images are named as EDM's dataset_tool names them, but no {TABLE} tells their classes"
        raise UserError(f"{found.root}: {told}; add it, or set classes: first to go by folders")
    told = f"the {WORDS[choice]} of an image is its class" + (f"; {' and '.join(split[1:])} held out" if split else "")
    return Classes(of, names, apart, told)


def shared(paths: Iterable[tuple[str, ...]]) -> int:
    """How many of the first folders all paths share, each with at least one more folder."""
    known, depth = set(paths), 0
    while known and all(len(path) > depth + 1 for path in known) and len({path[depth] for path in known}) == 1:
        depth += 1
    return depth


def split_of(found: Contents, folders: set[str]) -> list[str]:
    """train/ and test/ or the like, the training images first, if these are all folders; else none.

    Raises UserError if such folders are beside others, or none of them is for training.
    """
    train, test = (sorted(name for name in folders if name.lower() in words) for words in (TRAIN, APART))
    others = sorted(folders - {*train, *test})
    if not test or (not train and (others or len(test) < 2)):
        return []
    if others or len(train) != 1:
        beside = f", beside {others[0]}," if others else ""
        told = f"{' and '.join([*train, *test])}{beside} look like parts of a data set, not like classes"
        raise UserError(f"{found.root}: {told}; name the folder of one of them, as {found.root / (train or test)[0]}")
    return [*train, *test]


def demand_one_level(found: Contents, below: Mapping[str, tuple[str, ...]]) -> None:
    """Raise UserError if a folder has images in two or more folders, but none of its own: either level may name the classes."""
    inner = defaultdict(set)
    for path in set(below.values()):
        inner[path[0]].add(path[1] if len(path) > 1 else "")
    for name, inside in sorted(inner.items()):
        if "" not in inside and len(inside) > 1:
            one, two = sorted(inside)[:2]
            told = f"its images lie two folders deep ({name}/{one}, {name}/{two}), and either may be the class"
            choices = f"first ({name}), last ({one}) or path ({name}/{one})"
            raise UserError(
                f"{found.root}: {told}; choose with --classes of maskdit doctor and study (classes: in params.yaml): {choices}"
            )


def demand_images(found: Contents, paths: set[tuple[str, ...]], first: int | None, apart: set[str]) -> None:
    """Raise UserError for a folder that should be a class, but has no image that can be read; one of other files is none.

    first: the level of the classes, None: any. apart: folders of held-out images, which need not have every class.
    """
    full = {parent for path in paths for parent in (*above("/".join(path)), "/".join(path))}
    listed = {parent for name in found.folders for parent in (*above(name), name)}
    listed |= {parent for name in found.lost for parent in above(name)}
    for folder in sorted(listed - full if paths else ()):
        home = folder.rpartition("/")[0]
        deep = first is not None and folder.count("/") > first
        other = any(f"{name}/".startswith(f"{folder}/") for name in found.busy)
        if deep or other or (home and home not in full) or any(folder.startswith(f"{name}/") for name in apart):
            continue
        lost = [name for name in found.lost if f"{name}/".startswith(f"{folder}/")]
        why = f"has no image that can be read ({lost[0]})" if lost else "is empty"
        raise UserError(f"{found.root}: {folder} {why}; a folder is a class: fill it, or remove it")


def above(name: str) -> Iterator[str]:
    """The folders that a file or folder is in."""
    return (name[: slash.start()] for slash in re.finditer("/", name))


def demand_distinct(found: Contents, names: Iterable[str]) -> None:
    """Raise UserError for two classes whose names differ only in case, spaces or the form of their accents."""
    known: dict[str, str] = {}
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if (other := known.setdefault(plain, name)) != name:
            raise UserError(f"{found.root}: the classes {other} and {name} are hardly told apart; join them, or rename one of them")
