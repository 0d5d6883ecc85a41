"""The subset of YAML that Snakemake (YAML 1.1) and DVC (YAML 1.2) read alike. What only one of them reads as a number is text."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from maskdit.config.base import UserError
from maskdit.config.errors import fault

WIDTH = 128  # maximum line length when writing
DEEPEST = 50  # maximum nesting; libyaml itself is limited only by the stack of the process
LARGEST = 100_000  # values of a file, those counted again that an alias stands for
TEXT = "tag:yaml.org,2002:str"
BOTH = (  # tags of plain scalars: how both dialects write them, and their first characters
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
NEWER = re.compile(  # what ruamel.yaml, with which DVC reads YAML 1.2, takes for a number, or fails to
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+][0-9]+)?"
    r"|0b[01_]+|0o?[0-7_]+|(?<=[-+])[0-9_]+|0x[0-9a-fA-F_]+)$"
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
OURS = Reader("")


def read_file(path: Path) -> Any:
    """The tree of a YAML file. Raises UserError, with the line number, if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file; put one there")
        return read(path.read_text(encoding="utf-8"))
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
    if "\t" in text:  # which libyaml allows in more places than the engines' readers
        yaml.compose(text, Loader=yaml.SafeLoader)
    return Reader(text).get_single_data()


class Open:
    """A collection that is being read: its anchor, its keys so far (None for a list), whether a value comes next, and its size."""

    def __init__(self, anchor: str | None, keys: set[str] | None) -> None:
        self.anchor, self.keys, self.value_next, self.size = anchor, keys, False, 1


def demand_plain(text: str) -> None:
    """Raise yaml.MarkedYAMLError for what the two versions of YAML do not read alike, or what no program should read.

    That is: duplicate keys, tags, words that are something else in YAML 1.1, 1.2 or DVC's reader of 1.2, too deep nesting, aliases
    within themselves, and aliases of aliases that stand for very many values.
    """
    if found := re.search("[\x85\u2028\u2029]", text):
        mark = yaml.Mark("", 0, text.count("\n", 0, found.start()), 0, None, None)
        raise yaml.MarkedYAMLError(problem=f"{found[0]!a} ends a line in YAML 1.1 only; remove it", problem_mark=mark)
    older = yaml.SafeLoader("")
    sizes: dict[str, int] = {}  # of what an alias stands for
    around: list[Open] = [Open(None, None)]
    for event in yaml.parse(text, Loader=Reader):
        if isinstance(event, yaml.CollectionEndEvent):
            ended = around.pop()
            around[-1].size += ended.size
            if ended.anchor:
                sizes[ended.anchor] = ended.size
        if not isinstance(event, yaml.NodeEvent):
            continue
        inside, problem = around[-1], ""
        if isinstance(event, yaml.AliasEvent):
            inside.size += sizes.get(event.anchor, 1)
            if any(event.anchor == each.anchor for each in around):
                problem = f"*{event.anchor} stands for what it is in; write it without the alias"
        elif event.tag:
            problem = f"the tag {event.tag} is not supported; remove it"
        elif isinstance(event, yaml.ScalarEvent):
            inside.size += 1
            problem = ambiguous(event, older)
        if inside.keys is not None:
            if not inside.value_next and isinstance(event, yaml.ScalarEvent):
                if event.value in inside.keys:
                    problem = problem or f"the key '{event.value}' appears twice; remove one"
                inside.keys.add(event.value)
            inside.value_next = not inside.value_next
        if isinstance(event, yaml.CollectionStartEvent):
            if len(around) > DEEPEST:
                problem = problem or f"more than {DEEPEST} levels of nesting"
            around.append(Open(event.anchor, set() if isinstance(event, yaml.MappingStartEvent) else None))
        if inside.size > LARGEST:
            problem = problem or f"its aliases stand for more than {LARGEST:,} values; write fewer"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def ambiguous(event: Any, older: Any) -> str:
    """What is wrong with a scalar that is not the same in YAML 1.1, in 1.2 and to us; '' if nothing is. `older` reads 1.1."""
    if not event.implicit[0]:
        return ""
    word = event.value
    ours = OURS.resolve(yaml.ScalarNode, word, event.implicit)
    if ours == older.resolve(yaml.ScalarNode, word, event.implicit) and not (ours == TEXT and NEWER.match(word)):
        return ""
    way = "with a decimal point and a signed exponent, as in 1.0e-4" if re.match(r"[-+]?[\d.]+[eE]", word) else "in another way"
    return f"YAML 1.1 and 1.2 read {word} differently; write it {way}, or in quotes"


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
        parts = [f"<<: *{anchor}"] * (key in merging) + [f"{flow(name)}: {flow(value)}" for name, value in changed.items()]
        head = f"{flow(key)}: &{anchor}" if key == first and merging else f"{flow(key)}:"
        if max(map(len, parts)) > WIDTH:
            lines.append(head)
            for name, value in entry.items():
                field = compact({name: value}) if isinstance(value, dict) else [f"{flow(name)}: {flow(value)}"]
                lines += [f"  {line}" for line in field]
            continue
        lines.append(f"{head} {{{parts[0]}")
        for part in parts[1:]:
            together = f"{lines[-1]}, {part}"
            lines[-1:] = [together] if len(together) < WIDTH else [f"{lines[-1]},", f"  {part}"]
        lines[-1] += "}"
    return lines
