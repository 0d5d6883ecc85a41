"""The first screen of the report, which answers whether masking pays here."""

from collections import Counter
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from maskdit.config.params import Params
from maskdit.config.reporting import Report
from maskdit.reporting.report.page import items, picture, rows_of


def summary(params: Params, config: Report, bench: str, points: dict[str, Any], results: Path) -> str:
    """Does masking pay here? A sentence, four numbers, the curves, samples through training, and the verdicts by their count."""
    crossings = rows_of(results / f"curves_{bench}_crossing.csv") or []
    timed = [row for row in crossings if row.get("axis") == points["hours"][0]]
    trainings = rows_of(results / f"efficiency_{bench}.csv") or []
    caption = f"{points['quality'] or 'Quality'} against device-hours; the points are in the section Curves"
    parts = [f'<p class="verdict">{escape(answer(timed))}</p>', cards(trainings, timed, points)]
    parts.append(picture(results / f"curves_{bench}.png", caption, caption))
    parts.append(through_training(results, bench) if bench in params.strip else "")
    judged = rows_of(results / f"{config.ledger}.csv")
    if judged is None:
        inside = (
            f"<span>{escape(what)}</span><strong>{escape(value)}</strong><span>{escape(note)}</span>" for what, value, note in shown
        )
    return f'<ul class="cards">{"".join(f"<li>{line}</li>" for line in inside)}</ul>'


def through_training(results: Path, bench: str) -> str:
    """One noise and class at each milestone."""
    caption = "Samples through training: each row begins with one noise and class, and each column is a milestone in training steps"
    alt = f"{caption}; the rows of a noise stand together, one a model"
    return picture(results / f"strip_{bench}.png", alt, caption)
