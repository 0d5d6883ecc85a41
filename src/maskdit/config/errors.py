"""A mistake in params.yaml as one line: the key, what is wrong, what would be right."""

import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from maskdit.config.base import Section
from maskdit.config.images import Fetch
from maskdit.config.latents import DownloadedVae, Vae
from maskdit.config.training import Encoder, Transformer

SOURCES = {"train", "download", *(get_args(model.model_fields["source"].annotation)[0] for model in get_args(Fetch))}


def first(error: ValidationError, root: type[BaseModel]) -> str:
    """The first complaint of pydantic as one line: the key, what is wrong, what would be right."""
    errors = error.errors()
    first = min(errors, key=lambda each: each["type"] == "missing")  # a misspelt key says more than the one it leaves out
    place = _place(first["loc"])
    where = ".".join(str(part) for part in place)
    got = first.get("input")
    if first["type"] == "extra_forbidden":
        above, word = _place(first["loc"][:-1]), str(first["loc"][-1])
        return f"{'.'.join(map(str, [*above, word]))}: unknown key{nearest(word, _fields_at(above, root))}"
    if first["type"] == "missing":
        return f"{where}: missing"
    messages = [re.sub(r"^Value error, ", "", each["msg"]) for each in errors if _place(each["loc"]) == place]
    message = " or ".join(messages)
    if isinstance(got, str) and re.fullmatch(r"[\d.]+e[+-]?\d+", got, re.I):
        message += f"; YAML 1.1 reads {got} as text, write a point and a sign, as in 1.0e-4"
    if isinstance(got, str | int | float):
        message += f" (got {got!r})"
    return f"{where}: {' '.join(message.split())}"


def _place(loc: Iterable[int | str]) -> list[int | str]:
    """The keys of a location, without what pydantic adds for the alternatives of a type."""
    plain = [part for place, part in enumerate(loc) if not (place and re.match(r"\[key\]|constrained-|literal\[", str(part)))]
    return plain[:2] + plain[3:] if plain[:1] in (["vae"], ["fetch"]) and plain[2:3] and plain[2] in SOURCES else plain


def _fields_at(place: list[Any], root: type[BaseModel]) -> list[str]:
    """Names of the fields that the models know at a place such as ['pretrain', 'demo-dit', 'encoder']."""
    if not place:
        return list(root.model_fields)
    if len(place) > 2:
        parts: dict[Any, type[Section]] = {"encoder": Encoder, "decoder": Transformer}
        return list(parts.get(place[2], Section).model_fields)
    alternatives: dict[Any, tuple[type[Section], ...]] = {"vae": (Vae, DownloadedVae), "fetch": get_args(Fetch)}
    if place[0] in alternatives:
        return [name for model in alternatives[place[0]] for name in model.model_fields]
    entries = root.model_fields[place[0]].annotation
    return list(entries.__args__[1].model_fields) if entries else []


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like another, as the end of a complaint; all of them if none is."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(set(known))) or 'none'}"
