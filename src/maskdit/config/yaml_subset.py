"""YAML as Snakemake (1.1) and DVC (1.2) read it alike: what only one of them takes for a number is text here.

libyaml parses, fifteen times as fast as Python: each step reads the whole params.yaml when it starts.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from maskdit.config.base import UserError

WIDTH = 128  # letters of a line that is written
DEEPEST = 50  # dictionaries and lists within each other; libyaml's own limit is the stack of the process
BOTH = (  # tags of plain scalars, and how both dialects write them
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
NUMERIC = r"[-+.0-9][-+.:0-9_a-fA-FoxX]*"  # whatever either dialect, or one of its readers, may take for a number


class Reader(yaml.CSafeLoader):  # type: ignore[misc]
    """Resolves the scalars of BOTH, and nothing else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class Writer(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that either dialect could take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything where it stands."""
        return True


for tag, pattern, first in BOTH:
    Reader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), list(first))
Writer.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"{NUMERIC}$"), list("-+.0123456789"))


def read_file(path: Path) -> Any:
    """The tree of a YAML file; raises UserError, with the line, if it cannot be read."""
    try:
        return read(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run maskdit where params.yaml lies") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: {line}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number that Python does not read
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def read(text: str) -> Any:
    """The tree of a YAML text.

    Raises yaml.YAMLError for what is none, or not plain; ValueError for a number that Python does not read.
    """
    demand_plain(text)
    reader = Reader(text)
    try:
        return reader.get_single_data()
    finally:
        reader.dispose()


def demand_plain(text: str) -> None:
    """Raise yaml.MarkedYAMLError for a key that stands twice, a tag, a word that YAML 1.1 reads otherwise, too many levels."""
    ours, older = Reader(""), yaml.SafeLoader("")
    around: list[set[str] | None] = []  # of each dictionary that is open the keys so far; None: a list
    value: list[bool] = []  # of each: whether a key has been read whose value comes next
    for event in yaml.parse(text, Loader=Reader):
        if isinstance(event, yaml.CollectionEndEvent):
            around.pop()
            value.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag} is not read; remove it", problem_mark=event.start_mark)
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            tags = {reader.resolve(yaml.ScalarNode, event.value, event.implicit) for reader in (ours, older)}
            if len(tags) > 1:
                problem = f"YAML 1.1 and 1.2 read {event.value} differently; write it in another way, or in quotes"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if around and (keys := around[-1]) is not None:
            if not value[-1] and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    raise yaml.MarkedYAMLError(problem=f"'{event.value}' stands twice; remove one", problem_mark=event.start_mark)
                keys.add(event.value)
            value[-1] = not value[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            if len(around) == DEEPEST:
                raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=event.start_mark)
            around.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            value.append(False)


def write(tree: Any) -> str:
    """A tree as YAML in blocks, its keys in their order."""
    return yaml.dump(tree, Dumper=Writer, default_flow_style=False, sort_keys=False, allow_unicode=True, width=4096)


def flow(value: Any) -> str:
    """A value in one line, as it may stand in braces."""
    options = {"Dumper": Writer, "default_flow_style": True, "sort_keys": False, "allow_unicode": True, "width": 2**20}
    return yaml.dump([value], **options).strip()[1:-1]


def compact(entries: dict[str, Any], anchor: str = "") -> list[str]:
    """Entries as lines of YAML, in braces where that fits; those that only change fields of the first one merge it by an anchor."""
    (first, base), *others = entries.items()
    merging = [key for key, entry in others if anchor and base.keys() <= entry.keys()]
    lines = []
    for key, entry in entries.items():
        changed = {name: value for name, value in entry.items() if key not in merging or value != base.get(name, ...)}
        parts = [f"<<: *{anchor}"] * (key in merging) + [f"{name}: {flow(value)}" for name, value in changed.items()]
        head = f"{key}: &{anchor}" if key == first and merging else f"{key}:"
        if max(map(len, parts)) > WIDTH:
            block = [
                compact({name: value}) if isinstance(value, dict) else [f"{name}: {flow(value)}"] for name, value in entry.items()
            ]
            lines += [head, *(f"  {line}" for field in block for line in field)]
            continue
        lines.append(f"{head} {{{parts[0]}")
        for part in parts[1:]:
            together = f"{lines[-1]}, {part}"
            lines[-1:] = [together] if len(together) < WIDTH else [f"{lines[-1]},", f"  {part}"]
        lines[-1] += "}"
    return lines
