"""YAML as 1.1 and 1.2 read it alike: against PyYAML, which Snakemake uses, and ruamel.yaml, which DVC uses."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from project import TOY, project, run

LETTERS = ["0", "1", "7", "8", "12", ".", "_", "e", "E", "+", "-", ":"]
LETTERS += ["0x", "0o", "0b", "f", "inf", "nan", "~", "true", "No", "on"]
WORDS = ["yes", "no", "null", "Null", "1e-4", "1.0e-4", "1.0e4", "010", "0o17", "12:30", "1_000", ".5", "-.5", "5.", ".inf", ".NaN"]
WORDS += ["2001-12-14", "=", "<<", "1.0e+400", "0b1", "TRUE", "False", "-0", "+1", "0.1_0", "y", "n", "off", "0x1F", "1 2"]


def scalars(count: int) -> list[str]:
    """Short words of what numbers are made of."""
    chance = random.Random(0)
    return WORDS + ["".join(chance.choices(LETTERS, k=chance.randint(1, 5))) for _ in range(count)]


def by_dvc(text: str) -> Any:
    """As DVC reads it."""
    return YAML(typ="safe", pure=True).load(text)


def test_what_is_no_text_here_is_the_same_in_both_dialects() -> None:
    seen: set[type] = set()
    for word in scalars(20_000):
        try:
            ours = yaml_subset.read(f"a: {word}")["a"]
        except (yaml.YAMLError, ValueError):
            continue
        if not isinstance(ours, str | dict):
            seen.add(type(ours))
            for read in (yaml.safe_load, by_dvc):
                theirs = read(f"a: {word}")["a"]
                assert (theirs, type(theirs)) == (ours, type(ours)), word
    assert seen == {bool, int, float, type(None)}


def test_what_is_accepted_is_the_same_in_both_dialects_text_too() -> None:
    words = scalars(4_000)
    accepted = 0
    for text in [f"a: {word}" for word in words] + [f"{word}: a" for word in words]:
        try:
            ours = yaml_subset.read(text)
        except (yaml.YAMLError, ValueError):
            continue
        accepted += 1
        assert repr(yaml.safe_load(text)) == repr(by_dvc(text)) == repr(ours), text
    assert accepted > 1000


def test_text_that_is_written_is_read_as_the_same_text_by_both() -> None:
    words = scalars(3_000)
    text = yaml_subset.write(words)
    assert yaml.safe_load(text) == words
    assert by_dvc(text) == words
    assert yaml_subset.read(text) == words


@pytest.mark.parametrize("value", [1e-5, 5e-324, 1e22, 123456.789, 0.1, -3.0, 10**30, True, None, [], {}, [[1], {"a": None}]])
def test_a_value_that_is_written_is_read_as_the_same_value_by_both(value: Any) -> None:
    text = yaml_subset.write({"a": value})
    for read in (yaml.safe_load, by_dvc, yaml_subset.read):
        found = read(text)["a"]
        assert (found, type(found)) == (value, type(value)), text


def test_the_files_that_are_shipped_are_read_as_both_read_them() -> None:
    for path in (TOY, TOY.parents[2] / "params.yaml"):
        text = path.read_text()
        assert yaml.safe_load(text) == by_dvc(text) == yaml_subset.read(text)


DEEP = [pytest.param(opening * 100_000, id=repr(opening)) for opening in ("[", "{a: ", "- ", "? ")]


@pytest.mark.parametrize("text", DEEP)
def test_what_is_nested_too_deeply_is_refused_and_breaks_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml: line 1: more than 50 levels of nesting"):
        yaml_subset.read_file(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' appears twice; remove one"),
        ("x:\n  lr: 1.0\n  lr: 2.0\n", "line 3: the key 'lr' appears twice"),
        ("- {k: 1, k: 2}\n", "line 1: the key 'k' appears twice"),
        ("a: [1\n", "line 2: did not find expected ',' or ']'"),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "line 1: the tag tag:yaml.org,2002:python/object/apply:os.system is not supported; remove it",
        ),
        ("a: !!bool maybe\n", "line 1: the tag tag:yaml.org,2002:bool is not supported; remove it"),
        ("a: =\n", "line 1: YAML 1.1 and 1.2 read = differently; write it in another way, or in quotes"),
        ("a: 1\nb: no\n", "line 2: YAML 1.1 and 1.2 read no differently"),
        ("a: {b: 010}\n", "line 1: YAML 1.1 and 1.2 read 010 differently"),
        ("on: 1\n", "line 1: YAML 1.1 and 1.2 read on differently"),
        ("a: 1e-4\n", "read 1e-4 differently; write it with a decimal point and a signed exponent, as in 1.0e-4, or in quotes"),
        ("a: 0o17\n", "line 1: YAML 1.1 and 1.2 read 0o17 differently; write it in another way, or in quotes"),
        ("12: 1\n1e5: 2\n", "line 2: YAML 1.1 and 1.2 read 1e5 differently"),
        ("b: 1\na:\t2\n", "line 2: found character '\\t' that cannot start any token"),
        ("b: 1\na: x\x85c: 2\n", "line 2: '\\x85' ends a line in YAML 1.1 only; remove it"),
        ("a: &a [*a]\n", "line 1: *a stands for what it is in; write it without the alias"),
        ("a: &a\n  b: {c: *a}\n", "line 2: *a stands for what it is in"),
        ("a: *nowhere\n", "line 1: found undefined alias"),
        ("a: \x00\n", "control characters are not allowed"),
        ("a: " + "9" * 5000 + "\n", "Exceeds the limit"),
        ("a: 1\n--- \nb: 2\n", "line 2: but found another document"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        yaml_subset.read_file(path)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("merged", ["{{<<: [{}]}}", "[{}]"], ids=["merges", "lists"])
def test_aliases_of_aliases_that_stand_for_too_much_are_refused_at_once(merged: str) -> None:
    lines = ["a: &a0 {x: 1}"]
    lines += [f"b{n}: &a{n + 1} {merged.format(', '.join([f'*a{n}'] * 9))}" for n in range(12)]
    began = time.monotonic()
    with pytest.raises(yaml.MarkedYAMLError, match="its aliases stand for more than 100,000 values; write fewer"):
        yaml_subset.read("\n".join(lines))
    assert time.monotonic() - began < 1


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"params\.yaml: not a file"):
        yaml_subset.read_file(tmp_path / "params.yaml")


def test_a_mark_of_bytes_at_the_start_and_letters_of_any_alphabet_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("\ufeffa: Größe 猫\r\n".encode())
    assert yaml_subset.read_file(tmp_path / "x.yaml") == {"a": "Größe 猫"}


def test_keys_that_a_merge_brings_may_be_typed_again() -> None:
    assert yaml_subset.read("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {x: 4, <<: *a}\n")["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("text", ["", "- a list\n", "a: [\n", "\xff"], ids=["empty", "list", "cut", "latin"])
def test_snakemake_tells_what_is_wrong_with_a_file_in_the_commands_words(text: str, tmp_path: Path) -> None:
    where = project(tmp_path)
    (where / "params.yaml").write_bytes(text.encode("latin-1"))
    code, said = run(where, "maskdit", "check")
    assert code == 2
    assert said.removeprefix("maskdit: ").strip() in run(where, "snakemake", "--dry-run")[1]


def test_a_target_that_no_entry_makes_is_told_with_the_entries_that_there_are(tmp_path: Path) -> None:
    code, said = run(project(tmp_path), "snakemake", "--dry-run", ".scratch/made/fetch/nope")
    assert code != 0
    assert "params.yaml: fetch has no entry 'nope'; known: demo, demo-features" in said
