"""Write docs/keys.md: each key of params.yaml with its values, default and meaning, from the models and their comments."""

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from maskdit.config.params import READS, SELECTING
from maskdit.config.schema import text

PAGE = Path(__file__).parent / "keys.md"
FILES = ("benchmark", "claims", "evaluation", "images", "latents", "reporting", "sampling", "training", "expand")
HEAD = """# Keys of params.yaml

This page is made from the code by `make schema`. [params.md](params.md) says how to change a number. Each entry may also have
`revision` (a whole number, 1 if it is missing). It is raised when a change of code alters the results of that step. A key without
a default is required.
"""
FORMS = {"^[a-z0-9]+(-[a-z0-9]+)*$": "key", "^[0-9a-f]{64}$": "sha256", "^(https|file)://[!-~]+$": "URL"}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
HUGE = 2**62  # bounds beyond it are those of the file format
NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


def told(schema: dict[str, Any]) -> str:
    """The values that a key may have."""
    if "$ref" in schema:
        return f"see {title(schema['$ref'])}"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return " or ".join(dict.fromkeys(map(told, schema[name])))
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(map(told, schema['prefixItems']))}]"
        case "array":
            return f"list: {told(schema['items'])}"
        case "object":
            inner = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
            return "name: any" if inner is True else f"name: {told(inner)}"
        case "string":
            return FORMS.get(schema.get("pattern", ""), "text")
        case kind:
            bounds = [f"{word} {schema[name]}" for name, word in BOUNDS.items() if abs(schema.get(name, HUGE)) < HUGE]
            return " ".join([NAMES[str(kind)], *bounds])


def title(ref: str) -> str:
    """The name of a model, as its heading has it."""
    return ref.rsplit("/", 1)[-1].rsplit("__", 1)[-1]


def meanings() -> dict[str, dict[str, str]]:
    """By the name of each model in the schema: the comments behind its fields, those of its bases too."""
    found = {}
    for file in FILES:
        for name, model in inspect.getmembers(import_module(f"maskdit.config.{file}"), inspect.isclass):
            if model.__module__ == f"maskdit.config.{file}":
                told = {key: why for base in model.__mro__[::-1] if "maskdit" in base.__module__ for key, why in comments(base)}
                found[name] = found[f"maskdit__config__{file}__{name}"] = told
    found["Sample"] |= {
        "study": "the table that it may be a row of, or the sweep that it is a point of",
        "reference": "what it is measured against",
        "best_of": "the sweeps that chose its values",
    }
    for name in map(str.capitalize, SELECTING):
        found[name]["select"] = "the samples of its study that are shown; without it all"
    return found


def comments(model: type) -> Iterator[tuple[str, str]]:
    """The fields that a class declares, and the comment at the end of each line."""
    source = inspect.getsource(model)
    lines = source.splitlines()
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, lines[(node.end_lineno or 0) - 1].partition("  # ")[2]


def refs(schema: Any) -> Iterator[str]:
    """The models that a schema refers to, in their order."""
    if isinstance(schema, dict):
        yield from [schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else []
        for name, value in schema.items():
            yield from refs(value) if name != "discriminator" else []
    elif isinstance(schema, list):
        for value in schema:
            yield from refs(value)


def default(schema: dict[str, Any], key: str) -> str:
    """The default of a key as JSON; '' if it is required."""
    field = schema["properties"][key]
    return f"`{json.dumps(field['default'])}`" if "default" in field and key not in schema.get("required", ()) else ""


def described(schema: dict[str, Any], why: dict[str, str], named: dict[str, str]) -> Iterator[str]:
    """What a model is for and a table of its keys; `named`: the sections whose entries some of them name."""
    yield f"\n\n{schema['description']}\n\n| key | values | default | meaning |\n| --- | --- | --- | --- |\n"
    for key, field in schema["properties"].items():
        if key == "revision":
            continue
        section = named.get(key, "phase")  # of a sample's run, which is in one of several
        values = told(field) if section == "phase" else told(field).replace("key", f"key of `{section}`")
        usual = "" if key == "select" else default(schema, key)
        yield "| " + " | ".join((f"`{key}`", values, usual, why.get(key, ""))) + " |\n"


def page() -> str:
    """The whole page: each section, and below it the models that only it has, or that it has first."""
    tree, why, done = json.loads(text()), meanings(), set()
    parts = [HEAD]
    for section, field in tree["properties"].items():
        outer = list(dict.fromkeys(refs(field)))
        if len(outer) > 1:
            parts.append(f"\n## {section}\n\nOne of:\n")
        left = outer
        while left:
            for model in left:
                schema = tree["$defs"][model]
                kind = schema["properties"].get("source", {}).get("const")
                heading = section if outer == [model] else f"{section}, `source: {kind}`" if model in outer else title(model)
                parts.append(f"\n{'##' if outer == [model] else '###'} {heading}")
                parts += described(schema, why.get(model, {}), READS.get(section, {}) if model in outer else {})
            done |= {*left}
            left = list(dict.fromkeys(inner for model in left for inner in refs(tree["$defs"][model]) if inner not in done))
    return "".join(parts)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(page(), encoding="utf-8")
