"""What all figures share: colours, axes by their data, titles that fit, and files with the same bytes on each run."""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from maskdit.artifacts.atomic import replacing
from maskdit.artifacts.provenance import stamp
from maskdit.methods.dit import Dit
from maskdit.methods.maskdit import MaskDit

mpl.rcdefaults()  # a matplotlibrc in the folder does not count
COLOURS = {Dit.name: "#555555", MaskDit.name: "#c0392b"}
LETTERS_PER_INCH = 9  # of text at 12 points, the size of titles
THOUSANDS = EngFormatter(sep="")
SUBDIVISIONS = {0.6: (1, 1.5, 2, 3, 4, 6, 8), 1.5: (1, 2, 5), 3.0: (1, 3)}  # decades at most -> ticks in each of them


def wide(values: Iterable[float]) -> bool:
    """Whether values are positive and span more than a decade."""
    low, high = ends(values)
    return low > 0 and high / low > 10


def ends(values: Iterable[float]) -> tuple[float, float]:
    """The least and the largest of the known values."""
    known = [value for value in values if math.isfinite(value)]
    return min(known), max(known)


def scaled(axis: Any, values: Iterable[float], logarithmic: bool, whole: bool = False, brief: bool = False) -> None:
    """Scale an axis, and set a few ticks by its values.

    logarithmic: as far as the values are positive and differ. whole: ticks at integers only. brief: k, M and G for thousands.
    """
    low, high = ends(values)
    if logarithmic and 0 < low < high:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        decades = math.log10(high / low)
        axis.set_major_locator(LogLocator(subs=next((subs for most, subs in SUBDIVISIONS.items() if decades <= most), (1,))))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: THOUSANDS(value) if brief and value >= 1000 else f"{value:,.10g}")


def literal(text: str) -> str:
    """Text that Matplotlib draws as it is, without mathematics between dollar signs; bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("$", r"\$")


def fitted(title: str, inches: float) -> str:
    """A title in lines that fit into a width, as far as its words do."""
    return textwrap.fill(literal(title), max(1, round(LETTERS_PER_INCH * inches)), break_long_words=False, break_on_hyphens=False)


def save(figure: Figure, out: Path, *suffixes: str, mark: str = "", **options: Any) -> None:
    """Write a figure next to `out` with each suffix: the same figure has the same bytes. mark: a line for its metadata."""
    for suffix in suffixes:
        told = {"Date": None} if suffix == ".svg" else None
        with replacing(out.with_suffix(suffix)) as temporary, mpl.rc_context({"svg.hashsalt": "maskdit"}):
            figure.savefig(temporary, format=suffix[1:], metadata=told, **options)
            if mark:
                stamp(temporary, mark, suffix)
