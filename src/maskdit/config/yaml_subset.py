"""The subset of YAML that Snakemake (YAML 1.1) and DVC (YAML 1.2) read alike. What only one of them reads as a number is text."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from maskdit.config.base import UserError
from maskdit.config.errors import fault

WIDTH = 128  # maximum line length when writing
DEEPEST = 50  # maximum nesting; libyaml itself is limited only by the stack of the process
BOTH = (  # tags of plain scalars: how both dialects write them, and their first characters
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
NUMERIC = r"[-+.0-9][-+.:0-9_a-fA-FoxX]*"  # anything that either dialect, or one of its readers, may take for a number


class Reader(yaml.CSafeLoader):  # type: ignore[misc]
    """Resolves the scalars of BOTH and nothing else. It uses libyaml for speed: every step reads the whole params.yaml."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class Writer(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that either dialect could read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values in full instead of as aliases."""
        return True


for tag, pattern, first in BOTH:
    Reader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), list(first))
Writer.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"{NUMERIC}$"), list("-+.0123456789"))


def read_file(path: Path) -> Any:
    """The tree of a YAML file. Raises UserError, with the line number, if it cannot be read."""
    try:
        return read(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {fault(error, 'run maskdit in the directory that contains params.yaml')}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: {line}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def read(text: str) -> Any:
    """The tree of a YAML text; raises yaml.YAMLError if it is not in the subset, ValueError if Python cannot parse a number."""
    demand_plain(text)
    return Reader(text).get_single_data()


def demand_plain(text: str) -> None:
    """Raise yaml.MarkedYAMLError for duplicate keys, tags, words that YAML 1.1 and 1.2 read differently, and too deep nesting."""
    ours, older = Reader(""), yaml.SafeLoader("")
    around: list[list[Any]] = []  # per open collection: its keys so far (None for a list), and whether a value comes next
    for event in yaml.parse(text, Loader=Reader):
        if isinstance(event, yaml.CollectionEndEvent):
            around.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        problem = ""
        if getattr(event, "tag", None):
            problem = f"the tag {event.tag} is not supported; remove it"
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            tags = {reader.resolve(yaml.ScalarNode, event.value, event.implicit) for reader in (ours, older)}
            if len(tags) > 1:
                problem = f"YAML 1.1 and 1.2 read {event.value} differently; write it in another way, or in quotes"
        if around and (keys := around[-1][0]) is not None:
            if not around[-1][1] and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    problem = problem or f"the key '{event.value}' appears twice; remove one"
                keys.add(event.value)
            around[-1][1] = not around[-1][1]
        if isinstance(event, yaml.CollectionStartEvent):
            if len(around) == DEEPEST:
                problem = problem or f"more than {DEEPEST} levels of nesting"
            around.append([set() if isinstance(event, yaml.MappingStartEvent) else None, False])
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def write(tree: Any) -> str:
    """A tree as YAML in block style, with keys in their given order."""
    return yaml.dump(tree, Dumper=Writer, default_flow_style=False, sort_keys=False, allow_unicode=True, width=4096)


def flow(value: Any) -> str:
    """A value on one line, as it may appear inside braces."""
    text = yaml.dump([value], Dumper=Writer, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**20)
    return text.strip()[1:-1]


def compact(entries: dict[str, Any], anchor: str = "") -> list[str]:
    """Entries as lines of YAML, in braces where that fits. With an anchor, entries with all fields of the first one merge it."""
    (first, base), *others = entries.items()
    merging = [key for key, entry in others if anchor and base.keys() <= entry.keys()]
    lines = []
    for key, entry in entries.items():
        changed = {name: value for name, value in entry.items() if key not in merging or value != base.get(name, ...)}
        parts = [f"<<: *{anchor}"] * (key in merging) + [f"{name}: {flow(value)}" for name, value in changed.items()]
        head = f"{key}: &{anchor}" if key == first and merging else f"{key}:"
        if max(map(len, parts)) > WIDTH:
            lines.append(head)
            for name, value in entry.items():
                field = compact({name: value}) if isinstance(value, dict) else [f"{name}: {flow(value)}"]
                lines += [f"  {line}" for line in field]
            continue
        lines.append(f"{head} {{{parts[0]}")
        for part in parts[1:]:
            together = f"{lines[-1]}, {part}"
            lines[-1:] = [together] if len(together) < WIDTH else [f"{lines[-1]},", f"  {part}"]
        lines[-1] += "}"
    return lines
