"""The report as one HTML page without network access: all outside text is escaped, and only its own script runs."""

import base64
import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from maskdit.config.base import UserError

NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
NUMBERS = {"at", "quality", "reached", "ratio", "low", "high", "seconds", "device_hours", "tflop", "images", "images_per_second"}
NUMBERS |= {"memory_gb"}  # columns whose cells are numbers in every table
LONG = 44  # characters that fit in one line of a cell
HERE = Path(__file__).parent

Row = Mapping[str, str]


def rows_of(path: Path) -> list[dict[str, str]] | None:
    """The rows of a CSV file as text; None if it does not exist. Raises UserError for bytes that are no table."""
    if not path.exists():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, restval=""))
    except (UnicodeDecodeError, csv.Error):
        rows = [{}]
    for row in rows:
        numbers = [value for name, value in row.items() if name in NUMBERS and value and value != "inf"]
        if not row or None in row or not all(map(NUMBER.fullmatch, numbers)):  # None: more cells than columns
            raise UserError(f"{path}: damaged; delete it and rerun the step that makes it")
    return rows


def short(text: str) -> str:
    """A number with at most five significant digits; integers are unchanged."""
    if not re.search(r"[.eE]", text) or len(text.lstrip("-0.").replace(".", "")) <= 5:
        return text
    return f"{float(text):.5g}"


def cell(value: str) -> Markup:
    """The contents of a cell; a number is shortened and keeps its exact value as data."""
    if not isinstance(value, Markup) and NUMBER.fullmatch(value):
        return Markup('<data value="{}">{}</data>').format(value, short(value))
    return escape(value)


def allowed(text: str) -> Markup:
    """The source expression by which a content security policy allows an inline script or style."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")


TEMPLATES = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
TEMPLATES.filters |= {"allowed": allowed, "cell": cell}
PIECES: Any = TEMPLATES.get_template("pieces.html").module


def table(rows: Sequence[Row], caption: str, source: str = "") -> Markup:
    """Rows as a table that scrolls in its own box; `source` is the file that they come from.

    The first column names the rows. Empty columns are left out.
    """
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)]
    kinds = {}
    for name in columns[1:]:
        values = [row[name] for row in rows if row.get(name)]
        if any(len(value) > LONG for value in values if not isinstance(value, Markup)):
            kinds[name] = "long"
        elif all(NUMBER.fullmatch(value) for value in values):
            kinds[name] = "n"
    return PIECES.scrolled(caption, PIECES.table(rows, columns, kinds, caption, source))


def picture(path: Path, alt: str, caption: str) -> Markup:
    """A PNG inside the page, or a note that it does not exist."""
    if not path.exists():
        return PIECES.missing(path.name)
    return PIECES.figure(base64.b64encode(path.read_bytes()).decode(), alt, caption, path.name)


def page(title: str, study: str, sections: Mapping[str, str], data: Any) -> str:
    """The whole page. Its content security policy allows only its own script, style and embedded pictures."""
    style, script = ((HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    template = TEMPLATES.get_template("report.html")
    return template.render(title=title, study=study, sections=sections, data=data, style=style, script=script)
