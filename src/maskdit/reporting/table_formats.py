"""Tables as CSV, Markdown and LaTeX."""

import re
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.atomic import replacing

NUMBER = re.compile(r"[-+]?[\d.]*%?( ±.*)?|not run")
ESCAPES = {sign: f"\\{sign}" for sign in "&%$#_{}"}
ESCAPES |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX = str.maketrans(ESCAPES)


def rounded(values: dict[str, Any], digits: int = 5) -> dict[str, Any]:
    """Floats to some significant digits and intervals as text; other values are unchanged."""
    shown = {name: " to ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    return {name: float(f"{value:.{digits}g}") if isinstance(value, float) else value for name, value in shown.items()}


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """Every cell as text; unknown values are empty."""
    return frame.astype(object).where(frame.notna(), "").astype(str).values.tolist()


def markdown(frame: pd.DataFrame, bold: Collection[tuple[int, int]] = ()) -> str:
    """A data frame as a Markdown table; `bold` lists cells as (row, column)."""
    rows = cells(frame)
    for row, place in bold:
        rows[row][place] = f"**{rows[row][place]}**"
    lines = [list(frame.columns), ["---"] * len(frame.columns), *rows]
    return "".join("| " + " | ".join(plain(cell) for cell in line) + " |\n" for line in lines)


def plain(text: str) -> str:
    """Text in one cell of Markdown, without effect as markup, except for the bold of `markdown`."""
    return escape(" ".join(text.split()), quote=False).replace("|", r"\|").replace("`", r"\`").replace("[", r"\[")


def latex(
    frame: pd.DataFrame, title: str, bold: Collection[tuple[int, int]], kinds: "pd.Series[Any]", notes: Sequence[str] = ()
) -> str:
    """A data frame as a LaTeX table in booktabs style with notes below it; `bold` lists cells as (row, column).

    Columns of numbers are right-aligned, and a rule separates rows whose `kinds` differ.
    """
    sides = ["r" if all(map(NUMBER.fullmatch, column)) else "l" for column in zip(*cells(frame), strict=True)]
    rows = [[cell.translate(LATEX) for cell in row] for row in cells(frame)]
    for number, place in bold:
        rows[number][place] = rf"\textbf{{{rows[number][place]}}}"
    lines = [" & ".join(name.translate(LATEX) for name in frame.columns) + r" \\"]
    for row, begins in zip(rows, kinds.ne(kinds.shift()), strict=True):  # the first row begins a kind, too
        lines += [r"\midrule"] * begins + [" & ".join(row) + r" \\"]
    body = [rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"]
    below = [rf"\par\footnotesize {note.translate(LATEX)}" for note in notes]
    return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{title.translate(LATEX)}}}", *body, *below, r"\end{table}", ""])


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """A data frame whose texts no spreadsheet takes for formulas: those that begin like one get a quotation mark before them."""

    def quoted(value: Any) -> Any:
        risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) and not NUMBER.fullmatch(value)
        return f"'{value}" if risky else value

    return frame.apply(lambda column: pd.Series([quoted(value) for value in column], column.index, column.dtype))


def write(frame: pd.DataFrame, title: str, out: Path, tex: str = "", table: str = "", notes: Sequence[str] = ()) -> None:
    """Write a data frame as CSV, its Markdown `table` (default: all of it) with title and notes, and its LaTeX text, if any."""
    below = "".join(f"\n{note}\n" for note in notes)
    texts = {".csv": inert(frame).to_csv(index=False), ".md": f"{title}\n\n{table or markdown(frame)}{below}"}
    if tex:
        texts[".tex"] = tex
    for suffix, text in texts.items():
        with replacing(out.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")
