"""How a table is written: CSV for programs, Markdown for the web, LaTeX for a paper."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from maskdit.artifacts.atomic import replacing

ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """Every cell as text; what is not known is empty."""
    return frame.astype(object).where(frame.notna(), "").astype(str).values.tolist()


def markdown(frame: pd.DataFrame, bold: Collection[tuple[int, int]] = ()) -> str:
    """A data frame as a Markdown table; `bold` are cells."""
    rows = cells(frame)
    for row, place in bold:
        rows[row][place] = f"**{rows[row][place]}**"
    lines = [list(frame.columns), ["---"] * len(frame.columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def escaped(text: str) -> str:
    """Text as LaTeX prints it: what is a command there is escaped."""
    return "".join(ESCAPES.get(sign, sign) for sign in text)


def latex(frame: pd.DataFrame, title: str, bold: Collection[tuple[int, int]], rules: Sequence[int] = ()) -> str:
    """A data frame as a LaTeX table of booktabs; `bold` are cells, and a rule stands above each row of `rules`.

    Columns of numbers are set to the right.
    """
    rows = cells(frame)
    plain = [all(re.fullmatch(r"[-+]?[\d.]*%?( ±.*)?|not run", row[place]) for row in rows) for place in range(len(frame.columns))]
    sides = "".join("r" if numbers else "l" for numbers in plain)
    lines = []
    for number, row in enumerate(rows):
        shown = [rf"\textbf{{{escaped(cell)}}}" if (number, place) in bold else escaped(cell) for place, cell in enumerate(row)]
        lines += [r"\midrule"] * (number in rules) + [" & ".join(shown) + r" \\"]
    head = " & ".join(escaped(str(name)) for name in frame.columns) + r" \\"
    body = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{escaped(title)}}}", *body, r"\end{table}", ""])


def write(frame: pd.DataFrame, title: str, out: Path, tex: str = "", table: str = "") -> None:
    """A data frame as CSV, and with its title as Markdown beside it: as `table`, or all of it; and `tex` as the LaTeX twin."""
    texts: dict[str, Any] = {".csv": frame.to_csv(index=False), ".md": f"{title}\n\n{table or markdown(frame)}"}
    if tex:
        texts[".tex"] = tex
    for suffix, text in texts.items():
        with replacing(out.with_suffix(suffix)) as temporary:
            temporary.write_text(text)
