"""Pieces of a page that needs no network: everything that comes from outside is escaped, and nothing is run but one script."""

import base64
import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from math import log
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
LONG = 44  # characters that a cell holds in one line
HERE = Path(__file__).parent


class Html(str):
    """Markup that is inserted as it is."""


Row = Mapping[str, str]


def rows_of(path: Path) -> list[dict[str, str]] | None:
    """The rows of a CSV file as text; None where there is no such file."""
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        return [{str(name): value or "" for name, value in row.items()} for row in csv.DictReader(stream)]


def short(text: str) -> str:
    """A number with at most five significant digits; whole numbers as they are."""
    if not re.search(r"[.eE]", text) or len(text.lstrip("-0.").replace(".", "")) <= 5:
        return text
    return f"{float(text):.5g}"


def cell(value: str) -> str:
    """What stands in a cell: a number with its exact value beside it."""
    if isinstance(value, Html):
        return value
    if NUMBER.fullmatch(value):
        return f'<data value="{value}">{short(value)}</data>'
    return escape(value)


def plain(row: Row, name: str) -> bool:
    """Whether a cell holds text, no markup."""
    return not isinstance(row.get(name), Html)


def table(rows: Sequence[Row], caption: str, source: str = "") -> str:
    """Rows as a table that scrolls in its own box; `source` is the file that they are from.

    The first column names the rows; columns without any value are left out.
    """
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)]
    numeric = {
        name for name in columns if all(NUMBER.fullmatch(row.get(name, "")) for row in rows if row.get(name)) and name != columns[0]
    }
    kinds = dict.fromkeys(numeric, " class=n")
    kinds |= {name: " class=long" for name in columns[1:] if any(len(row.get(name, "")) > LONG for row in rows if plain(row, name))}
    lines = []
    for row in rows:
        absent = "not run" in row.values()
        cells = [f'<th scope="row">{cell(row.get(name, ""))}</th>' for name in columns[:1]]
        cells += [f"<td{kinds.get(name, '')}>{cell(row.get(name, ''))}</td>" for name in columns[1:]]
        lines.append(f"<tr{' class=absent' if absent else ''}>{''.join(cells)}</tr>")
    heads = "".join(f'<th scope="col"{" class=n" if name in numeric else ""}>{escape(name)}</th>' for name in columns)
    where = f' <span class="source">{escape(source)}</span>' if source else ""
    file = f' data-file="{escape(source)}"' if source else ""
    head = f"<caption><span>{escape(caption)}{where}</span></caption><thead><tr>{heads}</tr></thead>"
    return scrolled(caption, f"<table{file}>{head}<tbody>{''.join(lines)}</tbody></table>")


def scrolled(name: str, inside: str) -> str:
    """Something wide, in a box that scrolls by itself, by keys, too."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name)}">{inside}</div>'


def picture(path: Path, alt: str, caption: str) -> str:
    """A PNG inside the page; a line that says so where there is none."""
    if not path.exists():
        return missing(path)
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
    below = f"<figcaption>{escape(caption)} <span class=source>{escape(path.name)}</span></figcaption>"
    return f"<figure>{scrolled(caption, image)}{below}</figure>"


def missing(path: Path) -> str:
    """What is said of a file that is not there."""
    return f'<p class="absent">not run: {escape(path.name)} is not there</p>'


def folded(summary: str, inside: str) -> str:
    """Something to unfold."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def items(lines: Sequence[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{line if isinstance(line, Html) else escape(line)}</li>' for line in lines)}</ul>"


def waterfall(rows: Sequence[Row], caption: str) -> str:
    """Bars of factors that multiply, as SVG: each begins where the one before ended, on a logarithmic axis."""
    ends, reached = [], 1.0
    for row in rows:
        first = 1.0 if row["step"] == "all together" else reached
        reached = first * float(row["ratio"])
        ends.append((first, reached))
    low, high = (log(edge(value for pair in ends for value in pair)) for edge in (min, max))
    parts = []
    for place, (row, pair) in enumerate(zip(rows, ends, strict=True)):
        left, right = ((log(value) - low) / (high - low or 1) * 80 for value in sorted(pair))  # % of the width
        kind, y = "whole" if row["step"] == "all together" else "bar", place * 42
        parts.append(f'<text y="{y + 12}">{escape(row["step"])}</text>')
        parts.append(f'<rect class="{kind}" x="{left:.2f}%" y="{y + 18}" width="{max(0.4, right - left):.2f}%" height="16"/>')
        parts.append(f'<text x="{right:.2f}%" dx="6" y="{y + 31}">x {short(row["ratio"])}</text>')
    told = "; ".join(f"{row['step']} x {short(row['ratio'])}" for row in rows)
    label = f"{escape(caption)}: {escape(told)}"
    return f'<svg class="waterfall" role="img" aria-label="{label}" width="100%" height="{42 * len(rows)}">{"".join(parts)}</svg>'


def allowed(text: str) -> str:
    """The hash by which a policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(title: str, contents: str, data: Any) -> str:
    """The whole page: its policy allows its own script and style and pictures inside it, and no address."""
    style, script = ((HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {allowed(style)}; script-src {allowed(script)}; base-uri 'none'"
    parts = {
        "policy": policy,
        "title": escape(title),
        "style": style,
        "contents": contents,
        "data": json.dumps(data).replace("<", "\\u003c"),
        "script": script,
    }
    return re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], (HERE / "report.html").read_text(encoding="utf-8"))
