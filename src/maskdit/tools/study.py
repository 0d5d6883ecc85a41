"""A study of one's own images: the demo's entries of params.yaml under another name."""

import re
from pathlib import Path
from typing import Any

import yaml

from maskdit.artifacts.atomic import replacing
from maskdit.config import yaml_subset
from maskdit.config.base import Key, UserError
from maskdit.config.load import load, validate
from maskdit.images.index import scan

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


def inserted(text: str, verb: str, new: dict[str, Any], anchor: str = "") -> str:
    """The text of params.yaml with more entries after a step's last one; every other line stays as it is.

    Raises UserError if the step's entries are neither one below the other nor none.
    """
    lines = text.splitlines(keepends=True)
    step = next((value for key, value in yaml.compose(text, Loader=yaml.CSafeLoader).value if key.value == verb), None)
    if not isinstance(step, yaml.MappingNode) or (step.flow_style and step.value):
        raise UserError(f"params.yaml: {verb}: write '{verb}:' on a line of its own and its entries below, to add others to them")
    end, indent = step.end_mark.line, step.start_mark.column
    if step.flow_style:  # braces around nothing
        start = step.start_mark.line
        lines[start : end + 1] = [f"{verb}:{lines[end][step.end_mark.column :]}"]
        end, indent = start + 1, 2
    while re.match(r"\s*(#.*)?$", lines[end - 1]):  # a block ends where the next one begins
        end -= 1
    if not lines[end - 1].endswith("\n"):
        lines[end - 1] += "\n"
    block = [f"{' ' * indent}{line}\n" for line in yaml_subset.compact(new, anchor)]
    return "".join([*lines[:end], *block, *lines[end:]])


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
    tree = yaml_subset.read(text)
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
        text = inserted(text, verb, known, f"{name}-{verb}")
    try:
        kept = yaml_subset.read(text) == whole
    except yaml.YAMLError:
        kept = False
    if not kept:
        raise UserError(
            "params.yaml: no entries can be added without a change of others; write each step's as the demo's are written"
        )
    with replacing(PARAMS.resolve()) as temporary:
        temporary.write_bytes((text.replace("\n", "\r\n") if "\r\n" in before else text).encode())
    print(f"params.yaml has the study {name}: {images} images of {root}; run snakemake results/table_{name}.csv")
