"""Error messages for mistakes in params.yaml and for files that cannot be used: one line with what is wrong and what to do."""

import difflib
import errno
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from stat import filemode
from typing import Any

from pydantic import BaseModel, ValidationError

SCHEMA = cache(lambda model: model.model_json_schema())

MANY = 20  # known words that an error message lists


def first(error: ValidationError, root: type[BaseModel]) -> str:
    """The first of pydantic's errors as one line: the key, what is wrong, and what would be right."""
    schema, errors = SCHEMA(root), error.errors()
    first = min(errors, key=lambda each: each["type"] == "missing")  # a misspelt key is reported before the key that it replaces
    place, _ = _walk(first["loc"], schema)
    where, got = ".".join(map(str, place)), first["input"]
    if first["type"] == "extra_forbidden":
        *above, word = first["loc"]
        place, fields = _walk(above, schema)
        return f"{'.'.join(map(str, [*place, word]))}: unknown key{nearest(str(word), fields)}"
    if first["type"] == "missing":
        return f"{where}: missing"
    message = " or ".join(each["msg"].removeprefix("Value error, ") for each in errors if _walk(each["loc"], schema)[0] == place)
    if isinstance(got, str) and re.fullmatch(r"[\d.]+e[+-]?\d+", got, re.I):
        message += f"; YAML 1.1 reads {got} as text, so write a decimal point and a signed exponent, as in 1.0e-4"
    if isinstance(got, str | int | float):
        message += f" (got {got!r})"
    return f"{where}: {' '.join(message.split())}"


def _walk(loc: Iterable[int | str], schema: dict[str, Any]) -> tuple[list[int | str], list[str]]:
    """The keys of a pydantic location, without the parts that stand for alternatives of a type, and the fields known there."""
    place: list[int | str] = []
    here = schema
    for part in loc:
        if part in (models := here.get("discriminator", {}).get("mapping", {})):
            here = {"$ref": models[part]}
        elif part in here.get("properties", {}):
            here = here["properties"][part]
            place.append(part)
        elif "properties" not in here and here.get("type") in ("object", "array"):
            [here] = here.get("patternProperties", {}).values() or [here.get("additionalProperties") or here.get("items", {})]
            place.append(part)
        else:
            break
        here = here.get("anyOf", [here])[0]
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].removeprefix("#/$defs/")]
    return place, list(here.get("properties", ()))


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known word most similar to `word`, or the known words if none is similar."""
    words = sorted(set(known))
    if near := difflib.get_close_matches(word, words, n=1, cutoff=0.5):
        return f"; did you mean '{near[0]}'?"
    more = f" and {len(words) - MANY} more" if len(words) > MANY else ""
    return f"; known: {', '.join(words[:MANY]) or 'none'}{more}"


def fault(error: OSError, otherwise: str = "correct that, then run the command again") -> str:
    """What is wrong with the path of an error of the file system, and what to do; `otherwise` if only its own words are known."""
    told = error.strerror or str(error)
    if not isinstance(error.filename, str):
        return told
    path = Path(error.filename)
    denied = error.errno in (errno.EACCES, errno.EPERM)
    for each in (*reversed(path.parents), path):
        if each.is_symlink() and not each.exists():
            return f"{each} is a link to {each.readlink()}, which does not exist; restore that, or remove the link"
        if each.is_file() and (each != path or error.errno in (errno.EEXIST, errno.ENOTDIR)):
            return f"{each} is a file where a folder is needed; move it away"
        wanted = (os.R_OK | os.W_OK) * (each == path) | os.X_OK * each.is_dir()
        if denied and each.exists() and not os.access(each, wanted):
            return f"{told}: {access(each)}"
    if denied and path.parent.exists():
        return f"{told}: {access(path.parent)}"
    if error.errno == errno.EISDIR:
        return f"{path} is a folder where a file is needed; move it away"
    return f"{told}; {otherwise}"


def access(path: Path) -> str:
    """Whose a file or folder is, its mode, and how to get access to it."""
    status = path.stat()
    if status.st_uid == os.getuid():
        return f"{path} is yours and has mode {filemode(status.st_mode)}; run chmod u+rwX {path}"
    try:
        owner = path.owner()
    except KeyError:  # of a container, or removed
        owner = f"number {status.st_uid}"
    return f"{path} belongs to user {owner} and has mode {filemode(status.st_mode)}; ask for access, or use a folder of your own"
