"""A study of one's own images: the demo's entries of params.yaml under another name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskdit import dialect
from maskdit.config import Key, UserError
from maskdit.files import replacing
from maskdit.params import load, validate
from maskdit.store import scan

LIKE = "demo"
PARAMS = Path("params.yaml")


def renamed(tree: Any, name: str) -> Any:
    """A copy in which each key of the demo, as a key of a dictionary or as a value, belongs to another benchmark."""
    if isinstance(tree, dict):
        return {renamed(key, name): renamed(value, name) for key, value in tree.items()}
    if isinstance(tree, list):
        return [renamed(value, name) for value in tree]
    return re.sub(rf"^{LIKE}(?=-|$)", name, tree) if isinstance(tree, str) else tree


def entries(tree: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """The demo's entries of each step, renamed."""
    mine = {verb: {key: entry for key, entry in known.items() if re.match(rf"{LIKE}(-|$)", key)} for verb, known in tree.items()}
    return {verb: renamed(known, name) for verb, known in mine.items() if known}


def ledger(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """The claims of which the demo can show something, to be shown by another study."""
    claims = tree["claims"][tree["report"][LIKE]["ledger"]]["claims"]
    mine = {key: renamed(claim, name) for key, claim in claims.items() if renamed(claim, name) != claim}
    return {"title": "What the paper claims, and what was measured here", "study": name, "claims": mine}


@dataclass(frozen=True)
class Place:
    """Where the entries of a step stand in the text: in braces on one line, or one below the other; lines are counted from 0."""

    braces: tuple[int, int, int] | None  # line, first and last column; None: one below the other
    last: int  # line
    indent: int


def place_of(text: str, verb: str) -> Place | None:
    """Where the entries of a step stand; None if its key cannot be found as a key of the whole file."""
    depth, key, known = 0, "", yaml.parse(text, Loader=yaml.CSafeLoader)
    inside: list[Any] = []  # the events of the step's entries
    expected = True  # whether a key of the whole file comes next
    for event in known:
        if isinstance(event, yaml.NodeEvent) and depth == 1:
            if expected:
                key = getattr(event, "value", "")
            expected = not expected
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth >= 1 and key == verb and (depth > 1 or expected):
            inside.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
    if not inside or not isinstance(inside[0], yaml.MappingStartEvent):
        return None
    start, end = inside[0], inside[-1]
    if start.flow_style:
        return Place((start.start_mark.line, start.start_mark.column, end.end_mark.column), end.end_mark.line, 2)
    # A block ends where the next thing begins, so the last line is that of the last scalar, alias or brace.
    last = max(each.end_mark.line for each in inside if not isinstance(each, yaml.CollectionEndEvent) or in_braces(each))
    return Place(None, last, inside[1].start_mark.column)


def in_braces(event: yaml.CollectionEndEvent) -> bool:
    """Whether the end of a collection is a brace, which has a place of its own."""
    return event.end_mark.column > event.start_mark.column


def inserted(text: str, verb: str, new: dict[str, Any]) -> str:
    """The text of params.yaml with more entries after a step's last one; every other line stays as it is.

    Raises UserError if the step's entries are neither one below the other nor none.
    """
    lines, place = text.splitlines(keepends=True), place_of(text, verb)
    if place is None or (place.braces and lines[place.last][slice(*place.braces[1:])].strip("{ }")):
        raise UserError(f"params.yaml: {verb}: write '{verb}:' on a line of its own and its entries below, to add others to them")
    if place.braces:
        line, first, last = place.braces
        lines[line] = f"{lines[line][:first].rstrip()} {lines[line][last:].lstrip(' ')}".replace(" \n", "\n")
    elif not lines[place.last].endswith("\n"):
        lines[place.last] += "\n"
    block = [f"{' ' * place.indent}{line}\n" for line in dialect.write(new).splitlines()]
    return "".join([*lines[: place.last + 1], *block, *lines[place.last + 1 :]])


def study(name: str, root: Path, resolution: int, heldout: float) -> None:
    """`maskdit study`: add a study of a folder of images to params.yaml, with the demo's sizes; every other line stays as it is.

    Raises UserError for a name that is taken or no key, and if the result would not be valid.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(Key).validate_python(name)
    except ValidationError:
        raise UserError(f"'{name}': a study's name is of lower-case letters, digits and single hyphens") from None
    params = load(PARAMS)
    taken = [bench for bench in params.table if f"{name}-".startswith(f"{bench}-") or f"{bench}-".startswith(f"{name}-")]
    if taken:
        raise UserError(f"'{name}': params.yaml has the study '{taken[0]}'; edit or remove its entries, or choose another name")
    for verb in ("fetch", "table", "curves", "efficiency", "report"):
        if LIKE not in getattr(params, verb):
            raise UserError(f"params.yaml: {verb}.{LIKE}: missing; a new study copies the entries of {LIKE}, so restore them")
    if Path.cwd().is_relative_to(root.resolve()):
        raise UserError(f"'{root}' holds this project itself; name the folder of the images")
    images = len(scan(root))
    if not images:
        raise UserError(f"{root}: no images in it; wanted CLASS/image, tar or zip files")
    before = PARAMS.read_bytes().decode()
    text = before.replace("\r\n", "\n")
    tree = dialect.read(text)
    new = entries(tree, name)
    seed = new["fetch"][name]["seed"]
    new["fetch"][name] = {"source": "folder", "root": str(root), "bad": "fail"}
    new["fetch"][name] |= {"resolution": resolution, "images": images, "heldout": heldout, "seed": seed}
    for verb in ("table", "curves", "efficiency"):
        new[verb][name]["title"] = f"DiT and MaskDiT on {root.resolve().name} at {resolution} pixels"
    new["claims"] = {f"{name}-claims": ledger(tree, name)}
    new["report"][name]["ledger"] = f"{name}-claims"
    whole = {verb: {**known, **new.get(verb, {})} for verb, known in tree.items()}
    try:
        validate(whole)
    except UserError as error:
        reason = str(error).removeprefix("params.yaml: ")
        raise UserError(f"{root}: no study with the demo's sizes, {images} images, --resolution {resolution}: {reason}") from None
    for verb, known in new.items():
        text = inserted(text, verb, known)
    if dialect.read(text) != whole:
        raise UserError("params.yaml: entries cannot be added without a change of others; move comments out of the entries")
    with replacing(PARAMS.resolve()) as temporary:
        temporary.write_bytes((text.replace("\n", "\r\n") if "\r\n" in before else text).encode())
    print(f"params.yaml has the study {name}: {images} images of {root}; run snakemake results/table_{name}.csv")
