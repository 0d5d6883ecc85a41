"""The pages: each link leads somewhere, each command exists, and each block of Python is Python."""

import ast
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

import maskdit
from maskdit.artifacts.step import STEPS
from maskdit.cli import OTHERS, parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path) -> list[tuple[str, str]]:
    """The language and text of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title).lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def problem(command: str) -> str:
    """What is wrong with a command of this project, which may have placeholders; '' for nothing, and for others."""
    words = [word.strip("[]") for word in shlex.split(command, comments=True)]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    match words:
        case ["make", *targets]:
            unknown = [word for word in targets if "=" not in word and not word.startswith("-") and word not in MAKE]
            return f"make has no target {unknown[0]}" if unknown else ""
        case ["python", script, *_] if script.endswith(".py"):
            return "" if (ROOT / script).is_file() else f"no {script}"
        case ["maskdit", verb, *rest]:
            if verb.startswith("-") or verb.isupper():
                return "" if verb in (*parser("check")._option_string_actions, "VERB") else f"maskdit has no {verb}"
            if verb not in (*STEPS, *OTHERS):
                return f"maskdit has no {verb}"
            [choices] = [action.choices for action in parser(verb)._actions if action.choices and verb in action.choices]
            known = choices[verb]._option_string_actions
            return next(
                (f"maskdit {verb} has no {word}" for word in rest if word[:2] == "--" and word.split("=")[0] not in known), ""
            )
    return ""


def commands(page: Path) -> list[str]:
    """The commands of a page: lines of its blocks, and what stands in backticks."""
    lines = [
        line
        for language, text in fences(page)
        if language in ("text", "sh", "bash")
        for line in text.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`((?:make|maskdit|python) [^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S))
    parts = [part.strip() for line in lines for part in re.split(r"&&|;|\|| > ", line.split(" #")[0].replace("\\|", " "))]
    return [part for part in parts if re.match(r"([A-Z_]+=\S* )*(make|maskdit|python) ", part) and "…" not in part]


@named
def test_each_link_leads_to_a_file_and_to_an_anchor_in_it(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@named
def test_each_command_has_a_verb_and_options_that_exist(page: Path) -> None:
    assert [told for command in commands(page) if (told := problem(command))] == []


@named
def test_each_block_of_python_is_python_and_imports_what_is_exported(page: Path) -> None:
    for language, text in fences(page):
        if language == "python":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and node.module == "maskdit":
                    assert {name.name for name in node.names} <= set(maskdit.__all__)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("maskdit smaple KEY", "maskdit has no smaple"),
        ("maskdit draw RUN --colour 3", "maskdit draw has no --colour"),
        ("make dmeo", "make has no target dmeo"),
        ("python examples/no.py", "no examples/no.py"),
        ("maskdit --versoin", "maskdit has no --versoin"),
    ],
)
def test_a_planted_mistake_is_found(command: str, said: str) -> None:
    assert problem(command) == said


def test_the_commands_that_are_checked_are_many() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 80
