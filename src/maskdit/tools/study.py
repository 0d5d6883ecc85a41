"""`maskdit study`: adds entries to params.yaml for a folder of images: the demo's, or those that finetune published weights."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from maskdit.artifacts.atomic import replacing
from maskdit.config import yaml_subset
from maskdit.config.base import Key, UserError
from maskdit.config.images import RESOLUTION
from maskdit.config.load import load, validate
from maskdit.config.params import Params
from maskdit.config.project import template
from maskdit.config.training import Released
from maskdit.tools.study_published import of_published
from maskdit.tools.study_sizes import Wishes, data_of, deepened, fitted, unconditional

LIKE = "demo"
PARAMS = Path("params.yaml")


def renamed(tree: Any, name: str) -> Any:
    """A copy in which each key of the demo, whether a dictionary key or a value, belongs to another study."""
    if isinstance(tree, dict):
        return {renamed(key, name): renamed(value, name) for key, value in tree.items()}
    if isinstance(tree, list):
        return [renamed(value, name) for value in tree]
    return re.sub(rf"^{LIKE}(?=-|$)", name, tree) if isinstance(tree, str) else tree


def entries(tree: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """The demo's entries of each step, renamed; steps without any are left out."""
    found = {}
    for verb, known in tree.items():
        if mine := {key: entry for key, entry in known.items() if f"{key}-".startswith(f"{LIKE}-")}:
            found[verb] = renamed(mine, name)
    return found


def ledger(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """The claims for which the demo has evidence, with evidence from the study `name`."""
    claims = tree["claims"][tree["report"][LIKE]["ledger"]]["claims"]
    mine = {key: renamed(claim, name) for key, claim in claims.items() if renamed(claim, f"not-{LIKE}") != claim}
    return {"title": "What the paper claims, and what was measured here", "study": name, "claims": mine}


def scaled_down(new: dict[str, Any]) -> None:
    """Change the claims of a study for a project without the studies of the paper's size."""
    for book in new["claims"].values():
        book["claims"] = {key: {**claim, "evidence": None} for key, claim in book["claims"].items()}


def inserted(text: str, verb: str, new: dict[str, Any], anchor: str = "") -> str:
    """The text of params.yaml with new entries after a step's last one; all other lines stay unchanged.

    Raises UserError if the step's entries are in braces.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    step = next((value for key, value in yaml.compose(text, Loader=yaml.CSafeLoader).value if key.value == verb), None)
    if not isinstance(step, yaml.MappingNode) or (step.flow_style and step.value):
        raise UserError(
            f"params.yaml: {verb}: write '{verb}:' on a line of its own and its entries below, so that more can be added"
        )
    end, indent = step.end_mark.line, step.start_mark.column
    if step.flow_style:  # empty braces
        start = step.start_mark.line
        lines[start : end + 1] = [f"{verb}:{lines[end][step.end_mark.column :]}"]
        end, indent = start + 1, 2
    while re.match(r"\s*(#.*)?$", lines[end - 1]):  # PyYAML ends a block where the next one begins
        end -= 1
    ending = "\r\n" if (lines[end - 1] if lines[end - 1].endswith("\n") else lines[0]).endswith("\r\n") else "\n"
    if not lines[end - 1].endswith("\n"):
        lines[end - 1] += ending
    block = [f"{' ' * indent}{line}{ending}" for line in yaml_subset.compact(new, anchor)]
    return "".join([*lines[:end], *block, *lines[end:]])


@dataclass(frozen=True)
class Made:
    """A new study: its entries of each step, and what is said of them."""

    new: dict[str, Any]
    told: str
    fits: str  # what its images must fit, for an error message

    def validated(self, whole: dict[str, Any]) -> Params:
        """Check a params.yaml with these entries. Raises UserError, naming the images, if it is not valid."""
        try:
            return validate(whole)
        except UserError as error:
            raise UserError(f"{self.fits}: {str(error).removeprefix('params.yaml: ')}") from None


def demand_name(name: str) -> None:
    """Raise UserError unless this may be the name of a study."""
    try:
        TypeAdapter(Key).validate_python(name)
    except ValidationError:
        raise UserError(f"'{name}': the name of a study must consist of lower-case letters, digits and single hyphens") from None


def made(
    tree: dict[str, Any],
    name: str,
    root: Path,
    home: Path,
    *,
    resolution: int | None,
    heldout: float | None,
    steps: int | None,
    batch: int | None,
    samples: int | None,
    skip_bad: bool,
    left_out: float,
    classes: str,
    theirs: tuple[str, Released, int] | None = None,
) -> Made:
    """A study of a folder of images like the demo in `tree`, with numbers that fit them, for a project in `home`.

    theirs: key, entry and resolution of published weights, which are then finetuned. Raises UserError as `study` does.
    """
    if home.resolve().is_relative_to(root.resolve()):
        raise UserError(f"'{root}' contains this project; name the folder of the images")
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", f"{root} {root.resolve().name}"):
        raise UserError(
            f"{root}: params.yaml cannot hold this name, which is not UTF-8 or has control characters; rename the folder"
        )
    key, entry, wanted = theirs or ("", None, RESOLUTION if resolution is None else resolution)
    if resolution not in (None, wanted):
        raise UserError(f"--resolution {resolution}: released.{key} is for images of {wanted} pixels; leave the option out")
    new = entries(tree, name)
    title = f"{f'{key} finetuned' if entry else 'DiT and MaskDiT'} on {root.resolve().name} at {wanted} pixels"
    if entry:
        new = of_published(new, name, key, entry, title)
    else:
        for verb in ("table", "curves", "efficiency"):
            new[verb][name]["title"] = title
        new["claims"] = {f"{name}-claims": ledger(tree, name)}
        new["report"][name]["ledger"] = f"{name}-claims"
        deepened(new, wanted)
    data = data_of(root, tree["fetch"][LIKE]["seed"], classes, skip_bad, left_out, heldout)
    new["fetch"][name] = {**data.entry, "resolution": wanted}
    if classes == "none":
        unconditional(new)
    numbers = fitted(new, data, Wishes(steps, batch, samples))
    whose = f"those of {key}" if entry else "the demo's settings"
    fits = f"{root}: {whose} do not fit {len(data.labels)} images and --resolution {wanted}"
    return Made(new, f"{data.told}\n{numbers}", fits)


def study(
    name: str,
    root: Path,
    resolution: int | None,
    heldout: float | None = None,
    *,
    steps: int | None = None,
    batch: int | None = None,
    samples: int | None = None,
    skip_bad: bool = False,
    left_out: float = 0.05,
    classes: str = "auto",
    released: str | None = None,
) -> None:
    """Add a study of a folder of images to params.yaml, with numbers that fit them; all other lines stay unchanged.

    released: an entry of published weights, which are then finetuned; without it, models are trained from nothing.
    Raises UserError for a name that is taken or not a key, a folder without images or with damaged ones, and entries that would
    not be valid.
    """
    demand_name(name)
    params = load(PARAMS)
    if taken := [bench for bench in params.table if f"{name}-".startswith(f"{bench}-") or f"{bench}-".startswith(f"{name}-")]:
        raise UserError(f"'{name}': params.yaml has the study '{taken[0]}'; edit or remove its entries, or choose another name")
    text = PARAMS.read_bytes().decode()
    tree = yaml_subset.read(text)
    missing = [verb for verb in ("fetch", "table", "curves", "efficiency", "report") if LIKE not in getattr(params, verb)]
    if len(missing) in (1, 2, 3, 4):
        told = f"params.yaml: {missing[0]}.{LIKE}: missing; restore it, because a new study copies the entries of {LIKE}"
        raise UserError(told)
    theirs = (released, params.entry("released", released), params.resolution(released)) if released is not None else None
    numbers: dict[str, Any] = {"heldout": heldout, "steps": steps, "batch": batch, "samples": samples, "left_out": left_out}
    like = yaml_subset.read_file(template() / PARAMS) if missing else tree  # of a project without the demo
    found = made(like, name, root, Path(), resolution=resolution, skip_bad=skip_bad, classes=classes, theirs=theirs, **numbers)
    if missing and not theirs:
        scaled_down(found.new)
    whole = {verb: {**known, **found.new.get(verb, {})} for verb, known in tree.items()}
    found.validated(whole)
    for verb, known in found.new.items():
        text = inserted(text, verb, known, f"{name}-{verb}")
    try:
        kept = yaml_subset.read(text) == whole
    except yaml.YAMLError:
        kept = False
    if not kept:
        raise UserError("params.yaml: adding entries would change others; write the entries of each step as the demo's are written")
    with replacing(PARAMS.resolve()) as temporary:
        temporary.write_bytes(text.encode())
    print(f"params.yaml has the study {name}: {found.told}: --heldout, --batch, --steps and --samples set them")
    if theirs:
        print(f"it starts from released.{released}, {theirs[1].url}: the licence of those weights holds for what is made of them")
    print(f"run snakemake results/table_{name}.csv; maskdit plan {name} tells what it costs")
